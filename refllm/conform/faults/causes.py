"""From the verdicts of a run to what is probably wrong: the mistakes that explain most of them.

Every failed case whose answer is known is put to the mistakes of its group. The one that explains
most, passed cases that it would have made fail taken off, is believed first, then the one that
explains most of what is left. What stays unexplained may be the trace of a mistake that another
group showed: see `_by_descent`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from refllm.conform.case import GROUPS, Case, Group, Json
from refllm.conform.compare.numbers import MalformedAnswer
from refllm.conform.faults.of_api import API
from refllm.conform.faults.of_embeddings import EMBEDDINGS
from refllm.conform.faults.of_logits import LOGITS
from refllm.conform.faults.of_ops import OPS
from refllm.conform.faults.of_quant import QUANT
from refllm.conform.faults.of_sampling import SAMPLING
from refllm.conform.faults.of_text import TEXT
from refllm.conform.faults.of_tokenizer import TOKENIZER
from refllm.conform.faults.of_written_text import WRITTEN_TEXT
from refllm.conform.faults.symptom import Symptom
from refllm.conform.verdict import Verdict
from refllm.errors import LlmError

__all__ = ["SYMPTOMS", "likely_cause", "symptom_named"]

SYMPTOMS: tuple[Symptom, ...] = (
    *TOKENIZER,
    *QUANT,
    *OPS,
    *SAMPLING,
    *LOGITS,
    *TEXT,
    *WRITTEN_TEXT,
    *EMBEDDINGS,
    *API,
)

# What is not quick is asked about few cases, and holds for others.
COMPUTED = frozenset(symptom.cause for symptom in SYMPTOMS if symptom.is_slow)

# A mistake that takes long to compute is asked about so many cases, the smallest; about some more
# where another group showed it already.
FEW = 3
SOME = 10
# Characters of a text that show what wrote it.
TEXT_TO_SEE = 24

Failed: TypeAlias = tuple[Case, Json]
# Whether a case's failure can come from what the other case showed, and its cause.
Source: TypeAlias = Callable[[Case, Case, str], bool]


def symptom_named(name: str) -> Symptom:
    """The first symptom of that name; those that share a name share the cause.

    Errors: `LookupError` where there is none.
    """
    found = [symptom for symptom in SYMPTOMS if symptom.name == name]
    if not found:
        raise LookupError(f"there is no symptom {name!r}")
    return found[0]


def likely_cause(verdicts: Sequence[Verdict]) -> Mapping[str, str]:
    """What is probably wrong, in a sentence, by the id of each failed case that can be explained.

    The verdicts are those of one run of one target.
    """
    causes: dict[str, str] = {}
    for group in GROUPS:
        of_group = [verdict for verdict in verdicts if verdict.case.group == group]
        failed = [
            (verdict.case, verdict.difference.answer)
            for verdict in of_group
            if verdict.difference is not None
        ]
        passed = [v.case for v in of_group if v.status in ("passed", "unexpected pass")]
        symptoms = [symptom for symptom in SYMPTOMS if group in symptom.groups]
        causes |= _of_group(symptoms, failed, passed, known=frozenset(causes.values()))
    causes = _without_consequences(causes)
    return causes | _by_descent(verdicts, causes)


def _of_group(
    symptoms: Sequence[Symptom],
    failed: Sequence[Failed],
    passed: Sequence[Case],
    *,
    known: Collection[str],
) -> dict[str, str]:
    """The causes of one group's failed cases; `known` are those that another group showed.

    What is known is asked first, then the quick mistakes, then those that take long; then, of more
    cases, those of these that were found; and the vague ones last.
    """
    causes: dict[str, str] = {}

    def ask(chosen: Iterable[Symptom], most: int, least_share: float = 0.0) -> None:
        left = [(case, got) for case, got in failed if case.id not in causes]
        causes.update(_explained(chosen, left, passed, most=most, least_share=least_share))

    quick = [symptom for symptom in symptoms if not symptom.is_vague and not symptom.is_slow]
    slow = [symptom for symptom in symptoms if not symptom.is_vague and symptom.is_slow]
    vague = [symptom for symptom in symptoms if symptom.is_vague]
    ask([symptom for symptom in (*quick, *slow) if symptom.cause in known], SOME)
    ask(quick, FEW)
    by_look = frozenset(causes)
    ask(slow, FEW, 0.5)
    found = [s for s in slow if s.cause in {causes[case] for case in causes.keys() - by_look}]
    # What was computed is worth more than what it looks like.
    causes |= _explained(found, [f for f in failed if f[0].id in by_look], passed, most=SOME)
    ask(found, SOME)
    # And what looks like chance is none where there is a reason.
    ask([symptom for symptom in vague if not (symptom.is_slow and causes)], SOME)
    return causes


def _explained(
    symptoms: Iterable[Symptom],
    failed: Sequence[Failed],
    passed: Sequence[Case],
    *,
    most: int,
    least_share: float = 0.0,
) -> dict[str, str]:
    """The cause of each failed case that one of the mistakes explains.

    Mistakes that take long are asked about `most` cases. One that explains less than `least_share`
    of so many is not believed: that would be chance.
    """
    accounts = [_account(symptom, failed, most) for symptom in symptoms]
    n_asked = min(most, len(failed))
    accounts = [a for a in accounts if len(a.shares) >= max(1, least_share * n_asked)]
    against = {a.symptom.name: _n_against(a.symptom, passed) for a in accounts}
    causes: dict[str, str] = {}
    while accounts:
        # Of equals the first in the table; in tenths, because what is below is noise.
        best = max(accounts, key=lambda a: round(a.weight(causes) - against[a.symptom.name], 1))
        if best.weight(causes) <= against[best.symptom.name]:
            break
        causes |= {case: best.symptom.cause for case in best.shares if case not in causes}
        accounts.remove(best)
    return causes


@dataclass(frozen=True, slots=True)
class _Account:
    """How well a mistake explains each case, by id; only those that it does explain."""

    symptom: Symptom
    shares: Mapping[str, float]

    def weight(self, explained: Collection[str]) -> float:
        """The sum over what nothing else explains yet."""
        return sum(share for case, share in self.shares.items() if case not in explained)


def _account(symptom: Symptom, failed: Sequence[Failed], most: int) -> _Account:
    asked = sorted(failed, key=_size)[:most] if symptom.is_slow else failed
    shares = {case.id: _evidence(symptom, case, got) for case, got in asked}
    return _Account(symptom, {case: share for case, share in shares.items() if share > 0})


def _size(failed: Failed) -> tuple[bool, int]:
    """Whether there is hardly anything to see, and how much there is to compute."""
    case, got = failed
    text = str(got.get("text", ""))
    is_bare = case.group == "text" and len(text) < TEXT_TO_SEE
    return is_bare, len(str(case.input)) + len(text)


# An answer can have any shape beyond the first difference, and a mistake can have no answer to a
# question. A guess must not end the run.
NO_ANSWER = (
    ArithmeticError,
    AttributeError,
    LookupError,
    LlmError,
    MalformedAnswer,
    TypeError,
    ValueError,
)


def _evidence(symptom: Symptom, case: Case, got: Json) -> float:
    try:
        with np.errstate(all="ignore"):
            return symptom.evidence(case, got)
    except NO_ANSWER:
        return 0.0


def _n_against(symptom: Symptom, passed: Sequence[Case]) -> int:
    """How many of the cases that passed speak against the mistake."""
    count = 0
    for case in passed:
        with suppress(*NO_ANSWER), np.errstate(all="ignore"):
            count += symptom.would_fail(case)
    return count


# --- What one mistake does elsewhere -------------------------------------------------------------


# What the first makes of a text looks like the others, where nothing but the text is looked at.
CONSEQUENCES: Mapping[str, tuple[str, ...]] = {
    "BOS missing": (
        "BOS not counted",
        "empty prompt refused",
        "first token not seen",
        "KV cache lacks the first token",
    ),
    "space before the first word missing": (
        "BOS not counted",
        "BOS counted twice",
        "space before the text",
    ),
    "prompt cut": ("BOS not counted", "BOS counted twice"),
    "softmax overflows": ("probabilities rounded otherwise",),
    "special tokens not added": (
        "special tokens missing",
        "count without special tokens",
        "empty text refused",
    ),
}


def _without_consequences(causes: Mapping[str, str]) -> dict[str, str]:
    """The causes, with one mistake in place of what comes of it."""
    replaced = dict(causes)
    found = set(causes.values())
    for first, others in CONSEQUENCES.items():
        cause = symptom_named(first).cause
        if cause in found:
            followed = {symptom_named(other).cause for other in others}
            replaced |= {case: cause for case in causes if causes[case] in followed}
    return replaced


def _by_descent(verdicts: Sequence[Verdict], causes: Mapping[str, str]) -> dict[str, str]:
    """Causes of failed cases that have none, where there is exactly one that they can come from.

    A mistake in a network shows in its logits and again in its texts; one in a format of blocks
    shows in the models stored so; and what was computed for few cases, or for one model, holds for
    the others of their group.
    """
    found: dict[str, str] = {}
    for verdict in verdicts:
        case = verdict.case
        if verdict.difference is None or case.id in causes:
            continue
        for sources in ANCESTORS.get(case.group, ()):
            likely = {
                causes[other.case.id]
                for other in verdicts
                if other.case.id in causes and sources(case, other.case, causes[other.case.id])
            }
            if likely:
                if len(likely) == 1:
                    found[case.id] = likely.pop()
                break
    return found


def _of_its_format(case: Case, other: Case, _cause: str) -> bool:
    """Whether the other case is about the format that this case's model is stored in."""
    if other.group != "quant":
        return False
    name = str(case.input.get("model", ""))
    stored = "Q8_0" if name == "tiny-chat" else name.removeprefix("tiny-chat-")
    return bool(other.input["format"] == stored)


def _of(*groups: Group) -> Source:
    return lambda _case, other, _cause: other.group in groups


def _of_its_own(case: Case, other: Case, cause: str) -> bool:
    """Whether it is of the same group, and its cause one that was not asked about every case."""
    return case.group == other.group and cause in COMPUTED


# In the order in which they are asked; the first that has any cause decides.
ANCESTORS: Mapping[str, tuple[Source, ...]] = {
    "logits": (_of_its_format, _of_its_own, _of("ops")),
    "text": (_of_its_own, _of("logits"), _of_its_format, _of("tokenizer"), _of("sampling")),
    "embeddings": (_of_its_own, _of("tokenizer"), _of("ops")),
    "api": (_of("text", "embeddings"), _of("tokenizer"), _of("sampling")),
}
