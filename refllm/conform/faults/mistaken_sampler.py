"""The sampling rule in parts, so that one of them can be replaced by a mistake.

`of_sampling` asks what a sampler with a known mistake would answer, and looks whether a target
answers just that. With every part as it is, `answer` is the contract's answer.

Letters: V tokens, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.conform.case import Json
from refllm.conform.compare.numbers import Doubles
from refllm.interface import as_f32
from refllm.sampling import softmax

__all__ = ["CONTRACT", "LLAMA_CPP", "Rule", "answer", "keep_until_p"]

Ids = NDArray[np.int64]

CONTRACT = ("penalty", "temperature", "softmax", "top_k", "top_p")
LLAMA_CPP = ("penalty", "top_k", "softmax", "top_p", "temperature", "softmax")


def _once(logit: float, penalty: float, _count: int) -> float:
    return logit / penalty if logit >= 0 else logit * penalty


def _last(tokens: Sequence[int], n: int) -> Sequence[int]:
    return tokens[-n:] if n > 0 else ()


def keep_until_p(probabilities: Doubles, p: float) -> int:
    """How many candidates top-p keeps: while the sum of those before is below p."""
    if p <= 0.0 or p >= 1.0:
        return len(probabilities)
    before = np.add.accumulate(probabilities)[:-1]
    return 1 + int(np.searchsorted(before, p, side="left"))


def _draw(probabilities: Doubles, u: float) -> int:
    sums = np.add.accumulate(probabilities)
    return int(np.searchsorted(sums, u * sums[-1], side="right"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a sampler does each of its steps.

    `penalize` gets a logit, the penalty and how often its token is in the window; `window` all
    previous tokens and n. `keep_k` and `keep_p` say how many candidates stay, of those that there
    are. `draw` gives the place of the drawn candidate. `order` holds for `contract` and
    `spin-local`, `llama_cpp` for the profile of that name. Ties go to the lowest id unless
    `highest_on_ties`, or `highest_on_greedy_ties` where nothing is drawn.
    """

    order: tuple[str, ...] = CONTRACT
    llama_cpp: tuple[str, ...] = LLAMA_CPP
    as_float32: Callable[[float], float] = as_f32
    window: Callable[[Sequence[int], int], Sequence[int]] = _last
    penalize: Callable[[float, float, int], float] = _once
    divide: Callable[[Doubles, float], Doubles] = lambda logits, temperature: logits / temperature
    keep_k: Callable[[int, int], int] = lambda k, n: k if 0 < k < n else n
    keep_p: Callable[[Doubles, float], int] = keep_until_p
    draw: Callable[[Doubles, float], int] = _draw
    highest_on_ties: bool = False
    highest_on_greedy_ties: bool = False
    normalizes_after_top_k: bool = False
    is_greedy: Callable[[float], bool] = lambda temperature: temperature <= 0


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    ids: Ids  # [C]
    logits: Doubles  # [C]
    probabilities: Doubles | None = None  # [C]

    def at(self, places: Ids) -> _Candidates:
        kept = None if self.probabilities is None else self.probabilities[places]
        return _Candidates(self.ids[places], self.logits[places], kept)

    def written(self, stage: str) -> dict[str, Any]:
        """As golden/sampling writes a stage."""
        known = {"stage": stage, "ids": self.ids.tolist()}
        if self.probabilities is None:
            return {**known, "logits": self.logits.tolist()}
        return {**known, "probabilities": self.probabilities.tolist()}


def answer(question: Json, rule: Rule) -> dict[str, Any] | None:
    """The stages and the token of a sampler that follows the rule; None where it has no answer."""
    params = {
        name: rule.as_float32(value) if isinstance(value, float) else value
        for name, value in question["params"].items()
    }
    logits = np.array(question["logits"], np.float64)
    candidates = _Candidates(np.arange(len(logits)), logits)
    if not np.isfinite([*logits, *map(float, params.values())]).all():
        return None
    if params["repeat_penalty"] == 0 and _window(rule, question, params):
        return None
    is_greedy = rule.is_greedy(params["temperature"])
    llama_cpp = question["profile"] == "llama.cpp"
    order = ("penalty", "argmax") if is_greedy else rule.llama_cpp if llama_cpp else rule.order
    stages = []
    for name in order:
        candidates = STEPS[name](candidates, rule, question, params)
        if len(candidates.ids) == 0:
            return None
        stages.append(candidates.written(name))
    place = 0 if is_greedy else rule.draw(_certain(candidates), question["u"])
    place = min(place, len(candidates.ids) - 1)
    return {"stages": stages, "token": int(candidates.ids[place])}


def _certain(candidates: _Candidates) -> Doubles:
    """The probabilities, or logits that never met a softmax as they are."""
    found = candidates.probabilities
    return candidates.logits if found is None else found


def _window(rule: Rule, question: Json, params: Json) -> Sequence[int]:
    return rule.window(question["previous_tokens"], params["repeat_penalty_last_n_token_count"])


def _penalty(c: _Candidates, rule: Rule, question: Json, params: Json) -> _Candidates:
    window = _window(rule, question, params)
    penalty = params["repeat_penalty"]
    logits = c.logits.copy()
    for token in sorted(set(window)) if penalty != 1.0 else ():
        if 0 <= token < len(logits):
            count = list(window).count(token)
            logits[token] = rule.penalize(float(logits[token]), penalty, count)
    return _Candidates(c.ids, logits)


def _temperature(c: _Candidates, rule: Rule, _question: Json, params: Json) -> _Candidates:
    with np.errstate(all="ignore"):
        return _Candidates(c.ids, rule.divide(c.logits, params["temperature"]))


def _softmax(c: _Candidates, _rule: Rule, _question: Json, _params: Json) -> _Candidates:
    return _Candidates(c.ids, c.logits, softmax(c.logits))


def _in_order(c: _Candidates, *, highest_on_ties: bool) -> _Candidates:
    """Descending by probability or logit, ties by id."""
    scores = c.logits if c.probabilities is None else c.probabilities
    ids = -c.ids if highest_on_ties else c.ids
    return c.at(np.lexsort((ids, -scores)))


def _argmax(c: _Candidates, rule: Rule, _question: Json, _params: Json) -> _Candidates:
    logits = _Candidates(c.ids, c.logits)
    first = _in_order(logits, highest_on_ties=rule.highest_on_greedy_ties).at(np.arange(1))
    return _Candidates(first.ids, first.logits, np.ones(1))


def _top_k(c: _Candidates, rule: Rule, _question: Json, params: Json) -> _Candidates:
    ordered = _in_order(c, highest_on_ties=rule.highest_on_ties)
    kept = ordered.at(np.arange(rule.keep_k(params["top_k"], len(c.ids))))
    if not rule.normalizes_after_top_k or kept.probabilities is None:
        return kept
    return _Candidates(kept.ids, kept.logits, kept.probabilities / kept.probabilities.sum())


def _top_p(c: _Candidates, rule: Rule, question: Json, params: Json) -> _Candidates:
    ordered = _in_order(c, highest_on_ties=rule.highest_on_ties)
    p = params["top_p"]
    is_llama_cpp = question["profile"] == "llama.cpp" or rule.order == LLAMA_CPP
    keeps_one = is_llama_cpp and p <= 0
    return ordered.at(np.arange(1 if keeps_one else rule.keep_p(_certain(ordered), p)))


STEPS: Mapping[str, Callable[[_Candidates, Rule, Json, Json], _Candidates]] = {
    "penalty": _penalty,
    "temperature": _temperature,
    "softmax": _softmax,
    "argmax": _argmax,
    "top_k": _top_k,
    "top_p": _top_p,
}
