"""A case of the golden suite: what a target is asked, and what it must answer.

Every group has one folder below `golden/`, and in it `cases.json`:

    {"$schema": "schema.json", "group": "quant", "cases": [
      {"id": "quant/q8_0-worked-by-hand", "proves": "…", "clause": "…",
       "input": {…}, "expected": {…}, "quick": true}, …]}

A float in these files is a string as C's `%a` prints it, which loses nothing. A target gets JSON
numbers instead, see `refllm.conform.wire`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

__all__ = ["GROUPS", "Case", "Group", "Json", "is_sampled"]

Json: TypeAlias = Mapping[str, Any]
Group: TypeAlias = Literal[
    "tokenizer", "quant", "ops", "sampling", "logits", "text", "embeddings", "api"
]
GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question, and its right answer.

    Attributes:
        id: "group/name"; it never changes.
        group: The group, which decides how an answer is compared.
        proves: Why the case exists, a sentence.
        clause: The clause of the contract (SPEC.md) that the case rests on.
        input: What the target gets, as the group's README describes, floats decoded.
        expected: What the target must answer, in the same way.
        models: The names of the models that the case needs.
        is_quick: Whether the case runs with --quick.
        tolerance: What the group's comparison needs besides, such as a bound and its reason.
    """

    id: str
    group: Group
    proves: str
    clause: str
    input: Json
    expected: Json
    models: tuple[str, ...] = ()
    is_quick: bool = False
    tolerance: Json = field(default_factory=dict)


def is_sampled(params: Json) -> bool:
    """Return whether a text with these six parameters depends on random numbers.

    Example:
        >>> is_sampled({"max_tokens": 8, "temperature": 0.8, "top_k": 40})
        True
    """
    return bool(params["max_tokens"] > 0 and params["temperature"] > 0 and params["top_k"] != 1)
