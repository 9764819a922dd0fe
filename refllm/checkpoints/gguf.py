"""GGUF files: metadata as Python values, tensors as views into the memory map.

A GGUF file, all numbers little-endian:

    "GGUF" | version u32 | tensor count u64 | key count u64
    key count times:     key string | value type u32 | value
    tensor count times:  name string | dimensions u32 | size u64 each | type u32 | offset u64
    padding up to a multiple of general.alignment, from where the offsets count
    the tensors' bytes

where a string is its length (u64) and its bytes, and an array its item type (u32), its length
(u64) and its items. Sizes come fastest-varying first, so NumPy's shape is their reverse.

Every count and length is checked against the size of the file and against a limit before time or
memory is spent on it.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from refllm.checkpoints.mapped_file import MAX_DIMENSIONS, map_file, row_layout
from refllm.errors import LlmRuntimeError, ModelNotSupported
from refllm.ggml.format import Format
from refllm.quant import FORMATS, Tensor

__all__ = ["DEFAULT_ALIGNMENT", "GgufContents", "read_gguf", "read_packed_keys"]

PREAMBLE: Final = struct.Struct("<4sIQQ")  # magic, version, tensor count, key count
LENGTH: Final = struct.Struct("<Q")
VERSIONS: Final = (2, 3)  # 3 differs from 2 only in allowing big-endian files
MIN_KEY_BYTES: Final = 8 + 4 + 1  # an empty key, its type, one byte
MIN_TENSOR_INFO_BYTES: Final = 8 + 4 + 8 + 4 + 8  # an empty name, one dimension, type, offset

# Limits, each above what the largest published files have, which is in brackets. A header within
# them is read in less than a second, and its values take less than 200 MB.
MAX_KEYS: Final = 2**12  # (about a hundred)
MAX_TENSORS: Final = 2**14  # (1,688: Mixtral 8x22B as it was first converted, a matrix per expert)
MAX_ARRAY_ITEMS: Final = 2**21  # of all arrays together (1.4 million, of the largest vocabularies)
MAX_STRINGS: Final = 2**20  # of these items (0.8 million: 262,144 tokens, and merges)
MAX_HEADER_BYTES: Final = 24 * 2**20  # (23 MB: XLM-R's vocabulary, and its tokenizer.json as text)

ALIGNMENT: Final = "general.alignment"
DEFAULT_ALIGNMENT: Final = 32
ALIGNMENT_UNIT: Final = 8  # general.alignment "must be a multiple of 8"

# The types of numbers, as the `struct` module calls them.
NUMBERS: Final[Mapping[int, str]] = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
TENSOR_TYPES: Final[Mapping[int, Format]] = {
    ggml_type.value: FORMATS[ggml_type.name]
    for ggml_type in GGMLQuantizationType
    if ggml_type.name in FORMATS
}


@dataclass(frozen=True, slots=True)
class GgufContents:
    """The contents of one file: metadata by key, tensors by name.

    `others` are tensors without a number, or with a shape of no axes: name to type and shape. No
    network asks for one, and llama.cpp reads files that have them.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    others: dict[str, str]


def read_gguf(path: Path) -> GgufContents:
    """Return the metadata and the tensors of a GGUF file, under the file's names.

    Metadata are str, int, float, bool, or a list of one of these. A tensor's data is a view,
    uint8 [rows, row_bytes], into the memory map, which is released with the last view.

    Raises:
        LlmRuntimeError: naming the file, and the key or tensor, if the header contradicts the
            format or the size of the file, or has more than any model needs.
    """
    data = map_file(path)
    header = _Header(path, data)
    n_tensors, n_keys = header.preamble()
    metadata = dict(header.metadata(n_keys))
    infos = header.tensor_infos(n_tensors)
    alignment = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    data_start = header.offset + -header.offset % alignment
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    spans: list[tuple[int, int, str]] = []
    for name, (shape, fmt, offset) in infos.items():
        if not shape or 0 in shape:
            others[name] = f"{fmt.name} {list(shape)}"
            continue
        where = f"{path}: tensor {name!r:.80}"
        n_rows, row_bytes = row_layout(shape, fmt, where=where)
        if offset % alignment != 0:
            raise LlmRuntimeError(
                f"{where} has offset {offset}, not a multiple of the alignment {alignment}"
            )
        start = data_start + offset
        stop = start + n_rows * row_bytes
        if stop > data.size:
            raise LlmRuntimeError(
                f"{where} has {stop - start} bytes at {data_start} + {offset}, outside the file's "
                f"{data.size}; the file is truncated or damaged"
            )
        rows = data[start:stop].reshape(n_rows, row_bytes)
        tensors[name] = Tensor(name, fmt, shape, rows)
        spans.append((start, stop, name))
    for (_, stop, name), (next_start, _, next_name) in pairwise(sorted(spans)):
        if next_start < stop:
            raise LlmRuntimeError(f"{path}: the tensors {name!r:.80} and {next_name!r:.80} overlap")
    return GgufContents(metadata, tensors, others)


