"""GGML's tensor types: how a file stores weights, and the float32 values that it means.

A tensor is stored row by row, and a row in blocks: a few bytes that hold a fixed number of values.
Each type of block is a `Format`, a small class with a drawing of the block in its docstring.
A Q4_0 block holds 32 values in 18 bytes:

    00 38  F0  ...        d = 0.5 (float16), then sixteen bytes of two values each; the first is
           F-             bits 7..4 = 15:  y[16] = 0.5 * (15 - 8) =  3.5
           -0             bits 3..0 =  0:  y[0]  = 0.5 * ( 0 - 8) = -4.0

Where to continue:

    ggml/format.py        what every format can do, float16, and the plain numbers
    ggml/blocks.py        32 values under one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, ...
    ggml/superblocks.py   256 values under scales that are scaled themselves: Q2_K ... Q6_K, ...
    ggml/encode.py        floats to blocks, what `llama-quantize` does

All other types (lookup tables of 1 to 3 bits, ternary values, FP4) are decoded by the `gguf`
package, behind the same interface.

The values are those of the published formulas, each operation rounded to float32, so they equal
`gguf.quants.dequantize` to the last bit.
Letters: n blocks, N rows, D columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import gguf
import numpy as np
from gguf import quants as gguf_quants

from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.ggml.blocks import IQ4_NL, Q1_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1
from refllm.ggml.encode import QUANTIZABLE, encode
from refllm.ggml.format import BF16, F16, F32, F64, I8, I16, I32, I64, Format
from refllm.ggml.superblocks import IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K
from refllm.jit.buffers import Bytes, Floats

__all__ = ["FORMATS", "QUANTIZABLE", "Format", "Tensor", "quantized", "recoded"]

# Quantizing allocates about a dozen arrays of the size of its input.
NUMBERS_AT_A_TIME = 1 << 22


def _decoded_by_gguf(ggml_type: gguf.GGMLQuantizationType) -> Format:
    """Return a format that the `gguf` package decodes; `decode` raises if the package cannot."""
    values_in_block, bytes_in_block = gguf.GGML_QUANT_SIZES[ggml_type]

    class DecodedByGguf(Format):
        name = ggml_type.name
        block_size = values_in_block
        block_bytes = bytes_in_block

        @staticmethod
        def _decode_blocks(blocks: Bytes, out: Floats) -> None:
            try:
                with np.errstate(all="ignore"):  # the file may have an infinite scale
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
    formats: dict[str, Format] = {fmt.name: fmt for fmt in own}
    for ggml_type in gguf.GGML_QUANT_SIZES:
        if ggml_type.name not in formats:
            formats[ggml_type.name] = _decoded_by_gguf(ggml_type)
    return MappingProxyType(formats)


# Every type of `gguf.GGMLQuantizationType`, by its name there.
FORMATS: Mapping[str, Format] = _every_format()


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A stored tensor; `rows` and `array` decode it.

    Attributes:
        name: For error messages.
        format: How it is stored.
        shape: In NumPy's order, rows first: a matrix is [N, D]. A tensor of one axis is one row.
        data: uint8 [product of all axes but the last, format.row_bytes(last axis)], possibly a
            read-only memory map at any offset.

    Raises:
        LlmRuntimeError: `data` does not fit `shape` and `format`.
    """

    name: str
    format: Format
    shape: tuple[int, ...]
    data: Bytes

    def __post_init__(self) -> None:
        needed = (math.prod(self.shape[:-1]), self.format.row_bytes(math.prod(self.shape[-1:])))
        if self.data.shape != needed or self.data.dtype != np.uint8:
            raise LlmRuntimeError(
                f"tensor {self.name}: {self.format.name} of shape {list(self.shape)} is stored as "
                f"uint8 {list(needed)}, got {self.data.dtype} {list(self.data.shape)}"
            )

    def rows(self, start: int, stop: int) -> Floats:
        """Return rows `start` … `stop` − 1, float32 [stop - start, D].

        Of aligned F32 the result is a view, which is read-only if the file is.

        Raises:
            LlmRuntimeError: There are no such rows.
        """
        if not 0 <= start <= stop <= len(self.data):
            raise LlmRuntimeError(
                f"tensor {self.name} has {len(self.data)} rows, asked for {start} to {stop}"
            )
        return self.format.decode(self.data[start:stop])

    def array(self) -> Floats:
        """Return the whole tensor, float32 in `shape`; of F32 a view, as `rows` does."""
        return self.rows(0, len(self.data)).reshape(self.shape)


def quantized(name: str, values: Floats, type_name: str) -> Tensor:
    """Return the matrix [N, D] as a tensor of that name, in one of `QUANTIZABLE`.

    Raises:
        InvalidInput: Another type, rows that are not whole blocks, a number that is not finite, or
            one that would become infinite: F16, also as the scale of a block, ends at 65504.
            `llama-quantize` refuses such numbers, too (`ggml_validate_row_data`).
    """
    if type_name not in QUANTIZABLE:
        raise InvalidInput(f"cannot write {type_name}; can write {', '.join(QUANTIZABLE)}")
    fmt = FORMATS[type_name]
    if values.shape[-1] % fmt.block_size != 0:
        raise InvalidInput(
            f"tensor {name}: rows of {values.shape[-1]} numbers are not whole blocks of "
            f"{fmt.block_size}, which {type_name} needs"
        )
    if not np.isfinite(values).all():
        raise InvalidInput(f"tensor {name} has a number that is not finite")
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])  # [N, D]
    with np.errstate(all="ignore"):  # an overflow shows in the decoded numbers
        tensor = Tensor(name, fmt, values.shape, encode(rows, type_name))
        is_finite = bool(np.isfinite(tensor.array()).all())
    if not is_finite:
        raise InvalidInput(
            f"tensor {name} has numbers as large as {np.abs(values).max():.6g}, which {type_name} "
            f"would make infinite; choose {'F32' if type_name == 'BF16' else 'BF16 or F32'}"
        )
    return tensor


def recoded(tensor: Tensor, type_name: str) -> Tensor:
    """Return the tensor in one of `QUANTIZABLE`, or itself if it has that type.

    Raises:
        InvalidInput: As for `quantized`.
    """
    if tensor.format.name == type_name:
        return tensor
    n_rows, n_columns = len(tensor.data), tensor.shape[-1]
    step = max(1, NUMBERS_AT_A_TIME // n_columns)
    parts = []
    for start in range(0, n_rows, step):
        values = tensor.rows(start, min(start + step, n_rows))  # [≤ step, D]
        parts.append(quantized(tensor.name, values, type_name).data)
    data = np.concatenate(parts)  # [N, row_bytes]
    return Tensor(tensor.name, FORMATS[type_name], tensor.shape, data)
