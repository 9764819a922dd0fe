"""Floats in golden files, and floats on the way to a target.

A golden file has every float as a string, as C's `%a` prints it, so that nothing is lost and a
reader without a float parser can compare strings. A target gets JSON numbers, which every language
reads: the shortest decimals that give the same float back. Three values have no JSON number:

    in a file "0x1.8p+1"    to a target 3.0
    in a file "nan"         to a target "nan", and so "inf" and "-inf"
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["MOST_NESTED", "decoded", "from_wire", "is_nested_deeper", "to_wire"]

HEXADECIMAL = re.compile(r"-?0x[01]\.?[0-9a-f]*p[+-][0-9]+")
# Of lists and objects in one another, in any message: the suite's own are 6 deep, and what reads
# them recursively takes some hundred.
MOST_NESTED = 32
CONTAINERS = (list, dict)
SPECIAL = frozenset({"nan", "inf", "-inf"})
# Where a string is a text, whatever it looks like.
TEXTS = frozenset(
    {"body", "bytes", "message", "prompt", "says", "seed", "text", "texts", "tied_texts"}
)


def decoded(value: Any) -> Any:
    """A golden file's value with every float string as a float, texts as they are."""
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
    """The value as JSON can carry it: floats that have no JSON number as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {key: to_wire(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_wire(each) for each in value]
    return value


def from_wire(value: Any) -> float:
    """A number that a target sent. Errors: `ValueError` where it is none."""
    if isinstance(value, str) and value in SPECIAL:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.40} is not a number")  # noqa: TRY004 - see the docstring
    return float(value)


def is_nested_deeper(value: Any, most: int) -> bool:
    """Whether lists and objects lie in one another more than `most` deep."""
    if not isinstance(value, CONTAINERS):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return most == 0 or any(
        is_nested_deeper(each, most - 1) for each in inner if isinstance(each, CONTAINERS)
    )
