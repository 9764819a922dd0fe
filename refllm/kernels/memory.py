"""Memory for large results, used again as soon as nobody looks at them.

A layer's results are megabytes, and gone when the next layer begins. Memory of that size goes back
to the operating system each time, which fills it with zeros, page by page, when it is used again:
one part in fifteen of the time of reading a prompt. So it is kept here instead, at most
`MOST_BYTES` of it, until a result of that size is wanted.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_BYTES", "MOST_BYTES", "empty"]

Floats = NDArray[np.float32]
Block = NDArray[np.uint8]

FLOAT_BYTES = 4
# What is smaller, the C library keeps for itself.
LEAST_BYTES = 1 << 18
# More than the results of a layer that are there at a time: 150 MB for 512 tokens of a 7B llama.
MOST_BYTES = 1 << 28

_free: list[Block] = []  # the one that is free for longest first
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

    def __init__(self, block: Block, shape: tuple[int, ...]) -> None:
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


def _block_of(n_bytes: int) -> Block:
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
