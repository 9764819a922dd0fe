"""GGUF files: metadata as Python values, tensors as views into the memory map.

A GGUF file, all numbers little-endian:

    "GGUF" | version u32 | tensor count u64 | key count u64
    key count times:     key string | value type u32 | value
    tensor count times:  name string | dimensions u32 | size u64 each | type u32 | offset u64
    padding up to a multiple of general.alignment, from where the offsets count
    the tensors' bytes

where a string is its length (u64) and its bytes, and an array its item type (u32), its length
(u64) and its items. Sizes come fastest-varying first, so NumPy's shape is their reverse.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package reads it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderField
from numpy.typing import DTypeLike, NDArray

from refllm.api import LlmRuntimeError, ModelNotSupported
from refllm.quant import FORMATS, Format, Tensor
from refllm.weights_file import map_file, row_layout

__all__ = ["GgufContents", "read_gguf"]

PREAMBLE: Final = struct.Struct("<4sIQQ")  # magic, version, tensor count, key count
LENGTH: Final = struct.Struct("<Q")
VERSIONS: Final = (2, 3)  # 3 differs from 2 only in allowing big-endian files
SMALLEST_KEY: Final = 8 + 4 + 1  # an empty key, its type, one byte
SMALLEST_TENSOR_INFO: Final = 8 + 4 + 8 + 4 + 8  # an empty name, one dimension, type, offset
MAX_ARRAY_ITEMS: Final = 2**22  # of all arrays together; the largest vocabularies need 1.4 million
ALIGNMENT_UNIT: Final = 8  # general.alignment "must be a multiple of 8"


@dataclass(frozen=True, slots=True)
class GgufContents:
    """What is in one file: metadata by key, tensors by name.

    `others` are tensors without a number, or that are one number: name to type and shape. No
    network asks for one, and llama.cpp reads files that have them.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    others: dict[str, str]


def read_gguf(path: Path) -> GgufContents:
    """The metadata and the tensors of the GGUF file at `path`, under the names the file uses.

    Metadata are str, int, float, bool, or a list of one of these. A tensor's data is a view,
    uint8 [rows, row_bytes], into the memory map, which is released with the last of them.
    Errors: `LlmRuntimeError` naming the file, and the key or tensor, when anything in the header
    contradicts the format or the size of the file.
    """
    _check_preamble(path)
    try:
        reader = _BoundedReader(path)
    except KeyError as error:  # its text is the message in quotes
        raise LlmRuntimeError(f"{path}: {error.args[0]:.200}") from error
    except ValueError as error:
        raise LlmRuntimeError(f"{path}: damaged header: {error!s:.200}") from error
    metadata = {
        key: _value(field, where=f"{path}: metadata key {key!r:.80}")
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")  # the package files the preamble under these
    }
    tensors = {tensor.name: tensor for tensor in reader.stored_tensors()}
    return GgufContents(metadata, tensors, reader.others)


def _check_preamble(path: Path) -> None:
    """Raise `LlmRuntimeError` unless the first 24 bytes are those of a GGUF file of this size."""
    data = map_file(path)
    start = data[: PREAMBLE.size].tobytes()
    if start[:4] != b"GGUF":
        raise LlmRuntimeError(
            f"{path}: not a GGUF file (it begins with {start[:4]!r}); "
            "of a safetensors model, name the folder"
        )
    if len(start) < PREAMBLE.size:
        raise LlmRuntimeError(f"{path}: truncated after {len(start)} bytes, inside the header")
    _, version, n_tensors, n_keys = PREAMBLE.unpack(start)
    if version & 0xFFFF == 0:
        raise ModelNotSupported(f"{path}: a big-endian GGUF file; convert it to little-endian")
    if version not in VERSIONS:
        raise LlmRuntimeError(f"{path}: GGUF version {version}; versions 2 and 3 can be read")
    if n_keys * SMALLEST_KEY + n_tensors * SMALLEST_TENSOR_INFO > data.size - PREAMBLE.size:
        raise LlmRuntimeError(
            f"{path}: the header announces {n_keys} metadata keys and {n_tensors} tensors, "
            f"more than fit into {data.size} bytes"
        )


def _value(field: ReaderField, *, where: str) -> object:
    """What a metadata field says, as str, int, float, bool, or a list of them."""
    items = [field.parts[index] for index in field.data]
    values: list[Any]
    if field.types[-1] is GGUFValueType.STRING:
        try:
            values = [item.tobytes().decode() for item in items]
        except UnicodeDecodeError as error:
            raise LlmRuntimeError(f"{where} is not UTF-8: {error}") from error
    else:
        values = [value for item in items for value in item.tolist()]
    return values if field.types[0] is GGUFValueType.ARRAY else values[0]


