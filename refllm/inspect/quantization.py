"""A stored weight's block byte by byte, and what each type makes of the same numbers.

N rows, D columns of a matrix; n values of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.errors import InvalidInput
from refllm.quant import FORMATS, QUANTIZABLE, Format, Tensor, quantized

__all__ = ["PARTS", "first_matrix", "quantization_of"]

JSON = dict[str, Any]

# The parts of a block in their order: llama.cpp's name of each, and its bytes.
PARTS: Mapping[str, tuple[tuple[str, int], ...]] = MappingProxyType(
    {
        "F32": (("value", 4),),
        "F16": (("value", 2),),
        "BF16": (("value", 2),),
        "Q4_0": (("d", 2), ("qs", 16)),
        "Q4_1": (("d", 2), ("m", 2), ("qs", 16)),
        "Q5_0": (("d", 2), ("qh", 4), ("qs", 16)),
        "Q5_1": (("d", 2), ("m", 2), ("qh", 4), ("qs", 16)),
        "Q8_0": (("d", 2), ("qs", 32)),
        "Q2_K": (("scales", 16), ("qs", 64), ("d", 2), ("dmin", 2)),
        "Q3_K": (("hmask", 32), ("qs", 64), ("scales", 12), ("d", 2)),
        "Q4_K": (("d", 2), ("dmin", 2), ("scales", 12), ("qs", 128)),
        "Q5_K": (("d", 2), ("dmin", 2), ("scales", 12), ("qh", 32), ("qs", 128)),
        "Q6_K": (("ql", 128), ("qh", 64), ("scales", 16), ("d", 2)),
    }
)
SHOWN_VALUES = 32  # of types whose blocks are smaller
MEASURED_ROWS = 64
N_BINS = 41


def first_matrix(tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the matrix that is shown first: a quantized one if there is one."""
    matrices = sorted(
        (name for name, tensor in tensors.items() if len(tensor.shape) == 2),
        key=lambda name: (tensors[name].format.block_size == 1, not name.startswith("blk."), name),
    )
    return matrices[0]


def quantization_of(
    tensors: Mapping[str, Tensor], name: str, *, row: int = 0, column: int = 0
) -> JSON:
    """Return a place of a matrix in its stored type, and in each type that refllm writes.

    Args:
        tensors: The model's.
        name: The name of the matrix.
        row: The row that is shown.
        column: The column of a value in the block that is shown.

    Returns:
        The object `quantization` of refllm/inspect/document.schema.json.

    Raises:
        InvalidInput: For a tensor that is no matrix of the model, or a place outside it.
    """
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise InvalidInput(f"the model has no matrix {name!r:.80}")
    n_rows, n_columns = tensor.shape
    if not (0 <= row < n_rows and 0 <= column < n_columns):
        raise InvalidInput(
            f"{name} has {n_rows} rows and {n_columns} columns, asked for row {row} and "
            f"column {column}"
        )
    first = min(row, max(0, n_rows - MEASURED_ROWS))
    reference = np.array(tensor.rows(first, min(first + MEASURED_ROWS, n_rows)))  # [N, D]
    own = tensor.format.name
    types, left_out = [], []
    for type_name in dict.fromkeys((own, *QUANTIZABLE)):
        fmt = FORMATS[type_name]
        if n_columns % fmt.block_size:
            continue
        try:
            if type_name == own:
                data = tensor.data[first : first + len(reference)]
                coded = Tensor(name, fmt, reference.shape, data)
            else:
                coded = quantized(name, reference, type_name)
            types.append(_type(coded, reference, row=row - first, column=column))
        except InvalidInput as error:  # F16 has no number beyond 65504
            left_out.append({"type": type_name, "reason": str(error)})
    return {
        "tensor": name,
        "type": own,
        "shape": list(tensor.shape),
        "row": row,
        "n_measured_rows": len(reference),
        "types": types,
        "left_out": left_out,
    }


def _type(coded: Tensor, reference: NDArray[np.float32], *, row: int, column: int) -> JSON:
    fmt = coded.format
    n_columns = reference.shape[1]
    n_shown = min(max(fmt.block_size, SHOWN_VALUES), n_columns)
    start = column // n_shown * n_shown
    stop = min(start + n_shown, n_columns)
    n_bytes = (stop - start) // fmt.block_size * fmt.block_bytes
    first_byte = start // fmt.block_size * fmt.block_bytes
    block = np.array(coded.data[row, first_byte : first_byte + n_bytes])  # [n_bytes]
    decoded = coded.array()  # [N, D]
    if not np.isfinite(decoded).all():
        raise InvalidInput(f"tensor {coded.name} has a number that is not finite")
    errors = decoded.astype(np.float64) - reference  # [N, D]
    largest = float(np.abs(errors).max())
    edge = largest or 1.0
    counts, edges = np.histogram(errors, N_BINS, (-edge, edge))
    parts, at = [], 0
    for part, n in PARTS.get(fmt.name, (("block", fmt.block_bytes),)):
        parts.append({"name": part, "first": at, "n_bytes": n})
        at += n
    return {
        "type": fmt.name,
        "block_size": fmt.block_size,
        "block_bytes": fmt.block_bytes,
        "bits_per_weight": 8 * fmt.block_bytes / fmt.block_size,
        "parts": parts,
        "column": start,
        "bytes": block.tobytes().hex(),
        "values": decoded[row, start:stop].tolist(),
        "reference": reference[row, start:stop].tolist(),
        "touches": _touches(fmt, block),
        "rms_error": float(np.sqrt(np.mean(errors**2))),
        "max_error": largest,
        "histogram": {"edges": [float(edges[0]), float(edges[-1])], "counts": counts.tolist()},
    }


def _touches(fmt: Format, block: NDArray[np.uint8]) -> list[list[int]]:
    """Return for each byte the indices of the values that one of its bits changes.

    Each bit is flipped and the block decoded, so that this is what the decoder does.
    """
    n_bits = 8 * len(block)
    flipped = np.repeat(block[np.newaxis], n_bits, axis=0)  # [n_bits, n_bytes]
    bits = np.arange(n_bits)
    flipped[bits, bits // 8] ^= (1 << (bits % 8)).astype(np.uint8)
    with np.errstate(all="ignore"):  # a flipped scale can be infinite
        before = fmt.decode(block[np.newaxis]).view(np.uint32)  # [1, n]
        after = fmt.decode(flipped).view(np.uint32)  # [n_bits, n]
    changes = (after != before).reshape(len(block), 8, -1).any(axis=1)  # [n_bytes, n]
    return [np.flatnonzero(row).tolist() for row in changes]
