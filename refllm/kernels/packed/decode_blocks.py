"""GGML blocks of W rows side by side → the rows' values, one column after the other.

In a panel (`refllm.kernels.packed.panels`) each field of a block is followed by the same field of
the next row's block, for all W rows, then comes the next field; a field is a half, a byte, or
four bytes of quants (`refllm.kernels.packed.fields`). What `refllm.quant` does to one row's block
is done here to W rows at once, in registers (`refllm.kernels.simd.lanes`): the same layout and the
same operations in the same order, so the numbers are the same. A product that float32 holds exactly
(`d · q` of Q4_1, Q5_1, Q2_K, Q4_K, Q5_K) is fused with the sum that follows.

A *block decoder* decodes one block and passes each column to a *consumer*:

    total = consume(total, array, column, values)      values: a vector, one weight for each row

- `add_product` multiplies the column with an activation and adds to the sums, by one fused
  multiply-add: a GEMV that never writes a decoded weight to memory.
- `add_products` does so for `MICRO_BATCH` rows of activations.
- `store_column` writes the column to a buffer, for a GEMM.

Each decoder is one template, which `refllm.kernels.linear` fills with one of the consumers.

Letters: W lanes; d, m, h, q, y as drawn in `refllm.ggml.blocks`; g a group of four bytes, b a byte
in it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from refllm.ggml.blocks import IQ4_VALUES
from refllm.jit.buffers import FLOAT_BYTES, Bytes, Floats
from refllm.jit.compile import HOLE, inner, template
from refllm.jit.cpu import CPU
from refllm.kernels.simd.lanes import (
    LANES,
    fma,
    fma_of_exact,
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
    "MICRO_BATCH",
    "Lanes",
    "add_product",
    "add_products",
    "bf16",
    "f16",
    "f32",
    "from_bit",
    "iq4_nl",
    "iq4_value",
    "less",
    "nibble",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "store_column",
    "words",
]

# A vector of floats or ints; only numba has its type.
Lanes: TypeAlias = Any

# The lowest four bits of each lane as a number: 0 … 15, less 8, and as IQ4's level.
nibble = lookup_table([float(q) for q in range(16)])
nibble_less_8 = lookup_table([float(q - 8) for q in range(16)])
iq4_value = lookup_table(IQ4_VALUES.tolist())

# Rows of activations whose sums stay in registers, with some registers left for decoding.
MICRO_BATCH = min(4, CPU.tile_rows(LANES))
splat_micro_batch = splat_rows_of("f32", MICRO_BATCH)

# How many bytes ahead of its use memory is prefetched, and in what portions it arrives.
AHEAD = 12288
CACHE_LINE = 64


# Consumers


@inner
def add_product(total: Lanes, x: Floats, column: int, values: Lanes) -> Lanes:
    """Return total + values · x[column], rounded once: one term of each row's sum."""
    return fma(splat(x[column]), values, total)


@inner
def add_products(totals: Lanes, x: Floats, column: int, values: Lanes) -> Lanes:
    """Return totals + values · x[:, column], rounded once, for `MICRO_BATCH` rows of x."""
    at, stride = FLOAT_BYTES * column, FLOAT_BYTES * x.shape[1]
    return fma(splat_micro_batch(x, at, stride), values, totals)


@inner
def store_column(total: Lanes, buffer: Floats, column: int, values: Lanes) -> Lanes:
    """Write the column's values to row `column` of the buffer [columns, W]; return total."""
    store(buffer, column * LANES * FLOAT_BYTES, values)
    return total


# Parts of block decoders


@inner
def words(panel: Bytes, at: int) -> Lanes:
    """Load four bytes of each row as 32-bit words, and prefetch."""
    prefetch_ahead(panel, at, 4 * LANES)
    return load_i32(panel, at)


