"""golden/quant: its schema, its bytes again, arithmetic by hand, and what refllm answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from operator import itemgetter
from typing import Any, TypeAlias

import gguf
import numpy as np
import pytest

from refllm.quant import FORMATS
from tests.conftest import PROJECT
from tools import golden_quant
from tools.golden_quant import DisagreementError, answer, as_c_prints, document
from tools.golden_quant_blocks import Question

Case: TypeAlias = Mapping[str, Any]

FOLDER = PROJECT / "golden" / "quant"
README = (FOLDER / "README.md").read_text("utf-8")
TEXT = (FOLDER / "cases.json").read_text("ascii")
GOLDEN = json.loads(TEXT)
CASES = GOLDEN["cases"]
BY_ID: Mapping[str, Case] = {case["id"]: case for case in CASES}

# Rows interleaved for one kind of CPU; withdrawn from ggml, but older gguf packages list them.
WITHDRAWN = {"Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8"}
MISSING = {case["input"]["format"] for case in CASES} - set(FORMATS)
needs_every_format = pytest.mark.skipif(
    bool(MISSING), reason=f"the installed gguf package does not know {', '.join(sorted(MISSING))}"
)


def values_of(case: Case) -> list[float]:
    return [float.fromhex(value) for value in case["expected"]["values"]]


def bytes_of(case: Case) -> bytes:
    return bytes.fromhex(case["input"]["bytes"])


# The file


@needs_every_format
def test_the_tool_writes_the_same_bytes_again() -> None:
    assert document() == TEXT


def test_every_rule_of_the_readme_has_a_case_and_every_case_a_rule() -> None:
    assert {row[0] for row in table("clause")} == {case["clause"] for case in CASES}


def test_every_format_that_refllm_decodes_has_three_blocks_at_least() -> None:
    blocks = dict.fromkeys(set(FORMATS) - WITHDRAWN, 0)
    for case in CASES:
        form = case["input"]["format"]
        if form in FORMATS:
            blocks[form] += len(bytes_of(case)) // FORMATS[form].block_bytes
    assert min(blocks.values()) >= 3, blocks


@pytest.mark.parametrize("case", CASES, ids=itemgetter("id"))
def test_a_case_has_as_many_values_as_its_blocks(case: Case) -> None:
    assert len(case["expected"]["values"]) == case["input"]["n"]


@pytest.mark.parametrize(
    ("x", "printed"),
    [
        (3.0, "0x1.8p+1"),
        (1.0, "0x1p+0"),
        (-0.0, "-0x0p+0"),
        (2.0**-149, "0x1p-149"),
        (0.1, "0x1.999999999999ap-4"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
    ],
)
def test_a_number_is_printed_as_c_prints_it(x: float, printed: str) -> None:
    assert as_c_prints(x) == printed


# refllm, the gguf package, and a tool that notices where they part


@pytest.mark.parametrize("case", CASES, ids=itemgetter("id"))
def test_refllm_decodes_the_golden_bits(case: Case) -> None:
    form = case["input"]["format"]
    if form in MISSING:
        pytest.skip(f"the installed gguf package does not know {form}")
    data = np.frombuffer(bytes_of(case), np.uint8)
    decoded = FORMATS[form].decode(data[None])[0]
    assert [as_c_prints(float(value)) for value in decoded] == case["expected"]["values"]


def test_the_tool_refuses_where_two_decoders_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_more(data: Any, _: object) -> Any:
        return FORMATS["Q8_0"].decode(data) + np.float32(1)

    monkeypatch.setattr(gguf.quants, "dequantize", one_more)
    question = Question("off-by-one", "Nothing.", "blocks", "Q8_0", bytes(34))
    with pytest.raises(DisagreementError, match=r"q8_0-off-by-one: value 0 is .* by refllm"):
        answer(question)


def test_a_zero_of_the_other_sign_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_quant, "WITHOUT_GGUF", {"Q8_0": lambda _: [-0.0] * 32})
    with pytest.raises(DisagreementError, match=r"is -0x0"):
        answer(Question("sign", "Nothing.", "scales", "Q8_0", bytes(34)))


# Arithmetic by hand: whole numbers and fractions, nothing of NumPy or refllm


def half(data: bytes) -> Fraction:
    """A finite float16: 1 bit of sign, 5 of exponent, 10 of fraction."""
    bits = data[0] | data[1] << 8
    exponent, fraction = bits >> 10 & 31, bits & 1023
    assert exponent != 31
    magnitude = (
        Fraction(1024 + fraction, 1024) * Fraction(2) ** (exponent - 15)
        if exponent
        else Fraction(fraction, 1024) * Fraction(2) ** -14
    )
    return -magnitude if bits >> 15 else magnitude


def q4_0_by_hand(block: bytes) -> list[Fraction]:
    d, q = half(block), block[2:]
    return [d * ((q[j] & 15) - 8) for j in range(16)] + [d * ((q[j] >> 4) - 8) for j in range(16)]


def q8_0_by_hand(block: bytes) -> list[Fraction]:
    return [half(block) * (q - 256 if q > 127 else q) for q in block[2:]]


def q4_k_scales_by_hand(a: bytes) -> list[tuple[int, int]]:
    """(sc, mn) of each sub-block."""
    first = [(a[i] & 63, a[4 + i] & 63) for i in range(4)]
    last = [
        ((a[i] >> 6) * 16 + (a[8 + i] & 15), (a[4 + i] >> 6) * 16 + (a[8 + i] >> 4))
        for i in range(4)
    ]
    return first + last


def q4_k_by_hand(block: bytes) -> list[Fraction]:
    d, dmin, q = half(block), half(block[2:]), block[16:]
    return [
        (d * sc) * (q[32 * (s // 2) + j] >> 4 * (s % 2) & 15) - dmin * mn
        for s, (sc, mn) in enumerate(q4_k_scales_by_hand(block[4:16]))
        for j in range(32)
    ]


BY_HAND: Mapping[str, Callable[[bytes], list[Fraction]]] = {
    "Q4_0": q4_0_by_hand,
    "Q8_0": q8_0_by_hand,
    "Q4_K": q4_k_by_hand,
}
BLOCK_BYTES = {"Q4_0": 18, "Q8_0": 34, "Q4_K": 144}


def rounded_once(x: Fraction) -> Fraction:
    """The nearest float32; no exact value here needs more than float64's 53 bits."""
    assert Fraction(float(x)) == x
    return Fraction(float(np.float32(float(x))))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["input"]["format"] in BY_HAND], ids=itemgetter("id")
)
def test_fractions_give_the_golden_values(case: Case) -> None:
    form, data = case["input"]["format"], bytes_of(case)
    size = BLOCK_BYTES[form]
    exact = [
        value for at in range(0, len(data), size) for value in BY_HAND[form](data[at : at + size])
    ]
    assert [rounded_once(value) for value in exact] == [Fraction(v) for v in values_of(case)]


