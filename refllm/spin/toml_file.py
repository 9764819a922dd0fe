"""Spin's own files are TOML: read with errors that name the file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refllm.api import LlmRuntimeError

__all__ = ["read_toml", "table_of"]


def read_toml(path: Path) -> Mapping[str, Any]:
    """What the file at `path` says. Errors: `LlmRuntimeError` naming the file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise LlmRuntimeError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise LlmRuntimeError(f"{path}: not valid TOML: {error}") from error


def table_of(path: Path, key: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table called `key`, empty if there is none.

    Errors: `LlmRuntimeError` naming the file and the key if it is something else.
    """
    table = document.get(key, {})
    if not isinstance(table, Mapping):
        raise LlmRuntimeError(f"{path}: {key} must be a table")
    return table
