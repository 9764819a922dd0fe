"""What a target returns: an answer, a reason why it was not asked, or that no answer arrived.

`HarnessError` is never a wrong answer: nothing is known of what the backend would have answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from refllm.conform.case import Case, Group, Json

__all__ = [
    "KINDS",
    "MAX_ANSWER_BYTES",
    "Answer",
    "HarnessError",
    "Implementation",
    "NotApplicable",
    "Reply",
    "Skipped",
    "Target",
    "TargetError",
]

KINDS = ("invalid-input", "model-not-supported", "runtime-error")
"""The kinds of the interface's errors."""

# The largest right answer of the suite, 64 · 1536 logits of 17 digits each, is 2.4 MB. The parsed
# JSON takes up to twenty times its length in memory.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""The length of the longest answer that is read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the backend answered.

    Attributes:
        result: The result; for a refusal {"error": {"kind": …, "message": …}}, see `KINDS`.
        n_bytes: Its length as it was sent; 0 for an answer of this process.
    """

    result: Json
    n_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """The backend is not asked the case, for a reason that its author or the user can change."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotApplicable:
    """No target of this kind can be asked the case: its protocol does not carry the question."""

    reason: str


@dataclass(frozen=True, slots=True)
class HarnessError:
    """No answer arrived, or one that is no answer to the question.

    Attributes:
        message: What happened instead, and what to do.
        is_lost: Whether nothing arrived that could be read: the target ended, was silent, or sent
            something else.
        because_of: The id of an earlier case whose failure is the reason for this one.
    """

    message: str
    is_lost: bool = False
    because_of: str | None = None


Reply: TypeAlias = Answer | Skipped | NotApplicable | HarnessError


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """What is tested, as it describes itself.

    Attributes:
        name: Its name, such as "llama-server".
        version: Its version, "" if it gives none.
        language: The language that it is written in, "" if it gives none.
        groups: The groups that it can be asked.
        draws_as_refllm: Whether a seed gives refllm's random numbers, so that sampled texts can be
            compared.
        claims_revision: The numerics revision whose bits it claims to compute, None for no claim.
        details: Anything else, for people.
    """

    name: str
    version: str = ""
    language: str = ""
    groups: frozenset[Group]
    draws_as_refllm: bool = False
    claims_revision: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)


class TargetError(Exception):
    """The target could not be run at all; the message says what to do."""


class Target(Protocol):
    """A backend and the way to it. `start` is called first; `stop` last, also after a failure."""

    def start(self) -> Implementation:
        """Make the target ready; raise `TargetError` where it cannot be."""

    def not_applicable(self, case: Case) -> NotApplicable | None:
        """Return why no target of this kind can be asked the case, None where it can."""

    def run(self, case: Case) -> Reply:
        """Ask one case; never raise: a failure is returned as `HarnessError`."""

    def stop(self) -> None:
        """Release the target; never raise."""
