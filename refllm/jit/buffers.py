"""Memory for what is large: results, which come and go, and weights, which stay.

A layer's results are megabytes, and gone when the next layer begins. Memory of that size goes back
to the operating system each time, which fills it with zeros, page by page, when it is used again:
one part in fifteen of the time of reading a prompt with int8. So it is kept here instead, at most
`MOST_BYTES` of it, until a result of that size is wanted (`empty`).

Weights are read from beginning to end, for every token. Where each 4 KB of them are somewhere else,
the CPU must look up where, and stops to fetch ahead; Linux has pages of 2 MB, but not for what
begins and ends within one. So matrices lie end to end in large pieces of memory (`zeros`).
"""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_BYTES", "MOST_BYTES", "begin_piece", "empty", "zeros"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

FLOAT_BYTES = 4
# What is smaller, the C library keeps for itself.
LEAST_BYTES = 1 << 18
# More than the results of a layer that are there at a time: 150 MB for 512 tokens of a 7B llama.
MOST_BYTES = 1 << 28
# Of weights. What of a piece is not used yet takes no memory.
PIECE_BYTES = 1 << 26
LARGE_PAGE = 1 << 21
CACHE_LINE = 64

_free: list[Bytes] = []  # the one that is free for longest first
_rest = np.empty(0, np.uint8)  # of the piece for weights
# A lease may end while its own thread is in here, because Python collects garbage when it likes.
_lock = threading.RLock()


def empty(*shape: int) -> Floats:
    """A float32 array of this shape, whatever was in its memory before.

    The memory is the array's, and its views', until the last of them is gone.
    """
    n_bytes = math.prod(shape) * FLOAT_BYTES
    if n_bytes < LEAST_BYTES:
        return np.empty(shape, np.float32)
    block = _block_of(_rounded(n_bytes))
    return np.asarray(_Lease(block, shape))


class _Lease:
    """What NumPy keeps as long as there is an array on the block; at its end the block is free."""

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
            if _n_free_bytes() + self._block.nbytes <= MOST_BYTES:
                _free.append(self._block)


def _rounded(n_bytes: int) -> int:
    """n_bytes, or up to a quarter more: results of about one size take turns in one block."""
    step = 1 << (n_bytes.bit_length() - 3)
    return -(-n_bytes // step) * step


def _block_of(n_bytes: int) -> Bytes:
    with _lock:
        for i, block in enumerate(_free):
            if block.nbytes == n_bytes:
                del _free[i]
                return block
        # Sizes that are no longer wanted make room for those that are.
        while _free and _n_free_bytes() + n_bytes > MOST_BYTES:
            del _free[0]
    return np.empty(n_bytes, np.uint8)


def _n_free_bytes() -> int:
    return sum(block.nbytes for block in _free)


def zeros(n_rows: int, n_bytes: int) -> Bytes:
    """uint8 [n_rows, n_bytes] of zeros, behind those that were asked for before.

    Their memory is given back piece by piece, each when nobody looks at any part of it; but the
    last one stays, for what is asked for next, until `begin_piece`.
    """
    global _rest  # noqa: PLW0603
    size = n_rows * n_bytes
    room = -(-size // CACHE_LINE) * CACHE_LINE
    with _lock:
        if room > _rest.size:
            _rest = _piece(max(PIECE_BYTES, -(-room // LARGE_PAGE) * LARGE_PAGE))
        array, _rest = _rest[:size], _rest[room:]
    return array.reshape(n_rows, n_bytes)


def begin_piece() -> None:
    """Let the weights that are asked for next begin a new piece of memory.

    The pieces of what is asked for between two calls hold nothing else, and go back with it.
    """
    global _rest  # noqa: PLW0603
    with _lock:
        _rest = np.empty(0, np.uint8)


def _piece(n_bytes: int) -> Bytes:
    """Zeros that begin where a large page does."""
    longer = np.zeros(n_bytes + LARGE_PAGE, np.uint8)
    skip = -int(longer.__array_interface__["data"][0]) % LARGE_PAGE
    return longer[skip : skip + n_bytes]
