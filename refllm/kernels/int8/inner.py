"""The inner loops of an int8 product: rows of activations meet the rows of weights of a panel.

T rows of activations, a multiple of `ROWS` where there are several; B blocks in a row; L lanes, the
rows of a panel.

The functions are templates: `refllm.kernels.int8.product` puts a format's own functions and numbers
(`refllm.kernels.int8.blocks`) in the place of the global names below and compiles (`specialized`).

- One row: a block's weights become quads in registers, meet the row and are forgotten.
- Many rows: a *piece* of a panel, some blocks long, is made ready once. Its quads, scales and
  minima are written to where the cache keeps them, and all rows pass by, `ROWS` at a time.

A block is gone through in *runs* of quads. What becomes of a run depends on what the CPU can do
(`refllm.kernels.simd.ints`): four products at a time are added up in 32 bits, a run being all quads
that have a scale in common; or pairs of products in 16 bits, as many as they can hold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refllm.jit.compile import inner
from refllm.kernels.int8.quantize import Activations
from refllm.kernels.simd.ints import (
    ROWS,
    dot_pairs,
    dot_quads,
    load_rows,
    splat_bytes,
    splat_bytes_rows,
    splat_rows,
    zero_int,
    zero_rows,
)
from refllm.kernels.simd.lanes import (
    LANES,
    load_f16,
    load_f32,
    load_i32,
    splat,
    splat_int,
    store,
    to_float,
    zeros,
)
from refllm.kernels.simd.rows import store_rows

__all__ = [
    "add_block",
    "add_piece",
    "add_run_of_pairs_rows",
    "add_run_of_quads_rows",
    "add_turn_of_four",
    "add_turn_of_one",
    "add_turn_of_pairs",
    "add_turn_of_two",
    "make_ready",
    "minima_pair",
    "pair_scale",
    "quad_of",
    "row_product",
    "rows_product",
    "scaled",
    "start_of",
]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Lanes = Any

# The columns of a piece: 4 KiB of quads with 16 rows of weights, 16 KiB with 64.
PIECE = 256
VECTOR = 4 * LANES  # the bytes of a vector
CACHE_LINE = 64

# A format's own, and the templates that were made for it; see above.
quads: Any = None
scale: Any = None
minimum: Any = None
finish: Any = None
add_run: Any = None
add_turn: Any = None
scale_of_run: Any = None
multiply: Any = None
block_size = block_bytes = block_quads = d_at = m_at = 0
runs = run_quads = groups = group_runs = pairs = offset = 0
strands = stride = turns = 0


class Piece(NamedTuple):
    """Blocks of a panel, ready to be multiplied. Each row of the arrays is one vector."""

    quads: Floats  # [blocks · quads of a block, L]: four bytes each
    scales: Floats  # [blocks · groups, L]: int32, or two int16
    minima: Floats  # [blocks · pairs of minima, L]: two int16 each
    d: Floats  # [blocks, L]
    m: Floats  # [blocks, L]


@inner
def vectors(n: int) -> Floats:
    """Room for n vectors [n, L] at addresses that are a multiple of a cache line.

    AVX-512's registers are as wide as a line; one that begins within a line costs two accesses.
    """
    room = np.empty((n + 1) * LANES, np.float32)
    skip = (-room.ctypes.data % CACHE_LINE) // 4
    return room[skip : skip + n * LANES].reshape(n, LANES)


@inner
def write(total: Lanes, out: Floats, t: int, first: int, last: int) -> None:
    """Put a vector of totals into row t of out [T, N], from column `first` on, before `last`."""
    if first + LANES <= last:
        store(out, 4 * (t * out.shape[1] + first), total)
    else:
        lanes = np.empty(LANES, np.float32)
        store(lanes, 0, total)
        for lane in range(last - first):
            out[t, first + lane] = lanes[lane]


def minima_pair(panel: Bytes, at: int, i: int) -> Lanes:
    """The minima of groups 2i and 2i + 1, in the lower and the upper half of each lane."""
    upper = minimum(panel, at, 2 * i + 1) << splat_int(np.int32(16))
    return minimum(panel, at, 2 * i) | upper


def pair_scale(panel: Bytes, at: int, g: int) -> Lanes:
    """The scale of group g in both halves of each lane."""
    both = scale(panel, at, g)
    return (both & splat_int(np.int32(0xFFFF))) | (both << splat_int(np.int32(16)))


# Runs, of several rows


def add_run_of_quads_rows(
    w_a: Lanes, piece: Piece, b: int, x: Activations, at: int, run: int, factor: Lanes
) -> Lanes:
    """w_a + the products of a run in block b of the piece, for the rows from `at` on.

    They are added up as they are and then scaled.
    """
    group = splat_bytes_rows(x.starts, 4 * (at * runs + run), 4 * runs)
    for j in range(run * run_quads, (run + 1) * run_quads):
        weights = load_i32(piece.quads, (b * block_quads + j) * VECTOR)
        a = splat_bytes_rows(x.q, 4 * (at * block_quads + j), 4 * block_quads)
        group = dot_quads(group, weights, a)
    if groups == 1:
        return w_a + group
    return w_a + group * factor


def add_run_of_pairs_rows(
    w_a: Lanes, piece: Piece, b: int, x: Activations, at: int, run: int, factor: Lanes
) -> Lanes:
    """The same with sums of pairs, which become 32 bits wide when they are scaled."""
    sums = zero_rows()
    if offset != 0:
        sums = splat_bytes_rows(x.starts, 4 * (at * runs + run), 4 * runs)
    for j in range(run * run_quads, (run + 1) * run_quads):
        weights = load_i32(piece.quads, (b * block_quads + j) * VECTOR)
        a = splat_bytes_rows(x.q, 4 * (at * block_quads + j), 4 * block_quads)
        sums = multiply(sums, weights, a)
    return dot_pairs(w_a, sums, factor)


# One row


# One row. Memory is read from beginning to end, because a CPU that fetches it ahead of its use
# expects that: a block's scales and minima first, then its quads, once. Runs of quads that lie in
# the same bytes take their turn together.


def row_product(panel: Bytes, x: Activations, out: Floats, first: int, last: int) -> None:
    """Outputs `first` … `first` + L − 1, but none from `last` on, of the one row."""
    total = zeros()
    scales, minima = vectors(groups), vectors(pairs)
    for b in range(x.d.shape[0]):
        total = add_block(panel, b * block_bytes * LANES, total, x, b, scales, minima)
    write(total, out, 0, first, last)


def add_block(
    panel: Bytes, at: int, total: Lanes, x: Activations, b: int, scales: Floats, minima: Floats
) -> Lanes:
    """total + the products of the blocks at `at` with block b of the row."""
    d, m = load_f16(panel, at + d_at * LANES), load_f16(panel, at + m_at * LANES)
    for g in range(groups):
        store(scales, g * VECTOR, scale_of_run(panel, at, g))
    for i in range(pairs):
        store(minima, i * VECTOR, minima_pair(panel, at, i))
    w_a = zero_int()
    for turn in range(turns):
        w_a = add_turn(w_a, panel, at, x, b, turn, scales)
    v_a = zero_int()
    for i in range(pairs):
        a = splat_bytes(x.sums, 4 * (b * pairs + i))
        v_a = dot_pairs(v_a, load_i32(minima, i * VECTOR), a)
    return finish(total, to_float(w_a), to_float(v_a), d, m, splat(x.d[b, 0]), splat(x.s[b, 0]))


def add_turn_of_one(
    w_a: Lanes, panel: Bytes, at: int, x: Activations, b: int, turn: int, scales: Floats
) -> Lanes:
    """w_a + the products of a run, added up as they are and then scaled."""
    group = start_of(x, b, turn)
    span = strands * stride
    for i in range(run_quads):
        place = i // span * span + i % strands * stride + i // strands % stride
        j = turn * run_quads + place
        group = dot_quads(group, quads(panel, at, j), quad_of(x, b, j))
    return w_a + scaled(group, scales, turn)


def add_turn_of_two(
    w_a: Lanes, panel: Bytes, at: int, x: Activations, b: int, turn: int, scales: Floats
) -> Lanes:
    """The same of two runs."""
    step = stride // run_quads  # from run to run, a power of 2
    run_0 = 2 * (turn & -step) + (turn & (step - 1))
    run_1 = run_0 + step
    group_0, group_1 = start_of(x, b, run_0), start_of(x, b, run_1)
    for i in range(run_quads):
        j = run_0 * run_quads + (i & (run_quads - 1))
        j_1 = j + stride
        group_0 = dot_quads(group_0, quads(panel, at, j), quad_of(x, b, j))
        group_1 = dot_quads(group_1, quads(panel, at, j_1), quad_of(x, b, j_1))
    return w_a + scaled(group_0, scales, run_0) + scaled(group_1, scales, run_1)


def add_turn_of_four(
    w_a: Lanes, panel: Bytes, at: int, x: Activations, b: int, turn: int, scales: Floats
) -> Lanes:
    """The same of four runs."""
    step = stride // run_quads  # from run to run, a power of 2
    run_0 = 4 * (turn & -step) + (turn & (step - 1))
    run_1, run_2, run_3 = run_0 + step, run_0 + 2 * step, run_0 + 3 * step
    group_0, group_1 = start_of(x, b, run_0), start_of(x, b, run_1)
    group_2, group_3 = start_of(x, b, run_2), start_of(x, b, run_3)
    for i in range(run_quads):
        j = run_0 * run_quads + (i & (run_quads - 1))
        j_1, j_2, j_3 = j + stride, j + 2 * stride, j + 3 * stride
        group_0 = dot_quads(group_0, quads(panel, at, j), quad_of(x, b, j))
        group_1 = dot_quads(group_1, quads(panel, at, j_1), quad_of(x, b, j_1))
        group_2 = dot_quads(group_2, quads(panel, at, j_2), quad_of(x, b, j_2))
        group_3 = dot_quads(group_3, quads(panel, at, j_3), quad_of(x, b, j_3))
    w_a = w_a + scaled(group_0, scales, run_0) + scaled(group_1, scales, run_1)
    return w_a + scaled(group_2, scales, run_2) + scaled(group_3, scales, run_3)


def add_turn_of_pairs(
    w_a: Lanes, panel: Bytes, at: int, x: Activations, b: int, turn: int, scales: Floats
) -> Lanes:
    """One run, with sums of pairs, which become 32 bits wide when they are scaled."""
    sums = zero_int()
    if offset != 0:
        sums = start_of(x, b, turn)
    for j in range(turn * run_quads, (turn + 1) * run_quads):
        sums = multiply(sums, quads(panel, at, j), quad_of(x, b, j))
    return dot_pairs(w_a, sums, load_i32(scales, turn // group_runs * VECTOR))


def start_of(x: Activations, b: int, run: int) -> Lanes:
    """What the sum of a run starts with."""
    return splat_bytes(x.starts, 4 * (b * runs + run))


def quad_of(x: Activations, b: int, j: int) -> Lanes:
    """Quad j of block b of the row."""
    return splat_bytes(x.q, 4 * (b * block_quads + j))


def scaled(group: Lanes, scales: Floats, run: int) -> Lanes:
    """The sum of a run, times its scale where there is one."""
    if groups == 1:
        return group
    return group * load_i32(scales, run // group_runs * VECTOR)


# Many rows


def rows_product(panel: Bytes, x: Activations, out: Floats, first: int, last: int) -> None:
    """Outputs `first` … `first` + L − 1, but none from `last` on, of every row."""
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
        write(load_f32(totals, t * VECTOR), out, t, first, last)


def make_ready(panel: Bytes, start: int, stop: int, piece: Piece) -> None:
    """Write blocks `start` to `stop`, the latter excluded, to the piece."""
    for b in range(stop - start):
        at = (start + b) * block_bytes * LANES
        for j in range(block_quads):
            store(piece.quads, (b * block_quads + j) * VECTOR, quads(panel, at, j))
        for g in range(groups):
            store(piece.scales, (b * groups + g) * VECTOR, scale_of_run(panel, at, g))
        for i in range(pairs):
            store(piece.minima, (b * pairs + i) * VECTOR, minima_pair(panel, at, i))
        store(piece.d, b * VECTOR, load_f16(panel, at + d_at * LANES))
        store(piece.m, b * VECTOR, load_f16(panel, at + m_at * LANES))


def add_piece(piece: Piece, start: int, stop: int, x: Activations, totals: Floats) -> None:
    """totals[t, :] += the products of the piece with blocks `start` to `stop` of row t."""
    n_rows = x.d.shape[1]
    for t in range(0, n_rows, ROWS):
        total = load_rows(totals, t * VECTOR, VECTOR)
        for b in range(stop - start):
            at = (start + b) * n_rows + t  # of the block's first row of activations
            w_a = zero_rows()
            for run in range(runs):
                factor = load_i32(piece.scales, (b * groups + run // group_runs) * VECTOR)
                w_a = add_run(w_a, piece, b, x, at, run, factor)
            v_a = zero_rows()
            for i in range(pairs):
                minima = load_i32(piece.minima, (b * pairs + i) * VECTOR)
                a = splat_bytes_rows(x.sums, 4 * (at * pairs + i), 4 * pairs)
                v_a = dot_pairs(v_a, minima, a)
            d, m = load_f32(piece.d, b * VECTOR), load_f32(piece.m, b * VECTOR)
            d_x, s_x = splat_rows(x.d, 4 * at, 4), splat_rows(x.s, 4 * at, 4)
            total = finish(total, to_float(w_a), to_float(v_a), d, m, d_x, s_x)
        store_rows(totals, t * VECTOR, VECTOR, total)
