"""How the golden files of arrays are written: floats, arrays, and cases one field on a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

__all__ = ["array", "document", "hexadecimal", "rounded_up"]

LONG = 100


def hexadecimal(x: float) -> str:
    """The float as C's `%a` prints it: 3.0 is 0x1.8p+1. A float32 is exact in it, too."""
    if not math.isfinite(x):
        return str(x)
    digits, exponent = float(x).hex().split("p")
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}p{exponent}"


def rounded_up(x: float, *, bits: int = 8) -> float:
    """The smallest float ≥ x ≥ 0 of so many bits: what another machine's rounding cannot change."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(math.ceil(math.ldexp(mantissa, bits)), exponent - bits)


def array(values: NDArray[Any]) -> dict[str, object]:
    """{"shape", "values"} of an array of floats."""
    return {"shape": list(values.shape), "values": [hexadecimal(x) for x in values.ravel()]}


def document(
    group: str, cases: Sequence[Mapping[str, object]], **head: Mapping[str, object]
) -> str:
    """The text of cases.json: each field of a case, and each field of its input, on one line."""
    lines = ['{"$schema": "schema.json",', f' "group": "{group}",']
    lines += [f' "{key}": {_fields(value, 2)},' for key, value in head.items()]
    entries = ",\n".join(f"  {_fields(case, 3)}" for case in cases)
    return "\n".join([*lines, ' "cases": [', f"{entries}]}}\n"])


def _fields(value: Mapping[str, object], indent: int) -> str:
    pairs = [f'"{key}": {_value(each, indent + 1)}' for key, each in value.items()]
    return "{" + (",\n" + " " * indent).join(pairs) + "}"


def _value(value: object, indent: int) -> str:
    """On one line, unless it is long and its fields are worth a line each."""
    text = json.dumps(value)
    if isinstance(value, dict) and "values" not in value and len(text) > LONG:
        return _fields(value, indent)
    return text
