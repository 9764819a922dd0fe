"""The group `api`: an answer against what `golden/api/README.md` says that it must be.

An answer has the fields of the interface's result, or {"error": {"kind", "message"}}. One that came
over HTTP has `protocol` and `status` besides; its error may lack `kind`, and has the `form` of its
body. Over HTTP a field that is missing, or none of its kind, is the backend's own fault, so it is a
difference; elsewhere it is the harness's, so it is `MalformedAnswer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import (
    Doubles,
    MalformedAnswer,
    array,
    distances,
    first_other,
    items,
    numbers,
    refusal,
    table,
    text,
    whole,
)
from refllm.conform.verdict import Difference

__all__ = ["compare_api"]

T = TypeVar("T")

NOTHING = "nothing"
# Of a vector's length from 1, and of equal vectors' components: far more than any arithmetic needs.
VECTOR_ERROR = 1e-3


def compare_api(case: Case, result: Json) -> Difference | None:
    """The first thing in which the answer is not what the case expects; None where there is none.

    Errors: `MalformedAnswer`.
    """
    differences = _refusals if "error" in case.expected else _answers
    return next(differences(case, result), None)


# Errors


def _refusals(case: Case, result: Json) -> Iterator[Difference]:
    expected = case.expected["error"]
    if "error" not in result:
        yield _differs("the answer", _wanted(expected), _shown(result))
        return
    kind, message = _refusal(result)
    if _is_over_http(result):
        yield from _statuses(expected, result, message)
    if kind is not None and kind != expected.get("kind", kind):
        yield _differs("the error's kind", expected["kind"], f"{kind}: {message}")
    for said in expected["says"]:
        if _folded(said) not in _folded(message):
            yield _differs(
                "the error's message", f"a message that says {said!r}", message or NOTHING
            )


def _refusal(result: Json) -> tuple[str | None, str]:
    """The error's kind, None where HTTP does not tell it, and its message."""
    if not _is_over_http(result):
        return refusal(result)
    error = table(result, "error")
    return error.get("kind"), text(error, "message")


def _wanted(expected: Json) -> str:
    """The error that a case expects, in words."""
    kind = f" {expected['kind']}" if "kind" in expected else ""
    says = f" that says {', '.join(expected['says'])}" if expected["says"] else ""
    return f"the error{kind}{says}"


def _statuses(expected: Json, result: Json, message: str) -> Iterator[Difference]:
    protocol, status = result["protocol"], result["status"]
    allowed = expected["status"][protocol]
    if status not in allowed:
        wanted = " or ".join(map(str, allowed))
        yield _differs("the HTTP status", wanted, f"{status}: {message}")
    form = expected.get("form", {}).get(protocol)
    if form is not None and result["error"]["form"] != form:
        yield _differs("the form of the error's body", form, result["error"]["form"])


def _folded(said: str) -> str:
    """`repeatPenalty`, `repeat-penalty` and `repeat_penalty` are one name."""
    return said.lower().replace("_", "").replace("-", "")


# Answers


def _answers(case: Case, result: Json) -> Iterator[Difference]:
    if "error" in result:
        yield _differs("the answer", "an answer", ": ".join(filter(None, _refusal(result))))
        return
    for name, check in CHECKS.items():
        if name in case.expected:
            yield from check(case, result, case.expected[name])


def _text(_: Case, result: Json, expected: str) -> Iterator[Difference]:
    got = _read(result, lambda: text(result, "text"))
    if got != expected:
        yield _differs(f"the text, from character {first_other(expected, got)}", expected, got)


def _text_does_not_begin_with(_: Case, result: Json, prompt: str) -> Iterator[Difference]:
    got = _read(result, lambda: text(result, "text"))
    if got is NOTHING or got.startswith(prompt):
        wanted = "the generated text only, without the prompt"
        yield _differs("the beginning of the text", wanted, got)


def _usage(_: Case, result: Json, expected: Json) -> Iterator[Difference]:
    for name, count in expected.items():
        got = _count(result, name)
        if got != count:
            yield _differs(f"usage.{name}", count, got)


