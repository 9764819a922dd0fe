"""What a reply means for its case, and what a wrong one does to the users of a backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from refllm.conform.case import Case, Json

__all__ = [
    "CONSEQUENCES",
    "Consequence",
    "Difference",
    "Finding",
    "Status",
    "Verdict",
    "consequence_of",
    "rank",
]

Status: TypeAlias = Literal[
    "passed",
    "failed",
    "skipped",  # the user can change that
    "not applicable",  # this kind of target cannot be asked the case
    "error",  # no answer arrived
    "expected failure",  # a known deviation of the profile
    "unexpected pass",  # a known deviation of the profile that is gone
]

Consequence: TypeAlias = Literal[
    "answers change",  # the same request gets another answer: nothing else is certain
    "no answer",  # the target ended, was silent, raised, or sent something else
    "wrong text",  # a text or a token
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

    Attributes:
        where: Its name: "stage top_p", "token 3", "component 17 of text 2".
        expected: The right value.
        got: The target's value.
        tolerances: How far apart they are in units of what is allowed; None where they had to be
            equal.
        expected_values: The numbers around the right value, for a plot.
        got_values: The target's numbers around its value.
        answer: The whole answer, for the diagnosis in `refllm.conform.faults`.
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

    Attributes:
        cause: What is wrong and what to do, in sentences.
        consequence: What the fault does to users in this case.
        is_recognized: False where no known fault explains the case; then `cause` only describes
            the difference.
    """

    cause: str
    consequence: Consequence
    is_recognized: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a case ended.

    Attributes:
        case: The question.
        status: How it ended.
        reason: Why, for a skip, an error or a known deviation.
        difference: The first thing that differs from the right answer.
        findings: The faults that the case shows. The second is what is still wrong once the first
            is taken out of the answer.
        change: How the answer differs when the same request is sent again; None where it does
            not, or where the request was sent once.
        because_of: The id of the case whose failure is the reason for this error.
        link: Where a known deviation is described.
        seconds: How long the case took.
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
        """Return the first recognized cause, None where there is none."""
        return next((each.cause for each in self.findings if each.is_recognized), None)

    @property
    def is_as_expected(self) -> bool:
        """Return whether the run may still end with exit code 0."""
        return self.status in ("passed", "skipped", "not applicable", "expected failure")


ABOUT_MESSAGE = ("the error's message", "the form of the error's body")


def consequence_of(case: Case, difference: Difference) -> Consequence:
    """Return what it means for users that the case was answered with this difference.

    Args:
        case: The question and its right answer.
        difference: The first thing that differs, with the whole answer.
    """
    answer = difference.answer
    if "error" in case.expected:
        if "error" not in answer:
            return "accepted"
        return "unclear error" if difference.where in ABOUT_MESSAGE else "wrong error"
    if "error" in answer:
        return "refused"
    if difference.where.removeprefix("usage.").replace("_", " ").endswith("token count"):
        return "wrong counts"
    match case.group:
        case "tokenizer" | "text":
            is_about_text = True
        case "api":
            is_about_text = "embeddings" not in answer
        case "sampling":  # candidates decide the token, probabilities alone may not
            is_about_text = answer.get("token") != case.expected.get("token")
        case _:
            is_about_text = False
    return "wrong text" if is_about_text else "wrong numbers"


def rank(consequence: Consequence) -> int:
    """Return the place of a consequence in the order of `CONSEQUENCES`, 0 for the worst."""
    return CONSEQUENCES.index(consequence)
