"""What every kind of model file needs: to be opened, and its bytes to be checked against a shape.

Letters: N rows, K columns.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.errors import LlmRuntimeError
from refllm.files.json_values import check_json_values, object_without_duplicates
from refllm.ggml.format import Format

__all__ = [
    "MAX_DIMENSIONS",
    "MAX_JSON_BYTES",
    "SPLIT_PART",
    "map_file",
    "parse_json_object",
    "read_json_object",
    "release",
    "row_layout",
]

SPLIT_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.(?:gguf|safetensors)")
"""The name of one of several files that hold a model: its stem, its number, and how many."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_JSON_BYTES = 2**24  # the largest index has 9 MB (DeepSeek-V3, with 92,000 tensors)
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of the file at `path` as a read-only memory map, uint8 [file size].

    The map lives as long as the array or any view of it.
    Errors: `LlmRuntimeError` when there is no such file, or it cannot be read, is empty, or is the
    pointer that Git LFS leaves in place of a file it did not fetch.
    """
    try:
        if not path.is_file():
            raise LlmRuntimeError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise LlmRuntimeError(f"{path}: the file is empty; fetch it again")
        data = np.memmap(path, mode="r").view(np.ndarray)
    except OSError as error:
        raise LlmRuntimeError(f"{path}: cannot be read: {error.strerror}") from error
    if data[: len(LFS_POINTER)].tobytes() == LFS_POINTER:
        raise LlmRuntimeError(
            f"{path}: this is a Git LFS pointer, not the file itself; `git lfs pull` fetches it"
        )
    return data


def release(array: NDArray[Any]) -> None:
    """Give back the memory that holds these bytes of a mapped file; they are read again if needed.

    Does nothing to an array that is no stretch of a read-only map, nor on systems that cannot.
    """
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    file = np.frombuffer(base, np.uint8)
    if file.flags.writeable or not array.flags.c_contiguous:  # of changes there is no other copy
        return
    start = array.ctypes.data - file.ctypes.data
    stop = start + array.nbytes
    start -= start % mmap.PAGESIZE  # what else is on the page is read again
    base.madvise(mmap.MADV_DONTNEED, start, stop - start)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`.

    Errors: `LlmRuntimeError` as `map_file` and `parse_json_object`, and for a file over 16 MiB.
    """
    data = map_file(path)
    if data.size > MAX_JSON_BYTES:
        raise LlmRuntimeError(
            f"{path}: has {data.size} bytes, and no such file needs more than {MAX_JSON_BYTES}"
        )
    return parse_json_object(data.tobytes(), path=path)


def parse_json_object(text: bytes, *, path: Path) -> dict[str, Any]:
    """The JSON object that `text` is.

    Errors: `LlmRuntimeError` naming `path` when the text is not JSON, is not an object, says one
    key twice, or has more values than `check_json_values` allows.
    """
    check_json_values(text, path=path)
    try:
        value = json.loads(text, object_pairs_hook=object_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise LlmRuntimeError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise LlmRuntimeError(f"{path}: must be a JSON object, and is a {type(value).__name__}")
    return value


def row_layout(shape: tuple[int, ...], stored_as: Format, *, where: str) -> tuple[int, int]:
    """How many rows a tensor of `shape` [..., K] has when stored, and the bytes of each.

    All axes but the last count as rows, so a vector is one row.
    Errors: `LlmRuntimeError` beginning with `where` when the shape has no or more than four axes,
    an axis of size 0, or a last axis that is not a whole number of the format's blocks.
    """
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise LlmRuntimeError(f"{where} has {len(shape)} dimensions, and may have 1 to 4")
    if 0 in shape:
        raise LlmRuntimeError(f"{where} has shape {list(shape)}: no dimension may be 0")
    if shape[-1] % stored_as.block_size != 0:
        raise LlmRuntimeError(
            f"{where} has rows of {shape[-1]} numbers, and {stored_as.name} stores them in blocks "
            f"of {stored_as.block_size}"
        )
    return math.prod(shape[:-1]), stored_as.row_bytes(shape[-1])
