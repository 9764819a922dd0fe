"""Weights as the kernels read them: some rows side by side, still in the file's encoding.

N rows, D columns, W lanes: the rows of a panel, 16 or 64 of them (`refllm.jit.cpu`).

A matrix [N, D] in a file is row after row of blocks. A *panel* is W rows of it, transposed so that
the same byte of the rows' blocks is together, because the kernels compute W outputs at once:

    row 0:   a0 b0 c0 …             a0 a1 a2 … a15   b0 b1 b2 … b15   c0 c1 c2 … c15   …
    row 1:   a1 b1 c1 …      →
    …                               (a, b, c: the bytes of a row's blocks, in the file's order)
    row 15:  a15 b15 c15 …

Fields of two or four bytes (halves, floats, and quants that are used four bytes at a time; see
`refllm.kernels.packed.fields`) stay whole. Nothing is decoded, so a panel is as large as the rows
in it; a last panel of fewer than W rows is padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from refllm.ggml.format import Format
from refllm.jit.buffers import Bytes, Ints, zeros
from refllm.jit.compile import inner, jit, n_threads
from refllm.kernels.packed.fields import WIDE_FIELDS
from refllm.kernels.simd.lanes import LANES
from refllm.kernels.simd.transpose import (
    SQUARE_BYTES,
    copy_half,
    copy_word,
    transpose_bytes,
    transpose_halves,
    transpose_words,
)
from refllm.quant import FORMATS, Tensor

__all__ = ["Consumed", "Panels", "n_rows_of", "name_of", "pack", "side_by_side"]

Consumed: TypeAlias = Callable[[Bytes], object]

# A matrix is packed in chunks of this many bytes, which bounds the memory for decoded rows.
CHUNK_BYTES = 1 << 21
# A run of fields that is shorter is copied field by field.
MIN_BYTES = SQUARE_BYTES // 2
# Rows that are a power of two apart share few sets of the first cache, so a line is read at once.
LINE_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """A matrix [n_rows, n_columns], packed; `data` is uint8 [panels, bytes of W rows]."""

    name: str
    format: Format
    n_rows: int
    n_columns: int
    data: Bytes


def pack(*tensors: Tensor, consumed: Consumed | None = None) -> Panels:
    """Return matrices of one format and width, one below the other, as panels.

    Args:
        tensors: Each [n, D]. A format that has no kernel becomes F32.
        consumed: As for `side_by_side`.

    Returns:
        The matrix [N, D]; it shares no memory with the file.

    Raises:
        LlmRuntimeError: Nothing can decode the format.
    """
    fmt = tensors[0].format
    if fmt.name not in WIDE_FIELDS:
        fmt = FORMATS["F32"]
    widths: list[int] = []  # of a block's fields in bytes, in order
    while sum(widths) < fmt.block_bytes:
        widths.append(WIDE_FIELDS[fmt.name].get(sum(widths), 1))
    data = side_by_side(*tensors, widths=np.array(widths), fmt=fmt, consumed=consumed)
    return Panels(name_of(tensors), fmt, n_rows_of(tensors), tensors[0].shape[1], data)


def name_of(tensors: Sequence[Tensor]) -> str:
    """Return the matrices' names as one."""
    return " and ".join(tensor.name for tensor in tensors)


def n_rows_of(tensors: Sequence[Tensor]) -> int:
    """Return the number of rows of all matrices."""
    return sum(tensor.shape[0] for tensor in tensors)


