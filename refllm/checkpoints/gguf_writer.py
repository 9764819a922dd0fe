"""Write a GGUF file: the header, then one tensor after the other, so memory holds one at a time.

The format is drawn in `refllm.checkpoints.gguf`. The `gguf` package has a writer, too, but it
refuses empty arrays, and an existing file's metadata are best kept as bytes with their own types.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFValueType

from refllm.checkpoints.gguf import DEFAULT_ALIGNMENT, read_packed_keys
from refllm.quant import FORMATS, Tensor, recoded

__all__ = ["keys_of_file", "packed", "write_gguf_file"]

VERSION = 3

SCALARS: Mapping[type, tuple[GGUFValueType, str]] = {
    bool: (GGUFValueType.BOOL, "?"),
    int: (GGUFValueType.UINT32, "I"),
    float: (GGUFValueType.FLOAT32, "f"),
}
NUMBERS_OF_ARRAYS: Mapping[type, tuple[GGUFValueType, str]] = {
    int: (GGUFValueType.INT32, "i"),
    float: (GGUFValueType.FLOAT32, "f"),
}


def packed(key: str, value: object) -> bytes:
    """Return a metadata key with its value as the bytes of a file.

    Args:
        key: The key.
        value: A str, bool, int (u32) or float (f32); bytes (an array of u8); or a list, not empty,
            of str, int (i32) or float.
    """
    if isinstance(value, str):
        return _string(key) + struct.pack("<I", GGUFValueType.STRING) + _string(value)
    if not isinstance(value, bytes | list):
        value_type, letter = SCALARS[type(value)]
        return _string(key) + struct.pack(f"<I{letter}", value_type, value)
    if isinstance(value, bytes):
        item_type, items = GGUFValueType.UINT8, value
    elif isinstance(value[0], str):
        item_type, items = GGUFValueType.STRING, b"".join(map(_string, value))
    else:
        item_type, letter = NUMBERS_OF_ARRAYS[type(value[0])]
        items = struct.pack(f"<{len(value)}{letter}", *value)
    header = struct.pack("<IIQ", GGUFValueType.ARRAY, item_type, len(value))
    return _string(key) + header + items


def keys_of_file(path: Path) -> dict[str, bytes]:
    """Return each metadata key of a GGUF file as `packed` would, with the file's own bytes.

    The keys of a part of a split model are left out.
    """
    packed_keys = read_packed_keys(path)
    return {key: data for key, data in packed_keys.items() if not key.startswith("split.")}


def write_gguf_file(
    path: Path,
    keys: Mapping[str, bytes],
    tensors: Sequence[tuple[Tensor, str]],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
) -> None:
    """Write a GGUF file.

    Args:
        path: The file.
        keys: The metadata, as `packed`.
        tensors: The tensors, each with the name of the type to write it in.
        alignment: What the offsets of tensors are multiples of.

    Raises:
        InvalidInput: as `refllm.quant.recoded`.
        OSError: if the file cannot be written.
    """
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", VERSION, len(tensors), len(keys)))
        for key in keys.values():
            file.write(key)
        offset = 0
        for tensor, type_name in tensors:
            sizes = tensor.shape[::-1]  # the fastest-varying first
            file.write(_string(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
            file.write(struct.pack("<IQ", GGMLQuantizationType[type_name], offset))
            offset += len(tensor.data) * FORMATS[type_name].row_bytes(tensor.shape[-1])
            offset += -offset % alignment
        for tensor, type_name in tensors:
            file.write(bytes(-file.tell() % alignment))
            file.write(recoded(tensor, type_name).data.data)
        file.write(bytes(-file.tell() % alignment))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
