"""Weights as the kernels want them: some rows side by side, still in the file's encoding.

N rows, D columns, L lanes: the rows of a panel, 16 or 64 of them (`refllm.jit.cpu`).

A matrix [N, D] in a file is row after row of blocks. A *panel* is L rows of it, turned so that
the same byte of the rows' blocks lies together, because the kernels compute L outputs at once:

    row 0:   a0 b0 c0 …             a0 a1 a2 … a15   b0 b1 b2 … b15   c0 c1 c2 … c15   …
    row 1:   a1 b1 c1 …      →
    …                               (a, b, c: the bytes of a row's blocks, in the file's order)
    row 15:  a15 b15 c15 …

Fields of two or four bytes (halves, floats, and quants that are used four bytes at a time; see
`refllm.kernels.packed.fields`) stay whole. Nothing is decoded, so a panel is as large as the rows
it holds; a last panel of fewer than L rows is filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from refllm.ggml.format import Format
from refllm.jit.buffers import zeros
from refllm.jit.compile import inner, jit, n_threads
from refllm.kernels.packed.fields import WIDE_FIELDS
from refllm.kernels.simd.lanes import LANES
from refllm.kernels.simd.transpose import (
    SQUARE_BYTES,
    transpose_bytes,
    transpose_halves,
    transpose_words,
)
from refllm.quant import FORMATS, Tensor

__all__ = ["Consumed", "Panels", "n_rows_of", "name_of", "pack", "side_by_side"]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Consumed: TypeAlias = Callable[[Bytes], object]

# A matrix is packed this many bytes at a time, so that what is decoded on the way stays small.
SLAB_BYTES = 1 << 21


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """A matrix [n_rows, n_columns], packed; `data` is uint8 [panels, bytes of L rows]."""

    name: str
    format: Format
    n_rows: int
    n_columns: int
    data: Bytes


def pack(*tensors: Tensor, consumed: Consumed | None = None) -> Panels:
    """The matrix [N, D] in panels; it holds the same numbers and nothing of the file.

    Several matrices of one format and width become one, one below the other. A format that has no
    kernel becomes F32. Errors: `LlmRuntimeError` for one that nobody can decode. `consumed` as for
    `side_by_side`.
    """
    stored_as = tensors[0].format
    if stored_as.name not in WIDE_FIELDS:
        stored_as = FORMATS["F32"]
    widths = _field_widths(stored_as)
    data = side_by_side(*tensors, widths=widths, stored_as=stored_as, consumed=consumed)
    return Panels(name_of(tensors), stored_as, n_rows_of(tensors), tensors[0].shape[1], data)


def name_of(tensors: Sequence[Tensor]) -> str:
    """The matrices' names as one."""
    return " and ".join(tensor.name for tensor in tensors)


def n_rows_of(tensors: Sequence[Tensor]) -> int:
    """The rows of all matrices."""
    return sum(tensor.shape[0] for tensor in tensors)


