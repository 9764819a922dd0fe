"""How each GGML format becomes integers: quads of unsigned weights, small scales, minima.

Every format here means d·w − m·v, with floats d and m of a block and integers w and v of a weight
(Q4_1 and Q5_1: d·w + m). A product with activations needs Σw·a and Σv·a; `finish` does the rest.
The integers are decoded in parts, each a vector with a lane for each row of a panel:

    quads(panel, at, j)    w + offset of columns 4j … 4j + 3 of the block, in the lane's four bytes;
                           in formats with groups, what the group's scale is multiplied with
    scale(panel, at, g)    the scale of group g
    minimum(panel, at, g)  v of group g
    finish(total, …)       the float part: total + d_w·d_x·Σw·a …

`panel` is packed by `refllm.kernels.int8.product`; its rows' blocks begin at byte `at`. A block's
bytes with weights are together by fours, so that one load gives a quad:

    row 0: q0 q1 q2 q3   row 1: q0 q1 q2 q3   …   row 15: q0 q1 q2 q3   row 0: q4 q5 q6 q7   …

Why an offset: the dot product takes unsigned weights (`refllm.kernels.simd.ints`). It computes
Σ(w + offset)·a, which is offset·Σa too large. Σa is computed when the activations are quantized, so
sums start at −offset·Σa instead of 0. Where the CPU's instruction takes signed bytes,
`signed_quads` gives w itself or, in Q3_K, w − 4: its offset is −4.

Layouts and letters are drawn in `refllm.ggml.blocks` and `refllm.ggml.superblocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from refllm.ggml.blocks import IQ4_VALUES
from refllm.jit.buffers import Bytes
from refllm.jit.compile import inner
from refllm.kernels.packed.decode_superblocks import (
    BIT_0,
    BITS_1_0,
    BITS_3_0,
    field,
    field_above,
    minimum_6_bits,
    scale_6_bits,
)
from refllm.kernels.simd.ints import byte_table
from refllm.kernels.simd.lanes import LANES, fma, load_i8, load_i32, negative, splat_int

__all__ = ["FORMATS_AS_INTEGERS", "AsIntegers"]

# A vector of floats or ints, or several rows of them; only numba has its type.
Lanes: TypeAlias = Any

# The same bits in each of a lane's four bytes.
BIT_4 = np.int32(0x10101010)
BIT_7 = np.uint32(0x80808080).view(np.int32)
# Times this, bits 0 … 3 of a lane reach bit 4 of its bytes 0 … 3: they move by 4, 11, 18 and 25.
BITS_TO_BYTES = np.int32(1 << 4 | 1 << 11 | 1 << 18 | 1 << 25)

iq4_level = byte_table([int(value) + 128 for value in IQ4_VALUES])
iq4_signed = byte_table([int(value) & 255 for value in IQ4_VALUES])


@inner
def part(panel: Bytes, at: int, byte: int, shift: int, mask: np.int32) -> Lanes:
    """(the block's bytes `byte` … `byte` + 3 >> shift) & mask, in each lane."""
    return (load_i32(panel, at + byte * LANES) >> splat_int(np.int32(shift))) & splat_int(mask)


# Blocks of 32: quads 0 … 7


@inner
def nibbles(panel: Bytes, at: int, first: int, j: int) -> Lanes:
    """Quad j of 16 bytes that hold columns 0 … 15 in the lower bits, 16 … 31 in the upper ones."""
    return part(panel, at, first + 4 * (j & 3), 4 * (j >> 2), BITS_3_0)


@inner
def fifth_bits(panel: Bytes, at: int, first: int, j: int) -> Lanes:
    """Bit 4j + b of the 32 bits from `first` on, in bit 4 of byte b."""
    four_bits = part(panel, at, first, 4 * j, np.int32(15))
    return (four_bits * splat_int(BITS_TO_BYTES)) & splat_int(BIT_4)


@inner
def q8_0(panel: Bytes, at: int, j: int) -> Lanes:
    """q + 128: q with its highest bit inverted."""
    return load_i32(panel, at + (2 + 4 * j) * LANES) ^ splat_int(BIT_7)


@inner
def q8_0_signed(panel: Bytes, at: int, j: int) -> Lanes:
    """w = q."""
    return load_i32(panel, at + (2 + 4 * j) * LANES)


@inner
def q4_0(panel: Bytes, at: int, j: int) -> Lanes:
    """The nibble, w + 8."""
    return nibbles(panel, at, 2, j)


@inner
def q4_1(panel: Bytes, at: int, j: int) -> Lanes:
    """The nibble, w."""
    return nibbles(panel, at, 4, j)


@inner
def q5_0(panel: Bytes, at: int, j: int) -> Lanes:
    """16 · fifth + nibble, w + 16."""
    return nibbles(panel, at, 6, j) | fifth_bits(panel, at, 2, j)


@inner
def q5_1(panel: Bytes, at: int, j: int) -> Lanes:
    """16 · fifth + nibble, w."""
    return nibbles(panel, at, 8, j) | fifth_bits(panel, at, 4, j)


@inner
def iq4_nl(panel: Bytes, at: int, j: int) -> Lanes:
    """IQ4_VALUES[nibble] + 128."""
    return iq4_level(nibbles(panel, at, 2, j))


@inner
def iq4_nl_signed(panel: Bytes, at: int, j: int) -> Lanes:
    """IQ4_VALUES[nibble], w."""
    return iq4_signed(nibbles(panel, at, 2, j))


# Super-blocks of 256: quads 0 … 63; quad j is in group j >> 2 of 16 and in sub-block j >> 3 of 32


@inner
def two_bits(panel: Bytes, at: int, first: int, j: int) -> Lanes:
    """Quad j of 64 bytes, each of which holds two bits of four columns that are 32 apart."""
    return part(panel, at, first + 32 * (j >> 5) + 4 * (j & 7), 2 * ((j >> 3) & 3), BITS_1_0)


# Q2_K and Q3_K are decoded with their scales, as bytes that need no other factor, or without: a
# pair of 16 bits holds more of these products, and the scale is multiplied when it becomes 32 bits.


@inner
def q2_k_unscaled(panel: Bytes, at: int, j: int) -> Lanes:
    """Two bits."""
    return two_bits(panel, at, 20, j)


@inner
def q2_k_scale(panel: Bytes, at: int, g: int) -> Lanes:
    """`sc` of group g of 16."""
    return field(panel, at, 4 + g, 0, 15)


@inner
def q3_k_unscaled(panel: Bytes, at: int, j: int) -> Lanes:
    """Three bits: 4 more than what the group's scale is multiplied with."""
    third = part(panel, at, 14 + 4 * (j & 7), j >> 3, BIT_0)
    return field_above(two_bits(panel, at, 46, j), third, 2)


@inner
def q3_k_scale(panel: Bytes, at: int, g: int) -> Lanes:
    """`sc` − 32 of group g of 16."""
    low = field(panel, at, g & 7, 4 * (g >> 3), 15)
    high = field(panel, at, 8 + (g & 3), 2 * (g >> 2), 3)
    return field_above(low, high, 4) - splat_int(np.int32(32))


@inner
def q2_k(panel: Bytes, at: int, j: int) -> Lanes:
    """sc · two bits, w: at most 45, so a lane's multiplication is one of each byte."""
    return q2_k_unscaled(panel, at, j) * q2_k_scale(panel, at, j >> 2)


@inner
def q3_k(panel: Bytes, at: int, j: int) -> Lanes:
    """(sc − 32)·(three bits − 4) + 124, w + 124: between 0 and 252.

    As (sc − 32)·(three bits) + (124 − 4·(sc − 32)), both terms for whole lanes. A negative byte of
    the product borrows from the byte above, but the sum is bytes again: what was borrowed is back.
    """
    scale, three_bits = q3_k_scale(panel, at, j >> 2), q3_k_unscaled(panel, at, j)
    rest = splat_int(np.int32(124)) - (scale << splat_int(np.int32(2)))
    return scale * three_bits + rest * splat_int(BIT_0)


@inner
def q3_k_signed(panel: Bytes, at: int, j: int) -> Lanes:
    """(sc − 32)·(three bits − 4) − 4: between −128 and 124; `q3_k` less 128."""
    return q3_k(panel, at, j) ^ splat_int(BIT_7)


@inner
def q4_k(panel: Bytes, at: int, j: int) -> Lanes:
    """The nibble."""
    return part(panel, at, 16 + 32 * (j >> 4) + 4 * (j & 7), 4 * ((j >> 3) & 1), BITS_3_0)


@inner
def q5_k(panel: Bytes, at: int, j: int) -> Lanes:
    """16 · fifth + nibble."""
    low = part(panel, at, 48 + 32 * (j >> 4) + 4 * (j & 7), 4 * ((j >> 3) & 1), BITS_3_0)
    return field_above(low, part(panel, at, 16 + 4 * (j & 7), j >> 3, BIT_0), 4)


@inner
def q6_k(panel: Bytes, at: int, j: int) -> Lanes:
    """16 · upper + lower: 32 more than what the group's scale is multiplied with."""
    quarter, word = (j >> 3) & 3, 8 * (j >> 5) + (j & 7)
    high = part(panel, at, 18 + 12 * word, 2 * quarter, BITS_1_0)
    low = part(panel, at, 22 + 12 * word + 4 * (quarter & 1), 4 * (quarter >> 1), BITS_3_0)
    return field_above(low, high, 4)


@inner
def q6_k_scale(panel: Bytes, at: int, g: int) -> Lanes:
    """`sc` of group g of 16."""
    return load_i8(panel, at + g * LANES)


@inner
def q2_k_minimum(panel: Bytes, at: int, g: int) -> Lanes:
    """`mn` of group g of 16."""
    return field(panel, at, 4 + g, 4, 15)


@inner
def iq4_xs_nibbles(panel: Bytes, at: int, j: int) -> Lanes:
    """The nibbles of quad j, which select the level."""
    first = 8 + 16 * (j >> 3) + 4 * (j & 3)
    return part(panel, at, first, 4 * ((j >> 2) & 1), BITS_3_0)


@inner
def iq4_xs(panel: Bytes, at: int, j: int) -> Lanes:
    """IQ4_VALUES[nibble] + 128."""
    return iq4_level(iq4_xs_nibbles(panel, at, j))


@inner
def iq4_xs_signed(panel: Bytes, at: int, j: int) -> Lanes:
    """IQ4_VALUES[nibble]."""
    return iq4_signed(iq4_xs_nibbles(panel, at, j))


@inner
def iq4_xs_scale(panel: Bytes, at: int, s: int) -> Lanes:
    """`sc` − 32 of sub-block s of 32."""
    low = field(panel, at, 4 + (s >> 1), 4 * (s & 1), 15)
    high = field(panel, at, 2 + (s >> 2), 2 * (s & 3), 3)
    return field_above(low, high, 4) - splat_int(np.int32(32))


@inner
def one(panel: Bytes, at: int, g: int) -> Lanes:
    """1: the scale where weights have none."""
    return splat_int(np.int32(1))


# The float part of a block, in the rule's order of operations (`refllm.oracle_int8`): each step is
# one fused multiply-add. The vectors have one row of activations or several: total, w_a = Σw·a and
# v_a = Σv·a as floats, d and m of the weights, d_x and s_x of the activations.


@inner
def times_both(
    total: Lanes, w_a: Lanes, v_a: Lanes, d: Lanes, m: Lanes, d_x: Lanes, s_x: Lanes
) -> Lanes:
    """total + Σw·a · (d · d_x)."""
    return fma(d_x * d, w_a, total)


@inner
def plus_minimum(
    total: Lanes, w_a: Lanes, v_a: Lanes, d: Lanes, m: Lanes, d_x: Lanes, s_x: Lanes
) -> Lanes:
    """(total + Σw·a · (d · d_x)) + m · s_x."""
    return fma(s_x, m, fma(d_x * d, w_a, total))


@inner
def less_minima(
    total: Lanes, w_a: Lanes, v_a: Lanes, d: Lanes, m: Lanes, d_x: Lanes, s_x: Lanes
) -> Lanes:
    """(total + Σw·a · (d · d_x)) − Σv·a · (m · d_x)."""
    return fma(negative(d_x * m), v_a, fma(d_x * d, w_a, total))


@dataclass(frozen=True, slots=True, kw_only=True)
class AsIntegers:
    """How the kernels decode a format; the functions are described at the top.

    Attributes:
        fields: The widths in bytes of a block's fields, in the file's order.
        order: The file's bytes in the panel's order, where that is another; all other places are
            those in the panel.
        largest: The largest unsigned weight.
        offset: What the quads' bytes are too large by.
        signed_quads: The quads as signed bytes, where the largest unsigned weight is none.
        signed_offset: What these are too large by.
        d_at: Where d begins.
        m_at: Where m begins.
        groups: How many parts of a block have a scale; 1 where there is only d.
        minima: How many parts of a block have a v.
        strands: How many quads share the same bytes.
        stride: The distance between these, in quads.
        unscaled: The format with small weights and a scale for each group, where `quads` are
            weights times scales.
    """

    fields: tuple[int, ...]
    order: tuple[int, ...] | None = None
    quads: Callable[..., Lanes]
    finish: Callable[..., Lanes] = times_both
    largest: int = 255
    offset: int = 0
    signed_quads: Callable[..., Lanes] | None = None
    signed_offset: int = 0
    d_at: int = 0
    m_at: int = 0
    groups: int = 1
    scale: Callable[..., Lanes] = one
    minima: int = 0
    minimum: Callable[..., Lanes] = one
    strands: int = 2
    stride: int = 4
    unscaled: AsIntegers | None = None


# Scales and minima come before quads, so that a block is read from beginning to end.
Q2_K_ORDER = (*range(80, 84), *range(80))
Q3_K_ORDER = (*range(96, 110), *range(96))
# After the scales and d, the bytes of four quads: upper bits of all, then lower bits of two each.
Q6_K_ORDER = (
    *range(192, 210),
    *(
        byte
        for half in (0, 1)
        for word in range(0, 32, 4)
        for first in (128 + 32 * half + word, 64 * half + word, 64 * half + 32 + word)
        for byte in range(first, first + 4)
    ),
)

# Fields: a byte, a half, a quad.
BYTE, HALF, QUAD = (1,), (2,), (4,)
# Q4_K and Q5_K differ in their quads only.
WITH_6_BITS: dict[str, Any] = {
    "finish": less_minima,
    "m_at": 2,
    "groups": 8,
    "scale": scale_6_bits,
    "minima": 8,
    "minimum": minimum_6_bits,
    "stride": 8,
}

Q2_K = AsIntegers(
    fields=16 * BYTE + 16 * QUAD + 2 * HALF,
    quads=q2_k,
    largest=45,
    finish=less_minima,
    order=Q2_K_ORDER,
    d_at=0,
    m_at=2,
    minima=16,
    minimum=q2_k_minimum,
    strands=4,
    stride=8,
)
Q3_K = AsIntegers(
    fields=24 * QUAD + 12 * BYTE + HALF,
    quads=q3_k,
    offset=124,
    signed_quads=q3_k_signed,
    signed_offset=-4,
    order=Q3_K_ORDER,
    d_at=12,
    strands=4,
    stride=8,
)

FORMATS_AS_INTEGERS: Mapping[str, AsIntegers] = MappingProxyType(
    {
        "Q8_0": AsIntegers(
            fields=HALF + 8 * QUAD, quads=q8_0, signed_quads=q8_0_signed, offset=128, strands=1
        ),
        "Q4_0": AsIntegers(
            fields=HALF + 4 * QUAD,
            quads=q4_0,
            largest=15,
            offset=8,
        ),
        "Q4_1": AsIntegers(
            fields=2 * HALF + 4 * QUAD, quads=q4_1, largest=15, m_at=2, finish=plus_minimum
        ),
        "Q5_0": AsIntegers(fields=HALF + 5 * QUAD, quads=q5_0, largest=31, offset=16),
        "Q5_1": AsIntegers(
            fields=2 * HALF + 5 * QUAD, quads=q5_1, largest=31, m_at=2, finish=plus_minimum
        ),
        "IQ4_NL": AsIntegers(
            fields=HALF + 4 * QUAD, quads=iq4_nl, signed_quads=iq4_nl_signed, offset=128
        ),
        "Q2_K": replace(
            Q2_K,
            unscaled=replace(Q2_K, quads=q2_k_unscaled, largest=3, groups=16, scale=q2_k_scale),
        ),
        "Q3_K": replace(
            Q3_K,
            unscaled=replace(
                Q3_K, quads=q3_k_unscaled, largest=7, offset=4, groups=16, scale=q3_k_scale
            ),
        ),
        "Q4_K": AsIntegers(
            fields=2 * HALF + 12 * BYTE + 32 * QUAD, quads=q4_k, largest=15, **WITH_6_BITS
        ),
        "Q5_K": AsIntegers(
            fields=2 * HALF + 12 * BYTE + 40 * QUAD, quads=q5_k, largest=31, **WITH_6_BITS
        ),
        "Q6_K": AsIntegers(
            fields=48 * QUAD + 16 * BYTE + HALF,
            quads=q6_k,
            largest=63,
            offset=32,
            order=Q6_K_ORDER,
            d_at=16,
            groups=16,
            scale=q6_k_scale,
            strands=4,
            stride=8,
        ),
        "IQ4_XS": AsIntegers(
            fields=HALF + 6 * BYTE + 32 * QUAD,
            quads=iq4_xs,
            signed_quads=iq4_xs_signed,
            offset=128,
            groups=8,
            scale=iq4_xs_scale,
        ),
    }
)
