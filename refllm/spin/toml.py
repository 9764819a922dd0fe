"""TOML files: read within limits, with errors that name the file.

The time and memory of Python's parser grow with the square of a key's parts, and it calls itself
for each value inside a value. So the length and the keys of a file are checked before it is parsed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refllm.errors import LlmRuntimeError

__all__ = ["read_toml", "table_of", "toml_document"]

# The longest manifests of Spin's examples have some hundred lines; a certificate in a variable has
# a few kilobytes.
MAX_BYTES = 512 * 1024

# `component.NAME.dependencies."PACKAGE/INTERFACE"` has four parts, the longest key of a manifest.
MAX_KEY_PARTS = 16

MAX_ERROR_CHARACTERS = 400  # the parser repeats keys whole

# A string to its end, or to where it should have ended; or a comment. Each alternative matches
# wherever it begins, so the whole takes time in proportion to the text.
STRING_OR_COMMENT = re.compile(
    r'"""(?:[^"\\]+|\\.|"(?!""))*(?:"{3,5}|\\?\Z)'
    r"|'''(?:[^']+|'(?!''))*(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]+|\\[^\n])*"?'
    r"|'[^'\n]*'?"
    r"|#[^\n]*",
    re.DOTALL,
)
NOT_IN_KEYS = re.compile(r"[,=\[\]{}\n]")
BLANKS = str.maketrans("", "", " \t")


def read_toml(path: Path) -> Mapping[str, Any]:
    """Return the document in the file at `path`.

    Raises:
        LlmRuntimeError: Names the file.
    """
    try:
        return toml_document(path)
    except OSError as error:
        raise LlmRuntimeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise LlmRuntimeError(f"{path}: not valid TOML: {error}") from error


def toml_document(path: Path) -> dict[str, Any]:
    """Return the document in the file at `path`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not UTF-8, not TOML, or beyond a limit of this module.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES} bytes")
    text = data.decode()
    # A key's parts are separated by dots outside of strings.
    without_strings = STRING_OR_COMMENT.sub('""', text).translate(BLANKS)
    for piece in NOT_IN_KEYS.split(without_strings):
        if piece.count(".") >= MAX_KEY_PARTS:
            raise ValueError(f"a key has more than {MAX_KEY_PARTS} parts: {piece!r:.80}")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{error!s:.{MAX_ERROR_CHARACTERS}}") from error


def table_of(path: Path, key: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the table called `key`, empty if there is none.

    Args:
        path: The file, for messages.
        key: A key of the document.
        document: The document, or a table in it.

    Raises:
        LlmRuntimeError: Names the file and the key, which is not a table.
    """
    table = document.get(key, {})
    if not isinstance(table, Mapping):
        raise LlmRuntimeError(f"{path}: {key} must be a table")
    return table