def _generated_at_most(_: Case, result: Json, most: int) -> Iterator[Difference]:
    got = _count(result, "generated_token_count")
    if isinstance(got, str) or got > most:
        yield _differs("usage.generated_token_count", f"at most {most}", got)


def _embeddings_shape(_: Case, result: Json, shape: Sequence[int]) -> Iterator[Difference]:
    n_texts, width = shape
    n_given = _n_vectors(result)
    # Of far too many the number is enough.
    vectors = _vectors(result) if n_given == n_texts else []
    if len(vectors) != n_texts:
        n_read = 0 if n_given == n_texts else n_given
        yield _differs("the number of vectors", n_texts, n_read)
    for i, vector in enumerate(vectors):
        if len(vector) != width:
            yield _differs(f"the components of vector {i}", width, len(vector))


def _unit_length(_: Case, result: Json, __: bool) -> Iterator[Difference]:
    for i, vector in enumerate(_vectors(result)):
        with np.errstate(all="ignore"):
            length = float(np.linalg.norm(vector))
        apart = float(distances(np.array(length), np.array(1.0), VECTOR_ERROR))
        if apart > 1:
            yield _differs(f"the length of vector {i}", 1.0, length, tolerances=apart)


def _same_vectors(_: Case, result: Json, pairs: Sequence[Sequence[int]]) -> Iterator[Difference]:
    vectors = _vectors(result)
    for one, other in pairs:
        where = f"vector {other}, of the same text as vector {one}"
        yield from _different(where, vectors[one], vectors[other], VECTOR_ERROR)


def _first_components(case: Case, result: Json, _: Json) -> Iterator[Difference]:
    expected = array(case.expected, "first_components")
    got = _vectors(result)[0][: len(expected)]
    allowed = float(case.tolerance["first_components"])
    yield from _different("vector 0", expected, got, allowed)


def _different(where: str, expected: Doubles, got: Doubles, allowed: float) -> Iterator[Difference]:
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


def _as_said(name: str) -> Callable[[Case, Json, Any], Iterator[Difference]]:
    """The check of a field that must be as the case says."""

    def check(_: Case, result: Json, expected: object) -> Iterator[Difference]:
        got = result.get(name, NOTHING)
        if got != expected:
            yield _differs(name.replace("_", " "), expected, got)

    return check


# What says most comes first; what looks into vectors comes after their shape.
CHECKS: dict[str, Callable[[Case, Json, Any], Iterator[Difference]]] = {
    "text": _text,
    "text_does_not_begin_with": _text_does_not_begin_with,
    "usage": _usage,
    "generated_at_most": _generated_at_most,
    "embeddings_shape": _embeddings_shape,
    "unit_length": _unit_length,
    "same_vectors": _same_vectors,
    "first_components": _first_components,
    "stream_ends": _as_said("stream_ends"),
    "encoding": _as_said("encoding"),
}


# Reading


def _read(result: Json, read: Callable[[], T]) -> T | str:
    """What is read, or `NOTHING` in an answer over HTTP. Errors: `MalformedAnswer`."""
    try:
        return read()
    except MalformedAnswer:
        if _is_over_http(result):
            return NOTHING
        raise


def _count(result: Json, name: str) -> int | str:
    return _read(result, lambda: whole(table(result, "usage"), name))


def _n_vectors(result: Json) -> int:
    vectors = _read(result, lambda: items(result, "embeddings"))
    return 0 if vectors is NOTHING else len(vectors)


def _vectors(result: Json) -> list[Doubles]:
    vectors = _read(
        result, lambda: [numbers(vector, "a vector") for vector in items(result, "embeddings")]
    )
    return [] if isinstance(vectors, str) else vectors


def _shown(result: Json) -> str:
    """An answer in a few words."""
    if "text" in result:
        return f"the text {result['text']!r:.60}"
    if "embeddings" in result:
        return f"{_n_vectors(result)} vectors"
    return "an answer with neither a text nor vectors"


def _is_over_http(result: Json) -> bool:
    return "protocol" in result and "status" in result


def _differs(
    where: str, expected: object, got: object, *, tolerances: float | None = None
) -> Difference:
    return Difference(where=where, expected=expected, got=got, tolerances=tolerances)
