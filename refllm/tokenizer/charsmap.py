"""SentencePiece's table of characters (`precompiled_charsmap`), checked before a library reads it.

The table says what a text is normalized to. It is a tree over the bytes of UTF-8, the double array
of Darts-clone, and the strings that its leaves name:

    4 bytes          size of the tree in bytes, little endian
    units, 4 bytes   a node: label (bits 0 … 7), has a leaf (8), offset (10 … 30; * 256 if bit 9)
                     a leaf: bit 31, and where its string begins (bits 0 … 30)
    strings          UTF-8, a NUL byte after each

From the node at index i the byte b leads to the index i ^ offset ^ b, and b = 0 to the leaf. The
libraries follow that without looking at the end of the array.
"""

from __future__ import annotations

import numpy as np

from refllm.errors import LlmRuntimeError

__all__ = ["LONGEST_STRING", "check_charsmap"]

SIZE_BYTES = 4
UNIT_BYTES = 4
LONGEST_STRING = 64  # bytes; Unicode's own longest compatibility mapping, of U+FDFA, has 33


def check_charsmap(table: bytes, where: str) -> None:
    """Refuse a table in which the lookup of some text leaves the table.

    Args:
        table: The table, not empty.
        where: The file and the key, for the error.

    Raises:
        LlmRuntimeError: beginning with `where`.
    """
    size = int.from_bytes(table[:SIZE_BYTES], "little")
    strings = table[SIZE_BYTES + size :]
    if size < UNIT_BYTES or size % UNIT_BYTES or not strings:
        raise LlmRuntimeError(
            f"{where} is damaged: it has {len(table)} bytes, and says that {size} of them are a "
            "tree, with strings after it"
        )
    try:
        longest = max(map(len, strings.decode("utf-8").encode().split(b"\0")))
    except UnicodeDecodeError as error:
        raise LlmRuntimeError(f"{where} is damaged: its strings are not UTF-8: {error}") from error
    if longest > LONGEST_STRING:
        raise LlmRuntimeError(
            f"{where} writes {longest} bytes for one character, and may write {LONGEST_STRING}"
        )
    units = np.frombuffer(table, "<u4", size // UNIT_BYTES, SIZE_BYTES).astype(np.int64)
    nodes = np.flatnonzero(units < 2**31)
    of_nodes = units[nodes]
    below = nodes ^ (of_nodes >> 10 << ((of_nodes & 0x200) >> 6))
    if below.size == 0 or int((below | 0xFF).max()) >= units.size:
        raise LlmRuntimeError(f"{where} is damaged: a node of its tree leads out of it")
    begins = units[below[of_nodes & 0x100 != 0]] & (2**31 - 1)
    is_outside = begins.size > 0 and int(begins.max()) >= len(strings)
    if is_outside or not strings.endswith(b"\0"):
        raise LlmRuntimeError(f"{where} is damaged: a string lies beyond its end")
    if bool((np.frombuffer(strings, np.uint8)[begins] & 0xC0 == 0x80).any()):
        raise LlmRuntimeError(f"{where} is damaged: a string begins inside of a character")
