"""Cases of the suite's groups, made up for a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refllm.conform.case import Case, Group

__all__ = ["USAGE", "case_of", "text_case"]

USAGE = {"prompt_token_count": 2, "generated_token_count": 3}
TOLERANCE = {"absolute": 1e-6, "first_components": 1e-6}


def case_of(
    group: Group,
    asked: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    name: str = "one",
    clause: str = "",
) -> Case:
    return Case(
        id=f"{group}/{name}",
        group=group,
        proves="",
        clause=clause,
        input=asked,
        expected=expected,
        tolerance=TOLERANCE,
    )


def text_case(name: str = "one", *, params: Mapping[str, Any] = {}, **expected: Any) -> Case:
    """A greedy text of three tokens, " upon a time", after the prompt "Once"."""
    defaults = {"max_tokens": 9, "temperature": 0.0, "top_k": 40, "repeat_penalty": 1.0}
    asked = {"model": "stories260K", "prompt": "Once", "params": {**defaults, **params}}
    right = {"text": " upon a time", "token_ids": [5, 6, 7], "usage": USAGE, "certified": True}
    return case_of("text", {**asked, "seed": "0"}, {**right, **expected}, name=name)
