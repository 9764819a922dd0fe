"""From the verdicts of a run to the likely causes: the known faults that explain most of them.

Every failed case is compared with the faults of its group. The fault that explains most, minus the
passed cases that it would have made fail, is chosen first, then the one that explains most of what
is left. A case that stays unexplained may have failed by a fault that another group showed: see
`inherited_causes`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias

import numpy as np

from refllm.conform.case import GROUPS, Case, Group, Json
from refllm.conform.compare.numbers import MalformedAnswer
from refllm.conform.faults.api import API
from refllm.conform.faults.catalog import Fault
from refllm.conform.faults.embeddings import EMBEDDINGS
from refllm.conform.faults.logits import LOGITS
from refllm.conform.faults.ops import OPS
from refllm.conform.faults.quant import QUANT
from refllm.conform.faults.sampling import SAMPLING
from refllm.conform.faults.text import TEXT
from refllm.conform.faults.tokenizer import TOKENIZER
from refllm.conform.verdict import Verdict
from refllm.errors import LlmError

__all__ = ["FAULTS", "fault_named", "likely_cause"]

FAULTS: tuple[Fault, ...] = (*TOKENIZER, *QUANT, *OPS, *SAMPLING, *LOGITS, *TEXT, *EMBEDDINGS, *API)

# A slow fault is asked about few cases, and holds for the others of its group.
COMPUTED = frozenset(fault.cause for fault in FAULTS if fault.is_slow)
# A slow fault is asked about so many cases, the smallest; about some more where another group
# showed it already.
FEW = 3
SOME = 10
# So many characters of a text show what wrote it.
MIN_TEXT = 24

Failed: TypeAlias = tuple[Case, Json]
# Whether a case's failure can come from what the other case showed, and its cause.
Source: TypeAlias = Callable[[Case, Case, str], bool]


def fault_named(name: str) -> Fault:
    """Return the first fault of that name; those that share a name share the cause.

    Raises: `LookupError` if there is none.
    """
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise LookupError(f"there is no fault {name!r}")


def likely_cause(verdicts: Sequence[Verdict]) -> Mapping[str, str]:
    """Return the likely cause, a sentence, by the id of each failed case that can be explained.

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
        faults = [fault for fault in FAULTS if fault.group == group]
        causes |= _of_group(faults, failed, passed, known=frozenset(causes.values()))
    causes = _without_consequences(causes)
    return causes | inherited_causes(verdicts, causes)


def _of_group(
    faults: Sequence[Fault],
    failed: Sequence[Failed],
    passed: Sequence[Case],
    *,
    known: Collection[str],
) -> dict[str, str]:
    """Return the causes of one group's failed cases; `known` are those that another group showed.

    Known faults are asked first, then the quick ones, then the slow ones; then, about more cases,
    the slow ones that were found; and the vague ones last.
    """
    causes: dict[str, str] = {}

    def ask(chosen: Iterable[Fault], n_cases: int, least_share: float = 0.0) -> None:
        left = [(case, got) for case, got in failed if case.id not in causes]
        causes.update(_explained(chosen, left, passed, n_cases=n_cases, least_share=least_share))

    quick = [fault for fault in faults if not fault.is_vague and not fault.is_slow]
    slow = [fault for fault in faults if not fault.is_vague and fault.is_slow]
    vague = [fault for fault in faults if fault.is_vague]
    ask([fault for fault in (*quick, *slow) if fault.cause in known], SOME)
    ask(quick, FEW)
    by_look = frozenset(causes)
    ask(slow, FEW, 0.5)
    found = [f for f in slow if f.cause in {causes[case] for case in causes.keys() - by_look}]
    # A computed fault is stronger evidence than the look of an answer.
    causes |= _explained(found, [f for f in failed if f[0].id in by_look], passed, n_cases=SOME)
    ask(found, SOME)
    # And chance is no cause where a fault was found.
    ask([fault for fault in vague if not (fault.is_slow and causes)], SOME)
    return causes


