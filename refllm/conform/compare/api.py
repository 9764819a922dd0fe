"""The group `api`: an answer against what `golden/api/README.md` requires.

An answer has the fields of the interface's result, or {"error": {"kind", "message"}}. Over HTTP it
has `protocol` and `status` besides; its error may lack `kind`, and has the `form` of its body.
Over HTTP a field that is missing or of another type is the backend's own fault, so it is a
difference. Elsewhere it is the harness's, so it is `MalformedAnswer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import (
    Doubles,
    MalformedAnswer,
    array,
    distances,
    first_difference,
    integer,
    numbers,
    refusal,
    sequence,
    table,
    text,
)
from refllm.conform.verdict import Difference

__all__ = ["compare_api"]

T = TypeVar("T")
Check: TypeAlias = Callable[[Case, Json, Any], Iterator[Difference]]

NOTHING = "nothing"
# Of a vector's length from 1, and of equal vectors' components: far more than any arithmetic needs.
VECTOR_ERROR = 1e-3


def compare_api(case: Case, result: Json) -> Difference | None:
    """Return the first thing in which the answer differs from the case, None where there is none.

    Raises:
        MalformedAnswer: Where a harness's answer lacks a field.
    """
    differences = _in_refusal if "error" in case.expected else _in_answer
    return next(differences(case, result), None)


# --- Errors --------------------------------------------------------------------------------------


def _in_refusal(case: Case, result: Json) -> Iterator[Difference]:
    expected = case.expected["error"]
    if "error" not in result:
        of_kind = f" {expected['kind']}" if "kind" in expected else ""
        says = f" that says {', '.join(expected['says'])}" if expected["says"] else ""
        if "text" in result:
            got = f"the text {result['text']!r:.60}"
        elif "embeddings" in result:
            got = f"{_n_vectors(result)} vectors"
        else:
            got = "an answer with neither a text nor vectors"
        yield _differs("the answer", f"the error{of_kind}{says}", got)
        return
    kind, message = _refusal(result)
    if _is_over_http(result):
        protocol, status = result["protocol"], result["status"]
        allowed = expected["status"][protocol]
        if status not in allowed:
            yield _differs(
                "the HTTP status", " or ".join(map(str, allowed)), f"{status}: {message}"
            )
        form = expected.get("form", {}).get(protocol)
        if form is not None and result["error"]["form"] != form:
            yield _differs("the form of the error's body", form, result["error"]["form"])
    if kind is not None and kind != expected.get("kind", kind):
        yield _differs("the error's kind", expected["kind"], f"{kind}: {message}")
    for phrase in expected["says"]:
        if _folded(phrase) not in _folded(message):
            wanted = f"a message that says {phrase!r}"
            yield _differs("the error's message", wanted, message or NOTHING)


def _refusal(result: Json) -> tuple[str | None, str]:
    """Return the error's kind, None where HTTP carries none, and its message."""
    if not _is_over_http(result):
        return refusal(result)
    error = table(result, "error")
    return error.get("kind"), text(error, "message")


def _folded(name: str) -> str:
    """Return one spelling of `repeatPenalty`, `repeat-penalty` and `repeat_penalty`."""
    return name.lower().replace("_", "").replace("-", "")


# --- Answers -------------------------------------------------------------------------------------

# By the field of the case that asks for it, in the order in which they are applied: what explains
# most is first, and what looks into vectors is after their shape.
CHECKS: dict[str, Check] = {}


