"""Asks a target every case, and says how each one ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from refllm.conform.case import Case, Group, is_drawn
from refllm.conform.compare import MalformedAnswer, compare
from refllm.conform.profiles import Profile
from refllm.conform.reply import Broken, Implementation, Reply, Skipped, Target
from refllm.conform.symptoms import likely_cause
from refllm.conform.verdict import Verdict

__all__ = ["run_cases", "verdict_of"]

# Cases of a group that were lost one after the other; whoever has lost these loses the next too,
# and each may take as long as a case is allowed to.
MOST_LOST = 5


def run_cases(
    target: Target,
    implementation: Implementation,
    cases: Sequence[Case],
    *,
    profile: Profile | None = None,
    absent_models: Iterable[str] = (),
    each: Callable[[Verdict], object] = lambda verdict: None,
) -> tuple[Verdict, ...]:
    """The verdict of every case, in their order, of a target that has started.

    What the target does not answer, or needs one of `absent_models`, is skipped. A group in which
    nothing comes back is left alone after some cases. `profile` names known deviations. `each` is
    told every verdict as soon as there is one; likely causes are known only when all are in.
    """
    absent = frozenset(absent_models)
    lost: Counter[Group] = Counter()  # in a row
    verdicts = []
    for case in cases:
        start = time.perf_counter()
        reply = _unasked(implementation, case, absent, lost[case.group]) or target.run(case)
        if isinstance(reply, Broken) and reply.is_lost:
            lost[case.group] += 1
        elif not isinstance(reply, Skipped):
            del lost[case.group]
        verdict = _in_profile(verdict_of(case, reply), profile)
        verdicts.append(replace(verdict, seconds=time.perf_counter() - start))
        each(verdicts[-1])
    causes = likely_cause(verdicts)
    return tuple(replace(verdict, cause=causes.get(verdict.case.id)) for verdict in verdicts)


def verdict_of(case: Case, reply: Reply) -> Verdict:
    """What a reply means, known deviations aside."""
    if isinstance(reply, Skipped):
        return Verdict(case=case, status="skipped", reason=reply.reason)
    if isinstance(reply, Broken):
        return Verdict(case=case, status="error", reason=reply.message)
    try:
        difference = compare(case, reply.result)
    except MalformedAnswer as error:
        return Verdict(case=case, status="error", reason=f"not an answer: {error}")
    return Verdict(
        case=case, status="passed" if difference is None else "failed", difference=difference
    )


def _unasked(
    implementation: Implementation, case: Case, absent: Collection[str], n_lost: int
) -> Skipped | Broken | None:
    """Why the case is not even asked; None where it is."""
    if case.group not in implementation.groups:
        return Skipped(f"{implementation.name} is not asked about {case.group}")
    missing = [name for name in case.models if name in absent]
    if missing:
        return Skipped(f"the model {missing[0]} is not here")
    is_seeded = case.group == "text" and is_drawn(case.input["params"])
    if is_seeded and not implementation.draws_as_refllm:
        return Skipped(f"{implementation.name} draws with random numbers of its own")
    if n_lost >= MOST_LOST:
        return Broken(
            f"not asked: {MOST_LOST} cases of {case.group} in a row brought no answer; mend those",
            is_lost=True,
        )
    return None


def _in_profile(verdict: Verdict, profile: Profile | None) -> Verdict:
    """The verdict, seen by somebody who knows this backend's deviations."""
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
