"""GGML blocks of some rows side by side → the rows' values, one column after the other.

In a panel (`refllm.kernels.packed.panels`) each field of a block is followed by the same field of
the next row's block, for all its rows, then comes the next field; a field is a half, a byte, or
four bytes of quants (`refllm.kernels.packed.fields`). So what `refllm.quant` does to one row's
block, with the same layout and in the same order of operations, is done here to all rows at once,
in registers (`refllm.kernels.simd.lanes`), and the numbers are the same.

A *walk* goes through one block and hands each column to a *visitor*:

    total = visit(total, array, column, values)      values: a vector, one weight for each row

The visitor `add_product` multiplies with an activation and adds: a matrix product that never
writes a decoded weight to memory. `add_products` does so for a few rows of activations at once. The
visitor `keep` writes the weights to a buffer instead, for the product with many rows. So every
format is written once; `refllm.kernels.linear` puts one of the visitors in the place of the global
name `visit` and compiles (`specialized`).

Letters: d, m, h, q, y as drawn in `refllm.ggml.blocks`; g a group of four bytes, b a byte in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refllm.ggml.blocks import IQ4_VALUES
from refllm.jit.compile import inner
from refllm.jit.cpu import CPU
from refllm.kernels.simd.lanes import (
    LANES,
    load_bf16,
    load_f16,
    load_f32,
    load_i8,
    load_i32,
    lookup_table,
    prefetch,
    splat,
    splat_int,
    store,
    to_float,
)
from refllm.kernels.simd.rows import splat_rows_of

__all__ = [
    "FEW",
    "add_product",
    "add_products",
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
# A vector of floats or ints; only numba knows its type.
Lanes: TypeAlias = Any
Visit: TypeAlias = Callable[[Lanes, Floats, int, Lanes], Lanes]

# The lowest four bits of each lane as a number: 0 … 15, less 8, and as IQ4's level.
nibble = lookup_table([float(q) for q in range(16)])
nibble_less_8 = lookup_table([float(q - 8) for q in range(16)])
iq4_value = lookup_table(IQ4_VALUES.tolist())


# Rows whose sums stay in registers, with some left for decoding.
FEW = min(4, CPU.tile_rows)
splat_few = splat_rows_of("f32", FEW)


@inner
def add_product(total: Lanes, x: Floats, column: int, values: Lanes) -> Lanes:
    """total + values · x[column]: one term of each row's sum."""
    return total + values * splat(x[column])


@inner
def add_products(totals: Lanes, x: Floats, column: int, values: Lanes) -> Lanes:
    """totals + values · x[:, column]: one term of each sum of `FEW` rows of x."""
    return totals + splat_few(x, 4 * column, 4 * x.shape[1]) * values


@inner
def keep(total: Lanes, buffer: Floats, column: int, values: Lanes) -> Lanes:
    """Write the column's values to row `column` of the buffer [columns, LANES]."""
    store(buffer, column * LANES * 4, values)
    return total


# How far ahead of its use memory is asked for, and in what portions it comes.
AHEAD = 12288
CACHE_LINE = 64

# Stands for either visitor in the walks below.
visit: Visit = add_product


@inner
def words(panel: Bytes, at: int) -> Lanes:
    """Four bytes of each row, as 32-bit words, and the memory to come is asked for."""
    ask_ahead(panel, at, 4 * LANES)
    return load_i32(panel, at)