@inner
def prefetch_ahead(panel: Bytes, at: int, n_bytes: int) -> None:
    """Prefetch as many bytes `AHEAD` bytes behind `at`.

    The CPU's own prefetcher loses track of the panel, because nibbles are read in two passes over
    the same bytes and a GEMM writes decoded weights meanwhile.
    """
    for line in range(n_bytes // CACHE_LINE):
        prefetch(panel, at + AHEAD + line * CACHE_LINE)


@inner
def from_bit(words: Lanes, bit: int) -> Lanes:
    """Return the words shifted right by `bit`."""
    return words >> splat_int(np.int32(bit))


@inner
def one_bit(words: Lanes, bit: int) -> Lanes:
    """Return bit `bit` of each word, 0 or 1."""
    return from_bit(words, bit) & splat_int(np.int32(1))


@inner
def with_fifth(words: Lanes, bit: int, fifth: Lanes) -> Lanes:
    """Return the four bits from `bit` on, and a fifth one above them."""
    low = from_bit(words, bit) & splat_int(np.int32(15))
    return low | (fifth << splat_int(np.int32(4)))


@inner
def less(q: Lanes, offset: int) -> Lanes:
    """Return q − offset as floats."""
    return to_float(q - splat_int(np.int32(offset)))


# Block decoders


consume: Any = HOLE


@template
def f32(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """F32: a block is one number."""
    return consume(total, array, column, load_f32(panel, at))


@template
def f16(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """F16: a block is one number."""
    prefetch_ahead(panel, at, 2 * LANES)
    return consume(total, array, column, load_f16(panel, at))


@template
def bf16(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """BF16: a block is one number."""
    prefetch_ahead(panel, at, 2 * LANES)
    return consume(total, array, column, load_bf16(panel, at))


@template
def q8_0(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q8_0: y = d * q."""
    d = load_f16(panel, at)
    for j in range(32):
        prefetch_ahead(panel, at + (2 + j) * LANES, LANES)
        q = load_i8(panel, at + (2 + j) * LANES)
        total = consume(total, array, column + j, d * to_float(q))
    return total


@template
def q4_0(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q4_0: y = d * (nibble - 8)."""
    d = load_f16(panel, at)
    for g in range(4):
        q = words(panel, at + (2 + 4 * g) * LANES)
        for b in range(4):
            y = d * nibble_less_8(from_bit(q, 8 * b))
            total = consume(total, array, column + 4 * g + b, y)
    for g in range(4):
        q = words(panel, at + (2 + 4 * g) * LANES)
        for b in range(4):
            y = d * nibble_less_8(from_bit(q, 8 * b + 4))
            total = consume(total, array, column + 16 + 4 * g + b, y)
    return total


@template
def q4_1(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q4_1: y = d * nibble + m."""
    d = load_f16(panel, at)
    m = load_f16(panel, at + 2 * LANES)
    for g in range(4):
        q = words(panel, at + (4 + 4 * g) * LANES)
        for b in range(4):
            y = fma_of_exact(d, nibble(from_bit(q, 8 * b)), m)
            total = consume(total, array, column + 4 * g + b, y)
    for g in range(4):
        q = words(panel, at + (4 + 4 * g) * LANES)
        for b in range(4):
            y = fma_of_exact(d, nibble(from_bit(q, 8 * b + 4)), m)
            total = consume(total, array, column + 16 + 4 * g + b, y)
    return total


@template
def q5_0(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q5_0: y = d * ((16 * fifth + nibble) - 16)."""
    d = load_f16(panel, at)
    h = words(panel, at + 2 * LANES)
    for g in range(4):
        q = words(panel, at + (6 + 4 * g) * LANES)
        for b in range(4):
            y = d * less(with_fifth(q, 8 * b, one_bit(h, 4 * g + b)), 16)
            total = consume(total, array, column + 4 * g + b, y)
    for g in range(4):
        q = words(panel, at + (6 + 4 * g) * LANES)
        for b in range(4):
            y = d * less(with_fifth(q, 8 * b + 4, one_bit(h, 16 + 4 * g + b)), 16)
            total = consume(total, array, column + 16 + 4 * g + b, y)
    return total


@template
def q5_1(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """Q5_1: y = d * (16 * fifth + nibble) + m."""
    d = load_f16(panel, at)
    m = load_f16(panel, at + 2 * LANES)
    h = words(panel, at + 4 * LANES)
    for g in range(4):
        q = words(panel, at + (8 + 4 * g) * LANES)
        for b in range(4):
            q5 = with_fifth(q, 8 * b, one_bit(h, 4 * g + b))
            y = fma_of_exact(d, to_float(q5), m)
            total = consume(total, array, column + 4 * g + b, y)
    for g in range(4):
        q = words(panel, at + (8 + 4 * g) * LANES)
        for b in range(4):
            q5 = with_fifth(q, 8 * b + 4, one_bit(h, 16 + 4 * g + b))
            y = fma_of_exact(d, to_float(q5), m)
            total = consume(total, array, column + 16 + 4 * g + b, y)
    return total


@template
def iq4_nl(panel: Bytes, at: int, total: Lanes, array: Floats, column: int) -> Lanes:
    """IQ4_NL: y = d * IQ4_VALUES[nibble]."""
    d = load_f16(panel, at)
    for g in range(4):
        q = words(panel, at + (2 + 4 * g) * LANES)
        for b in range(4):
            y = d * iq4_value(from_bit(q, 8 * b))
            total = consume(total, array, column + 4 * g + b, y)
    for g in range(4):
        q = words(panel, at + (2 + 4 * g) * LANES)
        for b in range(4):
            y = d * iq4_value(from_bit(q, 8 * b + 4))
            total = consume(total, array, column + 16 + 4 * g + b, y)
    return total