def read_packed_keys(path: Path) -> dict[str, bytes]:
    """Return the metadata keys of a GGUF file, each with the bytes of its name and value.

    Raises:
        LlmRuntimeError: as `read_gguf`.
    """
    data = map_file(path)
    header = _Header(path, data)
    _, n_keys = header.preamble()
    packed: dict[str, bytes] = {}
    start = header.offset
    for key, _ in header.metadata(n_keys):
        packed[key] = data[start : header.offset].tobytes()
        start = header.offset
    return packed


class _TensorInfo(NamedTuple):
    """A tensor's entry in the header; `shape` is NumPy's."""

    shape: tuple[int, ...]
    fmt: Format
    offset: int


class _Header:
    """The header of the file at `path`, read in the order of the drawing above.

    `offset` is the position of the next read. Each read is checked against the end of the file and
    against the limits before it takes memory.
    """

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path = path
        self.offset = 0
        self._bytes = data.data  # as a memoryview
        self._last_key: str | None = None
        self._n_array_items = 0
        self._n_strings = 0

    def preamble(self) -> tuple[int, int]:
        """Return the numbers of tensors and of metadata keys."""
        path, size = self.path, len(self._bytes)
        start = bytes(self._bytes[: PREAMBLE.size])
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
        announced = f"the header announces {n_keys} metadata keys and {n_tensors} tensors"
        if n_keys * MIN_KEY_BYTES + n_tensors * MIN_TENSOR_INFO_BYTES > size - PREAMBLE.size:
            raise LlmRuntimeError(f"{path}: {announced}, more than fit into {size} bytes")
        if n_keys > MAX_KEYS or n_tensors > MAX_TENSORS:
            raise LlmRuntimeError(
                f"{path}: {announced}; no model needs more than {MAX_KEYS} and {MAX_TENSORS}"
            )
        self.offset = PREAMBLE.size
        return n_tensors, n_keys

    def metadata(self, n_keys: int) -> Iterator[tuple[str, Any]]:
        """Yield the next `n_keys` keys, all different, and their values."""
        keys: set[str] = set()
        for _ in range(n_keys):
            key_offset = self.offset
            key = self._name()
            if key in keys:
                raise LlmRuntimeError(
                    f"{self.path}: Duplicate {key:.80} in the metadata, at offset {key_offset}"
                )
            keys.add(key)
            [value_type] = self._numbers("I", 1)
            try:
                value = self._value(value_type)
            except UnicodeDecodeError as error:
                raise LlmRuntimeError(
                    f"{self.path}: metadata key {key!r:.80} is not UTF-8: {error}"
                ) from error
            if key == ALIGNMENT:
                self._check_alignment(value_type, value)
            self._last_key = key
            yield key, value

    def tensor_infos(self, n_tensors: int) -> dict[str, _TensorInfo]:
        """Return the entries of the next `n_tensors` tensors, by name."""
        infos: dict[str, _TensorInfo] = {}
        for _ in range(n_tensors):
            name = self._name()
            if not name:
                raise LlmRuntimeError(
                    f"{self.path}: a tensor '' without a name; the header is damaged"
                )
            if name in infos:
                raise LlmRuntimeError(
                    f"{self.path}: damaged header: duplicated tensor with name {name:.80}"
                )
            where = f"{self.path}: tensor {name!r:.80}"
            [n_dimensions] = self._numbers("I", 1)
            if n_dimensions > MAX_DIMENSIONS:
                self._skip(LENGTH.size * n_dimensions)
                raise LlmRuntimeError(f"{where} has {n_dimensions} dimensions, and may have 1 to 4")
            sizes = self._numbers("Q", n_dimensions)
            [ggml_type] = self._numbers("I", 1)
            [offset] = self._numbers("Q", 1)
            if ggml_type not in TENSOR_TYPES:
                raise LlmRuntimeError(f"{where} has the unknown GGML type {ggml_type}")
            infos[name] = _TensorInfo(sizes[::-1], TENSOR_TYPES[ggml_type], offset)
        return infos

    def _value(self, value_type: int) -> Any:
        if value_type != GGUFValueType.ARRAY:
            [value] = self._items(value_type, 1)
            return value
        [item_type] = self._numbers("I", 1)
        [length] = self._numbers("Q", 1)
        self._n_array_items += length
        if self._n_array_items > MAX_ARRAY_ITEMS:
            raise LlmRuntimeError(
                f"{self.path}: metadata arrays of {self._n_array_items} items altogether; "
                f"no model needs more than {MAX_ARRAY_ITEMS}"
            )
        self._n_strings += length if item_type == GGUFValueType.STRING else 0
        if self._n_strings > MAX_STRINGS:
            raise LlmRuntimeError(
                f"{self.path}: metadata arrays of {self._n_strings} strings altogether; "
                f"no model needs more than {MAX_STRINGS}"
            )
        if item_type == GGUFValueType.ARRAY:
            raise LlmRuntimeError(
                f"{self.path}: a metadata value is an array of arrays, which no model has"
            )
        return self._items(item_type, length)

    def _items(self, value_type: int, count: int) -> list[Any]:
        """Return the next `count` strings or numbers of one type."""
        if value_type == GGUFValueType.STRING:
            return self._strings(count)
        if value_type not in NUMBERS:
            raise LlmRuntimeError(
                f"{self.path}: the metadata after key {self._last_key!r:.80} "
                f"has unknown type {value_type}"
            )
        return list(self._numbers(NUMBERS[value_type], count))

    def _numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        """Return the next `count` numbers of the type that `struct` calls `letter`."""
        start = self._skip(struct.calcsize(f"<{letter}") * count)
        return struct.unpack_from(f"<{count}{letter}", self._bytes, start)

    def _name(self) -> str:
        """Return the next string, the name of a key or a tensor."""
        try:
            [name] = self._strings(1)
        except UnicodeDecodeError as error:
            raise LlmRuntimeError(f"{self.path}: damaged header: {error!s:.200}") from error
        return name

    def _strings(self, count: int) -> list[str]:
        """Return the next `count` strings; raise `UnicodeDecodeError` for one that is not UTF-8.

        A vocabulary has a million of them, so the checks of `_skip` are made without calling it.
        """
        header, unpack_from = self._bytes, LENGTH.unpack_from
        end = min(len(header), MAX_HEADER_BYTES)
        stop = self.offset
        strings = []
        for _ in range(count):
            start = stop + LENGTH.size
            if start > end:
                self.offset = stop
                self._skip(LENGTH.size)
            [n_bytes] = unpack_from(header, stop)
            stop = start + n_bytes
            if stop > end:
                self.offset = start
                self._skip(n_bytes)
            strings.append(str(header[start:stop], "utf-8"))
        self.offset = stop
        return strings

    def _skip(self, n_bytes: int) -> int:
        """Move `offset` by `n_bytes`, which the file must have; return the old offset."""
        start, size = self.offset, len(self._bytes)
        if n_bytes > size - start:
            raise LlmRuntimeError(
                f"{self.path}: truncated or damaged: {n_bytes} bytes expected at offset {start} "
                f"of {size} (the last metadata key read is {self._last_key!r:.80})"
            )
        self.offset = start + n_bytes
        if self.offset > MAX_HEADER_BYTES:
            raise LlmRuntimeError(
                f"{self.path}: a header of {self.offset} bytes or more; no model needs more than "
                f"{MAX_HEADER_BYTES} (the last metadata key read is {self._last_key!r:.80})"
            )
        return start

    def _check_alignment(self, value_type: int, alignment: int) -> None:
        if value_type != GGUFValueType.UINT32:
            raise LlmRuntimeError(f"{self.path}: {ALIGNMENT} must be a number of type u32")
        if alignment == 0 or alignment & (alignment - 1) != 0:
            raise LlmRuntimeError(
                f"{self.path}: {ALIGNMENT} is {alignment}, and must be a power of two"
            )
        if alignment % ALIGNMENT_UNIT != 0:
            raise LlmRuntimeError(
                f"{self.path}: {ALIGNMENT} is {alignment}, and must be a multiple of 8"
            )
