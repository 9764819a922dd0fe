"""A sound file's bytes, damaged: what a reader gets from a bad disk or a broken download."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["damaged"]


def damaged(sound: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of `sound` with up to four other bytes, whole or cut off somewhere."""

    def apply(bytes_by_place: dict[int, int], size: int) -> bytes:
        content = bytearray(sound)
        for place, byte in bytes_by_place.items():
            content[place] = byte
        return bytes(content[:size])

    return st.builds(
        apply,
        st.dictionaries(st.integers(0, len(sound) - 1), st.integers(0, 255), max_size=4),
        st.integers(0, len(sound)) | st.just(len(sound)),
    )
