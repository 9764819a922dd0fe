"""A GGUF file written: the header, then one tensor after the other, so memory holds one at a time.

The format is drawn in `refllm.checkpoints.gguf`. The `gguf` package has a writer, too; but what an
existing file says is best kept as the bytes that say it, whatever types they have, and arrays that
are empty, which that writer refuses.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from gguf import GGMLQuantizationType, GGUFValueType

from refllm.checkpoints.gguf import read_packed_keys
from refllm.quant import FORMATS, Tensor, recoded

__all__ = ["DEFAULT_ALIGNMENT", "keys_of_file", "packed", "write_gguf_file"]

VERSION = 3
DEFAULT_ALIGNMENT = 32

SCALARS: Mapping[type, tuple[GGUFValueType, str]] = {
    bool: (GGUFValueType.BOOL, "<?"),
    int: (GGUFValueType.UINT32, "<I"),
    float: (GGUFValueType.FLOAT32, "<f"),
}
NUMBERS_OF_ARRAYS: Mapping[type, tuple[GGUFValueType, str]] = {
    int: (GGUFValueType.INT32, "i"),
    float: (GGUFValueType.FLOAT32, "f"),
}


def packed(key: str, value: object) -> bytes:
    """A metadata key with its value as a file has them.

    A str, bool, int (u32) or float (f32), bytes (an array of u8), or a list, not empty, of str,
    int (i32) or float.
    """
    return _string(key) + _value(value)


def keys_of_file(path: Path) -> dict[str, bytes]:
    """Each metadata key of a GGUF file with what `packed` would give: the file's own bytes.

    What says that the file is one of several parts is left out.
    """
    return {
        key: packed_key
        for key, packed_key in read_packed_keys(path).items()
        if not key.startswith("split.")
    }


def write_gguf_file(
    path: Path,
    keys: Mapping[str, bytes],
    tensors: Sequence[tuple[Tensor, str]],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
) -> None:
    """Write `keys`, packed, and each tensor in the type beside it.

    Errors: `InvalidInput` as `recoded`; `OSError` where the file cannot be written.
    """
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", VERSION, len(tensors), len(keys)))
        for key in keys.values():
            file.write(key)
        offset = 0
        for tensor, type_name in tensors:
            file.write(_tensor_info(tensor, type_name, offset))
            offset += _n_bytes(tensor, type_name)
            offset += -offset % alignment
        for tensor, type_name in tensors:
            _pad(file, alignment)
            file.write(recoded(tensor, type_name).data.data)
        _pad(file, alignment)


def _tensor_info(tensor: Tensor, type_name: str, offset: int) -> bytes:
    """Name, sizes with the fastest-varying first, type, and where from the tensors' start."""
    sizes = tensor.shape[::-1]
    numbers = (len(sizes), *sizes, GGMLQuantizationType[type_name], offset)
    return _string(tensor.name) + struct.pack(f"<I{len(sizes)}QIQ", *numbers)


def _n_bytes(tensor: Tensor, type_name: str) -> int:
    return len(tensor.data) * FORMATS[type_name].row_bytes(tensor.shape[-1])


def _pad(file: IO[bytes], alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes:
    """The value's type, and the value."""
    if isinstance(value, str):
        return struct.pack("<I", GGUFValueType.STRING) + _string(value)
    if isinstance(value, bytes):
        count = struct.pack("<IQ", GGUFValueType.UINT8, len(value))
        return struct.pack("<I", GGUFValueType.ARRAY) + count + value
    if isinstance(value, list):
        return struct.pack("<I", GGUFValueType.ARRAY) + _array(value)
    value_type, layout = SCALARS[type(value)]
    return struct.pack("<I", value_type) + struct.pack(layout, value)


def _array(values: list[str] | list[int] | list[float]) -> bytes:
    """The items' type, how many there are, and the items."""
    if isinstance(values[0], str):
        strings = b"".join(_string(str(value)) for value in values)
        return struct.pack("<IQ", GGUFValueType.STRING, len(values)) + strings
    item_type, letter = NUMBERS_OF_ARRAYS[type(values[0])]
    numbers = struct.pack(f"<{len(values)}{letter}", *values)
    return struct.pack("<IQ", item_type, len(values)) + numbers
