"""Write arrays into a safetensors file one after the other, in the memory of one.

A safetensors file begins with a header that has the offsets of all arrays, and how many there will
be is known at the end alone: a text ends at an end token. So the arrays' bytes go to a second file,
and at the end the header and a copy of these bytes to the first. Source of the format:
https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from refllm.files.whole import whole_file

__all__ = ["ArrayWriter", "array_file"]

DTYPES: Mapping[str, str] = {"<f4": "F32", "<f8": "F64", "<i8": "I64"}
ALIGNMENT = 8  # of the bytes of the first array; the header is filled up with spaces


class ArrayWriter:
    """Appends arrays to a file, and keeps the entries of its header."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._n_bytes = 0
        self._entries: dict[str, Any] = {}
        self.metadata: Mapping[str, str] = {}

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Append an array of float32, float64 or int64; `name` must be a new one."""
        assert name not in self._entries
        stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        end = self._n_bytes + stored.nbytes
        self._entries[name] = {
            "dtype": DTYPES[stored.dtype.newbyteorder("<").str],
            "shape": list(array.shape),
            "data_offsets": [self._n_bytes, end],
        }
        self._file.write(stored.data)
        self._n_bytes = end

    def header(self) -> bytes:
        """Return the beginning of the file: the header's length, and the header."""
        header = {"__metadata__": dict(self.metadata), **self._entries}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


@contextmanager
def array_file(path: Path, *, overwrite: bool = False) -> Iterator[ArrayWriter]:
    """Yield what writes arrays to the file `path`, which appears when the `with` block ends.

    Set the attribute `metadata` before the block ends.

    Args:
        path: The .safetensors file to write.
        overwrite: Whether to replace an existing one.

    Raises:
        InvalidInput: If the file exists and `overwrite` is false.
        LlmRuntimeError: As `refllm.files.whole.whole_file`, for example where the disk is full.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.numpy import load_file
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "two.safetensors")
        ...     with array_file(path) as writer:
        ...         writer.add("two", np.array([1.0, 2.0]))
        ...     load_file(path)
        {'two': array([1., 2.])}
    """
    with whole_file(path, overwrite=overwrite) as unfinished:
        # It is in a folder of its own, which is removed with all that is in it.
        arrays = unfinished.with_name(f"{unfinished.name}.arrays")
        with arrays.open("w+b") as file:
            writer = ArrayWriter(file)
            yield writer
            file.seek(0)
            with unfinished.open("wb") as target:
                target.write(writer.header())
                shutil.copyfileobj(file, target, 2**20)
