"""The inner loop of every float32 product: a vector of sums for each of several rows of x.

T rows of x, L lanes of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from refllm.jit.buffers import FLOAT_BYTES, Floats
from refllm.jit.compile import HOLE, inner, template
from refllm.jit.cpu import CPU
from refllm.kernels.simd.lanes import (
    LANES,
    WIDTH,
    fma,
    load_f32_of,
    prefetch,
    prefetch_to_write,
    zeros_of,
)
from refllm.kernels.simd.rows import load_rows_of, splat_rows_of, store_rows

__all__ = ["MAX_ROWS", "add_products", "add_products_of"]

# In what portions memory arrives, and how many of them a panel's row of floats is.
LINE_BYTES = 64
N_LINES = LANES * FLOAT_BYTES // LINE_BYTES

rows: Any = HOLE
lines: Any = HOLE
zero_rows: Any = HOLE
load_rows: Any = HOLE
splat_rows: Any = HOLE
load_weights: Any = HOLE


@template
def _add_products_of_rows(
    x: Floats,
    r: int,
    first: int,
    n: int,
    w: Floats,
    column: int,
    sums: Floats,
    place: int,
    is_first: bool,
    bias: Floats,
    ahead: int,
) -> None:
    """Do what `add_products` does, for some rows from r on."""
    stride, width = w.shape[1] * FLOAT_BYTES, sums.shape[1] * FLOAT_BYTES
    x_stride = x.shape[1] * FLOAT_BYTES
    activations, weights, flat = x.reshape(-1), w.reshape(-1), sums.reshape(-1)
    x_at = r * x_stride + first * FLOAT_BYTES
    at = r * width + place * FLOAT_BYTES
    w_at = column * FLOAT_BYTES
    next_at, tile = at + rows * width, r // rows
    later = w_at + (ahead + tile * LINE_BYTES if tile < N_LINES else 0)
    totals = zero_rows() if is_first else load_rows(flat, at, width)
    for k in range(n):
        row = load_weights(weights, w_at + k * stride)
        prefetch(weights, later + k * stride)
        # The next tile's sums, one line at a time: without this its end waits for memory.
        line = min(k, rows * lines - 1)
        prefetch_to_write(flat, next_at + line // lines * width + line % lines * LINE_BYTES)
        totals = fma(splat_rows(activations, x_at + k * FLOAT_BYTES, x_stride), row, totals)
    if bias.size > 0:
        totals = totals + load_weights(bias, place * FLOAT_BYTES)
    store_rows(flat, at, width, totals)


max_rows: Any = HOLE
fewer_rows: Any = HOLE
add_max_rows: Any = HOLE
add_fewer_rows: Any = HOLE
add_two_rows: Any = HOLE
add_one_row: Any = HOLE


@template
def _add_products(
    x: Floats,
    first: int,
    n: int,
    w: Floats,
    column: int,
    sums: Floats,
    place: int,
    is_first: bool,
    bias: Floats,
    ahead: int,
) -> None:
    """Add n products to each of a vector of sums of every row of x.

    sums[t, place + lane] += x[t, first]·w[0, column + lane] + x[t, first + 1]·w[1, …] + …, one
    fused multiply-add after the other.

    Args:
        x: [T, ≥ first + n], contiguous as w and sums are.
        first: The first column of x.
        n: The number of terms.
        w: [n, ≥ column + L].
        column: The first of L columns of w.
        sums: [T, ≥ place + L].
        place: The first of L columns of sums.
        is_first: Whether the sums start from +0, whatever is there.
        bias: [≥ place + L], added to the sums at the end; empty for none.
        ahead: How many bytes behind w weights follow that are multiplied next. They are prefetched
            by the first tiles, a line of each row by each of them.
    """
    r: Any = np.int64(0)  # numba gives 0 a type of its own and would compile a version for it
    while r + max_rows <= x.shape[0]:
        add_max_rows(x, r, first, n, w, column, sums, place, is_first, bias, ahead)
        r += max_rows
    while r + fewer_rows <= x.shape[0]:
        add_fewer_rows(x, r, first, n, w, column, sums, place, is_first, bias, ahead)
        r += fewer_rows
    while r + 2 <= x.shape[0]:
        add_two_rows(x, r, first, n, w, column, sums, place, is_first, bias, ahead)
        r += 2
    while r < x.shape[0]:
        add_one_row(x, r, first, n, w, column, sums, place, is_first, bias, ahead)
        r += 1


@cache
def add_products_of(lanes: int) -> Callable[..., None]:
    """Return `_add_products` for vectors of so many lanes, as an `inner` function.

    A tile has as many rows as the CPU's registers can hold sums of; two thirds of that, two and one
    are for the rest.
    """
    registers = lanes // WIDTH
    most = CPU.tile_rows(lanes)
    fewer = max(most * 2 // 3, 2)
    load = load_f32_of(registers)

    def add(rows: int) -> Callable[..., None]:
        return inner(
            _add_products_of_rows.fill(
                f"add_products_of_{rows}_by_{lanes}",
                load_rows=load_rows_of(rows, registers),
                splat_rows=splat_rows_of("f32", rows, registers),
                load_weights=load,
                rows=rows,
                lines=lanes * FLOAT_BYTES // LINE_BYTES,
                zero_rows=zeros_of("f32", rows, registers),
            )
        )

    return inner(
        _add_products.fill(
            f"add_products_by_{lanes}",
            max_rows=most,
            fewer_rows=fewer,
            add_max_rows=add(most),
            add_fewer_rows=add(fewer),
            add_two_rows=add(2),
            add_one_row=add(1),
        )
    )


MAX_ROWS = CPU.tile_rows(LANES)
add_products = add_products_of(LANES)
