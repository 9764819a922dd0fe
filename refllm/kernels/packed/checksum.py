"""A checksum at the speed of memory, for panels that come from a file.

SHA-256 reads 1 to 2 GB/s on one CPU, which would take longer than packing the weights again. So
the bytes are first mixed, in chunks and on all threads, into a few words, and SHA-256 is computed
of the words:

    bytes, in rows of 32 words of 64 bits       w[i, lane]
    mixed row by row, from zeros                h[lane] = mix(h[lane] ^ w[i, lane])
    where, modulo 2⁶⁴                           mix(a) = b ^ (b >> 29), b = a · 0x9E3779B97F4A7C15

`mix` maps no two words to one, so a single changed word always changes the result, and other
damage leaves it as it was with a probability of 2⁻⁶⁴ or less. It is no protection from an author
of files, who can find two with one checksum; `refllm.files.private` is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from refllm.jit.buffers import Bytes
from refllm.jit.compile import jit, n_threads

__all__ = ["checksums"]

Words = NDArray[np.uint64]

LANE_WORDS = 32
ROW_BYTES = LANE_WORDS * 8
CHUNK_BYTES = 1 << 21
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, 2⁶⁴ ÷ the golden ratio
SHIFT = np.uint64(29)


def checksums(arrays: Sequence[Bytes]) -> Iterator[str]:
    """Yield the checksum of each array, 64 hexadecimal digits; all threads share the work.

    Args:
        arrays: Each contiguous.

    Example:
        >>> [len(checksum) for checksum in checksums([np.zeros((2, 300), np.uint8)])]
        [64]
    """
    from concurrent.futures import ThreadPoolExecutor  # loaded for large matrices only

    flat = [array.reshape(-1) for array in arrays]
    chunks = [
        array[start : start + CHUNK_BYTES]
        for array in flat
        for start in range(0, array.size, CHUNK_BYTES)
    ]
    with ThreadPoolExecutor(n_threads()) as pool:
        mixed = pool.map(_mixed, chunks)
        for array in flat:
            digest = hashlib.sha256(array.size.to_bytes(8, "little"))
            for _ in range(0, array.size, CHUNK_BYTES):
                digest.update(next(mixed).tobytes())
            yield digest.hexdigest()


def _mixed(chunk: Bytes) -> Words:
    """Return the words [32] that a chunk is mixed into; a last row is filled with zeros."""
    whole = chunk.size - chunk.size % ROW_BYTES
    state = np.zeros(LANE_WORDS, np.uint64)
    _mix(chunk[:whole].view(np.uint64).reshape(-1, LANE_WORDS), state)
    if whole < chunk.size:
        last = np.zeros(ROW_BYTES, np.uint8)
        last[: chunk.size - whole] = chunk[whole:]
        _mix(last.view(np.uint64).reshape(-1, LANE_WORDS), state)
    return state


@jit
def _mix(rows: Words, state: Words) -> None:
    """Mix rows [n, 32] into the state [32]."""
    for i in range(rows.shape[0]):
        for lane in range(LANE_WORDS):
            mixed = (state[lane] ^ rows[i, lane]) * FACTOR
            state[lane] = mixed ^ (mixed >> SHIFT)
