"""Open a model file as a memory map, and check its bytes against a tensor's shape."""

from __future__ import annotations

import math
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.errors import LlmRuntimeError
from refllm.files.reading import LFS_POINTER
from refllm.ggml.format import Format

__all__ = ["MAX_DIMENSIONS", "SPLIT_PART", "map_file", "release", "row_layout"]

SPLIT_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.(?:gguf|safetensors)")
"""The name of one of several files that hold a model: its stem, its number, and how many."""

MAX_DIMENSIONS = 4  # GGML_MAX_DIMS


def map_file(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of a file as a read-only memory map, uint8 [file size].

    The map exists as long as the array or a view of it.

    Raises:
        LlmRuntimeError: naming the file if it is absent, unreadable, empty, or a pointer of Git
            LFS.
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
    """Drop the pages of memory that hold these bytes of a mapped file; reading loads them again.

    Does nothing to an array that is not contiguous in a read-only map, nor on a system without
    `madvise`.
    """
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    file = np.frombuffer(base, np.uint8)
    if file.flags.writeable or not array.flags.c_contiguous:  # a written page exists only in memory
        return
    start = array.ctypes.data - file.ctypes.data
    stop = start + array.nbytes
    start -= start % mmap.PAGESIZE  # what else is on the page is read again
    base.madvise(mmap.MADV_DONTNEED, start, stop - start)


def row_layout(shape: tuple[int, ...], fmt: Format, *, where: str) -> tuple[int, int]:
    """Return how many rows a stored tensor has, and how many bytes each row has.

    Args:
        shape: The tensor's shape; all axes but the last count rows, so a vector is one row.
        fmt: The format of its blocks.
        where: The file and the tensor, with which each error begins.

    Raises:
        LlmRuntimeError: for no axis or more than four, an axis of size 0, or a last axis that is
            no multiple of the format's block size.
    """
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise LlmRuntimeError(f"{where} has {len(shape)} dimensions, and may have 1 to 4")
    if 0 in shape:
        raise LlmRuntimeError(f"{where} has shape {list(shape)}: no dimension may be 0")
    if shape[-1] % fmt.block_size != 0:
        raise LlmRuntimeError(
            f"{where} has rows of {shape[-1]} numbers, and {fmt.name} stores them in blocks "
            f"of {fmt.block_size}"
        )
    return math.prod(shape[:-1]), fmt.row_bytes(shape[-1])
