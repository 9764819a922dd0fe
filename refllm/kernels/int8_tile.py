"""The inner loops of an int8 product: rows of activations meet 64 rows of weights.

T rows of activations, a multiple of `ROWS` where there are several; B blocks in a row.

The functions are templates: `refllm.kernels.int8` puts a format's own functions and numbers
(`refllm.kernels.int8_blocks`) in the place of the global names below and compiles (`specialized`).

- One row: a block's weights become quads in registers, meet the row and are forgotten.
- Many rows: a *piece* of a panel, some blocks long, is made ready once. Its quads, scales and
  minima are written to where the cache keeps them, and all rows pass by, `ROWS` at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refllm.kernels.int8_quantize import Activations
from refllm.kernels.jit import inner
from refllm.kernels.simd import (
    LANES,
    load_f16,
    load_f32,
    load_i32,
    splat,
    splat_int,
    store_f32,
    to_float,
    zeros,
)
from refllm.kernels.simd_int import (
    ROWS,
    dot_pairs,
    dot_pairs_rows,
    dot_quads,
    dot_quads_rows,
    load_rows,
    splat_bytes,
    splat_bytes_rows,
    splat_rows,
    store_int,
    store_rows,
    to_float_rows,
    zero_int,
    zero_rows,
)

__all__ = ["add_block", "add_piece", "make_ready", "minima_pair", "row_product", "rows_product"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Lanes = Any

# The columns of a piece: with 64 rows of weights, 16 KiB of quads.
PIECE = 256
VECTOR = 4 * LANES  # the bytes of a vector
CACHE_LINE = 64

# A format's own, and the templates that were made for it; see above.
quads: Any = None
scale: Any = None
minimum: Any = None
finish: Any = None
block_size = block_bytes = block_quads = d_at = m_at = 0
groups = group_quads = pairs = 0


class Piece(NamedTuple):
    """Blocks of a panel, ready to be multiplied. Each row of the arrays is one vector."""

    quads: Floats  # [blocks · quads of a block, 64]: four bytes each
    scales: Floats  # [blocks · groups, 64]: int32
    minima: Floats  # [blocks · pairs of minima, 64]: two int16 each
    d: Floats  # [blocks, 64]
    m: Floats  # [blocks, 64]


@inner
def vectors(n: int) -> Floats:
    """Room for n vectors [n, 64] at addresses that are a multiple of a cache line.

    AVX-512's registers are as wide as a line; one that begins within a line costs two accesses.
    """
    room = np.empty((n + 1) * LANES, np.float32)
    skip = (-room.ctypes.data % CACHE_LINE) // 4
    return room[skip : skip + n * LANES].reshape(n, LANES)


@inner
def write(total: Lanes, out: Floats, t: int, first: int) -> None:
    """Put 64 totals into row t of out [T, N] from column `first` on, as many as there are."""
    if first + LANES <= out.shape[1]:
        store_f32(out, 4 * (t * out.shape[1] + first), total)
    else:
        lanes = np.empty(LANES, np.float32)
        store_f32(lanes, 0, total)
        for lane in range(out.shape[1] - first):
            out[t, first + lane] = lanes[lane]


def minima_pair(panel: Bytes, at: int, i: int) -> Lanes:
    """The minima of groups 2i and 2i + 1, in the lower and the upper half of each lane."""
    upper = minimum(panel, at, 2 * i + 1) << splat_int(np.int32(16))
    return minimum(panel, at, 2 * i) | upper


# One row


def row_product(panel: Bytes, first: int, x: Activations, out: Floats) -> None:
    """Outputs `first` … `first` + 63 of the one row."""
    total = zeros()
    for b in range(x.d.shape[0]):
        total = add_block(panel, b * block_bytes * LANES, total, x, b)
    write(total, out, 0, first)


def add_block(panel: Bytes, at: int, total: Lanes, x: Activations, b: int) -> Lanes:
    """total + the products of the blocks at `at` with block b of the row."""
    w_a = zero_int()
    for g in range(groups):
        group = splat_bytes(x.starts, 4 * (b * groups + g))
        for j in range(g * group_quads, (g + 1) * group_quads):
            a = splat_bytes(x.q, 4 * (b * block_quads + j))
            group = dot_quads(group, quads(panel, at, j), a)
        w_a = w_a + group * scale(panel, at, g)
    v_a = zero_int()
    for i in range(pairs):
        a = splat_bytes(x.sums, 4 * (b * pairs + i))
        v_a = dot_pairs(v_a, minima_pair(panel, at, i), a)
    d, m = load_f16(panel, at + d_at * LANES), load_f16(panel, at + m_at * LANES)
    return finish(total, to_float(w_a), to_float(v_a), d, m, splat(x.d[b, 0]), splat(x.s[b, 0]))


# Many rows


def rows_product(panel: Bytes, first: int, x: Activations, out: Floats) -> None:
    """Outputs `first` … `first` + 63 of every row."""
    n_blocks, n_rows = x.d.shape
    step = PIECE // block_size
    piece = Piece(
        vectors(step * block_quads),
        vectors(step * groups),
        vectors(step * pairs),
        vectors(step),
        vectors(step),
    )
    totals = vectors(n_rows)
    totals[:] = 0.0
    for start in range(0, n_blocks, step):
        stop = min(start + step, n_blocks)
        make_ready(panel, start, stop, piece)
        add_piece(piece, start, stop, x, totals)
    for t in range(out.shape[0]):
        write(load_f32(totals, t * VECTOR), out, t, first)


def make_ready(panel: Bytes, start: int, stop: int, piece: Piece) -> None:
    """Write blocks `start` to `stop`, the latter excluded, to the piece."""
    for b in range(stop - start):
        at = (start + b) * block_bytes * LANES
        for j in range(block_quads):
            store_int(piece.quads, (b * block_quads + j) * VECTOR, quads(panel, at, j))
        for g in range(groups):
            store_int(piece.scales, (b * groups + g) * VECTOR, scale(panel, at, g))
        for i in range(pairs):
            store_int(piece.minima, (b * pairs + i) * VECTOR, minima_pair(panel, at, i))
        store_f32(piece.d, b * VECTOR, load_f16(panel, at + d_at * LANES))
        store_f32(piece.m, b * VECTOR, load_f16(panel, at + m_at * LANES))


def add_piece(piece: Piece, start: int, stop: int, x: Activations, totals: Floats) -> None:
    """totals[t, :] += the products of the piece with blocks `start` to `stop` of row t."""
    n_rows = x.d.shape[1]
    for t in range(0, n_rows, ROWS):
        total = load_rows(totals, t * VECTOR)
        for b in range(stop - start):
            at = (start + b) * n_rows + t  # of the block's first row of activations
            w_a = zero_rows()
            for g in range(groups):
                group = splat_bytes_rows(x.starts, 4 * (at * groups + g), 4 * groups)
                for j in range(g * group_quads, (g + 1) * group_quads):
                    weights = load_i32(piece.quads, (b * block_quads + j) * VECTOR)
                    place = 4 * (at * block_quads + j)
                    group = dot_quads_rows(group, weights, x.q, place, 4 * block_quads)
                if groups == 1:
                    w_a = group
                else:
                    w_a = w_a + group * load_i32(piece.scales, (b * groups + g) * VECTOR)
            v_a = zero_rows()
            for i in range(pairs):
                minima = load_i32(piece.minima, (b * pairs + i) * VECTOR)
                v_a = dot_pairs_rows(v_a, minima, x.sums, 4 * (at * pairs + i), 4 * pairs)
            d, m = load_f32(piece.d, b * VECTOR), load_f32(piece.m, b * VECTOR)
            d_x, s_x = splat_rows(x.d, 4 * at, 4), splat_rows(x.s, 4 * at, 4)
            total = finish(total, to_float_rows(w_a), to_float_rows(v_a), d, m, d_x, s_x)
        store_rows(totals, t * VECTOR, total)
