"""Matrix product of quantized weights with activations that are quantized too: numerics "int8".

T rows of x, N rows of w (outputs), D columns of both.

This is what llama.cpp computes on a CPU, with one order of additions; the rule stands in
`refllm.oracle_int8`. A row of x becomes int8 block by block (`refllm.kernels.int8.quantize`), the
products within a block are integers and exact, and only the block's sum is scaled and added in
float32, one block after the other. So the integers may be added in any order, and the CPU's
instructions for dot products of bytes do most of the work.

As in `refllm.kernels.linear`, the outputs of a panel are computed side by side; formats differ in
how a block becomes integers (`refllm.kernels.int8.blocks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.ggml.format import Format
from refllm.jit.compile import inner, jit, parallel_jit, prange, specialized
from refllm.jit.cpu import CPU
from refllm.kernels.int8 import inner as int8_tile
from refllm.kernels.int8.blocks import FORMATS_AS_INTEGERS
from refllm.kernels.int8.quantize import (
    Activations,
    quantize_q8_0,
    quantize_q8_k,
    zero_activations,
)
from refllm.kernels.packed.panels import Consumed, n_rows_of, name_of, side_by_side
from refllm.kernels.simd.ints import (
    ROWS,
    add_products,
    add_signed_products,
)
from refllm.kernels.simd.lanes import LANES
from refllm.quant import FORMATS, Tensor

__all__ = ["INT8_FORMATS", "Int8Panels", "multiply_int8", "pack_int8", "quantize"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# The formats that have integer kernels, by GGML's name. Others are for the exact numerics.
INT8_FORMATS = frozenset(FORMATS_AS_INTEGERS)

# Below this many multiplications one thread is done before a second has woken up, and below this
# many numbers to quantize.
SERIAL_WORK = 1 << 20
SERIAL_NUMBERS = 1 << 15


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
    """The matrix [N, D], in one of `INT8_FORMATS`, as `multiply_int8` wants it.

    Several of one format become one, one below the other. `consumed` as for
    `refllm.kernels.packed.panels.side_by_side`.
    """
    stored_as = tensors[0].format
    integers = FORMATS_AS_INTEGERS[stored_as.name]
    widths = np.array(integers.fields)
    order = None if integers.order is None else np.array(integers.order)
    data = side_by_side(*tensors, widths=widths, order=order, consumed=consumed)
    return Int8Panels(name_of(tensors), stored_as, n_rows_of(tensors), tensors[0].shape[1], data)


def multiply_int8(x: Floats, weight: Int8Panels, out: Floats, first: int, last: int) -> None:
    """Write x [T, D], quantized, times the rows of weight [N, D] to columns first … last of out."""
    is_small = x.size * weight.n_rows < SERIAL_WORK
    kernel = _kernel(weight.format.name, len(x) == 1, is_small)
    if len(x) == 1:
        kernel(weight.data, np.ascontiguousarray(x), out, first, last)
    else:
        kernel(weight.data, *quantize(x, weight.format.name), out, first, last)


def quantize(x: Floats, format_name: str) -> Activations:
    """Several rows x [T, D] as a product with weights in that format wants them.

    They are padded with zeros to a multiple of `ROWS`.
    """
    block_size, plan = FORMATS[format_name].block_size, _plan(format_name)
    n_rows = -(-len(x) // ROWS) * ROWS
    n_blocks = x.shape[1] // block_size
    activations = zero_activations(
        n_rows,
        n_blocks,
        block_size=block_size,
        runs=block_size // 4 // plan.run_quads,
        minima=FORMATS_AS_INTEGERS[format_name].minima,
    )
    kernel = _quantizer(block_size, x.size < SERIAL_NUMBERS)
    kernel(np.ascontiguousarray(x), plan.offset, plan.in_pairs, *activations)
    return activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How this CPU multiplies a format: which quads it wants, and how many make a run.

    `offset` is what the quads' bytes are too large by; `multiply` adds a quad's products to a
    run's pairs, where it works `in_pairs`.
    """

    quads: Callable[..., Any]
    offset: int
    run_quads: int
    in_pairs: bool = False
    multiply: Any = None


@cache
def _plan(format_name: str) -> Plan:
    integers = FORMATS_AS_INTEGERS[format_name]
    group_quads = FORMATS[format_name].block_size // 4 // integers.groups
    if CPU.multiplies_bytes_by_pairs and integers.signed_quads is not None:
        return Plan(
            quads=integers.signed_quads,
            offset=0,
            run_quads=1,
            in_pairs=True,
            multiply=add_signed_products,
        )
    # The sums of a run's pairs, without their start, must not overflow on their way.
    fitting = (2**15 - 1) // (2 * 128 * integers.largest)
    if CPU.multiplies_bytes_by_pairs and fitting > 0:
        return Plan(
            quads=integers.quads,
            offset=integers.offset,
            run_quads=min(1 << (fitting.bit_length() - 1), group_quads),
            in_pairs=True,
            multiply=add_products,
        )
    return Plan(quads=integers.quads, offset=integers.offset, run_quads=group_quads)


def _row_quantizer(block_size: int) -> Callable[..., None]:
    return quantize_q8_0 if block_size == 32 else quantize_q8_k


