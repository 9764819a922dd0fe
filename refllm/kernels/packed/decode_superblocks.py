"""Decoders of super-blocks of 256 values; what a block decoder is, see `decode_blocks`.

Layouts and formulas are drawn in `refllm.ggml.superblocks`. Letters: s a sub-block of 32 values, g
a group of 16, w a word of four bytes, b a byte in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refllm.jit.buffers import Bytes, Floats
from refllm.jit.compile import HOLE, inner, template
from refllm.kernels.packed.decode_blocks import (
    Lanes,
    from_bit,
    iq4_value,
    less,
    nibble,
    words,
)
from refllm.kernels.simd.lanes import (
    LANES,
    fma_of_exact,
    load_f16,
    load_i8,
    load_u8,
    negative,
    splat_int,
    to_float,
)

__all__ = [
    "BITS_1_0",
    "BITS_3_0",
    "BIT_0",
    "field",
    "field_above",
    "iq4_xs",
    "minimum_6_bits",
    "q2_k",
    "q3_k",
    "q4_k",
    "q5_k",
    "q6_k",
    "scale_6_bits",
]

# The same bits in each of a lane's four bytes, so that one operation is done to four quants.
BIT_0 = np.int32(0x01010101)
BITS_1_0 = np.int32(0x03030303)
BITS_3_0 = np.int32(0x0F0F0F0F)

consume: Any = HOLE


@inner
def field(panel: Bytes, at: int, byte: int, shift: int, mask: int) -> Lanes:
    """Return (the block's byte >> shift) & mask, in each lane."""
    bits = load_u8(panel, at + byte * LANES) >> splat_int(np.int32(shift))
    return bits & splat_int(np.int32(mask))


@inner
def bits(words: Lanes, bit: int, mask: int) -> Lanes:
    """Return (words >> bit) & mask."""
    return from_bit(words, bit) & splat_int(np.int32(mask))


@inner
def field_above(low: Lanes, high: Lanes, shift: int) -> Lanes:
    """Return low | high << shift."""
    return low | (high << splat_int(np.int32(shift)))


@template
def q2_k(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q2_K: y = (d * sc) * two bits - dmin * mn."""
    d = load_f16(panel, at + 80 * LANES)
    dmin = load_f16(panel, at + 82 * LANES)
    for g in range(16):
        scale = d * to_float(field(panel, at, g, 0, 15))
        shift_down = negative(dmin * to_float(field(panel, at, g, 4, 15)))
        first = 16 + 32 * (g >> 3) + 16 * (g & 1)
        shift = 2 * ((g >> 1) & 3)
        for w in range(4):
            q = from_bit(words(panel, at + (first + 4 * w) * LANES), shift)
            for b in range(4):
                y = fma_of_exact(scale, to_float(bits(q, 8 * b, 3)), shift_down)
                total = consume(total, array, column + 16 * g + 4 * w + b, y)
    return total


@template
def q3_k(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q3_K: y = (d * (sc - 32)) * ((4 * third + two bits) - 4)."""
    d = load_f16(panel, at + 108 * LANES)
    for g in range(16):
        low = field(panel, at, 96 + (g & 7), 4 * (g >> 3), 15)
        high = field(panel, at, 104 + (g & 3), 2 * (g >> 2), 3)
        scale = d * less(field_above(low, high, 4), 32)
        half = 16 * (g & 1)
        first = 32 + 32 * (g >> 3) + half
        shift = 2 * ((g >> 1) & 3)
        for w in range(4):
            q = from_bit(words(panel, at + (first + 4 * w) * LANES), shift)
            h = from_bit(words(panel, at + (half + 4 * w) * LANES), g >> 1)
            three = field_above(q & splat_int(BITS_1_0), h & splat_int(BIT_0), 2)
            for b in range(4):
                y = scale * less(bits(three, 8 * b, 7), 4)
                total = consume(total, array, column + 16 * g + 4 * w + b, y)
    return total


@inner
def scale_6_bits(panel: Bytes, at: int, s: int) -> Lanes:
    """Return `sc` of sub-block `s`, from the twelve bytes that `Q4_K` draws as a[0..11]."""
    if s < 4:
        return field(panel, at, 4 + s, 0, 63)
    return field_above(field(panel, at, 8 + s, 0, 15), field(panel, at, s, 6, 3), 4)


@inner
def minimum_6_bits(panel: Bytes, at: int, s: int) -> Lanes:
    """Return `mn` of sub-block `s`, from the twelve bytes that `Q4_K` draws as a[0..11]."""
    if s < 4:
        return field(panel, at, 8 + s, 0, 63)
    return field_above(field(panel, at, 8 + s, 4, 15), field(panel, at, 4 + s, 6, 3), 4)


@template
def q4_k(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q4_K: y = (d * sc) * nibble - dmin * mn."""
    d = load_f16(panel, at)
    dmin = load_f16(panel, at + 2 * LANES)
    for s in range(8):
        scale = d * to_float(scale_6_bits(panel, at, s))
        shift_down = negative(dmin * to_float(minimum_6_bits(panel, at, s)))
        first = 16 + 32 * (s >> 1)
        shift = 4 * (s & 1)
        for w in range(8):
            q = from_bit(words(panel, at + (first + 4 * w) * LANES), shift)
            for b in range(4):
                y = fma_of_exact(scale, nibble(from_bit(q, 8 * b)), shift_down)
                total = consume(total, array, column + 32 * s + 4 * w + b, y)
    return total


@template
def q5_k(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q5_K: y = (d * sc) * (16 * fifth + nibble) - dmin * mn."""
    d = load_f16(panel, at)
    dmin = load_f16(panel, at + 2 * LANES)
    for s in range(8):
        scale = d * to_float(scale_6_bits(panel, at, s))
        shift_down = negative(dmin * to_float(minimum_6_bits(panel, at, s)))
        first = 48 + 32 * (s >> 1)
        shift = 4 * (s & 1)
        for w in range(8):
            q = from_bit(words(panel, at + (first + 4 * w) * LANES), shift)
            h = from_bit(words(panel, at + (16 + 4 * w) * LANES), s)
            five = field_above(q & splat_int(BITS_3_0), h & splat_int(BIT_0), 4)
            for b in range(4):
                y = fma_of_exact(scale, to_float(bits(five, 8 * b, 31)), shift_down)
                total = consume(total, array, column + 32 * s + 4 * w + b, y)
    return total


@template
def q6_k(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q6_K: y = (d * sc) * ((16 * upper + lower) - 32)."""
    d = load_f16(panel, at + 208 * LANES)
    for g in range(16):
        scale = d * to_float(load_i8(panel, at + (192 + g) * LANES))
        quarter = (g >> 1) & 3
        half = 16 * (g & 1)
        first_low = 64 * (g >> 3) + 32 * (quarter & 1) + half
        first_high = 128 + 32 * (g >> 3) + half
        for w in range(4):
            q = from_bit(words(panel, at + (first_low + 4 * w) * LANES), 4 * (quarter >> 1))
            h = from_bit(words(panel, at + (first_high + 4 * w) * LANES), 2 * quarter)
            six = field_above(q & splat_int(BITS_3_0), h & splat_int(BITS_1_0), 4)
            for b in range(4):
                y = scale * less(bits(six, 8 * b, 63), 32)
                total = consume(total, array, column + 16 * g + 4 * w + b, y)
    return total


@template
def iq4_xs(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """IQ4_XS: y = (d * (sc - 32)) * IQ4_VALUES[nibble]."""
    d = load_f16(panel, at)
    for s in range(8):
        low = field(panel, at, 4 + (s >> 1), 4 * (s & 1), 15)
        high = field(panel, at, 2 + (s >> 2), 2 * (s & 3), 3)
        scale = d * less(field_above(low, high, 4), 32)
        for half in range(2):
            for w in range(4):
                q = from_bit(words(panel, at + (8 + 16 * s + 4 * w) * LANES), 4 * half)
                for b in range(4):
                    y = scale * iq4_value(from_bit(q, 8 * b))
                    total = consume(total, array, column + 32 * s + 16 * half + 4 * w + b, y)
    return total
