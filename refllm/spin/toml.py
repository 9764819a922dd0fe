"""TOML files: read within limits, with errors that name the file.

Python's parser takes time and memory that grow with the square of a key's parts, and one call of
Python for each value inside a value. So what is read is bounded before it is parsed.
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
MOST_BYTES = 512 * 1024

# `component.NAME.dependencies."PACKAGE/INTERFACE"` has four parts, the longest key of a manifest.
MOST_KEY_PARTS = 16

ERROR_CHARACTERS = 400  # of what the parser says, which repeats keys whole

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
    """What the file at `path` says. Errors: `LlmRuntimeError` naming the file."""
    try:
        return toml_document(path)
    except OSError as error:
        raise LlmRuntimeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise LlmRuntimeError(f"{path}: not valid TOML: {error}") from error


def toml_document(path: Path) -> dict[str, Any]:
    """What the file at `path` says.

    Errors: `OSError`; `ValueError` if it is not UTF-8, not TOML, or beyond a limit of this module.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES} bytes")
    text = data.decode()
    _check_keys(text)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{error!s:.{ERROR_CHARACTERS}}") from error


def table_of(path: Path, key: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table called `key`, empty if there is none.

    Errors: `LlmRuntimeError` naming the file and the key if it is something else.
    """
    table = document.get(key, {})
    if not isinstance(table, Mapping):
        raise LlmRuntimeError(f"{path}: {key} must be a table")
    return table


def _check_keys(text: str) -> None:
    """Raise `ValueError` if a key has too many parts, which dots outside of strings separate."""
    without_strings = STRING_OR_COMMENT.sub('""', text).translate(BLANKS)
    for piece in NOT_IN_KEYS.split(without_strings):
        if piece.count(".") >= MOST_KEY_PARTS:
            raise ValueError(f"a key has more than {MOST_KEY_PARTS} parts: {piece!r:.80}")
