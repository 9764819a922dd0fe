"""The inner loops of an int8 product: activations times the W rows of weights of a panel.

T rows of activations, a multiple of `ROWS` where there are several; B blocks in a row; W lanes, the
rows of a panel.

The functions are templates, which `refllm.kernels.int8.product` fills with a format's own functions
and numbers (`refllm.kernels.int8.blocks`).

- GEMV, one row: a block's weights become quads in registers and are multiplied with the row.
- GEMM, many rows: a *K-block*, some blocks of a panel, is decoded once. Its quads, scales and
  minima are written to a buffer that stays in the cache and are multiplied with all rows, `ROWS` at
  a time.

The quads of a block are multiplied in *runs*. What a run is depends on the CPU's instructions
(`refllm.kernels.simd.ints`): with sums of four products in 32 bits, a run is all quads that have a
scale in common; with sums of two products in 16 bits, as many quads as these can hold. A CPU that
has no instruction for four products multiplies many rows as *words*, 16 bits wide, whose sums have
32 bits: a block is one run then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refllm.jit.buffers import Bytes, Floats
from refllm.jit.compile import HOLE, inner, template
from refllm.kernels.int8.quantize import Activations
from refllm.kernels.simd.ints import (
    dot_pairs,
    dot_quads,
    even_bytes,
    less_halves,
    odd_bytes,
    splat_bytes,
    times_halves,
    zero_int,
)
from refllm.kernels.simd.lanes import (
    LANES,
    load_f16,
    load_f32,
    load_i32,
    prefetch,
    splat,
    splat_int,
    store,
    to_float,
    zeros,
)
from refllm.kernels.simd.rows import store_rows

__all__ = [
    "add_block",
    "add_run_of_pairs_rows",
    "add_run_of_quads_rows",
    "add_run_of_words_rows",
    "add_turn_of_four",
    "add_turn_of_one",
    "add_turn_of_pairs",
    "add_turn_of_two",
    "decode_k_block",
    "decode_k_block_to_words",
    "gemm",
    "gemv",
    "minima_pair",
    "multiply_no_rows",
    "multiply_rows",
    "pair_scale",
    "prefetch_next",
    "quad_of",
    "scaled",
    "start_of",
]

Lanes = Any

# The columns of a K-block: 4 KiB of quads with 16 lanes, 16 KiB with 64; of words, twice that.
K_BLOCK = 256
VECTOR = 4 * LANES  # the bytes of a vector
CACHE_LINE = 64

# Functions of a format, and of how the CPU multiplies it.
quads: Any = HOLE
scale: Any = HOLE
minimum: Any = HOLE
finish: Any = HOLE
multiply: Any = HOLE
# Functions of so many rows.
rows: Any = HOLE
load_rows: Any = HOLE
splat_bytes_rows: Any = HOLE
splat_rows: Any = HOLE
zero_rows: Any = HOLE
# Several templates below are possible.
add_run: Any = HOLE
add_turn: Any = HOLE
multiply_rest: Any = HOLE
scale_of_run: Any = HOLE
# Numbers of a format.
block_size: Any = HOLE
block_bytes: Any = HOLE
block_quads: Any = HOLE
d_at: Any = HOLE
m_at: Any = HOLE
runs: Any = HOLE
run_quads: Any = HOLE
groups: Any = HOLE
group_runs: Any = HOLE
pairs: Any = HOLE
offset: Any = HOLE
strands: Any = HOLE
stride: Any = HOLE
turns: Any = HOLE
group_quads: Any = HOLE
vectors_of_block: Any = HOLE


class KBlock(NamedTuple):
    """Blocks of a panel, decoded. Each row of the arrays is one vector."""

    quads: Floats  # [blocks · quads of a block, W]: four bytes each; twice as many of two int16
    scales: Floats  # [blocks · groups, W]: int32, or two int16
    minima: Floats  # [blocks · pairs of minima, W]: two int16 each
    d: Floats  # [blocks, W]
    m: Floats  # [blocks, W]


@inner
def vectors(n: int) -> Floats:
    """Return memory for n vectors [n, W] that begins at a cache line.

    A register of AVX-512 is as wide as a line; loading one across two lines is two accesses.
    """
    longer = np.empty((n + 1) * LANES, np.float32)
    skip = (-longer.ctypes.data % CACHE_LINE) // 4
    return longer[skip : skip + n * LANES].reshape(n, LANES)


@inner
def write(total: Lanes, bias: Floats, out: Floats, t: int, first: int, last: int) -> None:
    """Write a vector of totals to row t of out [T, N], to columns `first` … `last` − 1 at most.

    The bias [N] is added to it, unless it is empty.
    """
    if first + LANES <= last:
        if bias.size > 0:
            total = total + load_f32(bias, 4 * first)
        store(out, 4 * (t * out.shape[1] + first), total)
    else:
        lanes = np.empty(LANES, np.float32)
        store(lanes, 0, total)
        for lane in range(last - first):
            total_of_lane = lanes[lane]
            if bias.size > 0:
                total_of_lane += bias[first + lane]
            out[t, first + lane] = total_of_lane


@template
def minima_pair(panel: Bytes, at: int, i: int) -> Lanes:
    """Return the minima of groups 2i and 2i + 1, in the lower and the upper half of each lane."""
    upper = minimum(panel, at, 2 * i + 1) << splat_int(np.int32(16))
    return minimum(panel, at, 2 * i) | upper


@template
def pair_scale(panel: Bytes, at: int, g: int) -> Lanes:
    """Return the scale of group g in both halves of each lane."""
    both = scale(panel, at, g)
    return (both & splat_int(np.int32(0xFFFF))) | (both << splat_int(np.int32(16)))


# Runs, of several rows


@template
def add_run_of_quads_rows(
    w_a: Lanes, k_block: KBlock, b: int, x: Activations, at: int, run: int, factor: Lanes
) -> Lanes:
    """Return w_a + the products of a run in block b of the K-block, for the rows from `at` on.

    The products are added up and the sum is scaled.
    """
    group = splat_bytes_rows(x.starts, 4 * (at * runs + run), 4 * runs)
    for j in range(run * run_quads, (run + 1) * run_quads):
        weights = load_i32(k_block.quads, (b * block_quads + j) * VECTOR)
        a = splat_bytes_rows(x.q, 4 * (at * block_quads + j), 4 * block_quads)
        group = dot_quads(group, weights, a)
    if groups == 1:
        return w_a + group
    return w_a + group * factor


@template
def add_run_of_pairs_rows(
    w_a: Lanes, k_block: KBlock, b: int, x: Activations, at: int, run: int, factor: Lanes
) -> Lanes:
    """Return the same with sums of pairs, which become 32 bits wide when they are scaled."""
    sums = zero_rows()
    if offset != 0:
        sums = splat_bytes_rows(x.starts, 4 * (at * runs + run), 4 * runs)
    for j in range(run * run_quads, (run + 1) * run_quads):
        weights = load_i32(k_block.quads, (b * block_quads + j) * VECTOR)
        a = splat_bytes_rows(x.q, 4 * (at * block_quads + j), 4 * block_quads)
        sums = multiply(sums, weights, a)
    return dot_pairs(w_a, sums, factor)


@template
def add_run_of_words_rows(
    w_a: Lanes, k_block: KBlock, b: int, x: Activations, at: int, run: int, factor: Lanes
) -> Lanes:
    """Return w_a + the products of block b, whose weights and activations are 16 bits wide."""
    for j in range(vectors_of_block):
        weights = load_i32(k_block.quads, (b * vectors_of_block + j) * VECTOR)
        a = splat_bytes_rows(x.q, 4 * (at * vectors_of_block + j), 4 * vectors_of_block)
        w_a = dot_pairs(w_a, weights, a)
    return w_a


# One row. Memory is read from beginning to end, as the CPU's prefetcher expects: a block's scales
# and minima first, then its quads, once. Runs of quads in the same bytes are multiplied in one
# turn.


@template
def gemv(panel: Bytes, x: Activations, bias: Floats, out: Floats, first: int, last: int) -> None:
    """Write outputs `first` … `first` + W − 1, but none from `last` on, of the one row."""
    total = zeros()
    scales, minima = vectors(groups), vectors(pairs)
    for b in range(x.d.shape[0]):
        total = add_block(panel, b * block_bytes * LANES, total, x, b, scales, minima)
    write(total, bias, out, 0, first, last)


@template
def add_block(
    panel: Bytes, at: int, total: Lanes, x: Activations, b: int, scales: Floats, minima: Floats
) -> Lanes:
    """Return total + the products of the blocks at `at` with block b of the row."""
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


@template
def add_turn_of_one(
    w_a: Lanes, panel: Bytes, at: int, x: Activations, b: int, turn: int, scales: Floats
) -> Lanes:
    """Return w_a + the products of a run, which are added up and scaled."""
    group = start_of(x, b, turn)
    span = strands * stride
    for i in range(run_quads):
        place = i // span * span + i % strands * stride + i // strands % stride
        j = turn * run_quads + place
        group = dot_quads(group, quads(panel, at, j), quad_of(x, b, j))
    return w_a + scaled(group, scales, turn)


@template
def add_turn_of_two(
    w_a: Lanes, panel: Bytes, at: int, x: Activations, b: int, turn: int, scales: Floats
) -> Lanes:
    """Return w_a + the products of two runs."""
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


@template
def add_turn_of_four(
    w_a: Lanes, panel: Bytes, at: int, x: Activations, b: int, turn: int, scales: Floats
) -> Lanes:
    """Return w_a + the products of four runs."""
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


@template
def add_turn_of_pairs(
    w_a: Lanes, panel: Bytes, at: int, x: Activations, b: int, turn: int, scales: Floats
) -> Lanes:
    """Return w_a + the products of a run, in pairs that become 32 bits wide when scaled."""
    sums = zero_int()
    if offset != 0:
        sums = start_of(x, b, turn)
    for j in range(turn * run_quads, (turn + 1) * run_quads):
        sums = multiply(sums, quads(panel, at, j), quad_of(x, b, j))
    return dot_pairs(w_a, sums, load_i32(scales, turn // group_runs * VECTOR))


@template
def start_of(x: Activations, b: int, run: int) -> Lanes:
    """Return the number that the sum of a run starts with."""
    return splat_bytes(x.starts, 4 * (b * runs + run))


@template
def quad_of(x: Activations, b: int, j: int) -> Lanes:
    """Return quad j of block b of the row."""
    return splat_bytes(x.q, 4 * (b * block_quads + j))


@template
def scaled(group: Lanes, scales: Floats, run: int) -> Lanes:
    """Return the sum of a run times its scale, if it has one."""
    if groups == 1:
        return group
    return group * load_i32(scales, run // group_runs * VECTOR)


# Many rows


@template
def gemm(panel: Bytes, x: Activations, bias: Floats, out: Floats, first: int, last: int) -> None:
    """Write outputs `first` … `first` + W − 1, but none from `last` on, of every row."""
    n_blocks, n_rows = x.d.shape
    step = K_BLOCK // block_size
    whole = n_rows // rows * rows
    k_block = KBlock(
        vectors(step * vectors_of_block),
        vectors(step * groups),
        vectors(step * pairs),
        vectors(step),
        vectors(step),
    )
    totals = vectors(n_rows)
    totals[:] = 0.0
    for start in range(0, n_blocks, step):
        stop = min(start + step, n_blocks)
        decode_k_block(panel, start, stop, k_block)
        multiply_rows(k_block, start, stop, x, totals, 0, whole)
        multiply_rest(k_block, start, stop, x, totals, whole, n_rows)
    for t in range(out.shape[0]):
        write(load_f32(totals, t * VECTOR), bias, out, t, first, last)


@template
def prefetch_next(panel: Bytes, at: int) -> None:
    """Prefetch the block that is a K-block behind the one at `at`; it may be outside the panel.

    Panels of 16 lanes only: 4 and 8 rows of Q8_0 from 28 and 33 G MAC/s to 34 and 38 with AVX2. A
    K-block of 64 lanes is 16 KiB, half of the first cache: 4 and 8 rows from 61 and 104 to 51 and
    92 with AVX-512 VNNI.
    """
    if LANES == 16:
        behind = at + K_BLOCK // block_size * block_bytes * LANES
        for line in range(0, block_bytes * LANES, CACHE_LINE):
            prefetch(panel, behind + line)


@template
def decode_k_block(panel: Bytes, start: int, stop: int, k_block: KBlock) -> None:
    """Decode blocks `start` … `stop` − 1 to the K-block."""
    for b in range(stop - start):
        at = (start + b) * block_bytes * LANES
        prefetch_next(panel, at)
        for j in range(block_quads):
            store(k_block.quads, (b * block_quads + j) * VECTOR, quads(panel, at, j))
        for g in range(groups):
            store(k_block.scales, (b * groups + g) * VECTOR, scale_of_run(panel, at, g))
        for i in range(pairs):
            store(k_block.minima, (b * pairs + i) * VECTOR, minima_pair(panel, at, i))
        store(k_block.d, b * VECTOR, load_f16(panel, at + d_at * LANES))
        store(k_block.m, b * VECTOR, load_f16(panel, at + m_at * LANES))


@template
def decode_k_block_to_words(panel: Bytes, start: int, stop: int, k_block: KBlock) -> None:
    """Decode blocks `start` … `stop` − 1 to the K-block, weights to 16 bits, times their scale.

    The bytes at even places of a quad are one vector, those at odd places the next one.
    """
    offsets = splat_int(np.int32(offset << 16 | (offset & 0xFFFF)))
    for b in range(stop - start):
        at = (start + b) * block_bytes * LANES
        prefetch_next(panel, at)
        for g in range(groups):
            factor = pair_scale(panel, at, g)
            for j in range(g * group_quads, (g + 1) * group_quads):
                quad = quads(panel, at, j)
                even, odd = even_bytes(quad), odd_bytes(quad)
                if offset != 0:
                    even, odd = less_halves(even, offsets), less_halves(odd, offsets)
                if groups > 1:
                    even, odd = times_halves(even, factor), times_halves(odd, factor)
                place = (b * vectors_of_block + 2 * j) * VECTOR
                store(k_block.quads, place, even)
                store(k_block.quads, place + VECTOR, odd)
        for i in range(pairs):
            store(k_block.minima, (b * pairs + i) * VECTOR, minima_pair(panel, at, i))
        store(k_block.d, b * VECTOR, load_f16(panel, at + d_at * LANES))
        store(k_block.m, b * VECTOR, load_f16(panel, at + m_at * LANES))


@template
def multiply_rows(
    k_block: KBlock,
    start: int,
    stop: int,
    x: Activations,
    totals: Floats,
    first: int,
    last: int,
) -> None:
    """Add the products with blocks `start` … `stop` − 1 of rows t to totals[t].

    Rows `first` … `last` − 1 are multiplied, a tile of `rows` at a time.
    """
    n_rows = x.d.shape[1]
    for t in range(first, last, rows):
        total = load_rows(totals, t * VECTOR, VECTOR)
        for b in range(stop - start):
            at = (start + b) * n_rows + t  # of the block's first row of activations
            w_a = zero_rows()
            for run in range(runs):
                factor = load_i32(k_block.scales, (b * groups + run // group_runs) * VECTOR)
                w_a = add_run(w_a, k_block, b, x, at, run, factor)
            v_a = zero_rows()
            for i in range(pairs):
                minima = load_i32(k_block.minima, (b * pairs + i) * VECTOR)
                a = splat_bytes_rows(x.sums, 4 * (at * pairs + i), 4 * pairs)
                v_a = dot_pairs(v_a, minima, a)
            d, m = load_f32(k_block.d, b * VECTOR), load_f32(k_block.m, b * VECTOR)
            d_x, s_x = splat_rows(x.d, 4 * at, 4), splat_rows(x.s, 4 * at, 4)
            total = finish(total, to_float(w_a), to_float(v_a), d, m, d_x, s_x)
        store_rows(totals, t * VECTOR, VECTOR, total)


@inner
def multiply_no_rows(
    k_block: KBlock,
    start: int,
    stop: int,
    x: Activations,
    totals: Floats,
    first: int,
    last: int,
) -> None:
    """Do nothing: the tiles of `multiply_rows` are all rows."""
