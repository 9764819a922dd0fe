"""Formats against the gguf package, NumPy and arithmetic by hand: every bit must agree."""

from __future__ import annotations

import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import refllm
from refllm.api import LlmRuntimeError
from refllm.ggml.format import f16_to_f32
from refllm.quant import FORMATS, Tensor
from tests.conftest import HUNG_SECONDS

# Where a block of each handwritten format keeps its float16 scales.
SCALES_AT = {
    "F16": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
EDGE_SCALES = {
    "zero": 0x0000,
    "negative-zero": 0x8000,
    "smallest-subnormal": 0x0001,
    "largest-subnormal": 0x03FF,
    "negative-subnormal": 0x8155,
    "smallest-normal": 0x0400,
    "largest-finite": 0x7BFF,
    "most-negative": 0xFBFF,
    "infinite": 0x7C00,
    "negative-infinite": 0xFC00,
    "quiet-nan": 0x7E00,
    "signaling-nan": 0x7D01,
}
HANDWRITTEN = (*SCALES_AT, "BF16")
# Rows interleaved for one kind of CPU; withdrawn from ggml, but gguf before 0.11 lists them.
WITHDRAWN = {"Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8"}
KNOWN_TO_GGUF = [form.name for form in gguf.GGMLQuantizationType if form.name not in WITHDRAWN]


def random_blocks(name: str, n: int) -> NDArray[np.uint8]:
    shape = (n, FORMATS[name].block_bytes)
    return np.random.default_rng(20).integers(0, 256, shape, dtype=np.uint8)


def random_tensor(name: str, n_rows: int = 5, blocks_per_row: int = 3) -> Tensor:
    form = FORMATS[name]
    data = random_blocks(name, n_rows * blocks_per_row).reshape(n_rows, -1)
    return Tensor("blk.0.ffn_up.weight", form, (n_rows, blocks_per_row * form.block_size), data)


def decoded_by_gguf(name: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # infinite scales are what some tests are about
        values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    return np.asarray(values, np.float32)


def gguf_can_decode(name: str) -> bool:
    try:
        decoded_by_gguf(name, np.zeros((1, FORMATS[name].block_bytes), np.uint8))
    except NotImplementedError:
        return False
    return True


DECODED_BY_GGUF = [name for name in KNOWN_TO_GGUF if gguf_can_decode(name)]


def assert_same_bits(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Equal bits, so that -0.0 is not 0.0; one NaN is as good as another."""
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    both_nan = np.isnan(actual) & np.isnan(expected)
    same = actual.view(np.uint32) == expected.view(np.uint32)
    assert (same | both_nan).all()


@pytest.mark.parametrize("name", DECODED_BY_GGUF)
def test_random_blocks_decode_as_gguf_decodes_them(name: str) -> None:
    blocks = random_blocks(name, 1000)
    assert_same_bits(FORMATS[name].decode(blocks), decoded_by_gguf(name, blocks))


@pytest.mark.parametrize("byte", [0x00, 0x80, 0x7F, 0xFF])
@pytest.mark.parametrize("name", DECODED_BY_GGUF)
def test_blocks_of_one_repeated_byte_decode_as_gguf_decodes_them(name: str, byte: int) -> None:
    blocks = np.full((2, FORMATS[name].block_bytes), byte, np.uint8)
    assert_same_bits(FORMATS[name].decode(blocks), decoded_by_gguf(name, blocks))


@pytest.mark.parametrize("scale", EDGE_SCALES.values(), ids=EDGE_SCALES.keys())
@pytest.mark.parametrize("name", SCALES_AT)
def test_edge_scales_decode_as_gguf_decodes_them(name: str, scale: int) -> None:
    for at in SCALES_AT[name]:
        blocks = random_blocks(name, 20)
        blocks[:, at : at + 2] = np.frombuffer(struct.pack("<H", scale), np.uint8)
        assert_same_bits(FORMATS[name].decode(blocks), decoded_by_gguf(name, blocks))


@pytest.mark.parametrize("name", HANDWRITTEN)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_bytes_decode_as_gguf_decodes_them(name: str, data: st.DataObject) -> None:
    size = FORMATS[name].block_bytes
    block = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    assert_same_bits(FORMATS[name].decode(block[None]), decoded_by_gguf(name, block[None]))


def test_every_float16_decodes_as_numpy_does() -> None:
    patterns = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # signaling NaNs
        expected = patterns.view(np.float16).astype(np.float32)[:, None]
    assert_same_bits(FORMATS["F16"].decode(patterns.view(np.uint8).reshape(-1, 2)), expected)
    alone = np.array([f16_to_f32(pattern) for pattern in range(65536)], np.float32)[:, None]
    assert_same_bits(alone, expected)


def test_every_bfloat16_decodes_by_its_definition() -> None:
    patterns = np.arange(65536, dtype=np.uint16)
    sign = np.where(patterns >> 15, -1.0, 1.0)
    exponent = (patterns >> 7 & 255).astype(np.int64)
    fraction = (patterns & 127).astype(np.float64)
    normal = np.ldexp(1 + fraction / 128, exponent - 127)
    subnormal = np.ldexp(fraction / 128, -126)
    special = np.where(fraction == 0, np.inf, np.nan)
    magnitude = np.select([exponent == 0, exponent == 255], [subnormal, special], normal)
    with np.errstate(over="ignore"):  # `normal` of what is special is computed, then not used
        expected = (sign * magnitude).astype(np.float32)[:, None]
    assert_same_bits(FORMATS["BF16"].decode(patterns.view(np.uint8).reshape(-1, 2)), expected)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="F16C is x86's")
def test_a_cpu_without_f16c_decodes_halves() -> None:
    program = (
        "import numpy as np; from refllm.quant import FORMATS;"
        "print(FORMATS['F16'].decode(np.array([[0x00, 0x3E], [0x01, 0x80]], np.uint8)).tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(refllm.__file__).parent.parent,
        env={**os.environ, "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=HUNG_SECONDS,
    )
    # 0x3E00 = 1.5; 0x8001 = -(1/1024) * 2^-14 = -2^-24
    assert run.stdout.strip() == f"[[1.5], [{-(2.0**-24)!r}]]"


def test_a_q4_0_block_by_hand() -> None:
    # d = 0x3800 = 0.5; byte j holds j below and 15 - j above.
    block = struct.pack("<H16B", 0x3800, *(j | (15 - j) << 4 for j in range(16)))
    values = FORMATS["Q4_0"].decode(np.frombuffer(block, np.uint8)[None])[0]
    assert values[0] == 0.5 * (0 - 8) == -4.0
    assert values[15] == 0.5 * (15 - 8) == 3.5
    assert values[16] == 0.5 * (15 - 8) == 3.5
    assert values.tolist() == [
        *(0.5 * (j - 8) for j in range(16)),
        *(0.5 * (15 - j - 8) for j in range(16)),
    ]


def test_a_q8_0_block_by_hand() -> None:
    # d = 0xB400 = -0.25
    quants = [-128, -127, -1, 0, 1, 127, *range(26)]
    block = struct.pack("<H32b", 0xB400, *quants)
    values = FORMATS["Q8_0"].decode(np.frombuffer(block, np.uint8)[None])[0]
    assert values[:6].tolist() == [32.0, 31.75, 0.25, -0.0, -0.25, -31.75]
    assert np.signbit(values[3])
    assert values[6:].tolist() == [-0.25 * q for q in range(26)]


def test_a_q4_k_block_by_hand() -> None:
    # d = 0x4000 = 2, dmin = 0x3800 = 0.5.
    # Sub-block 0: sc = a[0] & 63 = 3, mn = a[4] & 63 = 5.
    # Sub-block 4: sc = (a[0] >> 6) * 16 + (a[8] & 15) = 2 * 16 + 7 = 39,
    #              mn = (a[4] >> 6) * 16 + (a[8] >> 4) = 1 * 16 + 10 = 26.
    scales = [3 | 2 << 6, 0, 0, 0, 5 | 1 << 6, 0, 0, 0, 7 | 10 << 4, 0, 0, 0]
    # Sub-block 0 is the lower nibbles of q[0..31], sub-block 4 those of q[64..95]; sub-blocks 1
    # and 5 (the upper nibbles) have scale 0 and minimum 0.
    quants = [0xF0 | j % 16 for j in range(128)]
    block = struct.pack("<HH12B128B", 0x4000, 0x3800, *scales, *quants)
    values = FORMATS["Q4_K"].decode(np.frombuffer(block, np.uint8)[None])[0].reshape(8, 32)
    assert values[0, :3].tolist() == [6.0 * 0 - 2.5, 6.0 * 1 - 2.5, 6.0 * 2 - 2.5]
    assert values[0].tolist() == [(2 * 3) * (j % 16) - 0.5 * 5 for j in range(32)]
    assert values[4].tolist() == [(2 * 39) * (j % 16) - 0.5 * 26 for j in range(32)]
    assert not values[[1, 2, 3, 5, 6, 7]].any()


def test_a_q1_0_block_by_hand() -> None:
    # d = 0x3E00 = 1.5; the first byte has bits 0 and 7 set.
    block = struct.pack("<H16B", 0x3E00, 0b1000_0001, *[0] * 15)
    values = FORMATS["Q1_0"].decode(np.frombuffer(block, np.uint8)[None])[0]
    assert values.tolist() == [1.5, *[-1.5] * 6, 1.5, *[-1.5] * 120]


def test_a_q8_1_block_by_hand() -> None:
    # d = 0x3400 = 0.25; the sum, here a NaN, must not reach the values.
    block = struct.pack("<HH32b", 0x3400, 0x7E00, -128, 127, *[4] * 30)
    values = FORMATS["Q8_1"].decode(np.frombuffer(block, np.uint8)[None])[0]
    assert values.tolist() == [-32.0, 31.75, *[1.0] * 30]


def test_a_q8_k_block_by_hand() -> None:
    block = struct.pack("<f256b16h", 0.375, -128, 127, *[8] * 254, *[-1] * 16)
    values = FORMATS["Q8_K"].decode(np.frombuffer(block, np.uint8)[None])[0]
    assert values.tolist() == [-48.0, 47.625, *[3.0] * 254]


@pytest.mark.parametrize("scale", EDGE_SCALES.values(), ids=EDGE_SCALES.keys())
@pytest.mark.parametrize("name", ["Q1_0", "Q8_1"])
def test_edge_scales_pass_without_a_warning_where_numpy_decodes(name: str, scale: int) -> None:
    blocks = random_blocks(name, 20)
    blocks[:, :2] = np.frombuffer(struct.pack("<H", scale), np.uint8)
    d = float(np.array([scale], np.uint16).view(np.float16)[0])
    assert np.isfinite(FORMATS[name].decode(blocks)).all() == np.isfinite(d)


@pytest.mark.parametrize("bits", [0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7F800001])
def test_edge_scales_of_q8_k_pass_without_a_warning(bits: int) -> None:
    block = struct.pack("<I256b16h", bits, *[127] * 256, *[0] * 16)
    values = FORMATS["Q8_K"].decode(np.frombuffer(block, np.uint8)[None])
    assert not np.isfinite(values).any()


@pytest.mark.parametrize(
    ("name", "layout", "stored", "expected"),
    [
        ("I8", "<3b", (-128, 0, 127), (-128.0, 0.0, 127.0)),
        ("I16", "<3h", (-32768, 1, 32767), (-32768.0, 1.0, 32767.0)),
        # 2^24 + 1 is halfway between two float32 and goes to the even one, 2^24 + 3 likewise.
        ("I32", "<3i", (2**24 + 1, 2**24 + 3, -(2**31)), (2.0**24, 2.0**24 + 4, -(2.0**31))),
        # One more than halfway between 2^62 and the next float32, which is 2^39 away: up. Rounding
        # to float64 first would lose that one, and then round down to even.
        ("I64", "<2q", (2**62 + 2**38 + 1, -1), (2.0**62 + 2.0**39, -1.0)),
        ("F64", "<3d", (0.1, 1e300, -1e-300), (0.10000000149011612, float("inf"), -0.0)),
    ],
)
def test_plain_numbers_are_rounded_once(
    name: str, layout: str, stored: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    data = np.frombuffer(struct.pack(layout, *stored), np.uint8)
    tensor = Tensor("numbers", FORMATS[name], (len(stored),), data[None])
    assert_same_bits(tensor.array(), np.array(expected, np.float32))
    out = np.empty((len(stored), 1), np.float32)
    FORMATS[name].decode_into(data.reshape(len(stored), -1), out)
    assert_same_bits(out[:, 0], np.array(expected, np.float32))


@pytest.mark.parametrize("name", KNOWN_TO_GGUF)
def test_every_type_of_gguf_py_loads(name: str) -> None:
    tensor = random_tensor(name)
    array = tensor.array()
    assert array.dtype == np.float32
    assert array.shape == tensor.shape


@pytest.mark.parametrize(
    "name",
    # gguf still counts Q8_1 as it was when d and s were float32; ggml's block has 36 bytes.
    [name for name in KNOWN_TO_GGUF if name != "Q8_1"],
)
def test_blocks_have_the_sizes_of_gguf_py(name: str) -> None:
    form = FORMATS[name]
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (form.block_size, form.block_bytes) == sizes


def test_a_type_that_gguf_cannot_decode_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_yet(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(gguf.quants, "dequantize", not_yet)
    with pytest.raises(LlmRuntimeError, match="tensor type IQ1_S has no decoder"):
        random_tensor("IQ1_S").array()


def test_read_only_and_writable_blocks_share_one_compiled_kernel() -> None:
    form = FORMATS["Q4_0"]
    blocks = random_blocks("Q4_0", 2)
    form.decode(blocks)
    blocks.flags.writeable = False
    form.decode(blocks)
    assert len(form._decode_blocks.signatures) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "columns", "size"),
    [("F32", 3, 12), ("F16", 3, 6), ("Q4_0", 64, 36), ("Q6_K", 512, 420), ("Q6_K", 0, 0)],
)
def test_a_row_takes_whole_blocks(name: str, columns: int, size: int) -> None:
    assert FORMATS[name].row_bytes(columns) == size


@pytest.mark.parametrize(("name", "columns"), [("Q4_0", 33), ("Q4_K", 128), ("F32", -1)])
def test_a_row_of_part_of_a_block_is_an_error_that_names_the_type(name: str, columns: int) -> None:
    with pytest.raises(LlmRuntimeError, match=f"^{name} .* {columns} columns"):
        FORMATS[name].row_bytes(columns)


@pytest.mark.parametrize("name", ["F32", "Q4_0"])
def test_bytes_of_part_of_a_block_are_an_error_that_names_the_type(name: str) -> None:
    data = np.zeros((1, FORMATS[name].block_bytes + 1), np.uint8)
    with pytest.raises(LlmRuntimeError, match=f"^{name}: .* not a whole number"):
        FORMATS[name].decode(data)


@pytest.mark.parametrize(
    ("blocks", "out"),
    [
        (np.zeros((2, 18), np.uint8), np.zeros((1, 32), np.float32)),
        (np.zeros((2, 17), np.uint8), np.zeros((2, 32), np.float32)),
        (np.zeros(18, np.uint8), np.zeros((1, 32), np.float32)),
        (np.zeros((2, 18), np.int8), np.zeros((2, 32), np.float32)),
        (np.zeros((2, 18), np.uint8), np.zeros((2, 32), np.float64)),
    ],
    ids=["fewer-values", "short-blocks", "one-axis", "signed-bytes", "double-values"],
)
def test_arrays_that_do_not_fit_a_block_are_refused(
    blocks: NDArray[np.uint8], out: NDArray[np.float32]
) -> None:
    with pytest.raises(LlmRuntimeError, match="Q4_0: cannot decode"):
        FORMATS["Q4_0"].decode_into(blocks, out)
