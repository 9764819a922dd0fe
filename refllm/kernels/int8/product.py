"""Matrix product of quantized weights with quantized activations: numerics "int8".

T rows of x, N outputs (rows of w), D columns of both, W lanes.

This is what llama.cpp computes on a CPU, with one order of additions; the rule is in
`refllm.oracle_int8`. A row of x becomes int8 block by block (`refllm.kernels.int8.quantize`). The
products within a block are integers and exact; the block's sum is scaled and added in float32, one
block after the other. So the integers may be added in any order, and most of the work is done by
the CPU's instructions for dot products of bytes.

As in `refllm.kernels.linear`, the outputs of a panel are computed side by side. Formats differ in
how a block becomes integers (`refllm.kernels.int8.blocks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from refllm.ggml.format import Format
from refllm.jit.buffers import Bytes, Floats
from refllm.jit.compile import HOLE, Both, Template, both, inner, prange, template
from refllm.jit.cpu import CPU
from refllm.kernels.int8 import inner as inner_loops
from refllm.kernels.int8.blocks import FORMATS_AS_INTEGERS, AsIntegers
from refllm.kernels.int8.quantize import (
    Activations,
    quantize_q8_0,
    quantize_q8_k,
    zero_activations,
)
from refllm.kernels.packed.panels import Consumed, n_rows_of, name_of, side_by_side
from refllm.kernels.simd.ints import add_products, add_signed_products
from refllm.kernels.simd.lanes import LANES, zeros_of
from refllm.kernels.simd.rows import load_rows_of, splat_rows_of
from refllm.quant import FORMATS, Tensor

__all__ = ["INT8_FORMATS", "Int8Panels", "multiply_int8", "pack_int8", "quantize"]

# The formats that have integer kernels, by GGML's name.
INT8_FORMATS = frozenset(FORMATS_AS_INTEGERS)

# So many multiplications take as long as one element of an elementwise kernel (`SERIAL_WORK`).
MULTIPLICATIONS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Int8Panels:
    """A quantized matrix [n_rows, n_columns], packed; `data` is uint8 [panels, bytes of a panel].

    Its bytes are the file's, in another order: `refllm.kernels.int8.blocks` draws it.
    """

    name: str
    format: Format
    n_rows: int
    n_columns: int
    data: Bytes


def pack_int8(*tensors: Tensor, consumed: Consumed | None = None) -> Int8Panels:
    """Return matrices of one format and width, one below the other, for `multiply_int8`.

    Args:
        tensors: Each [n, D], in one of `INT8_FORMATS`.
        consumed: As for `refllm.kernels.packed.panels.side_by_side`.
    """
    fmt = tensors[0].format
    integers = FORMATS_AS_INTEGERS[fmt.name]
    widths = np.array(integers.fields)
    order = None if integers.order is None else np.array(integers.order)
    data = side_by_side(*tensors, widths=widths, order=order, consumed=consumed)
    return Int8Panels(name_of(tensors), fmt, n_rows_of(tensors), tensors[0].shape[1], data)


def multiply_int8(
    x: Floats, weight: Int8Panels, bias: Floats, out: Floats, first: int, last: int
) -> None:
    """Write x, quantized, times the rows of weight, plus the bias.

    Args:
        x: [T, D].
        weight: [N, D].
        bias: [≥ last], of which columns `first` … `last` − 1 are added; empty for none.
        out: [T, ≥ last].
        first: The first of N columns of out.
        last: The column behind them.
    """
    kernel = _kernel(weight.format.name, is_gemv=len(x) == 1)
    run = kernel.choose(x.size * weight.n_rows // MULTIPLICATIONS)
    if len(x) == 1:
        run(weight.data, np.ascontiguousarray(x), bias, out, first, last)
    else:
        run(weight.data, *quantize(x, weight.format.name), bias, out, first, last)


def quantize(x: Floats, format_name: str) -> Activations:
    """Return several rows x [T, D], quantized for a product with weights in that format.

    They are padded with rows of zeros, so that they are whole tiles.
    """
    block_size, plan = FORMATS[format_name].block_size, _plan(format_name, is_gemv=False)
    activations = zero_activations(
        -(-len(x) // plan.fewer_rows) * plan.fewer_rows,
        x.shape[1] // block_size,
        block_size=block_size,
        runs=block_size // 4 // plan.run_quads,
        minima=FORMATS_AS_INTEGERS[format_name].minima,
        is_wide=plan.sums == "words",
    )
    run = _quantizer(block_size).choose(x.size)
    run(np.ascontiguousarray(x), plan.start_offset, plan.sums == "pairs", *activations)
    return activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How this CPU multiplies a format.

    Attributes:
        integers: How the format is decoded.
        quads: The function that gives the weights' quads.
        offset: What the quads' bytes are too large by.
        run_quads: The quads of a run.
        sums: What products are added up in: "quads", four products in 32 bits; "pairs", two in 16
            bits; "words", two in 32 bits, of numbers that are 16 bits wide.
        multiply: With pairs, the function that adds a quad's products to a run's pairs.
        rows: How many rows of activations a tile has.
        fewer_rows: How many rows a tile has that is for the rest.
    """

    integers: AsIntegers
    quads: Callable[..., Any]
    offset: int
    run_quads: int
    sums: Literal["quads", "pairs", "words"] = "quads"
    multiply: Any = None
    rows: int = CPU.integer_tile_rows
    fewer_rows: int = CPU.integer_tile_rows

    @property
    def start_offset(self) -> int:
        """The offset that a run's sums start with; words are decoded without one."""
        return 0 if self.sums == "words" else self.offset