@inner
def ask_ahead(panel: Bytes, at: int, n_bytes: int) -> None:
    """Ask for what will be used some time after the bytes at `at`.

    The CPU would see by itself that a panel is read from beginning to end, were it not that nibbles
    are read in two passes over the same bytes, and that decoded weights are written meanwhile.
    """
    for line in range(n_bytes // CACHE_LINE):
        prefetch(panel, at + AHEAD + line * CACHE_LINE)


@inner
def from_bit(words: Lanes, bit: int) -> Lanes:
    """The words, shifted so that `bit` comes to the lowest place."""
    return words >> splat_int(np.int32(bit))


@inner
def one_bit(words: Lanes, bit: int) -> Lanes:
    """Bit `bit` of each word, 0 or 1."""
    return from_bit(words, bit) & splat_int(np.int32(1))


@inner
def with_fifth(words: Lanes, bit: int, fifth: Lanes) -> Lanes:
    """The four bits from `bit` on, and a fifth one above them."""
    low = from_bit(words, bit) & splat_int(np.int32(15))
    return low | (fifth << splat_int(np.int32(4)))


@inner
def less(q: Lanes, offset: int) -> Lanes:
    """q − offset, as floats."""
    return to_float(q - splat_int(np.int32(offset)))


def f32(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """F32: a block is one number."""
    return visit(total, array, column, load_f32(panel, at))


def f16(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """F16: a block is one number."""
    ask_ahead(panel, at, 2 * LANES)
    return visit(total, array, column, load_f16(panel, at))


def bf16(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """BF16: a block is one number."""
    ask_ahead(panel, at, 2 * LANES)
    return visit(total, array, column, load_bf16(panel, at))


def q8_0(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q8_0: y = d * q."""
    d = load_f16(panel, at)
    for j in range(32):
        ask_ahead(panel, at + (2 + j) * LANES, LANES)
        q = load_i8(panel, at + (2 + j) * LANES)
        total = visit(total, array, column + j, d * to_float(q))
    return total


def q4_0(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q4_0: y = d * (nibble - 8)."""
    d = load_f16(panel, at)
    for g in range(4):
        q = words(panel, at + (2 + 4 * g) * LANES)
        for b in range(4):
            y = d * nibble_less_8(from_bit(q, 8 * b))
            total = visit(total, array, column + 4 * g + b, y)
    for g in range(4):
        q = words(panel, at + (2 + 4 * g) * LANES)
        for b in range(4):
            y = d * nibble_less_8(from_bit(q, 8 * b + 4))
            total = visit(total, array, column + 16 + 4 * g + b, y)
    return total


def q4_1(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q4_1: y = d * nibble + m."""
    d = load_f16(panel, at)
    m = load_f16(panel, at + 2 * LANES)
    for g in range(4):
        q = words(panel, at + (4 + 4 * g) * LANES)
        for b in range(4):
            y = d * nibble(from_bit(q, 8 * b)) + m
            total = visit(total, array, column + 4 * g + b, y)
    for g in range(4):
        q = words(panel, at + (4 + 4 * g) * LANES)
        for b in range(4):
            y = d * nibble(from_bit(q, 8 * b + 4)) + m
            total = visit(total, array, column + 16 + 4 * g + b, y)
    return total


def q5_0(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q5_0: y = d * ((16 * fifth + nibble) - 16)."""
    d = load_f16(panel, at)
    h = words(panel, at + 2 * LANES)
    for g in range(4):
        q = words(panel, at + (6 + 4 * g) * LANES)
        for b in range(4):
            y = d * less(with_fifth(q, 8 * b, one_bit(h, 4 * g + b)), 16)
            total = visit(total, array, column + 4 * g + b, y)
    for g in range(4):
        q = words(panel, at + (6 + 4 * g) * LANES)
        for b in range(4):
            y = d * less(with_fifth(q, 8 * b + 4, one_bit(h, 16 + 4 * g + b)), 16)
            total = visit(total, array, column + 16 + 4 * g + b, y)
    return total


def q5_1(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q5_1: y = d * (16 * fifth + nibble) + m."""
    d = load_f16(panel, at)
    m = load_f16(panel, at + 2 * LANES)
    h = words(panel, at + 4 * LANES)
    for g in range(4):
        q = words(panel, at + (8 + 4 * g) * LANES)
        for b in range(4):
            y = d * to_float(with_fifth(q, 8 * b, one_bit(h, 4 * g + b))) + m
            total = visit(total, array, column + 4 * g + b, y)
    for g in range(4):
        q = words(panel, at + (8 + 4 * g) * LANES)
        for b in range(4):
            y = d * to_float(with_fifth(q, 8 * b + 4, one_bit(h, 16 + 4 * g + b))) + m
            total = visit(total, array, column + 16 + 4 * g + b, y)
    return total


def iq4_nl(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """IQ4_NL: y = d * IQ4_VALUES[nibble]."""
    d = load_f16(panel, at)
    for g in range(4):
        q = words(panel, at + (2 + 4 * g) * LANES)
        for b in range(4):
            y = d * iq4_value(from_bit(q, 8 * b))
            total = visit(total, array, column + 4 * g + b, y)
    for g in range(4):
        q = words(panel, at + (2 + 4 * g) * LANES)
        for b in range(4):
            y = d * iq4_value(from_bit(q, 8 * b + 4))
            total = visit(total, array, column + 16 + 4 * g + b, y)
    return total