class _BoundedReader(GGUFReader):
    """The package's reader, kept inside the file.

    The package believes every length it reads. Past the end of the file NumPy's slices are empty,
    so a tensor count of 2^60 is a loop of 2^60 rounds, and a product of dimensions that overflows
    is a small tensor. All its reading goes through `_get`, which here refuses to leave the file,
    and all tensors through `_build_tensors`, which here checks them first. Arrays, for which the
    package makes an object per number, become one view each (a vocabulary of 128,000 tokens:
    a fraction of a second rather than several).
    """

    _n_array_items = 0

    def __init__(self, path: Path) -> None:
        self._path = path
        self.others: dict[str, str] = {}
        super().__init__(path)

    def stored_tensors(self) -> list[Tensor]:
        """Every tensor of the file, in the file's order, its data a view into the map."""
        tensors = []
        for stored in self.tensors:
            shape = tuple(reversed(stored.shape.tolist()))
            rows = stored.data.view(np.ndarray).reshape(math.prod(shape[:-1]), -1).view(np.uint8)
            tensors.append(Tensor(stored.name, FORMATS[stored.tensor_type.name], shape, rows))
        return tensors

    def _get(
        self,
        offset: int,
        dtype: DTypeLike,
        count: int = 1,
        override_order: Literal["I", "S", "<"] | None = None,
    ) -> NDArray[Any]:
        self._check_inside(offset, np.dtype(dtype).itemsize * int(count))
        return super()._get(offset, dtype, count, override_order)

    def _check_inside(self, offset: int, n_bytes: int) -> None:
        if n_bytes > self.data.size - offset:
            last_key = next(reversed(self.fields), None)
            raise LlmRuntimeError(
                f"{self._path}: truncated or damaged: {n_bytes} bytes expected at offset {offset} "
                f"of {self.data.size} (the last metadata key read is {last_key!r:.80})"
            )

    def _value_type(self, raw_type: int) -> GGUFValueType:
        try:
            return GGUFValueType(raw_type)
        except ValueError as error:
            last_key = next(reversed(self.fields), None)
            raise LlmRuntimeError(
                f"{self._path}: the metadata after key {last_key!r:.80} has unknown type {raw_type}"
            ) from error

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[NDArray[Any]], list[int], list[GGUFValueType]]:
        if self._value_type(raw_type) is not GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        raw_item_type = self._get(orig_offs, np.uint32)
        raw_length = self._get(orig_offs + 4, np.uint64)
        item_type, length = self._value_type(raw_item_type[0]), int(raw_length[0])
        self._n_array_items += length
        if self._n_array_items > MAX_ARRAY_ITEMS:
            raise LlmRuntimeError(
                f"{self._path}: metadata arrays of {self._n_array_items} items altogether; "
                f"no model needs more than {MAX_ARRAY_ITEMS}"
            )
        items = self._array_items(orig_offs + 12, item_type, length)
        n_bytes = 12 + sum(item.nbytes for item in items)
        if item_type is GGUFValueType.STRING:
            n_bytes += LENGTH.size * length
        parts = [raw_item_type, raw_length, *items]
        return n_bytes, parts, list(range(2, len(parts))), [GGUFValueType.ARRAY, item_type]

    def _array_items(
        self, offset: int, item_type: GGUFValueType, length: int
    ) -> list[NDArray[Any]]:
        """Numbers as one array, strings as an array of bytes each."""
        if item_type is GGUFValueType.STRING:
            return self._strings(offset, length)
        if item_type is GGUFValueType.ARRAY:
            raise LlmRuntimeError(
                f"{self._path}: a metadata value is an array of arrays, which no model has"
            )
        return [self._get(offset, self.gguf_scalar_to_np[item_type], length)]

    def _strings(self, offset: int, length: int) -> list[NDArray[Any]]:
        raw = self.data.data
        plain = self.data.view(np.ndarray)  # slices of a memmap cost several times as much
        strings: list[NDArray[Any]] = []
        for _ in range(length):
            self._check_inside(offset, LENGTH.size)
            (n_bytes,) = LENGTH.unpack_from(raw, offset)
            offset += LENGTH.size
            self._check_inside(offset, n_bytes)
            strings.append(plain[offset : offset + n_bytes])
            offset += n_bytes
        return strings

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        if self.alignment % ALIGNMENT_UNIT != 0:
            raise LlmRuntimeError(
                f"{self._path}: general.alignment is {self.alignment}, and must be a multiple of 8"
            )
        usual = []
        for field in fields:
            if not field.name:
                raise LlmRuntimeError(
                    f"{self._path}: a tensor '' without a name; the header is damaged"
                )
            shape = tuple(reversed(field.parts[3].tolist()))
            if shape and 0 not in shape:
                usual.append(field)
            else:
                stored_as = _format(int(field.parts[4][0]), f"{self._path}: {field.name!r:.80}")
                self.others[field.name] = f"{stored_as.name} {list(shape)}"
        spans = sorted(self._span(int(start_offs), field) for field in usual)
        for (_, stop, name), (next_start, _, next_name) in pairwise(spans):
            if next_start < stop:
                raise LlmRuntimeError(
                    f"{self._path}: the tensors {name!r:.80} and {next_name!r:.80} overlap"
                )
        super()._build_tensors(start_offs, usual)

    def _span(self, data_start: int, info: ReaderField) -> tuple[int, int, str]:
        """Where the bytes of a tensor start and stop in the file, and its name."""
        _, _, n_dims, sizes, raw_type, raw_offset = info.parts
        where = f"{self._path}: tensor {info.name!r:.80}"
        if n_dims[0] > 4:
            raise LlmRuntimeError(f"{where} has {n_dims[0]} dimensions, and may have 1 to 4")
        shape = tuple(reversed(sizes.tolist()))
        n_rows, row_bytes = row_layout(shape, _format(int(raw_type[0]), where), where=where)
        offset, n_bytes = int(raw_offset[0]), n_rows * row_bytes
        if offset % int(self.alignment) != 0:
            raise LlmRuntimeError(
                f"{where} has offset {offset}, not a multiple of the alignment {self.alignment}"
            )
        if data_start + offset + n_bytes > self.data.size:
            raise LlmRuntimeError(
                f"{where} has {n_bytes} bytes at {data_start} + {offset}, outside the file's "
                f"{self.data.size}; the file is truncated or damaged"
            )
        return data_start + offset, data_start + offset + n_bytes, info.name


def _format(raw_type: int, where: str) -> Format:
    """The format that a GGML type number stands for."""
    try:
        return FORMATS[GGMLQuantizationType(raw_type).name]
    except (ValueError, KeyError) as error:
        raise LlmRuntimeError(f"{where} has the unknown GGML type {raw_type}") from error
