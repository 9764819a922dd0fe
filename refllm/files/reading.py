"""Read a whole file of a model: its bytes, its text, or its JSON, each within a limit.

A model comes from anywhere, so a size is checked before memory is spent: the bytes of a file before
it is read, and the number of JSON values before they become Python objects.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any, Final

from refllm.errors import LlmRuntimeError

__all__ = [
    "LFS_POINTER",
    "MAX_JSON_BYTES",
    "MAX_TOKENIZER_BYTES",
    "MAX_TOKENIZER_VALUES",
    "MAX_VALUES",
    "check_json_values",
    "parse_json",
    "parse_json_object",
    "read_file",
    "read_json_object",
    "read_text",
]

LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"
"""How the file begins that Git LFS leaves in place of one that it did not fetch."""
MAX_JSON_BYTES: Final = 2**24  # the largest index has 9 MB (DeepSeek-V3, with 92,000 tensors)
MAX_TOKENIZER_BYTES: Final = 2**26  # about twice the largest tokenizer.json, of 262,144 tokens
# Llasa's tokenizer_config.json has 460,000: 65,536 and more added tokens of seven values each.
MAX_VALUES: Final = 2**19
# Gemma's tokenizer.json has 1.9 million: 262,144 tokens, and 514,906 merges as lists.
MAX_TOKENIZER_VALUES: Final = 2**21
MAX_DEPTH: Final = 32  # a tokenizer.json has 8 levels; the tokenizers library takes 128


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """Return the bytes of a file.

    Args:
        path: The file.
        max_bytes: The limit; of a larger file no more is read.

    Raises:
        LlmRuntimeError: naming the file if it is absent, no regular file, unreadable, empty, too
            large, or a pointer of Git LFS.
    """
    try:
        if not path.exists():
            raise LlmRuntimeError(f"{path}: no such file")
        if not path.is_file():  # a pipe might never end
            raise LlmRuntimeError(f"{path}: cannot be read: it is no file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
            n_bytes = max(len(data), path.stat().st_size)
    except OSError as error:
        raise LlmRuntimeError(f"{path}: cannot be read: {error.strerror}") from error
    if not data:
        raise LlmRuntimeError(f"{path}: the file is empty; fetch it again")
    if n_bytes > max_bytes:
        raise LlmRuntimeError(
            f"{path}: has {n_bytes} bytes, and no such file needs more than {max_bytes}"
        )
    if data.startswith(LFS_POINTER):
        raise LlmRuntimeError(
            f"{path}: this is a Git LFS pointer, not the file itself; `git lfs pull` fetches it"
        )
    return data


def read_text(path: Path, *, max_bytes: int, errors: str = "strict") -> str:
    """Return a file's UTF-8 text with its line ends as they are.

    Args:
        path: The file.
        max_bytes: As `read_file`.
        errors: As `bytes.decode`.

    Raises:
        LlmRuntimeError: as `read_file`, and for a file that is not UTF-8.
    """
    try:
        return read_file(path, max_bytes=max_bytes).decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise LlmRuntimeError(f"{path}: not UTF-8 text: {error}") from error


def read_json_object(
    path: Path, *, max_bytes: int = MAX_JSON_BYTES, max_values: int = MAX_VALUES
) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        LlmRuntimeError: as `read_file` and `parse_json_object`.
    """
    return parse_json_object(read_file(path, max_bytes=max_bytes), path=path, max_values=max_values)


def parse_json_object(
    text: bytes | str, *, path: Path, max_values: int = MAX_VALUES
) -> dict[str, Any]:
    """Return the JSON object that `text` is.

    Raises:
        LlmRuntimeError: as `parse_json`, and for a value that is no object.
    """
    value = parse_json(text, path=path, max_values=max_values)
    if not isinstance(value, dict):
        raise LlmRuntimeError(f"{path}: must be a JSON object, and is a {type(value).__name__}")
    return value


def parse_json(text: bytes | str, *, path: Path, max_values: int = MAX_VALUES) -> Any:
    """Return the JSON value that `text` is.

    Args:
        text: The content of the file.
        path: The file, for error messages.
        max_values: As `check_json_values`.

    Raises:
        LlmRuntimeError: naming the file if the text is not JSON, has a key twice in one object, has
            too many values, or is nested deeper than `MAX_DEPTH`.
    """
    check_json_values(text, path=path, max_values=max_values)
    try:
        value = json.loads(text, object_pairs_hook=_object_without_duplicates)
        level = [value] if isinstance(value, dict | list) else []
        for _ in range(MAX_DEPTH):
            parts = chain.from_iterable(v.values() if type(v) is dict else v for v in level)
            level = [inside for inside in parts if type(inside) in (dict, list)]
    except RecursionError:
        level = [{}]
    except ValueError as error:
        raise LlmRuntimeError(f"{path}: not valid JSON: {error}") from error
    if level:
        raise LlmRuntimeError(f"{path}: JSON nested deeper than {MAX_DEPTH} levels")
    return value


def check_json_values(text: bytes | str, *, path: Path, max_values: int) -> None:
    """Raise `LlmRuntimeError` for a JSON text that may have more than `max_values` values.

    Each value but the first follows a comma or an opening bracket, so these are counted; in
    strings they count, too.
    """
    if isinstance(text, str):
        n_values = 1 + sum(map(text.count, ",[{"))
    else:
        n_values = 1 + sum(map(text.count, (b",", b"[", b"{")))
    if n_values > max_values:
        raise LlmRuntimeError(
            f"{path}: has up to {n_values} JSON values, and no such file needs more than "
            f"{max_values}"
        )


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; raise for a key twice, of which readers take different values."""
    result = dict(pairs)
    if len(result) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.80} appears twice")
    return result
