"""The blocks that golden/quant asks about, and why: random bytes with edges put in.

`Layout` says where a block of a format keeps its scales, so that an edge can be put there; it says
nothing of what a value is. The bytes are SplitMix64's, seeded with GGML's number of the format.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import gguf

from refllm.quant import FORMATS
from refllm.sampling import splitmix64

__all__ = ["QUICK", "Question", "questions"]


@dataclass(frozen=True, slots=True)
class Question:
    """Blocks of one format, and the reason why the suite has them."""

    name: str
    proves: str
    clause: str
    format: str
    data: bytes

    @property
    def id(self) -> str:
        """The case's name in the suite."""
        return f"quant/{self.format.lower()}-{self.name}"

    @property
    def n(self) -> int:
        """How many values the bytes hold."""
        stored_as = FORMATS[self.format]
        return len(self.data) // stored_as.block_bytes * stored_as.block_size


# --- Where a block has what -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScaleKind:
    """How a scale is stored: `edges` and the number 1 as bits, and which bits keep it ordinary."""

    code: str  # struct's
    one: int
    ordinary: int
    edges: Mapping[str, int]


F16_SCALE = ScaleKind(
    "<H",
    0x3C00,
    0xBFFF,
    {
        "zero-scale": 0x0000,
        "negative-zero-scale": 0x8000,
        "negative-scale": 0xB800,
        "smallest-scale": 0x0001,
        "negative-subnormal-scale": 0x83FF,
        "largest-scale": 0x7BFF,
    },
)
F32_SCALE = ScaleKind(
    "<I",
    0x3F800000,
    0xBFFFFFFF,
    {
        "zero-scale": 0x00000000,
        "negative-zero-scale": 0x80000000,
        "negative-scale": 0xBF000000,
        "smallest-scale": 0x00000001,
        "negative-subnormal-scale": 0x807FFFFF,
        "largest-scale": 0x7BFFFFFF,  # times -128 it is the largest float32
    },
)
# A power of two, halved: 2^(e - 128).
E8M0_SCALE = ScaleKind(
    "<B", 128, 0x7F, {"smallest-scale": 0, "next-to-smallest-scale": 1, "largest-scale": 252}
)
# Four bits of exponent and three of fraction without a sign, halved as well.
UE4M3_SCALE = ScaleKind(
    "<B",
    0x40,
    0x3F,
    {
        "zero-scale": 0x00,
        "smallest-scale": 0x01,
        "largest-subnormal-scale": 0x07,
        "largest-scale": 0x7E,
    },
)

