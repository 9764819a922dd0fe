"""The inner loop of every matrix product here: 64 sums for each of several rows.

R rows of x, n terms of a sum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refllm.kernels.jit import inner
from refllm.kernels.simd import load_f32, splat, store_f32

__all__ = ["add_products"]

Floats = NDArray[np.float32]

FLOAT_BYTES = 4


@inner
def add_products(
    x: Floats, first: int, n: int, w: Floats, column: int, sums: Floats, place: int
) -> None:
    """sums[r, place + lane] += x[r, first]·w[0, column + lane] + x[r, first + 1]·w[1, …] + …

    For every row r of x [R, ≥ n], 64 lanes, n terms, one after the other. w and sums are
    contiguous matrices; 64 floats must be there from `column` and from `place` on.
    """
    r = 0
    while r + 6 <= x.shape[0]:
        _six_rows(x, r, first, n, w, column, sums, place)
        r += 6
    while r + 3 <= x.shape[0]:
        _three_rows(x, r, first, n, w, column, sums, place)
        r += 3
    while r < x.shape[0]:
        _one_row(x, r, first, n, w, column, sums, place)
        r += 1


@inner
def _six_rows(
    x: Floats, r: int, first: int, n: int, w: Floats, column: int, sums: Floats, place: int
) -> None:
    """Rows r … r + 5: 24 AVX-512 registers of sums and four of weights, all that the CPU has."""
    stride, width = w.shape[1] * FLOAT_BYTES, sums.shape[1] * FLOAT_BYTES
    weights, flat = w.reshape(-1), sums.reshape(-1)
    at = r * width + place * FLOAT_BYTES
    sum0, sum1 = load_f32(flat, at), load_f32(flat, at + width)
    sum2, sum3 = load_f32(flat, at + 2 * width), load_f32(flat, at + 3 * width)
    sum4, sum5 = load_f32(flat, at + 4 * width), load_f32(flat, at + 5 * width)
    for k in range(n):
        row = load_f32(weights, k * stride + column * FLOAT_BYTES)
        sum0 = sum0 + row * splat(x[r, first + k])
        sum1 = sum1 + row * splat(x[r + 1, first + k])
        sum2 = sum2 + row * splat(x[r + 2, first + k])
        sum3 = sum3 + row * splat(x[r + 3, first + k])
        sum4 = sum4 + row * splat(x[r + 4, first + k])
        sum5 = sum5 + row * splat(x[r + 5, first + k])
    store_f32(flat, at, sum0)
    store_f32(flat, at + width, sum1)
    store_f32(flat, at + 2 * width, sum2)
    store_f32(flat, at + 3 * width, sum3)
    store_f32(flat, at + 4 * width, sum4)
    store_f32(flat, at + 5 * width, sum5)


@inner
def _three_rows(
    x: Floats, r: int, first: int, n: int, w: Floats, column: int, sums: Floats, place: int
) -> None:
    """Rows r … r + 2."""
    stride, width = w.shape[1] * FLOAT_BYTES, sums.shape[1] * FLOAT_BYTES
    weights, flat = w.reshape(-1), sums.reshape(-1)
    at = r * width + place * FLOAT_BYTES
    sum0, sum1 = load_f32(flat, at), load_f32(flat, at + width)
    sum2 = load_f32(flat, at + 2 * width)
    for k in range(n):
        row = load_f32(weights, k * stride + column * FLOAT_BYTES)
        sum0 = sum0 + row * splat(x[r, first + k])
        sum1 = sum1 + row * splat(x[r + 1, first + k])
        sum2 = sum2 + row * splat(x[r + 2, first + k])
    store_f32(flat, at, sum0)
    store_f32(flat, at + width, sum1)
    store_f32(flat, at + 2 * width, sum2)


@inner
def _one_row(
    x: Floats, r: int, first: int, n: int, w: Floats, column: int, sums: Floats, place: int
) -> None:
    """Row r alone."""
    stride = w.shape[1] * FLOAT_BYTES
    weights, flat = w.reshape(-1), sums.reshape(-1)
    at = (r * sums.shape[1] + place) * FLOAT_BYTES
    total = load_f32(flat, at)
    for k in range(n):
        row = load_f32(weights, k * stride + column * FLOAT_BYTES)
        total = total + row * splat(x[r, first + k])
    store_f32(flat, at, total)
