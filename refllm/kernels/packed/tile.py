"""The inner loop of every float32 product: a vector of sums for each of several rows of x.

T rows of x, W lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refllm.jit.buffers import FLOAT_BYTES, Floats
from refllm.jit.compile import HOLE, inner, template
from refllm.jit.cpu import CPU
from refllm.kernels.simd.lanes import fma, load_f32
from refllm.kernels.simd.rows import load_rows_of, splat_rows_of, store_rows

__all__ = ["MAX_ROWS", "add_products"]

# As many rows as the CPU's registers can hold sums of; two thirds of that, two and one for the
# rest.
MAX_ROWS = CPU.tile_rows
FEWER_ROWS = max(MAX_ROWS * 2 // 3, 2)

load_rows: Any = HOLE
splat_rows: Any = HOLE


@template
def _add_products_of_rows(
    x: Floats, r: int, first: int, n: int, w: Floats, column: int, sums: Floats, place: int
) -> None:
    """Do what `add_products` does, for some rows from r on."""
    stride, width = w.shape[1] * FLOAT_BYTES, sums.shape[1] * FLOAT_BYTES
    x_stride = x.shape[1] * FLOAT_BYTES
    activations, weights, flat = x.reshape(-1), w.reshape(-1), sums.reshape(-1)
    x_at = r * x_stride + first * FLOAT_BYTES
    at = r * width + place * FLOAT_BYTES
    totals = load_rows(flat, at, width)
    for k in range(n):
        row = load_f32(weights, k * stride + column * FLOAT_BYTES)
        totals = fma(splat_rows(activations, x_at + k * FLOAT_BYTES, x_stride), row, totals)
    store_rows(flat, at, width, totals)


_add_products_of = {
    count: inner(
        _add_products_of_rows.fill(
            f"add_products_of_{count}",
            load_rows=load_rows_of(count),
            splat_rows=splat_rows_of("f32", count),
        )
    )
    for count in {MAX_ROWS, FEWER_ROWS, 2, 1}
}
_max_rows, _fewer_rows = _add_products_of[MAX_ROWS], _add_products_of[FEWER_ROWS]
_two_rows, _one_row = _add_products_of[2], _add_products_of[1]


@inner
def add_products(
    x: Floats, first: int, n: int, w: Floats, column: int, sums: Floats, place: int
) -> None:
    """Add n products to each of a vector of sums of every row of x.

    sums[t, place + lane] += x[t, first]·w[0, column + lane] + x[t, first + 1]·w[1, …] + …, one
    fused multiply-add after the other.

    Args:
        x: [T, ≥ first + n], contiguous as w and sums are.
        first: The first column of x.
        n: The number of terms.
        w: [n, ≥ column + W].
        column: The first of W columns of w.
        sums: [T, ≥ place + W].
        place: The first of W columns of sums.
    """
    r: Any = np.int64(0)  # numba gives 0 a type of its own and would compile a version for it
    while r + MAX_ROWS <= x.shape[0]:
        _max_rows(x, r, first, n, w, column, sums, place)
        r += MAX_ROWS
    while r + FEWER_ROWS <= x.shape[0]:
        _fewer_rows(x, r, first, n, w, column, sums, place)
        r += FEWER_ROWS
    while r + 2 <= x.shape[0]:
        _two_rows(x, r, first, n, w, column, sums, place)
        r += 2
    while r < x.shape[0]:
        _one_row(x, r, first, n, w, column, sums, place)
        r += 1
