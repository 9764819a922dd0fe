"""What comes back from a target: an answer, a reason why it was not asked, or a breakdown.

A breakdown is never a wrong answer: it says that no answer came, and nothing of what one would be.
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
"""The interface's errors."""

# The largest right answer of the suite, 64 · 1536 logits of 17 digits each, is 2.4 MB. Once it is
# read, JSON takes up to twenty times its length in memory.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""How long an answer may be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the backend said; for a refusal {"error": {"kind": …, "message": …}}, see `KINDS`.

    `n_bytes` is how long it was on its way; 0 where it was on none.
    """

    result: Json
    n_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """The backend is not asked this, for a reason that its author or the user can change."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotApplicable:
    """No target of this kind can be asked this: its protocol does not carry the question."""

    reason: str


@dataclass(frozen=True, slots=True)
class HarnessError:
    """No answer came, or one that is no answer to the question.

    `is_lost`: nothing came that could be read; the target ended, kept silent, or sent something
    else. `because_of` is the id of an earlier case whose failure is the reason for this one.
    """

    message: str
    is_lost: bool = False
    because_of: str | None = None


Reply: TypeAlias = Answer | Skipped | NotApplicable | HarnessError


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """Who is tested, as it says itself: `groups` are those that can be asked, `details` for people.

    `draws_as_refllm`: the same random numbers for the same seed, so seeded texts can be compared.
    """

    name: str
    version: str = ""
    language: str = ""
    groups: frozenset[Group]
    draws_as_refllm: bool = False
    details: Mapping[str, str] = field(default_factory=dict)


class TargetError(Exception):
    """The target could not be run at all; the message says what to do."""


class Target(Protocol):
    """A backend and the way to it. `start` comes first and `stop` last, also after a failure."""

    def start(self) -> Implementation:
        """Make it ready. Errors: `TargetError`."""

    def not_applicable(self, case: Case) -> NotApplicable | None:
        """Return why no target of this kind can be asked the case, None where it can."""

    def run(self, case: Case) -> Reply:
        """Ask one case. Never raises: what goes wrong is `HarnessError`."""

    def stop(self) -> None:
        """Let it go; never raises."""