@cache
def _quantizer(block_size: int, serial: bool) -> Callable[..., None]:
    """The kernel that quantizes blocks of that size."""
    names = {"quantize_row": _row_quantizer(block_size)}
    if serial:
        return jit(specialized(_quantize_serial, f"int8_quantize_{block_size}_serial", **names))
    return parallel_jit(
        specialized(_quantize_parallel, f"int8_quantize_{block_size}_parallel", **names)
    )


# How the runs of a turn are multiplied with one row, by their number; 0: one, in pairs.
TURNS = {
    0: int8_tile.add_turn_of_pairs,
    1: int8_tile.add_turn_of_one,
    2: int8_tile.add_turn_of_two,
    4: int8_tile.add_turn_of_four,
}


@cache
def _kernel(format_name: str, one_row: bool, serial: bool) -> Callable[..., None]:
    """The product for a format: compiled at its first use, found on disk from then on."""
    stored_as, integers = FORMATS[format_name], FORMATS_AS_INTEGERS[format_name]
    plan, block_quads = _plan(format_name), stored_as.block_size // 4
    runs = block_quads // plan.run_quads
    # The runs that share bytes, and so take their turn together.
    is_shared = not plan.in_pairs and integers.stride >= plan.run_quads
    turn_runs = integers.strands if is_shared else 1
    name = f"int8_{format_name}_{'row' if one_row else 'rows'}"
    names: dict[str, Any] = {
        "quads": plan.quads,
        "scale": integers.scale,
        "scale_of_run": integers.scale,
        "multiply": plan.multiply,
        "minimum": integers.minimum,
        "finish": integers.finish,
        "block_size": stored_as.block_size,
        "block_bytes": stored_as.block_bytes,
        "block_quads": block_quads,
        "d_at": integers.d_at,
        "m_at": integers.m_at,
        "groups": integers.groups,
        "offset": plan.offset,
        "in_pairs": plan.in_pairs,
        "minima": integers.minima,
        "quantize_row": _row_quantizer(stored_as.block_size),
        "run_quads": plan.run_quads,
        "runs": runs,
        "group_runs": runs // integers.groups,
        "strands": integers.strands,
        "stride": integers.stride,
        "turns": runs // turn_runs,
        "pairs": integers.minima // 2,
    }

    def make(template: Callable[..., Any], *called: str) -> None:
        """Compile a template into those that follow, which call it by its own name or others."""
        made = inner(specialized(template, f"{name}_{template.__name__}", **names))
        names.update(dict.fromkeys(called or (template.__name__,), made))

    make(int8_tile.minima_pair)
    if plan.in_pairs:
        make(int8_tile.pair_scale, "scale_of_run")
    if one_row:
        make(int8_tile.start_of)
        make(int8_tile.quad_of)
        make(int8_tile.scaled)
        make(TURNS[0 if plan.in_pairs else turn_runs], "add_turn")
        make(int8_tile.add_block)
        make(int8_tile.row_product, "product")
        make(_quantized_row)
        template: Callable[..., None] = _row_serial if serial else _row_parallel
    else:
        of_pairs, of_quads = int8_tile.add_run_of_pairs_rows, int8_tile.add_run_of_quads_rows
        make(of_pairs if plan.in_pairs else of_quads, "add_run")
        make(int8_tile.make_ready)
        make(int8_tile.add_piece)
        make(int8_tile.rows_product, "product")
        template = _rows_serial if serial else _rows_parallel
    compile_ = jit if serial else parallel_jit
    return compile_(specialized(template, f"{name}_{'serial' if serial else 'parallel'}", **names))


# In the templates below these stand for a kernel's own.
product: Any = None
quantize_row: Any = None
block_size = runs = minima = offset = 0
in_pairs = False


def _quantized_row(x: Floats) -> Activations:
    """The one row of x."""
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


def _row_serial(panels: Bytes, x: Floats, out: Floats, first: int, last: int) -> None:
    row = _quantized_row(x)
    for panel in range(panels.shape[0]):
        product(panels[panel], row, out, first + panel * LANES, last)


def _row_parallel(panels: Bytes, x: Floats, out: Floats, first: int, last: int) -> None:
    # numba wants a tuple of arrays to be made where its threads use it.
    q, d, s, starts, sums = _quantized_row(x)
    row = Activations(q, d, s, starts, sums)
    for panel in prange(panels.shape[0]):
        product(panels[panel], row, out, first + panel * LANES, last)


def _rows_serial(
    panels: Bytes,
    q: NDArray[np.int8],
    d: Floats,
    s: Floats,
    starts: NDArray[np.int32],
    sums: NDArray[np.int16],
    out: Floats,
    first: int,
    last: int,
) -> None:
    x = Activations(q, d, s, starts, sums)
    for panel in range(panels.shape[0]):
        product(panels[panel], x, out, first + panel * LANES, last)


def _rows_parallel(
    panels: Bytes,
    q: NDArray[np.int8],
    d: Floats,
    s: Floats,
    starts: NDArray[np.int32],
    sums: NDArray[np.int16],
    out: Floats,
    first: int,
    last: int,
) -> None:
    x = Activations(q, d, s, starts, sums)
    for panel in prange(panels.shape[0]):
        product(panels[panel], x, out, first + panel * LANES, last)


def _quantize_serial(
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
    for t in range(x.shape[0]):
        quantize_row(x, t, into, offset, in_pairs)


def _quantize_parallel(
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
