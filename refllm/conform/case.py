"""A case of the golden suite: what a target is asked, and what it must answer.

Every group has one folder below `golden/`, and in it `cases.json`:

    {"$schema": "schema.json", "group": "quant", "cases": [
      {"id": "quant/q8_0-worked-by-hand", "proves": "…", "clause": "…",
       "input": {…}, "expected": {…}, "quick": true}, …]}

In these files a float is a string as C's `%a` prints it, so that nothing is lost on the way; what
goes to a target has JSON numbers instead, see `refllm.conform.wire`.
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
    """One question, and its answer.

    `id` is "group/name" and never changes; `proves` says in a sentence why the case exists, and
    `clause` which clause of the contract (SPEC.md) it rests on. `input` is what the target gets
    and `expected` what it must answer, both as the group's README describes, floats decoded.
    `models` are the names of the models that the case needs. `is_quick` cases run with --quick.
    """

    id: str
    group: Group
    proves: str
    clause: str
    input: Json
    expected: Json
    models: tuple[str, ...] = ()
    is_quick: bool = False
    # What the group's comparison needs besides, such as a tolerance and its reason.
    tolerance: Json = field(default_factory=dict)


def is_sampled(params: Json) -> bool:
    """Whether a text with these six parameters depends on random numbers."""
    return bool(params["max_tokens"] > 0 and params["temperature"] > 0 and params["top_k"] != 1)
