"""Reading what a target sent, and saying where it differs and how far numbers are apart.

A target's answer is JSON from somebody else's program. What cannot be read as an answer at all is
`MalformedAnswer`: the harness is broken, and that says nothing about the backend behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.conform.case import Json
from refllm.conform.reply import KINDS
from refllm.conform.verdict import Difference
from refllm.conform.wire import from_wire

__all__ = [
    "Doubles",
    "MalformedAnswer",
    "around",
    "array",
    "different_ids",
    "distances",
    "field",
    "first_other",
    "items",
    "numbers",
    "of_float32",
    "refusal",
    "table",
    "text",
    "ulp_of_float32",
    "whole",
    "wholes",
]

Doubles = NDArray[np.float64]

# So many numbers on either side of the one that differs: enough to see a pattern in a plot.
NEIGHBORS = 32
# No id and no count is as large, and what is larger fits into no array.
WHOLE_LIMIT = 2**63
# Of an array: tokens, heads and what lies in a head are three.
MOST_AXES = 8


class MalformedAnswer(Exception):
    """A result that is no answer to the question: a field that is missing, or not what it must be.

    The message names the field.
    """


# Reading


def field(result: Any, name: str) -> Any:
    """The value under `name`."""
    if not isinstance(result, Mapping):
        raise MalformedAnswer(f"{result!r:.80} is not an object with the field {name!r}")
    if name not in result:
        raise MalformedAnswer(f"the field {name!r} is missing; there are {sorted(result)!r:.200}")
    return result[name]


def table(result: Any, name: str) -> Json:
    """The object under `name`."""
    value = field(result, name)
    if not isinstance(value, Mapping):
        raise MalformedAnswer(f"{name} is {value!r:.80}, not an object")
    return value


def items(result: Any, name: str) -> Sequence[Any]:
    """The list under `name`."""
    value = field(result, name)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise MalformedAnswer(f"{name} is {value!r:.80}, not a list")
    return value


def text(result: Any, name: str) -> str:
    """The string under `name`."""
    value = field(result, name)
    if not isinstance(value, str):
        raise MalformedAnswer(f"{name} is {value!r:.80}, not a string")
    return value


def whole(result: Any, name: str) -> int:
    """The whole number under `name`."""
    return _as_whole(field(result, name), name)


def wholes(result: Any, name: str) -> list[int]:
    """The list of whole numbers under `name`."""
    return [_as_whole(value, f"{name}[{i}]") for i, value in enumerate(items(result, name))]


def numbers(values: Any, name: str) -> Doubles:
    """A list of numbers, "nan", "inf" and "-inf" among them, as float64 [their number]."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise MalformedAnswer(f"{name} is {values!r:.80}, not a list of numbers")
    if all(type(value) is float for value in values):
        return np.array(values, dtype=np.float64)
    return np.array([_as_number(value, f"{name}[{i}]") for i, value in enumerate(values)])


def array(result: Any, name: str) -> Doubles:
    """The array {"shape", "values"} under `name`, float64 in that shape."""
    value = table(result, name)
    axes, values = items(value, "shape"), items(value, "values")
    if len(axes) > MOST_AXES:
        raise MalformedAnswer(f"{name} has {len(axes)} axes; no array of the suite has as many")
    shape = tuple(wholes(value, "shape"))
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise MalformedAnswer(
            f"{name} has {len(values)} values, which are no array of {list(shape)}"
        )
    return numbers(values, f"{name}.values").reshape(shape)


def refusal(result: Json) -> tuple[str, str]:
    """The kind and the message of the error in a result.

    A model-not-supported has no message in the interface, so it may lack one.
    """
    error = table(result, "error")
    kind = text(error, "kind")
    if kind not in KINDS:
        raise MalformedAnswer(f"the error's kind is {kind!r:.80}; it is one of {', '.join(KINDS)}")
    if kind == "model-not-supported" and "message" not in error:
        return kind, ""
    return kind, text(error, "message")


def _as_whole(value: Any, name: str) -> int:
    # Languages without whole numbers write 3.0.
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or abs(value) >= WHOLE_LIMIT:
        raise MalformedAnswer(f"{name} is {value!r:.80}, not a whole number")
    return int(value)


def _as_number(value: Any, name: str) -> float:
    try:
        return from_wire(value)
    except (ValueError, OverflowError) as error:
        raise MalformedAnswer(f"{name}: {error!s:.200}") from error


# Comparing


def first_other(expected: Sequence[object], got: Sequence[object]) -> int:
    """The place of the first item that is another, or that only one of them has."""
    pairs = enumerate(zip(expected, got, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(expected), len(got)))


def different_ids(what: str, expected: Sequence[int], got: Sequence[int]) -> Difference | None:
    """Where two lists of tokens part, in which each is called `what` and a number."""
    if list(expected) == list(got):
        return None
    place = first_other(expected, got)
    return Difference(
        where=f"{what} {place}",
        expected=expected[place] if place < len(expected) else "the end",
        got=got[place] if place < len(got) else "the end",
    )


def of_float32(values: Doubles) -> Doubles:
    """The float32 nearest to each: a target may write fewer digits than a float64 needs."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


def ulp_of_float32(values: Doubles) -> Doubles:
    """The distance from |value| to the next larger float32; 2^-149 at zero."""
    with np.errstate(over="ignore"):
        magnitudes = np.minimum(np.abs(values).astype(np.float32), np.finfo(np.float32).max)
    return np.spacing(magnitudes).astype(np.float64)


def distances(got: Doubles, expected: Doubles, allowed: Doubles | float) -> Doubles:
    """How far each number is from the expected one in units of what is allowed; ≤ 1 is equal.

    NaN equals NaN, an infinity equals itself, and both are infinitely far from anything else.
    """
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(all="ignore"):
        apart = np.abs(got - expected) / allowed
    return np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))


def around(values: Doubles, index: int) -> tuple[float, ...]:
    """The numbers of a flat array around the one at `index`, for a plot."""
    flat = values.ravel()
    first = max(0, min(index - NEIGHBORS, flat.size - 2 * NEIGHBORS))
    return tuple(flat[first : first + 2 * NEIGHBORS].tolist())
