"""Matrix product: y[t, n] = ((x[t,0]·w[n,0] + x[t,1]·w[n,1]) + x[t,2]·w[n,2]) + …, in float32.

T rows of x, N rows of w (outputs), D columns of both. A bias b[n] is added to the finished sum.

L lanes: the rows of w, and outputs, of one panel; 16 or 64 of them, as the CPU likes it.

A sum from left to right leaves no freedom within one output, so the freedom is taken across
outputs: L of them are computed side by side (`refllm.kernels.simd.lanes`), from L rows of w that
lie side by side (`refllm.kernels.packed.panels`).

- One row of x (generating a text): each weight is used once, so it is decoded in registers and
  forgotten.
- A few rows (several texts that are continued together): the same, for some rows at a time.
- Many rows (reading a prompt, embedding): a piece of a panel is decoded into a buffer that stays
  in the cache, and meets all rows of x from there, several at a time
  (`refllm.kernels.packed.tile`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refllm.ggml.format import Format
from refllm.jit.buffers import empty
from refllm.jit.compile import inner, jit, parallel_jit, prange, specialized
from refllm.kernels.packed import decode_blocks as blocks
from refllm.kernels.packed import decode_superblocks as superblocks
from refllm.kernels.packed.decode_blocks import FEW
from refllm.kernels.packed.panels import Panels
from refllm.kernels.packed.tile import add_products
from refllm.kernels.simd.lanes import LANES, load_f32, store, zeros
from refllm.kernels.simd.rows import load_rows_of, store_rows
from refllm.quant import FORMATS, Tensor

__all__ = ["Matrix", "embedding", "linear"]

if TYPE_CHECKING:
    from refllm.kernels.int8.product import Int8Panels

Matrix: TypeAlias = "Panels | Int8Panels"
Rows: TypeAlias = Literal["row", "few", "rows"]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

WALKS = {
    "F32": blocks.f32,
    "F16": blocks.f16,
    "BF16": blocks.bf16,
    "Q4_0": blocks.q4_0,
    "Q4_1": blocks.q4_1,
    "Q5_0": blocks.q5_0,
    "Q5_1": blocks.q5_1,
    "Q8_0": blocks.q8_0,
    "IQ4_NL": blocks.iq4_nl,
    "Q2_K": superblocks.q2_k,
    "Q3_K": superblocks.q3_k,
    "Q4_K": superblocks.q4_k,
    "Q5_K": superblocks.q5_k,
    "Q6_K": superblocks.q6_k,
    "IQ4_XS": superblocks.iq4_xs,
}

# Columns that are decoded at a time: 512 of them are 32 KiB of floats for 16 rows.
PIECE = 512
FLOAT_BYTES = 4
# Below this many multiplications one thread is done before a second has woken up.
SERIAL_WORK = 1 << 19
load_few = load_rows_of(FEW)
NO_BIAS = np.empty(0, np.float32)


def embedding(token_ids: NDArray[np.int64], weight: Tensor) -> Floats:
    """The rows of weight [V, D] that the token ids name, float32 [T, D]."""
    shape = (len(token_ids), weight.shape[1])
    return Tensor(weight.name, weight.format, shape, weight.data[token_ids]).array()


def linear(x: Floats, *weights: Matrix, bias: Floats | None = None) -> Floats:
    """x [T, D] times the rows of the weights, plus the bias [N]: float32 [T, N].

    N counts the rows of all weights [n, D], whose outputs stand side by side in that order. How a
    weight was packed says by which numerics: exact here, as integers in
    `refllm.kernels.int8.product`.
    """
    n_tokens = len(x)
    if 1 < n_tokens < FEW:  # a few rows are never fewer than that
        x = np.concatenate([x, np.zeros((FEW - n_tokens, x.shape[1]), np.float32)])
    out = empty(len(x), sum(weight.n_rows for weight in weights))  # [≥ T, N]
    first = 0
    for weight in weights:
        last = first + weight.n_rows
        if isinstance(weight, Panels):
            is_small = x.size * weight.n_rows < SERIAL_WORK
            kernel = _kernel(weight.format.name, _kind(weight.format, n_tokens), is_small)
            kernel(weight.data, x, NO_BIAS if bias is None else bias, out, first, last)
        else:
            # Whoever computes exactly shall not wait for the other kernels.
            from refllm.kernels.int8.product import multiply_int8

            multiply_int8(x, weight, out, first, last)
            if bias is not None:
                out[:, first:last] += bias[first:last]
        first = last
    return out[:n_tokens]


def _kind(stored_as: Format, n_tokens: int) -> Rows:
    """Whether weights meet one row of x, few or many.

    Few where decoding for every few rows takes less time than decoding once and keeping it: never
    for floats, which need no decoding; for blocks of 256, which need much, as long as it is once.
    """
    if n_tokens == 1:
        return "row"
    turns = {1: 2, 32: 2, 256: 1}[stored_as.block_size] if stored_as.name != "F32" else 0
    return "few" if n_tokens <= turns * FEW else "rows"


@cache
def _kernel(format_name: str, rows: Rows, serial: bool) -> Callable[..., None]:
    """The product for a format: compiled at its first use, found on disk from then on."""
    stored_as = FORMATS[format_name]
    walk = specialized(WALKS[format_name], f"{format_name}_{rows}_walk", visit=VISITORS[rows])
    product = inner(
        specialized(
            _float_rows_product if (format_name, rows) == ("F32", "rows") else PRODUCTS[rows],
            f"{format_name}_{rows}_product",
            walk=inner(walk),
            block_bytes=stored_as.block_bytes,
            block_size=stored_as.block_size,
        )
    )
    if serial:
        return jit(specialized(_serial, f"{format_name}_{rows}_serial", product=product))
    return parallel_jit(specialized(_parallel, f"{format_name}_{rows}_parallel", product=product))


# In the templates below these stand for a format's own; `_kernel` puts them in.
walk: Any = None
product: Any = None
block_bytes = block_size = 0


def _serial(panels: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int) -> None:
    for panel in range(panels.shape[0]):
        product(panels[panel], x, bias, out, first + panel * LANES, last)


def _parallel(panels: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int) -> None:
    for panel in prange(panels.shape[0]):
        product(panels[panel], x, bias, out, first + panel * LANES, last)


def _row_product(panel: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int) -> None:
    """Outputs `first` … `first` + L − 1, but none from `last` on, for the one row of x."""
    row = x[0]
    total = zeros()
    for block in range(row.size // block_size):
        at = block * block_bytes * LANES
        total = walk(panel, at, total, row, block * block_size)
    sums, place = _room(out, first, last)
    store(sums, place * FLOAT_BYTES, total)
    _finish(sums, place, bias, out, first, last)


def _few_product(panel: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int) -> None:
    """`_row_product` for FEW rows of x and more: the last rows are computed twice, if need be."""
    sums, place = _room(out, first, last)
    width = sums.shape[1] * FLOAT_BYTES
    for start in range(0, x.shape[0], FEW):
        r = min(start, x.shape[0] - FEW)
        some, at_sums = x[r : r + FEW], r * width + place * FLOAT_BYTES
        for t in range(r, r + FEW):
            store(sums, t * width + place * FLOAT_BYTES, zeros())
        totals = load_few(sums, at_sums, width)
        for block in range(x.shape[1] // block_size):
            at = block * block_bytes * LANES
            totals = walk(panel, at, totals, some, block * block_size)
        store_rows(sums, at_sums, width, totals)
    _finish(sums, place, bias, out, first, last)


def _rows_product(
    panel: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int
) -> None:
    """`_row_product` for every row of x."""
    n_columns = x.shape[1]
    sums, place = _room(out, first, last)
    _clear(sums, place)
    buffer = np.empty(PIECE * LANES, np.float32)
    piece = buffer.reshape(PIECE, LANES)  # [columns, L]
    for start in range(0, n_columns, PIECE):
        columns = min(PIECE, n_columns - start)
        for block in range(columns // block_size):
            at = (start // block_size + block) * block_bytes * LANES
            walk(panel, at, zeros(), buffer, block * block_size)
        add_products(x, start, columns, piece, 0, sums, place)
    _finish(sums, place, bias, out, first, last)


def _float_rows_product(
    panel: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int
) -> None:
    """`_rows_product` of F32, where a panel is what the buffer would be."""
    weights = panel.view(np.float32).reshape(-1, LANES)  # [D, L]
    sums, place = _room(out, first, last)
    _clear(sums, place)
    for start in range(0, x.shape[1], PIECE):
        columns = min(PIECE, x.shape[1] - start)
        add_products(x, start, columns, weights[start : start + columns], 0, sums, place)
    _finish(sums, place, bias, out, first, last)


@inner
def _room(out: Floats, first: int, last: int) -> tuple[Floats, int]:
    """A matrix [T, ≥ L] for the sums, and their first column: where they belong, if all do."""
    if first + LANES <= last:
        return out, first
    return np.empty((out.shape[0], LANES), np.float32), 0


@inner
def _clear(sums: Floats, place: int) -> None:
    """Let every sum of L columns be +0."""
    for t in range(sums.shape[0]):
        store(sums, (t * sums.shape[1] + place) * FLOAT_BYTES, zeros())


@inner
def _finish(sums: Floats, place: int, bias: Floats, out: Floats, first: int, last: int) -> None:
    """Add the bias, if there is one, and put the sums where they belong, if they are not there."""
    n_lanes = min(LANES, last - first)
    if n_lanes < LANES:
        for t in range(out.shape[0]):
            for lane in range(n_lanes):
                total = sums[t, lane]
                out[t, first + lane] = total + bias[first + lane] if bias.size > 0 else total
    elif bias.size > 0:
        shift = load_f32(bias, first * FLOAT_BYTES)
        for t in range(out.shape[0]):
            at = (t * out.shape[1] + first) * FLOAT_BYTES
            store(out, at, load_f32(out, at) + shift)


# What becomes of a weight, and of a panel, by how many rows there are.
VISITORS = {"row": blocks.add_product, "few": blocks.add_products, "rows": blocks.keep}
PRODUCTS = {"row": _row_product, "few": _few_product, "rows": _rows_product}
