"""What a reply means for its case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from refllm.conform.case import Case, Json

__all__ = ["CONSEQUENCES", "Consequence", "Difference", "Finding", "Status", "Verdict"]

Status: TypeAlias = Literal[
    "passed",
    "failed",
    "skipped",  # the user can change that
    "not applicable",  # this kind of target cannot be asked the case
    "error",  # no answer came
    "expected failure",  # the profile knew
    "unexpected pass",  # the profile said it would fail
]

Consequence: TypeAlias = Literal[
    "answers change",  # the same request gets another answer: nothing else is certain
    "no answer",  # the target ended, was silent, raised, or sent what is no answer
    "wrong text",  # another text or token than the right one
    "wrong numbers",  # vectors, logits, blocks, probabilities
    "refused",  # a valid request gets an error
    "accepted",  # an invalid request gets an answer
    "wrong counts",  # of tokens
    "wrong error",  # its kind or HTTP status
    "unclear error",  # its message or form
]
CONSEQUENCES: tuple[Consequence, ...] = get_args(Consequence)
"""What a fault does to users of the backend, the worst first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first thing that differs.

    `where` names it ("stage top_p", "token 3", "component 17 of text 2"); `expected` and `got`
    are that thing; `tolerances` is how far apart they are in units of what is allowed, None where
    they had to be equal. `expected_values` and `got_values` are for a plot: the numbers around.
    `answer` is the whole answer that it was found in, which `faults` needs.
    """

    where: str
    expected: Any
    got: Any
    tolerances: float | None = None
    expected_values: tuple[float, ...] = ()
    got_values: tuple[float, ...] = ()
    answer: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault that a case shows.

    `cause` says in sentences what is wrong and what to do, `consequence` what the fault does here.
    `is_recognized` is False where no known mistake explains the case, and `cause` only says what
    is seen.
    """

    cause: str
    consequence: Consequence
    is_recognized: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a case ended.

    `reason` is that of a skip, an error or a known deviation, and `link` is where a known deviation
    is described. `findings` are the faults that the case shows: the second is what is still wrong
    once the first is taken away. `change` is how the answer to the same request, asked again,
    differs from the first answer; None where it does not, or was not asked again. `because_of` is
    the id of the case whose failure is the reason for this error.
    """

    case: Case
    status: Status
    reason: str = ""
    difference: Difference | None = None
    findings: tuple[Finding, ...] = ()
    change: Difference | None = None
    because_of: str | None = None
    link: str | None = None
    seconds: float = 0.0

    @property
    def cause(self) -> str | None:
        """The first recognized cause; None where there is none."""
        return next((each.cause for each in self.findings if each.is_recognized), None)

    @property
    def is_as_expected(self) -> bool:
        """Whether the run may still end with exit code 0."""
        return self.status in ("passed", "skipped", "not applicable", "expected failure")
