"""Weights as the kernels want them: 64 rows side by side, still in the file's encoding.

N rows, D columns.

A matrix [N, D] in a file is row after row of blocks. A *panel* is 64 rows of it, turned so that
the same byte of the 64 rows' blocks lies together, because the kernels compute 64 outputs at once:

    row 0:   a0 b0 c0 …             a0 a1 a2 … a63   b0 b1 b2 … b63   c0 c1 c2 … c63   …
    row 1:   a1 b1 c1 …      →
    …                               (a, b, c: the bytes of a row's blocks, in the file's order)
    row 63:  a63 b63 c63 …

Fields of two or four bytes (halves, floats, and quants that are used four bytes at a time; see
`refllm.kernels.fields`) stay whole. Nothing is decoded, so a panel is as large
as the rows it holds; a last panel of fewer than 64 rows is filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refllm.kernels.fields import WIDE_FIELDS
from refllm.kernels.jit import parallel_jit, prange
from refllm.kernels.simd import LANES
from refllm.quant import FORMATS, Format, Tensor

__all__ = ["Panels", "pack"]

@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """A matrix [n_rows, n_columns], packed; `data` is uint8 [panels, bytes of 64 rows]."""

    name: str
    format: Format
    n_rows: int
    n_columns: int
    data: NDArray[np.uint8]


def pack(tensor: Tensor) -> Panels:
    """The matrix [N, D] in panels; it holds the same numbers and nothing of the file."""
    if tensor.format.name not in WIDE_FIELDS:
        tensor = _as_f32(tensor)
    n_rows, n_columns = tensor.shape
    n_panels = -(-n_rows // LANES)
    data = np.zeros((n_panels, LANES * tensor.data.shape[1]), np.uint8)
    blocks = tensor.data.view()
    blocks.flags.writeable = False  # as mapped files are: compile for that alone
    _interleave(blocks, _field_widths(tensor.format), data)
    return Panels(tensor.name, tensor.format, n_rows, n_columns, data)


def _as_f32(tensor: Tensor) -> Tensor:
    decoded = np.ascontiguousarray(tensor.array())  # [N, D]
    return Tensor(tensor.name, FORMATS["F32"], tensor.shape, decoded.view(np.uint8))


def _field_widths(stored_as: Format) -> NDArray[np.int64]:
    """The widths of a block's fields in bytes, in order."""
    widths: list[int] = []
    place = 0
    while place < stored_as.block_bytes:
        widths.append(WIDE_FIELDS[stored_as.name].get(place, 1))
        place += widths[-1]
    return np.array(widths)


@parallel_jit
def _interleave(
    rows: NDArray[np.uint8], widths: NDArray[np.int64], panels: NDArray[np.uint8]
) -> None:
    """Write rows [N, row bytes] into panels [N/64, 64 · row bytes], field by field."""
    block_bytes = widths.sum()
    n_blocks = rows.shape[1] // block_bytes
    for panel in prange(panels.shape[0]):
        n_lanes = min(LANES, rows.shape[0] - panel * LANES)
        for lane in range(n_lanes):
            row = rows[panel * LANES + lane]
            for block in range(n_blocks):
                place = block * block_bytes
                for width in widths:
                    target = place * LANES + lane * width
                    for byte in range(width):
                        panels[panel, target + byte] = row[place + byte]
                    place += width
