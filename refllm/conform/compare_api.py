"""The group `api`: an answer against what `golden/api/README.md` says that it must be.

An answer has the fields of the interface's result, or {"error": {"kind", "message"}}. One that came
over HTTP has `protocol` and `status` besides; its error may lack `kind`, and has the `form` of its
body. Over HTTP a field that is missing is the backend's own fault, so it is a difference; elsewhere
it is the harness's, so it is `MalformedAnswer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.conform.case import Case, Json
from refllm.conform.compare_numbers import (
    Finding,
    MalformedAnswer,
    array,
    distances,
    items,
    numbers,
    table,
    text,
)

__all__ = ["compare_api"]

Doubles = NDArray[np.float64]

NOTHING = "nothing"
# Of a vector's length from 1, and of equal vectors' components: far more than any arithmetic needs.
VECTOR_ERROR = 1e-3


def compare_api(case: Case, result: Json) -> Finding | None:
    """The first thing in which the answer is not what the case expects; None where there is none.

    Errors: `MalformedAnswer`.
    """
    differences = _refusals if "error" in case.expected else _answers
    return next(differences(case, result), None)


# Errors


def _refusals(case: Case, result: Json) -> Iterator[Finding]:
    expected = case.expected["error"]
    if "error" not in result:
        yield _finding(result, "the answer", _wanted(expected), _shown(result))
        return
    error = table(result, "error")
    message = text(error, "message")
    if "protocol" in result:
        yield from _statuses(expected, result, message)
    kind = error.get("kind") if "protocol" in result else text(error, "kind")
    if kind is not None and kind != expected.get("kind", kind):
        yield _finding(result, "the error's kind", expected["kind"], f"{kind}: {message}")
    for said in expected["says"]:
        if _folded(said) not in _folded(message):
            yield _finding(
                result, "the error's message", f"a message that says {said!r}", message or NOTHING
            )


def _wanted(expected: Json) -> str:
    """The error that a case expects, in words."""
    kind = f" {expected['kind']}" if "kind" in expected else ""
    says = f" that says {', '.join(expected['says'])}" if expected["says"] else ""
    return f"the error{kind}{says}"


def _statuses(expected: Json, result: Json, message: str) -> Iterator[Finding]:
    protocol, status = result["protocol"], result["status"]
    allowed = expected["status"][protocol]
    if status not in allowed:
        wanted = " or ".join(map(str, allowed))
        yield _finding(result, "the HTTP status", wanted, f"{status}: {message}")
    form = expected.get("form", {}).get(protocol)
    if form is not None and result["error"]["form"] != form:
        yield _finding(result, "the form of the error's body", form, result["error"]["form"])


def _folded(said: str) -> str:
    """`repeatPenalty`, `repeat-penalty` and `repeat_penalty` are one name."""
    return said.lower().replace("_", "").replace("-", "")


# Answers


def _answers(case: Case, result: Json) -> Iterator[Finding]:
    if "error" in result:
        yield _finding(result, "the answer", "an answer", _shown(result))
        return
    for name, check in CHECKS.items():
        if name in case.expected:
            yield from check(case, result, case.expected[name])


def _text(_: Case, result: Json, expected: str) -> Iterator[Finding]:
    got = _field(result, "text")
    if got != expected:
        yield _finding(
            result, f"the text, from character {_first_other(expected, got)}", expected, got
        )


def _first_other(expected: str, got: object) -> int:
    """The place of the first character that is another, or that only one of them has."""
    said = str(got)
    shorter = min(len(expected), len(said))
    return next((i for i in range(shorter) if expected[i] != said[i]), shorter)


def _text_does_not_begin_with(_: Case, result: Json, prompt: str) -> Iterator[Finding]:
    got = _field(result, "text")
    if not isinstance(got, str) or got.startswith(prompt):
        wanted = "the generated text only, without the prompt"
        yield _finding(result, "the beginning of the text", wanted, got)


def _usage(_: Case, result: Json, expected: Json) -> Iterator[Finding]:
    for name, count in expected.items():
        got = _field(result, "usage", name)
        if got != count or isinstance(got, bool):
            yield _finding(result, f"usage.{name}", count, got)


def _generated_at_most(_: Case, result: Json, most: int) -> Iterator[Finding]:
    got = _field(result, "usage", "generated_token_count")
    if not isinstance(got, int) or got > most:
        yield _finding(result, "usage.generated_token_count", f"at most {most}", got)


def _embeddings_shape(_: Case, result: Json, shape: Sequence[int]) -> Iterator[Finding]:
    n_texts, width = shape
    vectors = _vectors(result)
    if len(vectors) != n_texts:
        yield _finding(result, "the number of vectors", n_texts, len(vectors))
    for i, vector in enumerate(vectors):
        if len(vector) != width:
            yield _finding(result, f"the components of vector {i}", width, len(vector))


def _unit_length(_: Case, result: Json, __: bool) -> Iterator[Finding]:
    for i, vector in enumerate(_vectors(result)):
        with np.errstate(all="ignore"):
            length = float(np.linalg.norm(vector))
        apart = float(distances(np.array(length), np.array(1.0), VECTOR_ERROR))
        if apart > 1:
            yield _finding(result, f"the length of vector {i}", 1.0, length, tolerances=apart)


def _same_vectors(_: Case, result: Json, pairs: Sequence[Sequence[int]]) -> Iterator[Finding]:
    vectors = _vectors(result)
    for one, other in pairs:
        where = f"vector {other}, of the same text as vector {one}"
        yield from _different(result, where, vectors[one], vectors[other], VECTOR_ERROR)


def _first_components(case: Case, result: Json, _: Json) -> Iterator[Finding]:
    expected = array(case.expected, "first_components")
    got = _vectors(result)[0][: len(expected)]
    allowed = float(case.tolerance["first_components"])
    yield from _different(result, "vector 0", expected, got, allowed)


def _different(
    result: Json, where: str, expected: Doubles, got: Doubles, allowed: float
) -> Iterator[Finding]:
    if got.shape != expected.shape:
        yield _finding(result, f"the components of {where}", len(expected), len(got))
        return
    apart = distances(got, expected, allowed)
    if (apart <= 1).all():
        return
    worst = int(apart.argmax())
    yield Finding(
        where=f"component {worst} of {where}",
        expected=float(expected[worst]),
        got=float(got[worst]),
        tolerances=float(apart[worst]),
        expected_values=tuple(expected.tolist()),
        got_values=tuple(got.tolist()),
        answer=result,
    )


def _as_said(name: str) -> Callable[[Case, Json, Any], Iterator[Finding]]:
    """The check of a field that must be as the case says."""

    def check(_: Case, result: Json, expected: object) -> Iterator[Finding]:
        got = _field(result, name)
        if got != expected:
            yield _finding(result, name.replace("_", " "), expected, got)

    return check


# What says most comes first; what looks into vectors comes after their shape.
CHECKS: dict[str, Callable[[Case, Json, Any], Iterator[Finding]]] = {
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


def _field(result: Json, *path: str) -> Any:  # noqa: ANN401
    """What is at `path`, or `NOTHING` in an answer over HTTP. Errors: `MalformedAnswer`."""
    value: Any = result
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            if "protocol" in result:
                return NOTHING
            raise MalformedAnswer(f"the field {'.'.join(path)} is missing")
        value = value[name]
    return value


def _vectors(result: Json) -> list[Doubles]:
    if "protocol" in result and "embeddings" not in result:
        return []
    return [numbers(vector, "a vector") for vector in items(result, "embeddings")]


def _shown(result: Json) -> str:
    """The answer in a few words."""
    if "error" in result:
        error = result["error"]
        kind = f"{error['kind']}: " if error.get("kind") else ""
        return f"{kind}{error.get('message')}"
    if "text" in result:
        return f"the text {result['text']!r:.60}"
    n_vectors = len(result.get("embeddings", ()))
    return f"{n_vectors} vectors"


def _finding(
    result: Json, where: str, expected: object, got: object, *, tolerances: float | None = None
) -> Finding:
    return Finding(where=where, expected=expected, got=got, tolerances=tolerances, answer=result)
