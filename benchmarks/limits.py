"""`limits`: what this CPU can do at most, with one rounding for a product and its sum and with two.

The innermost loop of a matrix product, one tile on numbers that stay in the CPU's first cache: as
refllm compiles it, each step one fused multiply-add, and beside it with a product that is rounded
before it is added, as in revision 1 of the rule. No product of whole matrices is faster than its
tile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from benchmarks.compare import Bench
from benchmarks.results import REFLLM, Figure
from refllm.jit.buffers import FLOAT_BYTES, Floats
from refllm.kernels.packed.tile import MAX_ROWS
from refllm.kernels.simd.lanes import LANES, fma, load_f32
from refllm.kernels.simd.rows import load_rows_of, splat_rows_of, store_rows

__all__ = ["measure_limits"]

N_TERMS = 256  # with 16 lanes, 16 KiB of weights: half of a first cache
REPEATS = 20_000
QUICK_REPEATS = 10

load_rows = load_rows_of(MAX_ROWS)
splat_rows = splat_rows_of("f32", MAX_ROWS)


@numba.njit(nogil=True, error_model="numpy")
def rounded_twice(x: Floats, weights: Floats, sums: Floats, repeats: int) -> None:
    """A tile of sums, `N_TERMS` terms each, again and again; each product and sum is rounded."""
    for _ in range(repeats):
        totals = load_rows(sums, 0, LANES * FLOAT_BYTES)
        for k in range(N_TERMS):
            row = load_f32(weights, k * LANES * FLOAT_BYTES)
            totals = totals + splat_rows(x, k * FLOAT_BYTES, N_TERMS * FLOAT_BYTES) * row
        store_rows(sums, 0, LANES * FLOAT_BYTES, totals)


@numba.njit(nogil=True, error_model="numpy")
def fused(x: Floats, weights: Floats, sums: Floats, repeats: int) -> None:
    """The same by the rule: a product and its sum rounded once (`refllm.kernels.packed.tile`)."""
    for _ in range(repeats):
        totals = load_rows(sums, 0, LANES * FLOAT_BYTES)
        for k in range(N_TERMS):
            row = load_f32(weights, k * LANES * FLOAT_BYTES)
            totals = fma(splat_rows(x, k * FLOAT_BYTES, N_TERMS * FLOAT_BYTES), row, totals)
        store_rows(sums, 0, LANES * FLOAT_BYTES, totals)


def measure_limits(bench: Bench) -> None:
    """Multiplications and additions per second of one thread, rounded twice and fused."""
    compiled = {"rounded twice": rounded_twice, "fused": fused}
    repeats = QUICK_REPEATS if bench.options.is_quick else REPEATS
    rates: dict[str, list[float]] = {name: [] for name in compiled}
    for round_ in range(bench.options.rounds + 1):
        for name, kernel in compiled.items():
            rate = _rate(kernel, repeats)
            if round_ > 0:
                rates[name].append(rate)
    for name, samples in rates.items():
        labels: dict[str, str | int] = {"work": "tile", "operations": name}
        labels |= {"rows": MAX_ROWS, "lanes": LANES}
        bench.add(Figure(labels=labels, unit="G MAC/s", samples={REFLLM: samples}))


def _rate(kernel: Callable[..., Any], repeats: int) -> float:
    """10⁹ multiplications with their additions per second; all numbers are zero and stay so."""
    x, weights = np.zeros(MAX_ROWS * N_TERMS, np.float32), np.zeros(N_TERMS * LANES, np.float32)
    sums = np.zeros(MAX_ROWS * LANES, np.float32)
    start = time.perf_counter()
    kernel(x, weights, sums, repeats)
    return MAX_ROWS * LANES * N_TERMS * repeats / (time.perf_counter() - start) / 1e9
