"""TOML of any JSON value: the standard library reads TOML, and writes none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["toml_text"]

MAX_NESTED = 100
MAX_ITEMS = 200  # of a list: the standard library takes two seconds for a megabyte


def toml_text(document: Mapping[str, Any]) -> str:
    """Return the document with a line for each key.

    Null becomes an empty text; what is long or deep is cut.
    """
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in document.items())


def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def _value(value: Any, depth: int = 0) -> str:
    if depth > MAX_NESTED:
        return "0"
    if isinstance(value, Mapping):
        items = (f"{_key(key)} = {_value(each, depth + 1)}" for key, each in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_value(each, depth + 1) for each in value[:MAX_ITEMS])}]"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return json.dumps("" if value is None else value, ensure_ascii=False)
