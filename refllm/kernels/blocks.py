"""GGML blocks of 64 rows side by side → the rows' values, one column after the other.

In a panel (`refllm.kernels.panels`) each byte of a block is followed by the same byte of the next
row's block, 64 times, then comes the next byte. So what `refllm.quant` does to one row's block,
with the same layout and in the same order of operations, is done here to 64 rows at once, in
registers (`refllm.kernels.simd`), and the numbers are the same.

A *walk* goes through one block and hands each column to a *visitor*:

    total = visit(total, array, column, values)      values: a vector, one weight for each row

The visitor `add_product` multiplies with an activation and adds: a matrix product that never
writes a decoded weight to memory. The visitor `keep` writes them to a buffer instead, for the
product with many activations. So every format is written once; `refllm.kernels.linear` puts the
one or the other visitor in the place of the global name `visit` and compiles (`specialized`).

Letters: d, m, dmin, sc, mn, q, y as drawn in `refllm.quant_blocks` and `refllm.quant_k`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refllm.kernels.jit import inner
from refllm.kernels.simd import (
    LANES,
    load_bf16,
    load_f16,
    load_f32,
    load_i8,
    load_u8,
    lookup_table,
    splat,
    splat_int,
    store_f32,
    to_float,
)
from refllm.quant_blocks import IQ4_VALUES

__all__ = [
    "add_product",
    "bf16",
    "f16",
    "f32",
    "iq4_nl",
    "iq4_value",
    "keep",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
# A vector of 64 floats or ints; only numba knows its type.
Lanes: TypeAlias = Any
Visit: TypeAlias = Callable[[Lanes, Floats, int, Lanes], Lanes]

iq4_value = lookup_table(IQ4_VALUES.tolist())


@inner
def add_product(total: Lanes, x: Floats, column: int, values: Lanes) -> Lanes:
    """total + values · x[column]: one term of 64 sums."""
    return total + values * splat(x[column])


@inner
def keep(total: Lanes, buffer: Floats, column: int, values: Lanes) -> Lanes:
    """Write the column's values to row `column` of the buffer [columns, LANES]."""
    store_f32(buffer, column * LANES * 4, values)
    return total


# Stands for either visitor in the walks below.
visit: Visit = add_product


@inner
def low_nibble(q: Lanes) -> Lanes:
    """Bits 3..0 of each lane."""
    return q & splat_int(np.int32(15))


@inner
def high_nibble(q: Lanes) -> Lanes:
    """Bits 7..4 of each lane's byte."""
    return q >> splat_int(np.int32(4))


@inner
def less(q: Lanes, offset: int) -> Lanes:
    """q − offset, as floats."""
    return to_float(q - splat_int(np.int32(offset)))


def f32(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """F32: a block is one number."""
    return visit(total, array, column, load_f32(panel, at))


def f16(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """F16: a block is one number."""
    return visit(total, array, column, load_f16(panel, at))


def bf16(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """BF16: a block is one number."""
    return visit(total, array, column, load_bf16(panel, at))


def q8_0(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q8_0: y = d * q."""
    d = load_f16(panel, at)
    for j in range(32):
        q = load_i8(panel, at + (2 + j) * LANES)
        total = visit(total, array, column + j, d * to_float(q))
    return total


def q4_0(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q4_0: y = d * (nibble - 8)."""
    d = load_f16(panel, at)
    for j in range(16):
        q = load_u8(panel, at + (2 + j) * LANES)
        total = visit(total, array, column + j, d * less(low_nibble(q), 8))
    for j in range(16):
        q = load_u8(panel, at + (2 + j) * LANES)
        total = visit(total, array, column + 16 + j, d * less(high_nibble(q), 8))
    return total


def q4_1(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q4_1: y = d * nibble + m."""
    d = load_f16(panel, at)
    m = load_f16(panel, at + 2 * LANES)
    for j in range(16):
        q = load_u8(panel, at + (4 + j) * LANES)
        total = visit(total, array, column + j, d * to_float(low_nibble(q)) + m)
    for j in range(16):
        q = load_u8(panel, at + (4 + j) * LANES)
        total = visit(total, array, column + 16 + j, d * to_float(high_nibble(q)) + m)
    return total


@inner
def fifth_bit(panel: Bytes, at: int, j: int) -> Lanes:
    """16 where bit `j` of the 32 bits from `at` on is set, else 0: the top of a 5-bit value."""
    byte = load_u8(panel, at + (j >> 3) * LANES)
    bit = (byte >> splat_int(np.int32(j & 7))) & splat_int(np.int32(1))
    return bit << splat_int(np.int32(4))


def q5_0(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q5_0: y = d * ((16 * fifth + nibble) - 16)."""
    d = load_f16(panel, at)
    fifths = at + 2 * LANES
    for j in range(16):
        q = low_nibble(load_u8(panel, at + (6 + j) * LANES)) | fifth_bit(panel, fifths, j)
        total = visit(total, array, column + j, d * less(q, 16))
    for j in range(16):
        q = high_nibble(load_u8(panel, at + (6 + j) * LANES)) | fifth_bit(panel, fifths, 16 + j)
        total = visit(total, array, column + 16 + j, d * less(q, 16))
    return total


def q5_1(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q5_1: y = d * (16 * fifth + nibble) + m."""
    d = load_f16(panel, at)
    m = load_f16(panel, at + 2 * LANES)
    fifths = at + 4 * LANES
    for j in range(16):
        q = low_nibble(load_u8(panel, at + (8 + j) * LANES)) | fifth_bit(panel, fifths, j)
        total = visit(total, array, column + j, d * to_float(q) + m)
    for j in range(16):
        q = high_nibble(load_u8(panel, at + (8 + j) * LANES)) | fifth_bit(panel, fifths, 16 + j)
        total = visit(total, array, column + 16 + j, d * to_float(q) + m)
    return total


def iq4_nl(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """IQ4_NL: y = d * IQ4_VALUES[nibble]."""
    d = load_f16(panel, at)
    for j in range(16):
        q = load_u8(panel, at + (2 + j) * LANES)
        total = visit(total, array, column + j, d * iq4_value(low_nibble(q)))
    for j in range(16):
        q = load_u8(panel, at + (2 + j) * LANES)
        total = visit(total, array, column + 16 + j, d * iq4_value(high_nibble(q)))
    return total
