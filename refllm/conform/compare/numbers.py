"""Reading what a target sent, and where it differs and how far numbers are apart.

A target's answer is JSON from a foreign program. Where it cannot be read as an answer at all, the
functions here raise `MalformedAnswer`: then the harness is broken, and the backend behind it may be
right.
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
    "array",
    "as_float32",
    "difference_at",
    "different_ids",
    "distances",
    "field",
    "first_difference",
    "integer",
    "integers",
    "numbers",
    "refusal",
    "sequence",
    "table",
    "text",
    "ulp_of_float32",
    "window",
]

Doubles = NDArray[np.float64]

# Numbers on either side of the one that differs: enough to see a pattern in a plot.
NEIGHBORS = 32
# No id and no count is as large, and no array of NumPy has room for more.
INTEGER_LIMIT = 2**63
# Of an array; tokens, heads and the elements of a head are three.
MAX_AXES = 8


class MalformedAnswer(Exception):
    """A result that is no answer to the question: a field is missing or of another type.

    The message names the field.
    """


# --- Reading: each raises `MalformedAnswer` naming the field -------------------------------------


def field(result: Any, name: str) -> Any:
    """Return the value under `name`."""
    if not isinstance(result, Mapping):
        raise MalformedAnswer(f"{result!r:.80} is not an object with the field {name!r}")
    if name not in result:
        raise MalformedAnswer(f"the field {name!r} is missing; there are {sorted(result)!r:.200}")
    return result[name]


def table(result: Any, name: str) -> Json:
    """Return the object under `name`."""
    value = field(result, name)
    if not isinstance(value, Mapping):
        raise MalformedAnswer(f"{name} is {value!r:.80}, not an object")
    return value


def sequence(result: Any, name: str) -> Sequence[Any]:
    """Return the list under `name`."""
    value = field(result, name)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise MalformedAnswer(f"{name} is {value!r:.80}, not a list")
    return value


def text(result: Any, name: str) -> str:
    """Return the string under `name`."""
    value = field(result, name)
    if not isinstance(value, str):
        raise MalformedAnswer(f"{name} is {value!r:.80}, not a string")
    return value


def integer(result: Any, name: str) -> int:
    """Return the whole number under `name`; 3.0 is one, as languages without integers write it.

    Example:
        >>> integer({"token": 3.0}, "token")
        3
    """
    return _as_integer(field(result, name), name)


def integers(result: Any, name: str) -> list[int]:
    """Return the list of whole numbers under `name`."""
    return [_as_integer(value, f"{name}[{i}]") for i, value in enumerate(sequence(result, name))]


def numbers(values: Any, name: str) -> Doubles:
    """Return a list of numbers, "nan", "inf" and "-inf" among them, as float64 [len(values)].

    Args:
        values: What the target sent.
        name: What an error calls it.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise MalformedAnswer(f"{name} is {values!r:.80}, not a list of numbers")
    if all(type(value) is float for value in values):
        return np.array(values, dtype=np.float64)
    found = np.empty(len(values))
    for i, value in enumerate(values):
        try:
            found[i] = from_wire(value)
        except (ValueError, OverflowError) as error:
            raise MalformedAnswer(f"{name}[{i}]: {error!s:.200}") from error
    return found


def array(result: Any, name: str) -> Doubles:
    """Return the array {"shape", "values"} under `name`, float64 in that shape."""
    value = table(result, name)
    axes, values = sequence(value, "shape"), sequence(value, "values")
    if len(axes) > MAX_AXES:
        raise MalformedAnswer(f"{name} has {len(axes)} axes; no array of the suite has as many")
    shape = tuple(integers(value, "shape"))
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise MalformedAnswer(
            f"{name} has {len(values)} values, which are no array of {list(shape)}"
        )
    return numbers(values, f"{name}.values").reshape(shape)


def refusal(result: Json) -> tuple[str, str]:
    """Return the kind and the message of the error in a result.

    The message of a model-not-supported may be missing, since the interface has none; then it is
    "".
    """
    error = table(result, "error")
    kind = text(error, "kind")
    if kind not in KINDS:
        raise MalformedAnswer(f"the error's kind is {kind!r:.80}; it is one of {', '.join(KINDS)}")
    if kind == "model-not-supported" and "message" not in error:
        return kind, ""
    return kind, text(error, "message")


def _as_integer(value: Any, name: str) -> int:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or abs(value) >= INTEGER_LIMIT:
        raise MalformedAnswer(f"{name} is {value!r:.80}, not a whole number")
    return int(value)


# --- Comparing -----------------------------------------------------------------------------------


def first_difference(expected: Sequence[object], got: Sequence[object]) -> int:
    """Return the index of the first item that differs, or that only one of them has.

    Example:
        >>> first_difference("token", "toke"), first_difference([1, 2], [1, 3])
        (4, 1)
    """
    pairs = enumerate(zip(expected, got, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(expected), len(got)))


def different_ids(what: str, expected: Sequence[int], got: Sequence[int]) -> Difference | None:
    """Return where two lists of tokens part, None where they are equal.

    Args:
        what: What a token is called in the difference, before its index.
        expected: The right ids.
        got: The target's.
    """
    if list(expected) == list(got):
        return None
    place = first_difference(expected, got)
    return Difference(
        where=f"{what} {place}",
        expected=expected[place] if place < len(expected) else "the end",
        got=got[place] if place < len(got) else "the end",
    )


def as_float32(values: Doubles) -> Doubles:
    """Return the float32 nearest to each: a target may write fewer digits than float64 needs."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


def ulp_of_float32(values: Doubles) -> Doubles:
    """Return the distance from |value| to the next larger float32; 2^-149 at zero."""
    with np.errstate(over="ignore"):
        magnitudes = np.minimum(np.abs(values).astype(np.float32), np.finfo(np.float32).max)
    return np.spacing(magnitudes).astype(np.float64)


def distances(got: Doubles, expected: Doubles, allowed: Doubles | float) -> Doubles:
    """Return |got - expected| in units of what is allowed, so that ≤ 1 passes.

    NaN equals NaN and an infinity equals itself; both are infinitely far from anything else.

    Example:
        >>> distances(np.array([1.0, np.nan]), np.array([1.5, np.nan]), 0.25).tolist()
        [2.0, 0.0]
    """
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(all="ignore"):
        apart = np.abs(got - expected) / allowed
    return np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))


def difference_at(
    index: int,
    where: str,
    expected: Doubles,
    got: Doubles,
    *,
    tolerances: Doubles | None = None,
) -> Difference:
    """Return the difference of two arrays at an index, with the numbers around it for a plot.

    Args:
        index: Into the flattened arrays.
        where: The name of the number.
        expected: The right numbers.
        got: The target's, in the same shape.
        tolerances: The `distances` of all numbers, None where they had to be equal.
    """
    return Difference(
        where=where,
        expected=float(expected.flat[index]),
        got=float(got.flat[index]),
        tolerances=None if tolerances is None else float(tolerances.flat[index]),
        expected_values=window(expected, index),
        got_values=window(got, index),
    )


def window(values: Doubles, index: int) -> tuple[float, ...]:
    """Return up to 64 numbers of a flattened array, those around `index`, for a plot."""
    flat = values.ravel()
    first = max(0, min(index - NEIGHBORS, flat.size - 2 * NEIGHBORS))
    return tuple(flat[first : first + 2 * NEIGHBORS].tolist())
