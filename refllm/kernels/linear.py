"""Matrix product: y[t, n] = ((0 + x[t,0]·w[n,0]) + x[t,1]·w[n,1]) + …, in float32.

T rows of x (tokens), N outputs (rows of w), D columns of both, W lanes. A step, product and sum, is
one fused multiply-add: it is rounded once. A bias b[n] is added to the finished sum.

A sum from left to right leaves no freedom within one output, so the parallelism is across outputs:
W of them are computed side by side (`refllm.kernels.simd.lanes`), from a panel of W rows of w
(`refllm.kernels.packed.panels`). W is 16 or 64, depending on the CPU.

One case, written out: `linear(x, pack(w))` with one row of x [1, 4096] and w in Q4_0 [4096, 4096],
on a CPU with 64 lanes.

1. `pack` made 64 panels of 64 rows. A block of Q4_0 has 32 columns in 18 bytes, so a panel is
   4096 / 32 · 18 · 64 bytes.
2. `_kernel("Q4_0", "gemv")` fills the templates: `q4_0` of `packed.decode_blocks` with the consumer
   `add_product`, `_gemv` with that decoder and with 32 and 18, `_product_of_panels` with that
   `_gemv`. numba compiles the last, and the others into it, unless the kernel is on disk.
3. 4096 · 4096 multiplications are worth several threads: `prange` gives each some of the panels.
4. For a panel `_gemv` holds 64 sums in registers. For each of 128 blocks `q4_0` loads 64 scales d
   and, for each of 32 columns, 64 nibbles. A weight w = d · (nibble − 8) is rounded like one of a
   decoded matrix, and `add_product` computes sum = fma(x[column], w, sum). No decoded weight is
   written to memory.
5. `_gemv` stores the sums to y[0, 64·panel …], and `_epilogue` would add a bias.

Three algorithms share this:

- GEMV, one row of x (generating a text): as above.
- Small batch, a few rows (several texts continued together): the same, `MICRO_BATCH` rows at a
  time.
- GEMM, many rows (reading a prompt, embedding): a K-block, `K_BLOCK` columns of a panel, is decoded
  to a buffer that stays in the cache and is multiplied with all rows of x, several at a time
  (`refllm.kernels.packed.tile`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from refllm.ggml.format import Format
from refllm.jit.buffers import FLOAT_BYTES, Bytes, Floats, Ints, empty
from refllm.jit.compile import HOLE, Both, both, inner, prange, template
from refllm.kernels.packed import decode_blocks as blocks
from refllm.kernels.packed import decode_superblocks as superblocks
from refllm.kernels.packed.decode_blocks import MICRO_BATCH
from refllm.kernels.packed.panels import Panels
from refllm.kernels.packed.tile import add_products
from refllm.kernels.simd.lanes import LANES, load_f32, store, zeros
from refllm.kernels.simd.rows import load_rows_of, store_rows
from refllm.quant import FORMATS, Tensor

__all__ = ["DECODERS", "Algorithm", "Matrix", "embedding", "linear"]

if TYPE_CHECKING:
    from refllm.kernels.int8.product import Int8Panels

Matrix: TypeAlias = "Panels | Int8Panels"
Algorithm: TypeAlias = Literal["gemv", "small_batch", "gemm"]

DECODERS = {
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

# Columns of a K-block: 512 of them are 32 KiB of floats for 16 lanes.
K_BLOCK = 512
# So many multiplications take as long as one element of an elementwise kernel (`SERIAL_WORK`).
MULTIPLICATIONS = 16
NO_BIAS = np.empty(0, np.float32)

load_micro_batch = load_rows_of(MICRO_BATCH)


def embedding(token_ids: Ints, weight: Tensor) -> Floats:
    """Return the rows of weight [V, D] with these indices, decoded: float32 [T, D]."""
    shape = (len(token_ids), weight.shape[1])
    return Tensor(weight.name, weight.format, shape, weight.data[token_ids]).array()


def linear(x: Floats, *weights: Matrix, bias: Floats | None = None) -> Floats:
    """Return x times the rows of the weights, plus the bias.

    Args:
        x: [T, D].
        weights: Matrices [n, D], whose outputs are side by side in this order. Each is multiplied
            by the numerics that it was packed for: exact here, int8 in
            `refllm.kernels.int8.product`.
        bias: [N], where N is the number of rows of all weights.

    Returns:
        float32 [T, N].
    """
    n_tokens = len(x)
    if 1 < n_tokens < MICRO_BATCH:
        x = np.concatenate([x, np.zeros((MICRO_BATCH - n_tokens, x.shape[1]), np.float32)])
    out = empty(len(x), sum(weight.n_rows for weight in weights))  # [≥ T, N]
    added = NO_BIAS if bias is None else bias
    first = 0
    for weight in weights:
        last = first + weight.n_rows
        if isinstance(weight, Panels):
            kernel = _kernel(weight.format.name, _algorithm(weight.format, n_tokens))
            run = kernel.choose(x.size * weight.n_rows // MULTIPLICATIONS)
            run(weight.data, x, added, out, first, last)
        else:
            # Imported here so that exact numerics do not load the int8 kernels.
            from refllm.kernels.int8.product import multiply_int8

            multiply_int8(x, weight, added, out, first, last)
        first = last
    return out[:n_tokens]


def _algorithm(fmt: Format, n_tokens: int) -> Algorithm:
    """Return the fastest algorithm.

    Decoding once for each micro-batch is faster than decoding to memory up to a number of
    micro-batches: none for F32, which needs no decoding, one for super-blocks, which need much.
    """
    if n_tokens == 1:
        return "gemv"
    micro_batches = {1: 2, 32: 2, 256: 1}[fmt.block_size] if fmt.name != "F32" else 0
    return "small_batch" if n_tokens <= micro_batches * MICRO_BATCH else "gemm"


@cache
def _kernel(format_name: str, algorithm: Algorithm) -> Both[Callable[..., None]]:
    """Return the product for a format; its two forms are compiled or loaded at their first call."""
    fmt, name = FORMATS[format_name], f"{format_name}_{algorithm}"
    decoder = DECODERS[format_name].fill(f"{name}_decoder", consume=CONSUMERS[algorithm])
    if name == "F32_gemm":
        product = _gemm_of_floats
    else:
        product = ALGORITHMS[algorithm].fill(
            f"{name}_product",
            decode_block=inner(decoder),
            block_bytes=fmt.block_bytes,
            block_size=fmt.block_size,
        )
    return both(_product_of_panels.fill(name, product=inner(product)))


decode_block: Any = HOLE
block_bytes: Any = HOLE
block_size: Any = HOLE
product: Any = HOLE


@template
def _product_of_panels(
    panels: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int
) -> None:
    """Write the outputs of all panels [N / W, bytes] to columns `first` … `last` − 1 of out."""
    for panel in prange(panels.shape[0]):
        product(panels[panel], x, bias, out, first + panel * LANES, last)


@template
def _gemv(panel: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int) -> None:
    """Write outputs `first` … `first` + W − 1, but none from `last` on, for the one row of x."""
    row = x[0]
    total = zeros()
    for block in range(row.size // block_size):
        at = block * block_bytes * LANES
        total = decode_block(panel, at, total, row, block * block_size)
    sums, column = _accumulator(out, first, last)
    store(sums, column * FLOAT_BYTES, total)
    _epilogue(sums, column, bias, out, first, last)


@template
def _small_batch(panel: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int) -> None:
    """`_gemv` for each of ≥ MICRO_BATCH rows of x; the last micro-batch may repeat some rows."""
    sums, column = _accumulator(out, first, last)
    width = sums.shape[1] * FLOAT_BYTES
    for start in range(0, x.shape[0], MICRO_BATCH):
        r = min(start, x.shape[0] - MICRO_BATCH)
        rows, at_sums = x[r : r + MICRO_BATCH], r * width + column * FLOAT_BYTES
        for t in range(r, r + MICRO_BATCH):
            store(sums, t * width + column * FLOAT_BYTES, zeros())
        totals = load_micro_batch(sums, at_sums, width)
        for block in range(x.shape[1] // block_size):
            at = block * block_bytes * LANES
            totals = decode_block(panel, at, totals, rows, block * block_size)
        store_rows(sums, at_sums, width, totals)
    _epilogue(sums, column, bias, out, first, last)


@template
def _gemm(panel: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int) -> None:
    """`_gemv` for each row of x, K-block by K-block."""
    n_columns = x.shape[1]
    sums, column = _accumulator(out, first, last)
    buffer = np.empty(K_BLOCK * LANES, np.float32)
    weights = buffer.reshape(K_BLOCK, LANES)  # [columns, W]
    for start in range(0, n_columns, K_BLOCK):
        columns = min(K_BLOCK, n_columns - start)
        for block in range(columns // block_size):
            at = (start // block_size + block) * block_bytes * LANES
            decode_block(panel, at, zeros(), buffer, block * block_size)
        added = _bias_now(bias, start + columns == n_columns, first, last)
        add_products(x, start, columns, weights, 0, sums, column, start == 0, added, 0)
    if first + LANES > last:
        _epilogue(sums, column, bias, out, first, last)


def _gemm_of_floats(
    panel: Bytes, x: Floats, bias: Floats, out: Floats, first: int, last: int
) -> None:
    """`_gemm` of F32, whose panels need no decoding; the next panel follows in memory."""
    weights = panel.view(np.float32).reshape(-1, LANES)  # [D, W]
    n_columns = x.shape[1]
    sums, column = _accumulator(out, first, last)
    for start in range(0, n_columns, K_BLOCK):
        columns = min(K_BLOCK, n_columns - start)
        block = weights[start : start + columns]
        added = _bias_now(bias, start + columns == n_columns, first, last)
        add_products(x, start, columns, block, 0, sums, column, start == 0, added, panel.size)
    if first + LANES > last:
        _epilogue(sums, column, bias, out, first, last)


@inner
def _bias_now(bias: Floats, is_last: bool, first: int, last: int) -> Floats:
    """Return the bias if the products of this K-block are the last of a whole vector of sums."""
    return bias if is_last and first + LANES <= last else bias[:0]


@inner
def _accumulator(out: Floats, first: int, last: int) -> tuple[Floats, int]:
    """Return a matrix [T, ≥ W] and a column in it for the sums; `out`, if a whole vector fits."""
    if first + LANES <= last:
        return out, first
    return np.empty((out.shape[0], LANES), np.float32), 0


@inner
def _epilogue(sums: Floats, column: int, bias: Floats, out: Floats, first: int, last: int) -> None:
    """Add the bias, if there is one, and copy the sums to `out`, if they are not in it."""
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


CONSUMERS = {
    "gemv": blocks.add_product,
    "small_batch": blocks.add_products,
    "gemm": blocks.store_column,
}
ALGORITHMS = {"gemv": _gemv, "small_batch": _small_batch, "gemm": _gemm}
