"""One known mistake: how to recognize it, and what to tell the person who made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from refllm.conform.case import Case, Group, Json
from refllm.conform.compare import compare
from refllm.conform.compare.numbers import Doubles, MalformedAnswer

__all__ = ["Symptom", "agrees", "answering", "explained_share", "seen"]

# A mistake that takes away less than this of a difference is not what made it.
LEAST_SHARE = 0.8


def _never(_case: Case) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """A known mistake.

    `name` is short and `cause` a sentence that says what is wrong and what to do. `evidence` tells
    from a failed case and the answer to it how well this mistake explains them, from 0 (not at all)
    to 1; it is asked only about cases of `groups`. `would_fail` tells of a case that passed whether
    the mistake would have made it fail, which speaks against it; False where that is not known.
    One that `is_slow` is asked about few cases, and only about what the quick ones do not explain.
    One that `is_vague` comes last: it is asked about what no other mistake explains.
    """

    name: str
    cause: str
    groups: frozenset[Group]
    evidence: Callable[[Case, Json], float]
    would_fail: Callable[[Case], bool] = _never
    is_slow: bool = False
    is_vague: bool = False


def answering(
    name: str,
    cause: str,
    group: Group,
    answer: Callable[[Case], Json | None],
    *,
    at_least: Callable[[Json], Json] = lambda answer: answer,
) -> Symptom:
    """The symptom of a mistake whose answers can be computed.

    `answer` gives what a backend with this mistake answers, or None where the mistake has nothing
    to say. It is recognized where the target's answer is that one, within the case's tolerance.
    `at_least` is the part of it that every target gives: what speaks against the mistake.
    """

    def evidence(case: Case, got: Json) -> float:
        mistaken = answer(case)
        return float(mistaken is not None and agrees(case, mistaken, got))

    def would_fail(case: Case) -> bool:
        mistaken = answer(case)
        return mistaken is not None and not agrees(case, case.expected, at_least(mistaken))

    return Symptom(
        name=name,
        cause=cause,
        groups=frozenset({group}),
        evidence=evidence,
        would_fail=would_fail,
    )


def seen(
    name: str,
    cause: str,
    group: Group,
    sees: Callable[[Case, Json], bool],
    *,
    is_vague: bool = False,
) -> Symptom:
    """The symptom of a mistake that an answer shows by itself."""

    def evidence(case: Case, got: Json) -> float:
        return float(sees(case, got))

    return Symptom(
        name=name,
        cause=cause,
        groups=frozenset({group}),
        evidence=evidence,
        is_vague=is_vague,
    )


def agrees(case: Case, expected: Json, got: Json) -> bool:
    """Whether `got` would pass the case if the case expected that."""
    try:
        return compare(replace(case, expected=expected), got) is None
    except MalformedAnswer:
        return False


def explained_share(difference: Doubles, mistake: Doubles) -> float:
    """How much of the difference from the right answer a mistake's difference takes away.

    1 is all of it. What is less than LEAST_SHARE is 0, and so is what is not finite.
    """
    if difference.shape != mistake.shape or not np.isfinite(difference).all():
        return 0.0
    size = float(np.sqrt(np.mean(difference**2)))
    rest = float(np.sqrt(np.mean((difference - mistake) ** 2)))
    share = 1.0 - rest / size if size > 0 else 0.0
    return share if np.isfinite(share) and share >= LEAST_SHARE else 0.0