# What the README works out


def section(title: str) -> str:
    return README.split(f"### {title}\n")[1].split("\n### ")[0]


def table(first: str, text: str = README) -> Iterator[list[str]]:
    """The cells of the rows of the table whose first column has that title."""
    rows = text.split(f"\n| {first} |")[1].split("\n\n", maxsplit=1)[0].splitlines()[2:]
    return (
        [cell.strip().replace("−", "-") for cell in row.strip().strip("|").split("|")]
        for row in rows
    )


def worked(cell: str) -> Fraction:
    """The number right of the last "=", or the only one."""
    return Fraction(cell.rsplit("=", maxsplit=1)[-1].strip())


def by_hand(form: str) -> Case:
    return BY_ID[f"quant/{form.lower()}-worked-by-hand"]


@pytest.mark.parametrize(("form", "times"), [("Q4_0", 1), ("Q8_0", 1), ("Q4_K", 8)])
def test_the_readme_shows_the_bytes_of_the_block(form: str, times: int) -> None:
    lines = re.findall(r"^    ((?:[0-9a-f]{2} ?)+)", section(form), re.MULTILINE)
    shown = "".join([*lines[:-1], lines[-1] * times])
    assert bytes.fromhex(shown) == bytes_of(by_hand(form))


def test_the_readme_works_out_the_q4_0_block() -> None:
    data, values = bytes_of(by_hand("Q4_0")), values_of(by_hand("Q4_0"))
    rows = list(table("j", section("Q4_0")))
    assert len(rows) == 16
    for j, row in enumerate(rows):
        low, high = data[2 + j] & 15, data[2 + j] >> 4
        assert row[:2] == [str(j), f"{data[2 + j]:02x}"]
        assert row[2:5:2] == [str(low), str(high)]
        for cell, nibble, value in ((row[3], low, values[j]), (row[5], high, values[j + 16])):
            assert cell.startswith(f"0.5 × ({nibble} - 8) = ")
            assert worked(cell) == Fraction(1, 2) * (nibble - 8) == Fraction(value)


def test_the_readme_works_out_the_q8_0_block() -> None:
    data, values = bytes_of(by_hand("Q8_0")), values_of(by_hand("Q8_0"))
    rows = list(table("j", section("Q8_0")))
    assert len(rows) == 32
    for j, row in enumerate(rows):
        q = int(row[2])
        assert row[:2] == [str(j), f"{data[2 + j]:02x}"]
        assert q % 256 == data[2 + j]
        assert row[3].startswith(f"-0.25 × {q} = ")
        assert worked(row[3]) == Fraction(-1, 4) * q == Fraction(values[j])


def test_the_readme_unpacks_the_scales_of_the_q4_k_block() -> None:
    a = bytes_of(by_hand("Q4_K"))[4:16]
    rows = list(table("i", section("Q4_K")))
    assert len(rows) == 12
    for i, row in enumerate(rows):
        bits = 6 if i < 8 else 4
        upper, lower = (int(re.split(r"\D", cell)[0]) for cell in row[3:])
        assert row[:2] == [str(i), f"{a[i]:02x}"]
        assert row[2] == f"{a[i] >> bits:0{8 - bits}b} {a[i] & 2**bits - 1:0{bits}b}"
        assert (upper, lower) == (a[i] >> bits, a[i] & 2**bits - 1)


def test_the_readme_works_out_the_q4_k_block() -> None:
    case = by_hand("Q4_K")
    data, values = bytes_of(case), [Fraction(value) for value in values_of(case)]
    rows = list(table("s", section("Q4_K")))
    scales = q4_k_scales_by_hand(data[4:16])
    assert len(rows) == 8
    for s, (row, (sc, mn)) in enumerate(zip(rows, scales, strict=True)):
        assert [worked(cell) for cell in row[:5]] == [s, sc, mn, 2 * sc, Fraction(mn, 2)]
        for cell, nibble in zip(row[5:], (0, 1, 15), strict=True):
            j = 15 - nibble if s % 2 else nibble
            assert worked(cell) == 2 * sc * nibble - Fraction(mn, 2) == values[32 * s + j]


def test_the_readme_places_single_values_of_the_q4_k_block() -> None:
    values = values_of(by_hand("Q4_K"))
    placed = re.findall(r"y\[(\d+)\] = (−?[\d.]*\d)", section("Q4_K"))
    assert len(placed) == 7
    for place, value in placed:
        assert values[int(place)] == float(value.replace("−", "-"))