def _checks(name: str) -> Callable[[Check], Check]:
    """Register a check of the field `name`: of a case, a result, and what the case expects."""

    def register(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return register


def _in_answer(case: Case, result: Json) -> Iterator[Difference]:
    if "error" in result:
        yield _differs("the answer", "an answer", ": ".join(filter(None, _refusal(result))))
        return
    for name, check in CHECKS.items():
        if name in case.expected:
            yield from check(case, result, case.expected[name])


@_checks("text")
def _text(_: Case, result: Json, expected: str) -> Iterator[Difference]:
    got = _read(result, lambda: text(result, "text"))
    if got != expected:
        where = f"the text, from character {first_difference(expected, got)}"
        yield _differs(where, expected, got)


@_checks("text_does_not_begin_with")
def _beginning(_: Case, result: Json, prompt: str) -> Iterator[Difference]:
    got = _read(result, lambda: text(result, "text"))
    if got is NOTHING or got.startswith(prompt):
        wanted = "the generated text only, without the prompt"
        yield _differs("the beginning of the text", wanted, got)


@_checks("usage")
def _usage(_: Case, result: Json, expected: Json) -> Iterator[Difference]:
    for name, count in expected.items():
        got = _count(result, name)
        if got != count:
            yield _differs(f"usage.{name}", count, got)


@_checks("generated_at_most")
def _generated_at_most(_: Case, result: Json, most: int) -> Iterator[Difference]:
    got = _count(result, "generated_token_count")
    if isinstance(got, str) or got > most:
        yield _differs("usage.generated_token_count", f"at most {most}", got)


@_checks("embeddings_shape")
def _shape(_: Case, result: Json, shape: tuple[int, int]) -> Iterator[Difference]:
    n_texts, width = shape
    n_given = _n_vectors(result)
    # Far too many vectors are counted and not read.
    vectors = _vectors(result) if n_given == n_texts else []
    if len(vectors) != n_texts:
        n_read = 0 if n_given == n_texts else n_given
        yield _differs("the number of vectors", n_texts, n_read)
    for i, vector in enumerate(vectors):
        if len(vector) != width:
            yield _differs(f"the components of vector {i}", width, len(vector))


@_checks("unit_length")
def _unit_length(_: Case, result: Json, __: bool) -> Iterator[Difference]:
    for i, vector in enumerate(_vectors(result)):
        with np.errstate(all="ignore"):
            length = float(np.linalg.norm(vector))
        apart = float(distances(np.array(length), np.array(1.0), VECTOR_ERROR))
        if apart > 1:
            yield _differs(f"the length of vector {i}", 1.0, length, tolerances=apart)


@_checks("same_vectors")
def _same_vectors(_: Case, result: Json, pairs: list[tuple[int, int]]) -> Iterator[Difference]:
    vectors = _vectors(result)
    for one, other in pairs:
        where = f"vector {other}, of the same text as vector {one}"
        yield from _in_vectors(where, vectors[one], vectors[other], VECTOR_ERROR)


@_checks("first_components")
def _first_components(case: Case, result: Json, _: Json) -> Iterator[Difference]:
    expected = array(case.expected, "first_components")
    got = _vectors(result)[0][: len(expected)]
    allowed = float(case.tolerance["first_components"])
    yield from _in_vectors("vector 0", expected, got, allowed)


@_checks("stream_ends")
def _stream_end(_: Case, result: Json, expected: bool) -> Iterator[Difference]:
    if (got := result.get("stream_ends", NOTHING)) != expected:
        yield _differs("stream ends", expected, got)


@_checks("encoding")
def _encoding(_: Case, result: Json, expected: str) -> Iterator[Difference]:
    if (got := result.get("encoding", NOTHING)) != expected:
        yield _differs("encoding", expected, got)


def _in_vectors(
    where: str, expected: Doubles, got: Doubles, allowed: float
) -> Iterator[Difference]:
    """Yield the component that is farthest off, if it is farther than `allowed`."""
    if got.shape != expected.shape:
        yield _differs(f"the components of {where}", len(expected), len(got))
        return
    apart = distances(got, expected, allowed)
    if (apart <= 1).all():
        return
    worst = int(apart.argmax())
    yield Difference(
        where=f"component {worst} of {where}",
        expected=float(expected[worst]),
        got=float(got[worst]),
        tolerances=float(apart[worst]),
        expected_values=tuple(expected.tolist()),
        got_values=tuple(got.tolist()),
    )


# --- Reading -------------------------------------------------------------------------------------


def _read(result: Json, read: Callable[[], T]) -> T | str:
    """Return what `read` returns; `NOTHING` where it raises `MalformedAnswer` over HTTP."""
    try:
        return read()
    except MalformedAnswer:
        if _is_over_http(result):
            return NOTHING
        raise


def _count(result: Json, name: str) -> int | str:
    return _read(result, lambda: integer(table(result, "usage"), name))


def _n_vectors(result: Json) -> int:
    vectors = _read(result, lambda: sequence(result, "embeddings"))
    return 0 if vectors is NOTHING else len(vectors)


def _vectors(result: Json) -> list[Doubles]:
    vectors = _read(
        result, lambda: [numbers(vector, "a vector") for vector in sequence(result, "embeddings")]
    )
    return [] if isinstance(vectors, str) else vectors


def _is_over_http(result: Json) -> bool:
    return "protocol" in result and "status" in result


def _differs(
    where: str, expected: object, got: object, *, tolerances: float | None = None
) -> Difference:
    return Difference(where=where, expected=expected, got=got, tolerances=tolerances)
