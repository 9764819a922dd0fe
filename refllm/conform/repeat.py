"""A case asked twice: whether the same request gets the same answer.

Every other conclusion of a report depends on that. So in each group the first answer that could
differ is asked for again: of texts a sampled one and a greedy one, and of single sampled tokens the
first five, since two of them may be equal by chance. That is fifteen requests at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from refllm.conform.case import Case, Group, Json, is_sampled
from refllm.conform.reply import Answer, Reply
from refllm.conform.verdict import Difference

__all__ = ["change", "kind_of_repeat", "times_to_repeat"]

# The fields of an answer that must stay the same. Counts follow from a text.
KEPT: Mapping[Group, tuple[str, ...]] = {
    "tokenizer": ("ids", "text"),
    "quant": ("values",),
    "ops": ("output",),
    "sampling": ("token",),
    "logits": ("logits",),
    "text": ("text",),
    "embeddings": ("embeddings",),
    "api": ("text", "embeddings"),
}
# A text of fewer tokens may be the same by chance.
MIN_TOKENS = 8
# A different order of sums on a GPU changes numbers by less than this.
ROUNDING = 1e-3


def kind_of_repeat(case: Case, result: Json) -> str | None:
    """Return which kind of answer this is, None for one that need not be asked for again.

    Args:
        case: A question.
        result: The first answer to it.
    """
    if not any(result.get(name) for name in KEPT[case.group]):
        return None
    if "text" not in result or case.group == "tokenizer":
        return case.group
    params = case.input.get("params") or {}
    if params.get("max_tokens", MIN_TOKENS) < MIN_TOKENS:
        return None
    if case.group == "text":
        return "sampled text" if is_sampled(params) else "greedy text"
    # A request of the interface has no seed, so only a greedy text must stay the same.
    return "api" if params.get("temperature", 1.0) <= 0 or params.get("top_k") == 1 else None


def times_to_repeat(kind: str) -> int:
    """Return how many answers of a kind are asked for again."""
    return 5 if kind == "sampling" else 1


def change(case: Case, first: Json, second: Reply) -> Difference | None:
    """Return how the second answer to a case differs from the first, None where it does not.

    Args:
        case: The question.
        first: The first answer to it.
        second: The reply to the same request, sent again.
    """
    if not isinstance(second, Answer):
        reason = getattr(second, "message", "") or getattr(second, "reason", "")
        return _changed("an answer", f"no answer: {reason}", second)
    if "error" in second.result:
        error = second.result["error"]
        message = error.get("message", error) if isinstance(error, Mapping) else error
        return _changed("an answer", f"the error {message}", second)
    for name in KEPT[case.group]:
        one, other = first.get(name), second.result.get(name)
        if not _is_same(one, other):
            return _changed(*_first_difference(one, other), second)
    return None


def _changed(first: object, second: object, reply: Reply) -> Difference:
    return Difference(
        where="the answer to the same request, asked again",
        expected=first,
        got=second,
        answer=reply.result if isinstance(reply, Answer) else {},
    )


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if _is_list(one) and _is_list(other):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _first_difference(one: Any, other: Any) -> tuple[Any, Any]:
    """Return the innermost values that differ first."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        pairs = [(one[key], other[key]) for key in one]
    elif _is_list(one) and _is_list(other) and len(one) == len(other):
        pairs = list(zip(one, other, strict=True))
    else:
        return one, other
    return next(_first_difference(a, b) for a, b in pairs if not _is_same(a, b))


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
