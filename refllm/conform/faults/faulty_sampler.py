"""The sampling rule in parts, so that one of them can be replaced by a wrong formula.

`sampling` computes what a sampler with a known fault would answer and compares the target's answer
with it. With every part as it is, `answer` is the contract's answer.

Letters: V tokens, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from refllm.conform.case import Json
from refllm.conform.compare.numbers import Doubles
from refllm.interface import as_f32
from refllm.sampling import softmax

__all__ = ["CONTRACT", "LLAMA_CPP", "Rule", "answer", "draw", "keep_until_p"]

CONTRACT = ("penalty", "temperature", "softmax", "top_k", "top_p")
LLAMA_CPP = ("penalty", "top_k", "softmax", "top_p", "temperature", "softmax")


def keep_until_p(
    probabilities: Doubles, p: float, *, side: Literal["left", "right"] = "left"
) -> int:
    """Return how many candidates top-p keeps: while the sum of those before is below p.

    With the side "right", while it is not above p.
    """
    if p <= 0.0 or p >= 1.0:
        return len(probabilities)
    before = np.add.accumulate(probabilities)[:-1]
    return 1 + int(np.searchsorted(before, p, side=side))


def draw(
    probabilities: Doubles,
    u: float,
    *,
    scales: bool = True,
    side: Literal["left", "right"] = "right",
) -> int:
    """Return the place of the first candidate whose cumulative sum exceeds u times the total.

    With the side "left", of the first whose sum reaches it.
    """
    sums = np.add.accumulate(probabilities)
    return int(np.searchsorted(sums, u * sums[-1] if scales else u, side=side))


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
    window: Callable[[Sequence[int], int], Sequence[int]] = lambda tokens, n: (
        tokens[-n:] if n > 0 else ()
    )
    penalize: Callable[[float, float, int], float] = lambda logit, penalty, _count: (
        logit / penalty if logit >= 0 else logit * penalty
    )
    divide: Callable[[Doubles, float], Doubles] = lambda logits, temperature: logits / temperature
    keep_k: Callable[[int, int], int] = lambda k, n: k if 0 < k < n else n
    keep_p: Callable[[Doubles, float], int] = keep_until_p
    draw: Callable[[Doubles, float], int] = draw
    highest_on_ties: bool = False
    highest_on_greedy_ties: bool = False
    normalizes_after_top_k: bool = False
    is_greedy: Callable[[float], bool] = lambda temperature: temperature <= 0


def answer(question: Json, rule: Rule) -> dict[str, Any] | None:
    """Return the stages and the token of a sampler with the rule; None where it has no answer."""
    params: dict[str, Any] = {
        name: rule.as_float32(value) if isinstance(value, float) else value
        for name, value in question["params"].items()
    }
    logits = np.array(question["logits"], np.float64)  # [V], and [C] from top-k on
    if not np.isfinite([*logits, *map(float, params.values())]).all():
        return None
    window = rule.window(question["previous_tokens"], params["repeat_penalty_last_n_token_count"])
    if params["repeat_penalty"] == 0 and window:
        return None
    is_greedy = rule.is_greedy(params["temperature"])
    is_llama_cpp = question["profile"] == "llama.cpp"
    order = ("penalty", "argmax") if is_greedy else rule.llama_cpp if is_llama_cpp else rule.order
    ids = np.arange(len(logits))
    scores, has_probabilities = logits, False  # the probabilities from softmax on
    stages = []
    for name in order:
        if name == "penalty":
            logits = _penalized(logits, window, params["repeat_penalty"], rule)
            scores, has_probabilities = logits, False
        elif name == "temperature":
            with np.errstate(all="ignore"):
                logits = rule.divide(logits, params["temperature"])
            scores, has_probabilities = logits, False
        elif name == "softmax":
            scores, has_probabilities = softmax(logits), True
        else:
            is_highest = rule.highest_on_greedy_ties if is_greedy else rule.highest_on_ties
            places = np.lexsort((-ids if is_highest else ids, -scores))
            if name == "argmax":
                n_kept = 1
            elif name == "top_k":
                n_kept = rule.keep_k(params["top_k"], len(ids))
            elif params["top_p"] <= 0 and (is_llama_cpp or rule.order == LLAMA_CPP):
                n_kept = 1
            else:
                n_kept = rule.keep_p(scores[places], params["top_p"])
            places = places[:n_kept]
            ids, logits, scores = ids[places], logits[places], scores[places]
            if name == "argmax":
                scores, has_probabilities = np.ones(1), True
            if name == "top_k" and rule.normalizes_after_top_k and has_probabilities:
                scores = scores / scores.sum()
        if len(ids) == 0:
            return None
        kind = "probabilities" if has_probabilities else "logits"
        stages.append({"stage": name, "ids": ids.tolist(), kind: scores.tolist()})
    place = 0 if is_greedy else min(rule.draw(scores, question["u"]), len(ids) - 1)
    return {"stages": stages, "token": int(ids[place])}


def _penalized(logits: Doubles, window: Sequence[int], penalty: float, rule: Rule) -> Doubles:
    penalized = logits.copy()
    for token in sorted(set(window)) if penalty != 1.0 else ():
        if 0 <= token < len(logits):
            count = list(window).count(token)
            penalized[token] = rule.penalize(float(logits[token]), penalty, count)
    return penalized