def side_by_side(
    *tensors: Tensor,
    widths: Ints,
    order: Ints | None = None,
    stored_as: Format | None = None,
    consumed: Consumed | None = None,
) -> Bytes:
    """The matrix [N, D] as uint8 [panels, bytes of L rows]; a block's fields have these widths.

    Its rows are those of the tensors, one after the other. `order` names the bytes of a block in
    the order that its fields shall have in the panel, where that is not the file's. `stored_as` is
    F32 where the numbers are to be decoded first. `consumed` is told, in order, which rows of the
    tensors' data are not needed any more: the file's memory can be given back while the panels
    grow.
    """
    stored_as = stored_as or tensors[0].format
    n_rows, n_columns = n_rows_of(tensors), tensors[0].shape[1]
    panels = zeros(-(-n_rows // LANES), LANES * stored_as.row_bytes(n_columns))
    slab = max(1, SLAB_BYTES // panels.shape[1])  # how many panels make one

    def fill(first: int) -> list[Bytes]:
        start, stop = first * LANES, min((first + slab) * LANES, n_rows)
        slices = list(_slices(tensors, start, stop))
        blocks = [
            rows.data if stored_as is rows.format else rows.array().view(np.uint8)
            for rows in slices
        ]
        part = panels[first : first + slab]
        _interleave(blocks[0] if len(blocks) == 1 else np.concatenate(blocks), widths, part)
        if order is not None:
            bytes_of_rows = part.reshape(-1, len(order), LANES)  # [blocks, bytes of one, L]
            bytes_of_rows[:] = bytes_of_rows[:, order]
        return [rows.data for rows in slices]

    for used in _each(fill, range(0, len(panels), slab)):
        if consumed is not None:
            for rows in used:
                consumed(rows)
    return panels


def _slices(tensors: Sequence[Tensor], start: int, stop: int) -> Iterator[Tensor]:
    """Rows start … stop − 1 of all tensors, as parts of the tensors that have some of them."""
    first = 0
    for tensor in tensors:
        n_rows, width = tensor.shape
        here = slice(max(start - first, 0), max(min(stop - first, n_rows), 0))
        if here.start < here.stop:
            shape = (here.stop - here.start, width)
            yield Tensor(tensor.name, tensor.format, shape, tensor.data[here])
        first += n_rows


def _each(fill: Callable[[int], list[Bytes]], slabs: Sequence[int]) -> Iterator[list[Bytes]]:
    """What `fill` returns for each slab, in order; threads share the work if it is much."""
    if len(slabs) == 1:
        yield fill(slabs[0])
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(n_threads()) as pool:
        yield from pool.map(fill, slabs)


def _field_widths(stored_as: Format) -> Ints:
    """The widths of a block's fields in bytes, in order."""
    widths: list[int] = []
    place = 0
    while place < stored_as.block_bytes:
        widths.append(WIDE_FIELDS[stored_as.name].get(place, 1))
        place += widths[-1]
    return np.array(widths)


def _interleave(rows: Bytes, widths: Ints, panels: Bytes) -> None:
    """Write rows [N, row bytes] into panels [N/L, L · row bytes], field by field."""
    rows = np.ascontiguousarray(rows).view()
    rows.flags.writeable = False  # as mapped files are: compile for that alone
    period = rows.shape[1] if len(widths) == 1 else int(widths.sum())
    _turn(rows, period, _runs(widths, period), panels)


def _runs(widths: Ints, period: int) -> Ints:
    """Stretches of fields of one width as (first byte, width, bytes), [runs, 3].

    They repeat every `period` bytes: that is a block, or where a block is one number, a row.
    """
    starts = np.cumsum(widths) - widths
    first_of_run = np.flatnonzero(np.diff(widths, prepend=0))
    firsts = starts[first_of_run]
    return np.stack([firsts, widths[first_of_run], np.diff(firsts, append=period)], axis=1)


@jit
def _turn(rows: Bytes, period: int, runs: Ints, panels: Bytes) -> None:
    """`_interleave`, run by run."""
    row_bytes = rows.shape[1]
    for panel in range(panels.shape[0]):
        lanes = rows[panel * LANES : (panel + 1) * LANES]
        for block in range(0, row_bytes, period):
            for run in range(runs.shape[0]):
                start, width, n_bytes = block + runs[run, 0], runs[run, 1], runs[run, 2]
                if n_bytes >= SQUARE_BYTES and lanes.shape[0] == LANES:
                    _squares(lanes, start, width, n_bytes, panels[panel])
                else:
                    _fields(lanes, start, width, n_bytes, panels[panel])


@inner
def _squares(lanes: Bytes, start: int, width: int, n_bytes: int, panel: Bytes) -> None:
    """A run of a full panel, a square at a time; the last begins early enough to end with it.

    A field stands `width` bytes into the row for each field before it, and L times as far into
    the panel.
    """
    row_bytes = lanes.shape[1]
    flat = lanes.reshape(-1)
    side, stride = SQUARE_BYTES // width, width * LANES
    for place in range(0, n_bytes, SQUARE_BYTES):
        first = start + min(place, n_bytes - SQUARE_BYTES)
        for lane in range(0, LANES, side):
            at, to = lane * row_bytes + first, first * LANES + lane * width
            if width == 1:
                transpose_bytes(flat, at, row_bytes, panel, to, stride)
            elif width == 2:
                transpose_halves(flat, at, row_bytes, panel, to, stride)
            else:
                transpose_words(flat, at, row_bytes, panel, to, stride)


@inner
def _fields(lanes: Bytes, start: int, width: int, n_bytes: int, panel: Bytes) -> None:
    """A short run, or the rows of an incomplete panel, a field at a time."""
    for place in range(start, start + n_bytes, width):
        for lane in range(lanes.shape[0]):
            to = place * LANES + lane * width
            for byte in range(width):
                panel[to + byte] = lanes[lane, place + byte]
