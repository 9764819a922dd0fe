"""A known fault: its name, the wrong formula, how an answer shows it, and the words of the report.

Each group of cases has one catalogue, filled by decorators and calls:

    API = Faults("api")

    @API.seen("top-k 0 refused", "A top_k of 0 is refused: it switches top-k off.")
    def top_k_0_refused(case, got): ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from refllm.conform.case import Case, Group, Json
from refllm.conform.compare import compare
from refllm.conform.compare.numbers import Doubles, MalformedAnswer

__all__ = ["Fault", "Faults", "agrees", "explained_share"]

# A fault that takes away less than this of a difference is not what made it.
MIN_SHARE = 0.8

Sees: TypeAlias = Callable[[Case, Json], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A known fault in the answers of one group.

    Attributes:
        name: A few words. Faults of several groups that share a name share the cause.
        cause: A sentence for the report: what is wrong and what to do.
        group: The group whose cases show it.
        evidence: How well the fault explains an answer to a failed case, from 0 (not at all) to 1.
        would_fail: Whether a case that passed would have failed with the fault, which speaks
            against it; False where that is not known.
        is_slow: Whether it is asked about few cases only, those that no quick fault explains.
        is_vague: Whether it is asked last, about what no other fault explains.
        wrong: What computes the fault: a `Rule` of a sampler, a `Network`, an `Encoder`, a
            `Writer`, or a function. None where the answer shows it without a computation.
        op: The operation of the group ops that shows a fault of a network alone.
        repair: The answer without the fault, in which a second fault may show.
    """

    name: str
    cause: str
    group: Group
    evidence: Callable[[Case, Json], float]
    would_fail: Callable[[Case], bool] = lambda _case: False
    is_slow: bool = False
    is_vague: bool = False
    wrong: Any = None
    op: str = ""
    repair: Callable[[Case, Json], Json] | None = None


class Faults(list[Fault]):
    """The known faults of one group; where two explain a case equally well, the first is named."""

    def __init__(self, group: Group, *known: Faults) -> None:
        """`known` are the faults of other groups whose causes are found here by name."""
        super().__init__()
        self.group: Group = group
        self.causes = {fault.name: fault.cause for faults in known for fault in faults}

    def named(self, name: str) -> Fault:
        """Return the fault of that name. Raises: `LookupError` if there is none."""
        for fault in self:
            if fault.name == name:
                return fault
        raise LookupError(f"the group {self.group} has no fault {name!r}")

    def add(
        self, name: str, cause: str, evidence: Callable[[Case, Json], float], **options: Any
    ) -> None:
        """Add a fault; `options` are further attributes of `Fault`."""
        cause = cause or self.causes[name]
        self.append(Fault(name=name, cause=cause, group=self.group, evidence=evidence, **options))

    def seen(self, name: str, cause: str = "", **options: Any) -> Callable[[Sees], Sees]:
        """Decorate the function that recognizes a fault by an answer alone.

        Without a `cause` it is the one that another group has by this name.
        """

        def register(sees: Sees) -> Sees:
            self.add(name, cause, lambda case, got: float(sees(case, got)), **options)
            return sees

        return register

    def answering(
        self,
        name: str,
        cause: str,
        answer: Callable[[Case], Json | None],
        *,
        at_least: Callable[[Json], Json] = lambda answer: answer,
        **options: Any,
    ) -> None:
        """Add a fault whose answers can be computed.

        It is recognized where the target's answer is that one, within the case's tolerance.

        Args:
            name: The fault's name.
            cause: The sentence for the report.
            answer: What a backend with this fault answers; None where the fault has no effect.
            at_least: The part of it that every target gives: what speaks against the fault.
            options: Further attributes of `Fault`.
        """

        def evidence(case: Case, got: Json) -> float:
            wrong = answer(case)
            return float(wrong is not None and agrees(case, wrong, got))

        def would_fail(case: Case) -> bool:
            wrong = answer(case)
            return wrong is not None and not agrees(case, case.expected, at_least(wrong))

        self.add(name, cause, evidence, would_fail=would_fail, **options)


def agrees(case: Case, expected: Json, got: Json) -> bool:
    """Return whether `got` would pass the case if the case expected that."""
    try:
        return compare(replace(case, expected=expected), got) is None
    except MalformedAnswer:
        return False


def explained_share(difference: Doubles, wrong: Doubles) -> float:
    """Return how much of the difference from the right answer a fault's difference takes away.

    1 is all of it. A share below `MIN_SHARE` is 0, and so is one that is not finite.
    """
    if difference.shape != wrong.shape or not np.isfinite(difference).all():
        return 0.0
    size = float(np.sqrt(np.mean(difference**2)))
    rest = float(np.sqrt(np.mean((difference - wrong) ** 2)))
    share = 1.0 - rest / size if size > 0 else 0.0
    return share if np.isfinite(share) and share >= MIN_SHARE else 0.0
