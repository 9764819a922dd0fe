"""What a protocol over HTTP has to say of itself, and what its readers have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from refllm.conform.case import Json
from refllm.conform.reply import NotApplicable
from refllm.interface import InferencingParams

__all__ = ["Asked", "Dialect", "counts", "has_penalty", "of_type", "params_of"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of the suite as a POST: a path, headers, and what the body says."""

    path: str
    headers: Mapping[str, str]
    body: object


class Dialect(Protocol):
    """How the suite's questions are asked in a protocol, and where its answers have what.

    A result has the fields of the interface's, as far as the answer has them with their types.
    """

    name: str

    def text(self, asked: Json, model: str) -> Asked | NotApplicable:
        """A case of the group `text`."""

    def embeddings(self, asked: Json, model: str) -> Asked | NotApplicable:
        """A case of the group `embeddings`."""

    def result(self, value: Any) -> dict[str, Any]:
        """What there is of a result in an answer's JSON."""


def params_of(asked: Json) -> InferencingParams | NotApplicable:
    """A case's parameters, with defaults for others; `NotApplicable` for what is not in JSON."""
    given = asked.get("params") or {}
    if not all(math.isfinite(value) for value in given.values()):
        return NotApplicable("JSON has no NaN and no infinity")
    return InferencingParams(**given)


def has_penalty(params: InferencingParams) -> bool:
    """Whether tokens that were there before are treated otherwise."""
    return params.repeat_penalty != 1 and params.repeat_penalty_last_n_token_count > 0


def of_type(wanted: type, value: Any, name: str) -> dict[str, Any]:
    """The field `name`, if there is one of that type."""
    found = value.get(name) if isinstance(value, Mapping) else None
    return {name: found} if isinstance(found, wanted) else {}


def counts(value: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """The interface's `usage`, from that of an answer, whose fields have those names."""
    usage = value.get("usage") if isinstance(value, Mapping) else None
    found = {
        ours: usage[theirs]
        for theirs, ours in names.items()
        if isinstance(usage, Mapping) and type(usage.get(theirs)) is int
    }
    return {"usage": found} if found else {}