def _explained(
    faults: Iterable[Fault],
    failed: Sequence[Failed],
    passed: Sequence[Case],
    *,
    n_cases: int,
    least_share: float = 0.0,
) -> dict[str, str]:
    """Return the cause of each failed case that one of the faults explains.

    Slow faults are asked about `n_cases` cases, those with the least to compute. A fault that
    explains less than `least_share` of them is ignored: that would be chance.
    """
    smallest = sorted(failed, key=_size)[:n_cases]
    shares: list[tuple[Fault, Mapping[str, float], int]] = []
    for fault in faults:
        asked = smallest if fault.is_slow else failed
        found = {case.id: _evidence(fault, case, got) for case, got in asked}
        explained = {case: share for case, share in found.items() if share > 0}
        if len(explained) >= max(1, least_share * len(smallest)):
            shares.append((fault, explained, _n_against(fault, passed)))
    causes: dict[str, str] = {}

    def weight(entry: tuple[Fault, Mapping[str, float], int]) -> float:
        """Return how much it explains beyond the known causes, minus what speaks against it."""
        _, explained, n_against = entry
        return sum(explained[case] for case in explained if case not in causes) - n_against

    while shares:
        # Of equals the first in the catalogue; in tenths, because less is noise.
        best = max(shares, key=lambda entry: round(weight(entry), 1))
        if weight(best) <= 0:
            break
        causes |= {case: best[0].cause for case in best[1] if case not in causes}
        shares.remove(best)
    return causes


def _size(failed: Failed) -> tuple[bool, int]:
    """Return whether a text is too short to show much, and how much there is to compute."""
    case, got = failed
    text = str(got.get("text", ""))
    is_bare = case.group == "text" and len(text) < MIN_TEXT
    return is_bare, len(str(case.input)) + len(text)


# An answer can have any shape beyond the first difference, and a fault can have no answer to a
# question. The diagnosis must not end the run.
NO_ANSWER = (
    ArithmeticError,
    AttributeError,
    LookupError,
    LlmError,
    MalformedAnswer,
    TypeError,
    ValueError,
)


def _evidence(fault: Fault, case: Case, got: Json) -> float:
    try:
        with np.errstate(all="ignore"):
            return fault.evidence(case, got)
    except NO_ANSWER:
        return 0.0


def _n_against(fault: Fault, passed: Sequence[Case]) -> int:
    """Return how many of the cases that passed speak against the fault."""
    count = 0
    for case in passed:
        with suppress(*NO_ANSWER), np.errstate(all="ignore"):
            count += fault.would_fail(case)
    return count


# --- What one fault causes elsewhere -------------------------------------------------------------


# A text with the first fault looks like one with the others, where nothing but the text is known.
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
    """Return the causes, with one fault in place of those that follow from it."""
    replaced = dict(causes)
    found = set(causes.values())
    for first, others in CONSEQUENCES.items():
        cause = fault_named(first).cause
        if cause in found:
            followed = {fault_named(other).cause for other in others}
            replaced |= {case: cause for case in causes if causes[case] in followed}
    return replaced


def inherited_causes(verdicts: Sequence[Verdict], causes: Mapping[str, str]) -> dict[str, str]:
    """Return causes of unexplained failed cases that follow from exactly one known cause.

    A fault of a network shows in its logits and again in its texts; one of a block format shows in
    the models stored so; and a fault computed for few cases, or for one model, holds for the others
    of their group.
    """
    found: dict[str, str] = {}
    explained = [verdict.case for verdict in verdicts if verdict.case.id in causes]
    for verdict in verdicts:
        case = verdict.case
        if verdict.difference is None or case.id in causes:
            continue
        for is_source in SOURCES.get(case.group, ()):
            likely = {
                causes[other.id] for other in explained if is_source(case, other, causes[other.id])
            }
            if likely:
                if len(likely) == 1:
                    found[case.id] = likely.pop()
                break
    return found


def _of_its_format(case: Case, other: Case, _cause: str) -> bool:
    """Return whether the other case is about the format that this case's model is stored in."""
    if other.group != "quant":
        return False
    name = str(case.input.get("model", ""))
    stored = "Q8_0" if name == "tiny-chat" else name.removeprefix("tiny-chat-")
    return bool(other.input["format"] == stored)


def _of(*groups: Group) -> Source:
    return lambda _case, other, _cause: other.group in groups


def _of_its_own(case: Case, other: Case, cause: str) -> bool:
    """Return whether it is of the same group, and its cause one asked about few cases."""
    return case.group == other.group and cause in COMPUTED


# In the order in which they are asked; the first that has any cause decides.
SOURCES: Mapping[str, tuple[Source, ...]] = {
    "logits": (_of_its_format, _of_its_own, _of("ops")),
    "text": (_of_its_own, _of("logits"), _of_its_format, _of("tokenizer"), _of("sampling")),
    "embeddings": (_of_its_own, _of("tokenizer"), _of("ops")),
    "api": (_of("text", "embeddings"), _of("tokenizer"), _of("sampling")),
}
