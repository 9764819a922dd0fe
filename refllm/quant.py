"""GGML's tensor types: how a file stores weights, and the float32 values that it means.

A tensor is stored row by row, and a row in blocks: a few bytes that hold a fixed number of values.
Each type of block is a `Format`, a small class whose docstring draws the block byte by byte.
A Q4_0 block holds 32 values in 18 bytes:

    00 38  F0  ...        d = 0.5 (float16), then sixteen bytes of two values each; the first is
           F-             bits 7..4 = 15:  y[16] = 0.5 * (15 - 8) =  3.5
           -0             bits 3..0 =  0:  y[0]  = 0.5 * ( 0 - 8) = -4.0

Where to read on:

    ggml/format.py        what every format can do, float16, and the plain numbers
    ggml/blocks.py        32 values under one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, ...
    ggml/superblocks.py   256 values under scales that are scaled themselves: Q2_K ... Q6_K, ...
    ggml/encode.py        floats to blocks, what `llama-quantize` does

All other types (lookup tables of 1 to 3 bits, ternary values, FP4) are decoded by the `gguf`
package, behind the same interface.

The values are those of the published formulas, each operation rounded to float32, so they equal
`gguf.quants.dequantize` to the last bit.
Letters: n blocks, N rows, K columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import gguf
import numpy as np
from gguf import quants as gguf_quants
from numpy.typing import NDArray

from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.ggml.blocks import IQ4_NL, Q1_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1
from refllm.ggml.encode import QUANTIZABLE, encode
from refllm.ggml.format import BF16, F16, F32, F64, I8, I16, I32, I64, Format
from refllm.ggml.superblocks import IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K

__all__ = ["FORMATS", "QUANTIZABLE", "Format", "Tensor", "quantized", "recoded"]

# Quantizing needs some dozen arrays of the size of what it quantizes.
NUMBERS_AT_A_TIME = 1 << 22


def _decoded_by_gguf(ggml_type: gguf.GGMLQuantizationType) -> Format:
    """A format that the `gguf` package decodes. What it cannot decode is an error when decoded."""
    values_in_block, bytes_in_block = gguf.GGML_QUANT_SIZES[ggml_type]

    class DecodedByGguf(Format):
        name = ggml_type.name
        block_size = values_in_block
        block_bytes = bytes_in_block

        @staticmethod
        def _decode_blocks(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
            try:
                with np.errstate(all="ignore"):  # an infinite scale is the file's, not ours
                    out[...] = gguf_quants.dequantize(blocks, ggml_type)
            except NotImplementedError as error:
                raise LlmRuntimeError(
                    f"tensor type {ggml_type.name} has no decoder in the installed gguf package; "
                    "a newer gguf may have one, or convert the file to another type"
                ) from error

    return DecodedByGguf()


def _every_format() -> Mapping[str, Format]:
    own = (
        *(F32(), F16(), BF16(), F64(), I8(), I16(), I32(), I64()),
        *(Q4_0(), Q4_1(), Q5_0(), Q5_1(), Q8_0(), Q8_1(), IQ4_NL(), Q1_0()),
        *(Q2_K(), Q3_K(), Q4_K(), Q5_K(), Q6_K(), Q8_K(), IQ4_XS()),
    )
    formats: dict[str, Format] = {form.name: form for form in own}
    for ggml_type in gguf.GGML_QUANT_SIZES:
        if ggml_type.name not in formats:
            formats[ggml_type.name] = _decoded_by_gguf(ggml_type)
    return MappingProxyType(formats)


# By GGML's name of the type, as `gguf.GGMLQuantizationType` spells it: every one that it knows.
FORMATS: Mapping[str, Format] = _every_format()


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A stored tensor; decoded when asked for, as much of it as asked for.

    `shape` is as NumPy says it, rows first: a matrix is [N, K]. Its last axis is stored in blocks,
    so `data` is uint8 [product of the other axes, format.row_bytes(K)], possibly a read-only memory
    map at any offset. A tensor of one axis is one row. `name` is for error messages.

    Raises `LlmRuntimeError` where `data` is not what `shape` and `format` ask for.
    """

    name: str
    format: Format
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def __post_init__(self) -> None:
        needed = (math.prod(self.shape[:-1]), self.format.row_bytes(math.prod(self.shape[-1:])))
        if self.data.shape != needed or self.data.dtype != np.uint8:
            raise LlmRuntimeError(
                f"tensor {self.name}: {self.format.name} of shape {list(self.shape)} is stored as "
                f"uint8 {list(needed)}, got {self.data.dtype} {list(self.data.shape)}"
            )

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop`, the latter excluded: float32 [stop - start, K].

        F32 is not copied unless memory is unaligned: then this is a view, read-only where the file
        is. Raises `LlmRuntimeError` where there are no such rows.
        """
        if not 0 <= start <= stop <= len(self.data):
            raise LlmRuntimeError(
                f"tensor {self.name} has {len(self.data)} rows, asked for {start} to {stop}"
            )
        return self.format.decode(self.data[start:stop])

    def array(self) -> NDArray[np.float32]:
        """The whole, float32 in `shape`; F32 without copying, as in `rows`."""
        return self.rows(0, len(self.data)).reshape(self.shape)


def quantized(name: str, values: NDArray[np.float32], type_name: str) -> Tensor:
    """The matrix [N, D] as a tensor of that name, in one of `QUANTIZABLE`.

    Errors: `InvalidInput` for another type, rows that are not whole blocks, a number that is not
    finite, or one that would not be so any more: F16 ends at 65504, and so does the scale of a
    block. ggml writes it as infinite, and `llama-quantize` then refuses it, too
    (`ggml_validate_row_data`).
    """
    if type_name not in QUANTIZABLE:
        raise InvalidInput(f"cannot write {type_name}; can write {', '.join(QUANTIZABLE)}")
    stored_as = FORMATS[type_name]
    if values.shape[-1] % stored_as.block_size != 0:
        raise InvalidInput(
            f"tensor {name}: rows of {values.shape[-1]} numbers are not whole blocks of "
            f"{stored_as.block_size}, which {type_name} needs"
        )
    if not np.isfinite(values).all():
        raise InvalidInput(f"tensor {name} has a number that is not finite")
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])  # [N, D]
    with np.errstate(all="ignore"):  # what overflows is seen in what it is decoded to
        tensor = Tensor(name, stored_as, values.shape, encode(rows, type_name))
        is_finite = bool(np.isfinite(tensor.array()).all())
    if not is_finite:
        raise InvalidInput(
            f"tensor {name} has numbers as large as {np.abs(values).max():.6g}, which {type_name} "
            f"would make infinite; choose {'F32' if type_name == 'BF16' else 'BF16 or F32'}"
        )
    return tensor


def recoded(tensor: Tensor, type_name: str) -> Tensor:
    """The tensor with its numbers in one of `QUANTIZABLE`; itself if they are.

    Errors: `InvalidInput` as `quantized`.
    """
    if tensor.format.name == type_name:
        return tensor
    n_rows, n_columns = len(tensor.data), tensor.shape[-1]
    step = max(1, NUMBERS_AT_A_TIME // n_columns)
    parts = []
    for start in range(0, n_rows, step):
        values = tensor.rows(start, min(start + step, n_rows))  # [≤ step, K]
        parts.append(quantized(tensor.name, values, type_name).data)
    data = np.concatenate(parts)  # [N, row_bytes]
    return Tensor(tensor.name, FORMATS[type_name], tensor.shape, data)
