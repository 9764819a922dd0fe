"""The inner loop of every matrix product here: a vector of sums for each of several rows.

R rows of x, n terms of a sum.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.jit.compile import inner, specialized
from refllm.jit.cpu import CPU
from refllm.kernels.simd.lanes import load_f32
from refllm.kernels.simd.rows import load_rows_of, splat_rows_of, store_rows

__all__ = ["add_products"]

Floats = NDArray[np.float32]

FLOAT_BYTES = 4
# As many rows as the CPU's registers have room for; two thirds of that, two and one for the rest.
MOST_ROWS = CPU.tile_rows
FEWER_ROWS = max(MOST_ROWS * 2 // 3, 2)


# In the template below these stand for those of so many rows.
load_rows: Any = None
splat_rows: Any = None


def _add_products_of_rows(
    x: Floats, r: int, first: int, n: int, w: Floats, column: int, sums: Floats, place: int
) -> None:
    """`add_products` of the rows from r on."""
    stride, width = w.shape[1] * FLOAT_BYTES, sums.shape[1] * FLOAT_BYTES
    x_stride = x.shape[1] * FLOAT_BYTES
    activations, weights, flat = x.reshape(-1), w.reshape(-1), sums.reshape(-1)
    x_at = r * x_stride + first * FLOAT_BYTES
    at = r * width + place * FLOAT_BYTES
    totals = load_rows(flat, at, width)
    for k in range(n):
        row = load_f32(weights, k * stride + column * FLOAT_BYTES)
        totals = totals + splat_rows(activations, x_at + k * FLOAT_BYTES, x_stride) * row
    store_rows(flat, at, width, totals)


@cache
def _of_rows(count: int) -> Any:
    return inner(
        specialized(
            _add_products_of_rows,
            f"add_products_of_{count}",
            load_rows=load_rows_of(count),
            splat_rows=splat_rows_of("f32", count),
        )
    )


_most_rows, _fewer_rows = _of_rows(MOST_ROWS), _of_rows(FEWER_ROWS)
_two_rows, _one_row = _of_rows(2), _of_rows(1)


@inner
def add_products(
    x: Floats, first: int, n: int, w: Floats, column: int, sums: Floats, place: int
) -> None:
    """sums[r, place + lane] += x[r, first]·w[0, column + lane] + x[r, first + 1]·w[1, …] + …

    For every row r of x [R, ≥ n], a vector of lanes, n terms, one after the other. x, w and sums
    are contiguous matrices; a whole vector must be there from `column` and from `place` on.
    """
    r = 0
    while r + MOST_ROWS <= x.shape[0]:
        _most_rows(x, r, first, n, w, column, sums, place)
        r += MOST_ROWS
    while r + FEWER_ROWS <= x.shape[0]:
        _fewer_rows(x, r, first, n, w, column, sums, place)
        r += FEWER_ROWS
    while r + 2 <= x.shape[0]:
        _two_rows(x, r, first, n, w, column, sums, place)
        r += 2
    while r < x.shape[0]:
        _one_row(x, r, first, n, w, column, sums, place)
        r += 1