@cache
def _plan(format_name: str, *, is_gemv: bool) -> Plan:
    """Return the fastest way to multiply a format on this CPU.

    Measured in G MAC/s with AVX2's instructions (znver3's code, one thread of an Intel Xeon of the
    fourth generation shared with others, so only numbers of one line can be compared):

    - Q8_0, 60 rows: words 62, pairs of signed products 56. Both need four instructions for 32
      products; on Intel's CPUs three of the pairs' and two of the words' share the two units that
      multiply. 4 rows in a tile instead of 6: the same. With one row, weights would have to be
      widened each time: pairs.
    - Q6_K, 64 rows: pairs 66 to 68, words 52.
    - Q3_K and Q2_K, 64 rows: pairs with the scales apart 78 and 77; scales within the weights, so
      that Q3_K's need all eight bits, 39 and 74. One row: 16.6 and 30 beside 6.6 and 24.
    - Pairs, tiles of 6 rows instead of 4, 64 rows: Q4_0 75 and 72, Q4_K 97 and 95, Q3_K 74 both,
      Q6_K 65 and 70; 4 kept. A rest by 2 rows instead of 4: 6 rows of Q4_0 from 58 to 71.
    - Words with AVX-512 (skylake-avx512), Q8_0, 64 rows: 65 beside 57; with SSE2 13.4 beside 11.7.
    """
    integers = FORMATS_AS_INTEGERS[format_name]
    block_quads = FORMATS[format_name].block_size // 4
    if CPU.multiplies_bytes_by_pairs:
        integers = integers.unscaled or integers
        # So many quads' products cannot overflow a pair, which starts at 0 in this bound.
        fitting = (2**15 - 1) // (2 * 128 * integers.largest)
        if fitting > 0:
            return Plan(
                integers=integers,
                quads=integers.quads,
                offset=integers.offset,
                run_quads=min(1 << (fitting.bit_length() - 1), block_quads // integers.groups),
                sums="pairs",
                multiply=add_products,
                fewer_rows=2,
            )
        if is_gemv:
            return Plan(
                integers=integers,
                quads=integers.signed_quads or integers.quads,
                offset=integers.signed_offset,
                run_quads=1,
                sums="pairs",
                multiply=add_signed_products,
            )
    is_words = not (is_gemv or CPU.has_vnni or CPU.has_sdot)
    quads, offset = integers.quads, integers.offset
    if (is_words or CPU.has_sdot) and integers.signed_quads is not None:
        quads, offset = integers.signed_quads, integers.signed_offset
    if is_words:
        rows = CPU.tile_rows(LANES)
        return Plan(
            integers=integers,
            quads=quads,
            offset=offset,
            run_quads=block_quads,
            sums="words",
            rows=rows,
            fewer_rows=min(rows, 2),
        )
    run_quads = block_quads // integers.groups
    return Plan(integers=integers, quads=quads, offset=offset, run_quads=run_quads)


ROW_QUANTIZERS = {32: quantize_q8_0, 256: quantize_q8_k}


@cache
def _quantizer(block_size: int) -> Both[Callable[..., None]]:
    """Return the kernel that quantizes rows in blocks of that size."""
    name = f"int8_quantize_{block_size}"
    return both(_quantize_rows.fill(name, quantize_row=ROW_QUANTIZERS[block_size]))


# How the runs of a turn are multiplied with one row, by their number; 0: one run, in pairs.
TURNS = {
    0: inner_loops.add_turn_of_pairs,
    1: inner_loops.add_turn_of_one,
    2: inner_loops.add_turn_of_two,
    4: inner_loops.add_turn_of_four,
}


# How a run is multiplied with a tile of rows.
RUNS = {
    "quads": inner_loops.add_run_of_quads_rows,
    "pairs": inner_loops.add_run_of_pairs_rows,
    "words": inner_loops.add_run_of_words_rows,
}


@cache
def _kernel(format_name: str, *, is_gemv: bool) -> Both[Callable[..., None]]:
    """Return the product for a format; its two forms are compiled or loaded at their first call."""
    fmt, plan = FORMATS[format_name], _plan(format_name, is_gemv=is_gemv)
    integers = plan.integers
    block_quads = fmt.block_size // 4
    runs = block_quads // plan.run_quads
    # The runs that share bytes are multiplied in one turn.
    is_shared = plan.sums == "quads" and integers.stride >= plan.run_quads
    turn_runs = integers.strands if is_shared else 1
    name = f"int8_{format_name}_{'gemv' if is_gemv else 'gemm'}"
    values: dict[str, Any] = {
        "quads": plan.quads,
        "scale": integers.scale,
        "scale_of_run": integers.scale,
        "multiply": plan.multiply,
        "minimum": integers.minimum,
        "finish": integers.finish,
        "block_size": fmt.block_size,
        "block_bytes": fmt.block_bytes,
        "block_quads": block_quads,
        "d_at": integers.d_at,
        "m_at": integers.m_at,
        "groups": integers.groups,
        "offset": plan.offset,
        "in_pairs": plan.sums == "pairs",
        "group_quads": block_quads // integers.groups,
        "vectors_of_block": 2 * block_quads if plan.sums == "words" else block_quads,
        "minima": integers.minima,
        "quantize_row": ROW_QUANTIZERS[fmt.block_size],
        "run_quads": plan.run_quads,
        "runs": runs,
        "group_runs": runs // integers.groups,
        "strands": integers.strands,
        "stride": integers.stride,
        "turns": runs // turn_runs,
        "pairs": integers.minima // 2,
    }

    def filled(part: Template[Any], part_name: str) -> Any:
        return part.fill(part_name, **{hole: values[hole] for hole in part.holes})

    def make(part: Template[Any], hole: str | None = None) -> None:
        """Fill a part with the values so far; it is the value of `hole`, or of its own name."""
        values[hole or part.name] = inner(filled(part, f"{name}_{part.name}"))

    make(inner_loops.minima_pair)
    make(inner_loops.pair_scale)
    if plan.sums == "pairs":
        values["scale_of_run"] = values["pair_scale"]
    if is_gemv:
        make(inner_loops.start_of)
        make(inner_loops.quad_of)
        make(inner_loops.scaled)
        make(TURNS[0 if plan.sums == "pairs" else turn_runs], "add_turn")
        make(inner_loops.add_block)
        make(inner_loops.gemv, "product")
        make(_quantized_row)
        return both(filled(_gemv, name))
    make(inner_loops.prefetch_next)
    if plan.sums == "words":
        make(inner_loops.decode_k_block_to_words, "decode_k_block")
    else:
        make(inner_loops.decode_k_block)

    def make_tile(rows: int, hole: str) -> None:
        values.update(
            rows=rows,
            zero_rows=zeros_of("i32", rows),
            load_rows=load_rows_of(rows),
            splat_rows=splat_rows_of("f32", rows),
            splat_bytes_rows=splat_rows_of("i32", rows),
        )
        for part, filled_hole in ((RUNS[plan.sums], "add_run"), (inner_loops.multiply_rows, hole)):
            values[filled_hole] = inner(filled(part, f"{name}_{part.name}_{rows}"))

    values["multiply_rest"] = inner_loops.multiply_no_rows
    if plan.fewer_rows < plan.rows:
        make_tile(plan.fewer_rows, "multiply_rest")
    make_tile(plan.rows, "multiply_rows")
    make(inner_loops.gemm, "product")
    return both(filled(_gemm, name))


product: Any = HOLE
quantize_row: Any = HOLE
block_size: Any = HOLE
runs: Any = HOLE
minima: Any = HOLE
offset: Any = HOLE
in_pairs: Any = HOLE


@template
def _quantized_row(x: Floats) -> Activations:
    """Return the one row of x, quantized."""
    n_blocks = x.shape[1] // block_size
    into = Activations(
        np.empty((n_blocks, 1, block_size), np.int8),
        np.empty((n_blocks, 1), np.float32),
        np.empty((n_blocks, 1), np.float32),
        np.empty((n_blocks, 1, runs), np.int32),
        np.empty((n_blocks, 1, minima), np.int16),
    )
    quantize_row(x, 0, into, offset, in_pairs)
    return into


@template
def _gemv(panels: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int) -> None:
    # numba's threads accept the arrays, but not the tuple of them.
    q, d, s, starts, sums = _quantized_row(x)
    row = Activations(q, d, s, starts, sums)
    for panel in prange(panels.shape[0]):
        product(panels[panel], row, bias, out, first + panel * LANES, last)


@template
def _gemm(
    panels: Bytes,
    q: NDArray[np.int8],
    d: Floats,
    s: Floats,
    starts: NDArray[np.int32],
    sums: NDArray[np.int16],
    bias: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    x = Activations(q, d, s, starts, sums)
    for panel in prange(panels.shape[0]):
        product(panels[panel], x, bias, out, first + panel * LANES, last)


@template
def _quantize_rows(
    x: Floats,
    offset: int,
    in_pairs: bool,
    q: NDArray[np.int8],
    d: Floats,
    s: Floats,
    starts: NDArray[np.int32],
    sums: NDArray[np.int16],
) -> None:
    into = Activations(q, d, s, starts, sums)
    for t in prange(x.shape[0]):
        quantize_row(x, t, into, offset, in_pairs)
