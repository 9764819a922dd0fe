"""Floats in golden files, and floats on the way to a target.

In a golden file a float is a string as C's `%a` prints it: nothing is lost, and a reader without a
float parser can compare strings. A target gets JSON numbers, which every language reads: the
shortest decimals that give the same float back. Three values have no JSON number:

    in a file "0x1.8p+1"    to a target 3.0
    in a file "nan"         to a target "nan", and so "inf" and "-inf"
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["MAX_NESTING", "SPECIAL", "decoded", "from_wire", "is_nested_deeper", "to_wire"]

HEXADECIMAL = re.compile(r"-?0x[01]\.?[0-9a-f]*p[+-][0-9]+")
# Of lists and objects in one another, in any message: the suite's own are 6 deep, and recursive
# readers manage some hundred.
MAX_NESTING = 32
CONTAINERS = (list, dict)
SPECIAL = frozenset({"nan", "inf", "-inf"})
# Keys whose strings are texts, even if one looks like a float.
TEXTS = frozenset(
    {"body", "bytes", "message", "prompt", "says", "seed", "text", "texts", "tied_texts"}
)


def decoded(value: Any) -> Any:
    """Return a golden file's value with every float string as a float, texts unchanged.

    Example:
        >>> decoded({"logits": ["0x1.8p+1", "nan"], "text": "nan"})
        {'logits': [3.0, nan], 'text': 'nan'}
    """
    if isinstance(value, str):
        if value in SPECIAL or HEXADECIMAL.fullmatch(value):
            return float.fromhex(value)
        return value
    if isinstance(value, Mapping):
        return {key: each if key in TEXTS else decoded(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [decoded(each) for each in value]
    return value


def to_wire(value: Any) -> Any:
    """Return the value as JSON can carry it: floats that have no JSON number as strings.

    Example:
        >>> to_wire([1.5, float("-inf")])
        [1.5, '-inf']
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {key: to_wire(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_wire(each) for each in value]
    return value


def from_wire(value: Any) -> float:
    """Return a number that a target sent.

    Raises:
        ValueError: Where it is neither a number nor "nan", "inf" or "-inf".
    """
    if isinstance(value, str) and value in SPECIAL:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.40} is not a number")  # noqa: TRY004 - see the docstring
    return float(value)


def is_nested_deeper(value: Any, most: int) -> bool:
    """Return whether lists and objects are nested more than `most` deep.

    Example:
        >>> is_nested_deeper([[1]], 1), is_nested_deeper([[1]], 2)
        (True, False)
    """
    if not isinstance(value, CONTAINERS):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return most == 0 or any(
        is_nested_deeper(each, most - 1) for each in inner if isinstance(each, CONTAINERS)
    )
