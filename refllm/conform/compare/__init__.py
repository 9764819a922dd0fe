"""What a target answered against the right answer: the first thing that differs, or nothing.

Start at `compare`, which chooses one function for each group: `model` has those of logits, texts
and embeddings, `sampling` and `api` one each, and the others are below. `numbers` reads what a
target sent. This package may import everything below `refllm.conform`.

A refusal is an answer, too: {"error": {"kind", "message"}}. Where a case expects one, its kind must
be the same, and its message must contain what the case names. Where a case expects a result, a
refusal is the difference. What cannot be read as an answer is `MalformedAnswer`: a fault of the
harness, which proves nothing about the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.api import compare_api
from refllm.conform.compare.model import compare_embeddings, compare_logits, compare_text
from refllm.conform.compare.numbers import (
    MalformedAnswer,
    array,
    as_float32,
    difference_at,
    different_ids,
    distances,
    integers,
    numbers,
    refusal,
    sequence,
    text,
    ulp_of_float32,
)
from refllm.conform.compare.sampling import compare_sampling
from refllm.conform.verdict import Difference
from refllm.conform.wire import MAX_NESTING, is_nested_deeper

__all__ = ["MalformedAnswer", "compare"]


def compare(case: Case, result: Json) -> Difference | None:
    """Return the first difference between a result and the case's, None where there is none.

    Args:
        case: The question, and the right answer.
        result: What the target sent.

    Raises:
        MalformedAnswer: Where the result is no answer to the question.
    """
    if not isinstance(result, Mapping):
        raise MalformedAnswer(f"the result is {result!r:.80}, not an object")
    if is_nested_deeper(result, MAX_NESTING):
        raise MalformedAnswer(f"the result is nested more than {MAX_NESTING} deep")
    difference = _difference(case, result)
    return None if difference is None else replace(difference, answer=result)


def _difference(case: Case, result: Json) -> Difference | None:
    if case.group == "api":
        return compare_api(case, result)
    if "error" not in case.expected and "error" not in result:
        return COMPARISONS[case.group](case, result)
    if "error" not in case.expected:
        got = ": ".join(filter(None, refusal(result)))
        return Difference(where="the answer", expected="an answer", got=got)
    expected = case.expected["error"]
    if "error" not in result:
        wanted = f"an error of the kind {expected['kind']}"
        return Difference(where="the answer", expected=wanted, got="an answer")
    kind, message = refusal(result)
    if kind != expected["kind"]:
        return Difference(where="the error's kind", expected=expected["kind"], got=kind)
    if expected["names"] not in message:
        wanted = f"a message that names {expected['names']!r}"
        return Difference(where="the error's message", expected=wanted, got=message)
    return None


def _compare_tokenizer(case: Case, result: Json) -> Difference | None:
    expected, got = case.expected, integers(result, "ids")
    decoded = text(result, "text")
    difference = different_ids("token", expected["ids"], got)
    if difference is None and decoded != expected["text"]:
        return Difference(where="the text of the tokens", expected=expected["text"], got=decoded)
    return difference


def _compare_quant(case: Case, result: Json) -> Difference | None:
    expected = np.array(case.expected["values"], np.float64)
    values = sequence(result, "values")
    if len(values) != expected.size:
        raise MalformedAnswer(f"there are {len(values)} values, the case asks for {expected.size}")
    got = as_float32(numbers(values, "values"))
    wrong = distances(got, expected, 0.0) > 0
    if not wrong.any():
        return None
    first = int(np.argmax(wrong))
    where = f"value {first}, the first of {int(wrong.sum())} of {wrong.size} that differ"
    return difference_at(first, where, expected, got)


def _compare_ops(case: Case, result: Json) -> Difference | None:
    expected, got = array(case.expected, "output"), as_float32(array(result, "output"))
    if got.shape != expected.shape:
        raise MalformedAnswer(
            f"the output's shape is {list(got.shape)}, the case asks for {list(expected.shape)}"
        )
    tolerance = case.tolerance
    size = np.maximum(np.abs(expected), float(tolerance.get("scale", 0.0)))
    apart = distances(got, expected, float(tolerance["ulps"]) * ulp_of_float32(size))
    wrong = apart > 1.0
    if not wrong.any():
        return None
    first = int(np.argmax(wrong))
    index = [int(i) for i in np.unravel_index(first, got.shape)]
    where = f"output{index}, the first of {int(wrong.sum())} of {wrong.size} that differ"
    return difference_at(first, where, expected, got, tolerances=apart)


COMPARISONS: Mapping[str, Callable[[Case, Json], Difference | None]] = {
    "tokenizer": _compare_tokenizer,
    "quant": _compare_quant,
    "ops": _compare_ops,
    "sampling": compare_sampling,
    "logits": compare_logits,
    "text": compare_text,
    "embeddings": compare_embeddings,
}
