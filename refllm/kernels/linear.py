"""Matrix product: y[t, n] = ((x[t,0]·w[n,0] + x[t,1]·w[n,1]) + x[t,2]·w[n,2]) + …, in float32.

T rows of x, N rows of w (outputs), D columns of both.

A sum from left to right leaves no freedom within one output, so the freedom is taken across
outputs: `LANES` rows of w are turned into a panel [D, LANES], and one activation meets a whole
panel row at a time. Every lane adds its own sum in order, and the compiler makes the lanes into
SIMD registers without being allowed to reorder anything.

Weights stay in the file's format; a slab of rows is decoded to float32 just before its use.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refllm.kernels.jit import jit, parallel_jit, prange
from refllm.quant import Tensor

__all__ = ["embedding", "linear"]

Floats = NDArray[np.float32]

LANES = 64
# Rows of a compressed matrix that are decoded at a time: their float32 form should stay in cache.
SLAB_ELEMENTS = 1 << 20
# Below this many multiplications one thread is done before a second has woken up.
SERIAL_WORK = 1 << 16


def embedding(token_ids: NDArray[np.int64], weight: Tensor) -> Floats:
    """The rows of weight [V, D] that the token ids name, float32 [T, D]."""
    shape = (len(token_ids), weight.shape[1])
    return Tensor(weight.name, weight.format, shape, weight.data[token_ids]).array()


def linear(x: Floats, weight: Tensor) -> Floats:
    """x [T, D] times the rows of weight [N, D]: float32 [T, N]."""
    n_rows, n_columns = weight.shape
    out = np.empty((x.shape[0], n_rows), np.float32)  # [T, N]
    slab_rows = max(SLAB_ELEMENTS // n_columns // LANES, 1) * LANES
    for start in range(0, n_rows, slab_rows):
        stop = min(start + slab_rows, n_rows)
        slab = weight.rows(start, stop).view()  # [≤ slab_rows, D]
        slab.flags.writeable = False  # a mapped file is read-only: compile for that alone
        run = _product_serial if x.size * slab.shape[0] < SERIAL_WORK else _product_parallel
        run(x, slab, out, start)
    return out


@jit
def _panel_product(panel: int, x: Floats, slab: Floats, out: Floats, start: int) -> None:
    """The outputs of up to LANES rows of the slab, from row panel·LANES on."""
    n_tokens, n_columns = x.shape
    first = panel * LANES
    n_lanes = min(LANES, slab.shape[0] - first)
    lanes = np.zeros((n_columns, LANES), np.float32)  # [D, LANES]
    for lane in range(n_lanes):
        for d in range(n_columns):
            lanes[d, lane] = slab[first + lane, d]
    sums = np.empty(LANES, np.float32)
    for t in range(n_tokens):
        sums[:] = 0.0
        for d in range(n_columns):
            activation = x[t, d]
            for lane in range(LANES):
                sums[lane] += activation * lanes[d, lane]
        for lane in range(n_lanes):
            out[t, start + first + lane] = sums[lane]


@jit
def _product_serial(x: Floats, slab: Floats, out: Floats, start: int) -> None:
    for panel in range((slab.shape[0] + LANES - 1) // LANES):
        _panel_product(panel, x, slab, out, start)


@parallel_jit
def _product_parallel(x: Floats, slab: Floats, out: Floats, start: int) -> None:
    for panel in prange((slab.shape[0] + LANES - 1) // LANES):
        _panel_product(panel, x, slab, out, start)
