"""Ask a target every case of the suite, and return how each one ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from refllm.conform.case import Case, Group, is_sampled
from refllm.conform.compare import compare
from refllm.conform.compare.numbers import MalformedAnswer
from refllm.conform.faults.diagnosis import findings_of
from refllm.conform.profiles import Profile
from refllm.conform.repeat import change, kind_of_repeat, times_to_repeat
from refllm.conform.reply import (
    Answer,
    HarnessError,
    Implementation,
    NotApplicable,
    Reply,
    Skipped,
    Target,
)
from refllm.conform.verdict import Difference, Verdict

__all__ = ["run_cases", "verdict_of"]

# Lost cases of a group in a row, after which the group is given up: the next would be lost, too,
# and each may take as long as a case is allowed to.
MAX_LOST = 5
# Of wrong answers, which are kept until the causes are known. All right answers of the suite
# together have about 20 MB.
MAX_WRONG_BYTES = 64 * 1024 * 1024
TOO_MUCH = HarnessError(
    f"not asked: the wrong answers before are longer than {MAX_WRONG_BYTES} bytes together, "
    "and no more are kept; fix those first",
    is_lost=True,
)


def run_cases(
    target: Target,
    implementation: Implementation,
    cases: Sequence[Case],
    *,
    profile: Profile | None = None,
    absent_models: Iterable[str] = (),
    each: Callable[[Verdict], object] = lambda verdict: None,
) -> tuple[Verdict, ...]:
    """Ask every case, and return the verdicts in the same order.

    A case that no target of this kind can be asked is not applicable. One that this target does not
    answer, or that needs one of `absent_models`, is skipped. A group is given up after `MAX_LOST`
    lost cases in a row. Of each kind of answer one is asked for again.

    Args:
        target: A target that has started.
        implementation: What its `start` returned.
        cases: The questions.
        profile: Known deviations of the backend.
        absent_models: The names of models that the target does not have.
        each: Called with every verdict as soon as there is one. Its `findings` are empty, since
            faults are recognized from all verdicts together.
    """
    absent = frozenset(absent_models)
    lost: Counter[Group] = Counter()  # in a row
    last_lost: dict[Group, str] = {}
    repeated: Counter[str] = Counter()
    n_wrong_bytes = 0
    verdicts = []
    for case in cases:
        start = time.perf_counter()
        reply = (
            target.not_applicable(case)
            or _unasked(implementation, case, absent)
            or (TOO_MUCH if n_wrong_bytes > MAX_WRONG_BYTES else None)
            or (
                HarnessError(
                    f"not asked: {MAX_LOST} cases of {case.group} in a row brought no answer; fix "
                    "those first",
                    is_lost=True,
                    because_of=last_lost[case.group],
                )
                if lost[case.group] >= MAX_LOST
                else None
            )
            or target.run(case)
        )
        if isinstance(reply, HarnessError) and reply.is_lost:
            lost[case.group] += 1
            last_lost[case.group] = reply.because_of or case.id
        elif isinstance(reply, Answer | HarnessError):
            del lost[case.group]
        verdict = verdict_of(case, reply)
        if isinstance(reply, Answer) and verdict.status != "error":
            kind = kind_of_repeat(case, reply.result)
            if kind is not None and repeated[kind] < times_to_repeat(kind):
                repeated[kind] += 1
                verdict = _with_change(verdict, change(case, reply.result, target.run(case)))
        if isinstance(reply, Answer) and verdict.difference is not None:
            n_wrong_bytes += reply.n_bytes
        verdict = _in_profile(verdict, profile)
        verdicts.append(replace(verdict, seconds=time.perf_counter() - start))
        each(verdicts[-1])
    findings = findings_of(verdicts)
    return tuple(replace(v, findings=findings.get(v.case.id, ())) for v in verdicts)


def verdict_of(case: Case, reply: Reply) -> Verdict:
    """Return what a reply means, known deviations aside."""
    if isinstance(reply, Skipped):
        return Verdict(case=case, status="skipped", reason=reply.reason)
    if isinstance(reply, NotApplicable):
        return Verdict(case=case, status="not applicable", reason=reply.reason)
    if isinstance(reply, HarnessError):
        return Verdict(case=case, status="error", reason=reply.message, because_of=reply.because_of)
    try:
        difference = compare(case, reply.result)
    except MalformedAnswer as error:
        return Verdict(case=case, status="error", reason=f"not an answer: {error}")
    return Verdict(
        case=case, status="passed" if difference is None else "failed", difference=difference
    )


def _unasked(implementation: Implementation, case: Case, absent: Collection[str]) -> Skipped | None:
    """Return why a case is not asked although a target of this kind can be; None where it is."""
    if case.group not in implementation.groups:
        return Skipped(f"{implementation.name} does not list {case.group} among its groups")
    missing = [name for name in case.models if name in absent]
    if missing:
        return Skipped(f"the target may not have {missing[0]}; if it has, add --have {missing[0]}")
    is_seeded = case.group == "text" and is_sampled(case.input["params"])
    if is_seeded and not implementation.draws_as_refllm:
        return Skipped(
            "sampled texts are compared where the random numbers are refllm's; if they are, set "
            "--draws-as-refllm for a server, draws_as_refllm in a harness"
        )
    return None


def _with_change(verdict: Verdict, changed: Difference | None) -> Verdict:
    """Return the verdict of a case that was asked again; one whose answer changed has failed."""
    if changed is None:
        return verdict
    return replace(
        verdict, status="failed", change=changed, difference=verdict.difference or changed
    )


def _in_profile(verdict: Verdict, profile: Profile | None) -> Verdict:
    """Return the verdict with the profile's known deviations taken into account."""
    deviation = None if profile is None else profile.deviation_of(verdict.case.id)
    if deviation is None or verdict.status not in ("passed", "failed"):
        return verdict
    if verdict.status == "passed" and deviation.may_pass:
        return verdict
    return replace(
        verdict,
        status="expected failure" if verdict.status == "failed" else "unexpected pass",
        reason=deviation.because,
        link=deviation.link,
    )