EDGE_PROVES = MappingProxyType(
    {
        "zero-scale": "Under a scale of 0 every product is a zero, -0.0 where its sign says so.",
        "negative-zero-scale": "A scale of -0.0 is read with its sign.",
        "negative-scale": "A scale may be negative.",
        "smallest-scale": "The smallest scale above 0 is not flushed to 0.",
        "next-to-smallest-scale": "The second smallest scale is twice the smallest.",
        "negative-subnormal-scale": "A negative subnormal scale is read exactly.",
        "largest-subnormal-scale": "The largest subnormal scale is read exactly.",
        "largest-scale": "The largest scale that overflows nothing.",
    }
)


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a block, in bytes: scales of the whole, quants, and scales of groups."""

    scales: tuple[int, ...]  # d first, then the minimum's
    quants: range
    groups: range = range(0)
    least_group: int = 0x00
    most_group: int = 0xFF
    kind: ScaleKind = F16_SCALE
    is_minimum: bool = False  # whether the second scale is one of minima, and so may oppose d


LAYOUTS = MappingProxyType(
    {
        "Q4_0": Layout((0,), range(2, 18)),
        "Q4_1": Layout((0, 2), range(4, 20), is_minimum=True),
        "Q5_0": Layout((0,), range(2, 22)),
        "Q5_1": Layout((0, 2), range(4, 24), is_minimum=True),
        "Q8_0": Layout((0,), range(2, 34)),
        "Q8_1": Layout((0, 2), range(4, 36)),
        "Q1_0": Layout((0,), range(2, 18)),
        "Q2_K": Layout((80, 82), range(16, 80), range(16), is_minimum=True),
        "Q3_K": Layout((108,), range(96), range(96, 108)),
        "Q4_K": Layout((0, 2), range(16, 144), range(4, 16), is_minimum=True),
        "Q5_K": Layout((0, 2), range(16, 176), range(4, 16), is_minimum=True),
        "Q6_K": Layout((208,), range(192), range(192, 208), 0x80, 0x7F),
        "Q8_K": Layout((0,), range(4, 260), kind=F32_SCALE),
        "IQ4_NL": Layout((0,), range(2, 18)),
        "IQ4_XS": Layout((0,), range(8, 136), range(2, 8)),
        "IQ3_XXS": Layout((0,), range(2, 98)),
        "IQ3_S": Layout((0,), range(2, 106), range(106, 110)),
        "IQ2_XXS": Layout((0,), range(2, 66)),
        "IQ2_XS": Layout((0,), range(2, 66), range(66, 74)),
        "IQ2_S": Layout((0,), range(2, 74), range(74, 82)),
        "IQ1_S": Layout((0,), range(2, 50)),
        "IQ1_M": Layout((), range(48), range(48, 56)),  # see `_put_scales`
        "TQ1_0": Layout((52,), range(52)),
        "TQ2_0": Layout((64,), range(64)),
        "MXFP4": Layout((0,), range(1, 17), kind=E8M0_SCALE),
        "NVFP4": Layout((0, 1, 2, 3), range(4, 36), kind=UE4M3_SCALE),
    }
)


def _put_scales(block: bytearray, layout: Layout, scales: Sequence[int]) -> None:
    """Each scale in its place; one alone goes to all."""
    kind = layout.kind
    if not layout.scales:  # IQ1_M has a float16 in four parts, above the scales of the groups
        for i in range(4):
            at = layout.groups.start + 2 * i + 1
            block[at] = (block[at] & 0x0F) | (scales[0] >> 4 * i & 15) << 4
    for i, at in enumerate(layout.scales):
        struct.pack_into(kind.code, block, at, scales[i % len(scales)])


def _block(
    form: str,
    stream: Iterator[int],
    *,
    scales: Sequence[int] = (),
    group: int | None = None,
    quant: int | None = None,
) -> bytes:
    """Random bytes, with these scales, and each byte of groups or quants replaced where given."""
    layout = LAYOUTS[form]
    block = bytearray(next(stream) for _ in range(FORMATS[form].block_bytes))
    for part, byte in ((layout.groups, group), (layout.quants, quant)):
        if byte is not None:
            block[part.start : part.stop] = bytes([byte]) * len(part)
    size = struct.calcsize(layout.kind.code)
    drawn = [
        int.from_bytes(bytes(next(stream) for _ in range(size)), "little") & layout.kind.ordinary
        for _ in layout.scales or (None,)
    ]
    _put_scales(block, layout, scales or drawn)
    return bytes(block)


def _bytes(seed: int) -> Iterator[int]:
    """SplitMix64's outputs from step 0 on, each as eight bytes, the lowest first."""
    step = 0
    while True:
        yield from splitmix64(seed, step).to_bytes(8, "little")
        step += 1


# --- The questions --------------------------------------------------------------------------------


def questions() -> list[Question]:
    """Every question in the file's order."""
    asked = [*_numbers(), *_by_hand()]
    for form in LAYOUTS:
        asked += _blocks(form, _bytes(int(gguf.GGMLQuantizationType[form])))
    return asked


def _blocks(form: str, stream: Iterator[int]) -> Iterator[Question]:
    layout = LAYOUTS[form]
    one = [layout.kind.one]
    data = _block(form, stream) + _block(form, stream)
    yield Question("two-blocks", "Blocks follow one another without a gap.", "blocks", form, data)
    for name, scale in layout.kind.edges.items():
        data = _block(form, stream, scales=[scale])
        yield Question(name, EDGE_PROVES[name], "scales", form, data)
    if layout.is_minimum:
        data = _block(form, stream, scales=[0x7BFF, 0xFBFF])
        proves = "The largest scale beside the most negative one of the minimum."
        yield Question("opposite-scales", proves, "scales", form, data)
        data = _block(form, stream, scales=[0x3C00, 0x8000], quant=0x00)
        proves = "A minimum of -0.0 and quants of 0 add up to +0.0."
        yield Question("negative-zero-minimum", proves, "scales", form, data)
    for name, byte, what in (("zero-quants", 0x00, "clear"), ("one-quants", 0xFF, "set")):
        data = _block(form, stream, scales=one, quant=byte)
        yield Question(name, f"Every bit of the quants is {what}.", "quants", form, data)
    if layout.groups:
        for name, byte in (("least", layout.least_group), ("most", layout.most_group)):
            data = _block(form, stream, scales=one, group=byte)
            proves = f"Every group has the {name} scale that its bits can say."
            yield Question(f"{name}-group-scales", proves, "group scales", form, data)


