"""Asks a target every case, and says how each one ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from refllm.conform.case import Case
from refllm.conform.compare import MalformedAnswer, compare
from refllm.conform.profiles import Profile
from refllm.conform.reply import Broken, Implementation, Reply, Skipped, Target
from refllm.conform.symptoms import likely_cause
from refllm.conform.verdict import Verdict

__all__ = ["run_cases", "verdict_of"]


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

    What the target does not answer, or needs one of `absent_models`, is skipped. `profile` names
    known deviations. `each` is told every verdict as soon as there is one; likely causes are known
    only when all are in.
    """
    absent = frozenset(absent_models)
    verdicts = []
    for case in cases:
        start = time.perf_counter()
        reply = _reply(target, implementation, case, absent)
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


def _reply(
    target: Target, implementation: Implementation, case: Case, absent: frozenset[str]
) -> Reply:
    if case.group not in implementation.groups:
        return Skipped(f"{implementation.name} is not asked about {case.group}")
    missing = [name for name in case.models if name in absent]
    if missing:
        return Skipped(f"the model {missing[0]} is not here")
    if _is_drawn(case) and not implementation.draws_as_refllm:
        return Skipped(f"{implementation.name} draws with random numbers of its own")
    return target.run(case)


def _is_drawn(case: Case) -> bool:
    """Whether the answer is a text that depends on random numbers."""
    if case.group != "text":
        return False
    params = case.input["params"]
    return bool(params["temperature"] > 0 and params["top_k"] != 1 and params["max_tokens"] > 0)


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
