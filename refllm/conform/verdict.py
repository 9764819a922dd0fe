"""What a reply means for its case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from refllm.conform.case import Case, Json

__all__ = ["Difference", "Status", "Verdict"]

Status: TypeAlias = Literal[
    "passed",
    "failed",
    "skipped",
    "error",  # the harness broke
    "expected failure",  # the profile knew
    "unexpected pass",  # the profile said it would fail
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first thing that differs.

    `where` names it ("stage top_p", "token 3", "component 17 of text 2"); `expected` and `got`
    are that thing; `tolerances` is how far apart they are in units of what is allowed, None where
    they had to be equal. `expected_values` and `got_values` are for a plot: the numbers around.
    `answer` is the whole answer that it was found in, which `symptoms` looks at.
    """

    where: str
    expected: Any
    got: Any
    tolerances: float | None = None
    expected_values: tuple[float, ...] = ()
    got_values: tuple[float, ...] = ()
    answer: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a case ended: `reason` of a skip, an error or a known deviation; `cause` if recognized.

    `link` is where a known deviation is described.
    """

    case: Case
    status: Status
    reason: str = ""
    difference: Difference | None = None
    cause: str | None = None
    link: str | None = None
    seconds: float = 0.0

    @property
    def is_as_expected(self) -> bool:
        """Whether the run may still end with exit code 0."""
        return self.status in ("passed", "skipped", "expected failure")