def side_by_side(
    *tensors: Tensor,
    widths: Ints,
    order: Ints | None = None,
    fmt: Format | None = None,
    consumed: Consumed | None = None,
) -> Bytes:
    """Return the panels of the tensors' rows, one tensor after the other.

    Args:
        tensors: Each [n, D], of one format.
        widths: The widths in bytes of a block's fields.
        order: The bytes of a block in the order of the panel's fields; None: the file's order.
        fmt: F32 to decode the numbers first; None: the tensors' format.
        consumed: Called, in order, with the rows of the tensors' data that are not needed any more,
            so that the file's memory can be freed while the panels grow.

    Returns:
        uint8 [panels, bytes of W rows].
    """
    fmt = fmt or tensors[0].format
    n_rows, n_columns = n_rows_of(tensors), tensors[0].shape[1]
    panels = zeros(-(-n_rows // LANES), LANES * fmt.row_bytes(n_columns))
    chunk = max(1, CHUNK_BYTES // panels.shape[1])  # in panels

    def fill(first: int) -> list[Bytes]:
        start, stop = first * LANES, min((first + chunk) * LANES, n_rows)
        slices = list(_slices(tensors, start, stop))
        blocks = [
            rows.data if fmt is rows.format else rows.array().view(np.uint8) for rows in slices
        ]
        part = panels[first : first + chunk]
        _interleave(blocks[0] if len(blocks) == 1 else np.concatenate(blocks), widths, part)
        if order is not None:
            bytes_of_rows = part.reshape(-1, len(order), LANES)  # [blocks, bytes of one, W]
            bytes_of_rows[:] = bytes_of_rows[:, order]
        return [rows.data for rows in slices]

    for used in _in_order(fill, range(0, len(panels), chunk)):
        if consumed is not None:
            for rows in used:
                consumed(rows)
    return panels


def _slices(tensors: Sequence[Tensor], start: int, stop: int) -> Iterator[Tensor]:
    """Yield rows start … stop − 1 of all tensors, as parts of the tensors that have some."""
    first = 0
    for tensor in tensors:
        n_rows, width = tensor.shape
        here = slice(max(start - first, 0), max(min(stop - first, n_rows), 0))
        if here.start < here.stop:
            shape = (here.stop - here.start, width)
            yield Tensor(tensor.name, tensor.format, shape, tensor.data[here])
        first += n_rows


def _in_order(fill: Callable[[int], list[Bytes]], firsts: Sequence[int]) -> Iterator[list[Bytes]]:
    """Yield what `fill` returns for each chunk, in order; threads share several chunks."""
    if len(firsts) == 1:
        yield fill(firsts[0])
        return
    from concurrent.futures import ThreadPoolExecutor  # loaded for large matrices only

    with ThreadPoolExecutor(n_threads()) as pool:
        yield from pool.map(fill, firsts)


def _interleave(rows: Bytes, widths: Ints, panels: Bytes) -> None:
    """Write rows [N, row bytes] into panels [N / W, W · row bytes], field by field."""
    rows = np.ascontiguousarray(rows).view()
    rows.flags.writeable = False  # as memory maps are, so that one version of `_turn` is compiled
    # Stretches of fields of one width, [runs, 3]: first byte, width, bytes. They repeat every
    # `period` bytes, that is in each block, or where a block is one number, in each row.
    period = rows.shape[1] if len(widths) == 1 else int(widths.sum())
    starts = np.cumsum(widths) - widths
    first_of_run = np.flatnonzero(np.diff(widths, prepend=0))
    firsts = starts[first_of_run]
    runs = np.stack([firsts, widths[first_of_run], np.diff(firsts, append=period)], axis=1)
    _turn(rows, period, runs, panels)


@jit
def _turn(rows: Bytes, period: int, runs: Ints, panels: Bytes) -> None:
    """`_interleave`, run by run."""
    row_bytes = rows.shape[1]
    for panel in range(panels.shape[0]):
        lanes = rows[panel * LANES : (panel + 1) * LANES]
        for block in range(0, row_bytes, period):
            for run in range(runs.shape[0]):
                start, width, n_bytes = block + runs[run, 0], runs[run, 1], runs[run, 2]
                last = start + max(n_bytes, SQUARE_BYTES)
                if n_bytes >= MIN_BYTES and last <= row_bytes and lanes.shape[0] == LANES:
                    _squares(lanes, start, width, n_bytes, panels[panel])
                else:
                    _fields(lanes, start, width, n_bytes, panels[panel])


@inner
def _squares(lanes: Bytes, start: int, width: int, n_bytes: int, panel: Bytes) -> None:
    """Transpose a run of a full panel square by square, the squares of a cache line together.

    The last square overlaps the one before. The square of a run that is shorter overlaps the next
    run, which is written later. A byte is W times as far into the panel as it is into the row.
    """
    row_bytes = lanes.shape[1]
    flat = lanes.reshape(-1)
    side, stride = SQUARE_BYTES // width, width * LANES
    for line in range(0, n_bytes, LINE_BYTES):
        for lane in range(0, LANES, side):
            for place in range(line, min(line + LINE_BYTES, n_bytes), SQUARE_BYTES):
                first = start + max(min(place, n_bytes - SQUARE_BYTES), 0)
                at, to = lane * row_bytes + first, first * LANES + lane * width
                if width == 1:
                    transpose_bytes(flat, at, row_bytes, panel, to, stride)
                elif width == 2:
                    transpose_halves(flat, at, row_bytes, panel, to, stride)
                else:
                    transpose_words(flat, at, row_bytes, panel, to, stride)


@inner
def _fields(lanes: Bytes, start: int, width: int, n_bytes: int, panel: Bytes) -> None:
    """Copy a short run, or the rows of an incomplete panel, field by field."""
    row_bytes = lanes.shape[1]
    flat = lanes.reshape(-1)
    for place in range(start, start + n_bytes, width):
        for lane in range(lanes.shape[0]):
            at, to = lane * row_bytes + place, place * LANES + lane * width
            if width == 1:
                panel[to] = flat[at]
            elif width == 2:
                copy_half(flat, at, panel, to)
            else:
                copy_word(flat, at, panel, to)
