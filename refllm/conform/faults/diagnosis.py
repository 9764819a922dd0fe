"""All that a run's failed cases show: answers that change, lost ones, first and second faults.

1  answers that change from one request to the next
2  cases without an answer, by what was said instead
3  known mistakes (`causes`), and errors that repeat
4  what is left once a known mistake is taken out of the answer (`second_faults`), again by 3
5  counts of a text or of vectors that are wrong for another reason
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from refllm.conform.case import Case, Json
from refllm.conform.compare import compare
from refllm.conform.compare.numbers import MalformedAnswer
from refllm.conform.faults.breakdowns import lost_answers, repeated_errors
from refllm.conform.faults.causes import likely_cause, symptom_named
from refllm.conform.faults.second_faults import WITHOUT, with_right_content
from refllm.conform.verdict import Consequence, Finding, Verdict, consequence_of

__all__ = ["findings_of"]

# A fault below a fault below a fault.
MOST_FAULTS = 3

NO_GENERATOR = (
    "The same request gets another answer each time, though nothing in it is random: take the most "
    "likely token where temperature is 0, and keep nothing from one request to the next."
)
NO_SEED = (
    "The same seed gets another text each time: begin each request with a generator of its seed, "
    "and keep nothing from one request to the next."
)
NO_MEMORY = (
    "The same request gets other numbers each time: look for memory that is read before it is "
    "written, for a dropout that is on, and for what is kept from one request to the next."
)
UNCERTAIN = (
    "The token is another one. While the same question gets another token each time, that says no "
    "more: any mistake gives it now and then."
)
UNKNOWN_DRAW = (
    "The token is another one, and no known mistake explains it: begin with the smallest case "
    "below, and answer the stages of the sampler, too; then the first that differs is named."
)
UNKNOWN: Mapping[Consequence, str] = {
    "wrong text": "The text or a token is another one, and no known mistake explains it: ask the "
    "parts one after the other, tokenizer, logits, sampling; the first that fails is the reason.",
    "wrong numbers": "Numbers are other ones, and no known mistake explains them: begin with the "
    "smallest case below.",
    "refused": "A valid request is refused.",
    "accepted": "A request that must be refused is answered: check its values before it is run.",
    "wrong counts": "The counts of tokens are wrong, and no known mistake explains them: count "
    "what the model reads, BOS and all, and what it generates, the end token and all.",
    "wrong error": "The error has another kind or status than the interface says.",
    "unclear error": "The error's message or form is not what a client needs: name what is wrong.",
}


def findings_of(verdicts: Sequence[Verdict]) -> Mapping[str, tuple[Finding, ...]]:
    """Return what each failed or lost case of one run shows, by its id, the first fault first."""
    found: dict[str, list[Finding]] = {}
    for verdict in verdicts:
        if verdict.change is not None:
            found.setdefault(verdict.case.id, []).append(_change(verdict.case))
    for case_id, finding in lost_answers(verdicts).items():
        found.setdefault(case_id, []).append(finding)
    for case_id, finding in (*_faults(verdicts), *_counts(verdicts)):
        found.setdefault(case_id, []).append(finding)
    if any(v.change is not None and v.case.group == "sampling" for v in verdicts):
        found = _without_coincidences(found)
    return {case_id: tuple(dict.fromkeys(findings)) for case_id, findings in found.items()}


def _without_coincidences(found: Mapping[str, list[Finding]]) -> dict[str, list[Finding]]:
    """The findings, where tokens are random: what a mistake gives, chance gives as well."""
    uncertain = Finding(cause=UNCERTAIN, consequence="wrong text", is_recognized=False)
    return {
        case_id: [
            uncertain
            if case_id.startswith("sampling/") and each.consequence == "wrong text"
            else each
            for each in findings
        ]
        for case_id, findings in found.items()
    }


def _change(case: Case) -> Finding:
    if case.group not in ("text", "api", "sampling", "tokenizer") or case.input.get("texts"):
        return Finding(cause=NO_MEMORY, consequence="answers change")
    params = case.input.get("params") or {}
    is_greedy = params.get("temperature", 0.0) <= 0 or params.get("top_k") == 1
    cause = NO_GENERATOR if is_greedy or case.group != "text" else NO_SEED
    return Finding(cause=cause, consequence="answers change")


def _faults(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, Finding]]:
    """The faults of each case whose answer differs, one below the other."""
    # What differs only when it is asked again has a right first answer.
    left = [_first_answer(verdict) for verdict in verdicts]
    open_ids = {verdict.case.id for verdict in left if verdict.difference is not None}
    for _ in range(MOST_FAULTS):
        causes = dict(likely_cause(left))
        causes |= repeated_errors(left, causes)
        without = {}
        for verdict in left:
            if verdict.case.id in open_ids and verdict.difference is not None:
                cause = causes.get(verdict.case.id)
                yield verdict.case.id, _finding(verdict, cause)
                rest = None if cause is None else _rest(verdict, cause)
                if rest is not None:
                    without[verdict.case.id] = rest
        left = [without.get(verdict.case.id, verdict) for verdict in left]
        open_ids = {case_id for case_id, each in without.items() if each.difference is not None}
        if not open_ids:
            return


def _first_answer(verdict: Verdict) -> Verdict:
    if verdict.change is None or verdict.difference is not verdict.change:
        return verdict
    return replace(verdict, status="passed", difference=None)


def _finding(verdict: Verdict, cause: str | None) -> Finding:
    assert verdict.difference is not None
    consequence = consequence_of(verdict.case, verdict.difference)
    if cause is not None:
        return Finding(cause=cause, consequence=consequence)
    is_token = verdict.case.group == "sampling" and consequence == "wrong text"
    said = UNKNOWN_DRAW if is_token else UNKNOWN[consequence]
    return Finding(cause=said, consequence=consequence, is_recognized=False)


PARTS = {symptom_named(name).cause: without for name, without in WITHOUT.items()}


def _rest(verdict: Verdict, cause: str) -> Verdict | None:
    """What is left of a failed case without the fault; None where it cannot be taken out."""
    assert verdict.difference is not None
    without = PARTS.get(cause)
    if without is None:
        return None
    try:
        return _compared(verdict, without(verdict.case, verdict.difference.answer))
    except (LookupError, TypeError, ValueError):  # an answer can have any shape
        return None


def _compared(verdict: Verdict, answer: Json) -> Verdict | None:
    """The verdict of another answer; None where it is none."""
    try:
        difference = compare(verdict.case, answer)
    except MalformedAnswer:
        return None
    status = verdict.status if difference is not None else "passed"
    return replace(verdict, status=status, difference=difference)


def _counts(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, Finding]]:
    """Wrong counts of prompts whose texts or vectors differ, which are compared first."""
    alone = []
    for verdict in verdicts:
        if verdict.difference is None or _finding(verdict, None).consequence == "wrong counts":
            continue
        right = with_right_content(verdict.case, verdict.difference.answer)
        rest = None if right is None else _compared(verdict, right)
        if rest is not None:
            alone.append(rest)
    causes = likely_cause(alone)
    for verdict in alone:
        if verdict.difference is not None:
            yield verdict.case.id, _finding(verdict, causes.get(verdict.case.id))