# Zeros, the smallest and a negative subnormal number, the smallest normal one, a third, -2, the
# largest, infinities, NaN.
F32_EDGES = (
    *(0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x00800000, 0x3EAAAAAB, 0xC0000000),
    *(0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000),
)
F16_EDGES = (0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3555, 0xC000, 0x7BFF, 0x7C00, 0xFC00, 0x7E00)
BF16_EDGES = tuple(bits >> 16 for bits in (*F32_EDGES[:2], 1 << 16, *F32_EDGES[3:]))
IS_READ = "Zeros, subnormal numbers, the largest, infinities and a NaN are what IEEE 754 says."
IS_ROUNDED = "What float32 cannot hold is rounded once, to nearest, ties to even."


def _numbers() -> Iterator[Question]:
    """The formats without blocks."""
    edges = (("F32", "I", F32_EDGES), ("F16", "H", F16_EDGES), ("BF16", "H", BF16_EDGES))
    for form, code, bits in edges:
        data = struct.pack(f"<{len(bits)}{code}", *bits)
        yield Question("numbers", IS_READ, "plain numbers", form, data)
    doubles = (0.1, -0.1, 1 + 2**-24, 1 + 3 * 2**-24, 1 + 2**-24 + 2**-50, 2**-150, -(2**-150))
    more = (3.4028235677973366e38, 1e300, -1e300, 1e-300, -1e-300, math.inf, math.nan)
    data = struct.pack(f"<{len(doubles + more)}d", *doubles, *more)
    yield Question("numbers", IS_ROUNDED, "plain numbers", "F64", data)
    for form, code, size in (("I8", "b", 8), ("I16", "h", 16)):
        whole = (-(2 ** (size - 1)), -1, 0, 1, 2 ** (size - 1) - 1)
        data = struct.pack(f"<5{code}", *whole)
        yield Question("numbers", "Two's complement, exact.", "plain numbers", form, data)
    ties = (2**24 + 1, 2**24 + 3, -(2**24) - 1, -1, 0)
    data = struct.pack("<7i", *ties, -(2**31), 2**31 - 1)
    yield Question("numbers", IS_ROUNDED, "plain numbers", "I32", data)
    # One more than halfway: to float64 first, and it would be halfway, and go down to even.
    data = struct.pack("<8q", *ties, 2**62 + 2**38 + 1, -(2**63), 2**63 - 1)
    yield Question("numbers", IS_ROUNDED, "plain numbers", "I64", data)


def _by_hand() -> Iterator[Question]:
    """The blocks that the README works out."""
    proves = "Worked by hand, step by step, in the README."
    nibbles = [j | (15 - j) << 4 for j in range(16)]
    data = struct.pack("<e16B", 0.5, *nibbles)
    yield Question("worked-by-hand", proves, "blocks", "Q4_0", data)
    quants = (-128, -127, -100, -64, *range(-10, 11), 32, 64, 100, 120, 125, 126, 127)
    data = struct.pack("<e32b", -0.25, *quants)
    yield Question("worked-by-hand", proves, "blocks", "Q8_0", data)
    sc, mn = (1, 2, 3, 63, 0, 21, 42, 63), (0, 63, 5, 7, 63, 42, 21, 10)
    packed = [
        *(sc[i] | sc[i + 4] >> 4 << 6 for i in range(4)),
        *(mn[i] | mn[i + 4] >> 4 << 6 for i in range(4)),
        *(sc[i + 4] & 15 | (mn[i + 4] & 15) << 4 for i in range(4)),
    ]
    data = struct.pack("<2e12B128B", 2.0, 0.5, *packed, *nibbles * 8)
    yield Question("worked-by-hand", proves, "blocks", "Q4_K", data)


# Enough to see that the formats people use are read right.
QUICK = frozenset(
    {
        *(f"quant/{form}-worked-by-hand" for form in ("q4_0", "q8_0", "q4_k")),
        *(f"quant/{form}-two-blocks" for form in ("q4_1", "q5_0", "q5_k", "q6_k", "q8_0")),
        *("quant/f16-numbers", "quant/bf16-numbers", "quant/q4_0-smallest-scale"),
    }
)
