"""Array types, and memory for large arrays: results, which are short-lived, and weights.

A layer's results take megabytes and are freed when the next layer begins. The C library returns
memory of that size to the operating system each time, and the kernel fills it with zeros, page by
page, when it is used again: one fifteenth of the time of an int8 prompt. So `empty` keeps freed
blocks, at most `MAX_BYTES` of them, and reuses a block of the same size.

Weights are read from beginning to end for every token. With pages of 4 KB the CPU translates an
address every 4 KB and stops prefetching there. Linux has pages of 2 MB, but not for an allocation
that begins and ends within one. So `zeros` places matrices end to end in large arenas.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FLOAT_BYTES",
    "MAX_BYTES",
    "MIN_BYTES",
    "Bytes",
    "Floats",
    "Ints",
    "begin_arena",
    "empty",
    "zeros",
]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

FLOAT_BYTES = 4
# Smaller results come from NumPy: malloc recycles memory of that size by itself.
MIN_BYTES = 1 << 18
# More than the results of a layer at one time: 150 MB for 512 tokens of a 7B llama.
MAX_BYTES = 1 << 28
# An arena for weights. Its pages take no memory before they are written.
ARENA_BYTES = 1 << 26
LARGE_PAGE = 1 << 21
CACHE_LINE = 64

_free: list[Bytes] = []  # oldest first
_rest = np.empty(0, np.uint8)  # of the current arena
# Reentrant: garbage collection can run `_Lease.__del__` in a thread that holds the lock.
_lock = threading.RLock()


def empty(*shape: int) -> Floats:
    """Return a float32 array of this shape, with arbitrary contents.

    Its memory is reused after the array and all views of it are gone.
    """
    n_bytes = math.prod(shape) * FLOAT_BYTES
    if n_bytes < MIN_BYTES:
        return np.empty(shape, np.float32)
    # Up to a quarter more than asked for, so that results of about one size share a block.
    step = 1 << (n_bytes.bit_length() - 3)
    return np.asarray(_Lease(_block_of(-(-n_bytes // step) * step), shape))


class _Lease:
    """The base object of the arrays on a block; when the last array is gone, the block is free."""

    def __init__(self, block: Bytes, shape: tuple[int, ...]) -> None:
        self._block = block
        pointer, read_only = block.__array_interface__["data"]
        self.__array_interface__ = {
            "version": 3,
            "typestr": np.dtype(np.float32).str,
            "shape": shape,
            "data": (pointer, read_only),
        }

    def __del__(self) -> None:
        with _lock:
            if _n_free_bytes() + self._block.nbytes <= MAX_BYTES:
                _free.append(self._block)


def _block_of(n_bytes: int) -> Bytes:
    with _lock:
        for i, block in enumerate(_free):
            if block.nbytes == n_bytes:
                del _free[i]
                return block
        # The oldest free blocks have sizes that are no longer used.
        while _free and _n_free_bytes() + n_bytes > MAX_BYTES:
            del _free[0]
    return np.empty(n_bytes, np.uint8)


def _n_free_bytes() -> int:
    return sum(block.nbytes for block in _free)


def zeros(n_rows: int, n_bytes: int) -> Bytes:
    """Return zeros, uint8 [n_rows, n_bytes], next to the array that was returned before.

    An arena's memory is freed when no array in it is left. The current arena stays until it is
    full or until `begin_arena`.
    """
    global _rest  # noqa: PLW0603
    size = n_rows * n_bytes
    rounded = -(-size // CACHE_LINE) * CACHE_LINE
    with _lock:
        if rounded > _rest.size:
            # From the beginning of a large page on.
            arena_bytes = max(ARENA_BYTES, -(-rounded // LARGE_PAGE) * LARGE_PAGE)
            longer = np.zeros(arena_bytes + LARGE_PAGE, np.uint8)
            skip = -int(longer.__array_interface__["data"][0]) % LARGE_PAGE
            _rest = longer[skip : skip + arena_bytes]
        array, _rest = _rest[:size], _rest[rounded:]
    return array.reshape(n_rows, n_bytes)


def begin_arena() -> None:
    """Place the weights that are allocated next in a new arena.

    The arenas between two calls hold nothing else, so they are freed with those weights.
    """
    global _rest  # noqa: PLW0603
    with _lock:
        _rest = np.empty(0, np.uint8)
