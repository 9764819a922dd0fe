"""Samplers with one mistake each, by name and with what to tell the person who made it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refllm.conform.compare.numbers import Doubles
from refllm.conform.faults.mistaken_sampler import LLAMA_CPP, Rule, keep_until_p

__all__ = ["RULES"]


# float32 has 24 bits: what it rounds is off by less than this, and more than float64 ever is.
FLOAT32_ROUNDING = 1e-5


def _per_occurrence(logit: float, penalty: float, count: int) -> float:
    for _ in range(count):
        logit = logit / penalty if logit >= 0 else logit * penalty
    return logit


def _divided(logit: float, penalty: float, _count: int) -> float:
    return logit / penalty


def _multiplied(logit: float, penalty: float, _count: int) -> float:
    return logit * penalty


def _inverted(logit: float, penalty: float, _count: int) -> float:
    return logit * penalty if logit >= 0 else logit / penalty


def _subtracted(logit: float, penalty: float, _count: int) -> float:
    return logit - penalty


def _subtracted_by_frequency(logit: float, penalty: float, count: int) -> float:
    return logit - penalty * count


def _all(tokens: Sequence[int], _n: int) -> Sequence[int]:
    return tokens


def _first(tokens: Sequence[int], n: int) -> Sequence[int]:
    return tokens[:n]


def _last_but_newest(tokens: Sequence[int], n: int) -> Sequence[int]:
    return tokens[:-1][-n:] if n > 0 else ()


def _one_less(tokens: Sequence[int], n: int) -> Sequence[int]:
    return tokens[-(n - 1) :] if n > 1 else ()


def _one_more(tokens: Sequence[int], n: int) -> Sequence[int]:
    return tokens[-(n + 1) :] if n > 0 else ()


def _nothing(_tokens: Sequence[int], _n: int) -> Sequence[int]:
    return ()


def _all_for_zero(tokens: Sequence[int], n: int) -> Sequence[int]:
    return tokens[-n:]  # in Python, and not only there, -0 begins at the beginning


def _without_crossing(probabilities: Doubles, p: float) -> int:
    if p <= 0.0 or p >= 1.0:
        return len(probabilities)
    return max(1, int(np.searchsorted(np.add.accumulate(probabilities), p, side="right")))


def _while_not_above(probabilities: Doubles, p: float) -> int:
    if p <= 0.0 or p >= 1.0:
        return len(probabilities)
    before = np.add.accumulate(probabilities)[:-1]
    return 1 + int(np.searchsorted(before, p, side="right"))


def _one_at_zero(probabilities: Doubles, p: float) -> int:
    return 1 if p <= 0.0 else keep_until_p(probabilities, p)


def _unscaled_draw(probabilities: Doubles, u: float) -> int:
    return int(np.searchsorted(np.add.accumulate(probabilities), u, side="right"))


def _draw_from_the_end(probabilities: Doubles, u: float) -> int:
    sums = np.add.accumulate(probabilities)
    return int(np.searchsorted(sums, (1.0 - u) * sums[-1], side="right"))


def _draw_at_the_border(probabilities: Doubles, u: float) -> int:
    sums = np.add.accumulate(probabilities)
    return int(np.searchsorted(sums, u * sums[-1], side="left"))


def _most_likely(_probabilities: Doubles, _u: float) -> int:
    return 0


RULES: tuple[tuple[str, str, Rule], ...] = (
    (
        "temperature last",
        "The temperature is applied last, in llama.cpp's order: divide the logits by it before "
        "softmax, top-k and top-p.",
        Rule(order=LLAMA_CPP),
    ),
    (
        "top-p before top-k",
        "Top-p cuts before top-k: let top-k cut first.",
        Rule(order=("penalty", "temperature", "softmax", "top_p", "top_k")),
    ),
    (
        "penalty after temperature",
        "The repeat penalty is applied to what the temperature left: apply it first.",
        Rule(order=("temperature", "penalty", "softmax", "top_k", "top_p")),
    ),
    (
        "profile ignored",
        "The profile llama.cpp is sampled in the contract's order: there the temperature comes "
        "last, and top-p looks at a softmax of what top-k left.",
        Rule(llama_cpp=("penalty", "temperature", "softmax", "top_k", "top_p")),
    ),
    (
        "renormalized after top-k",
        "The probabilities are normalized again after top-k: top-p must see those of the softmax "
        "over the whole vocabulary.",
        Rule(normalizes_after_top_k=True),
    ),
    (
        "top-p without the crossing token",
        "Top-p drops the token that crosses p: keep it, so that the sum of what stays is at "
        "least p.",
        Rule(keep_p=_without_crossing),
    ),
    (
        "top-p one too many",
        "Top-p keeps one more token where the sum meets p exactly: a token stays only while the "
        "sum of those before it is less than p.",
        Rule(keep_p=_while_not_above),
    ),
    (
        "top-p 0 keeps one",
        "A top_p of 0 or less keeps the first token only: it must switch top-p off.",
        Rule(keep_p=_one_at_zero),
    ),
    (
        "top-k 0 is greedy",
        "A top_k of 0 keeps one token: it must switch top-k off.",
        Rule(keep_k=lambda k, n: min(max(k, 1), n)),
    ),
    (
        "top-k one too many",
        "Top-k keeps one token too many.",
        Rule(keep_k=lambda k, n: min(k + 1, n) if k > 0 else n),
    ),
    (
        "top-k one too few",
        "Top-k keeps one token too few.",
        Rule(keep_k=lambda k, n: max(1, min(k - 1, n)) if k > 0 else n),
    ),
    ("top-k ignored", "Top-k is not applied.", Rule(keep_k=lambda _k, n: n)),
    (
        "top-p ignored",
        "Top-p is not applied.",
        Rule(keep_p=lambda probabilities, _p: len(probabilities)),
    ),
    (
        "penalty per occurrence",
        "The repeat penalty is applied once for each occurrence of a token: apply it once for "
        "each distinct token in the window.",
        Rule(penalize=_per_occurrence),
    ),
    (
        "penalty divides all",
        "The repeat penalty divides negative logits too, which makes their tokens more likely: "
        "multiply a logit below 0.",
        Rule(penalize=_divided),
    ),
    (
        "penalty multiplies all",
        "The repeat penalty multiplies logits from 0 up too, which makes their tokens more likely: "
        "divide them.",
        Rule(penalize=_multiplied),
    ),
    (
        "penalty inverted",
        "The repeat penalty rewards repetition: divide a logit from 0 up and multiply one below 0.",
        Rule(penalize=_inverted),
    ),
    (
        "penalty subtracted",
        "The repeat penalty is subtracted, as a presence penalty is: divide and multiply by it.",
        Rule(penalize=_subtracted),
    ),
    (
        "penalty as frequency penalty",
        "The repeat penalty is subtracted for each occurrence, as a frequency penalty is: divide "
        "and multiply by it, once for each distinct token.",
        Rule(penalize=_subtracted_by_frequency),
    ),
    ("penalty ignored", "The repeat penalty is not applied.", Rule(window=_nothing)),
    (
        "penalty on all tokens",
        "The repeat penalty looks at all previous tokens: look only at the last "
        "repeat_penalty_last_n_token_count.",
        Rule(window=_all),
    ),
    (
        "penalty on the first tokens",
        "The repeat penalty looks at the first n previous tokens: look at the last n.",
        Rule(window=_first),
    ),
    (
        "penalty misses the newest token",
        "The repeat penalty's window ends before the newest token: it must end with it.",
        Rule(window=_last_but_newest),
    ),
    (
        "penalty window one short",
        "The repeat penalty's window is one token short.",
        Rule(window=_one_less),
    ),
    (
        "penalty window one long",
        "The repeat penalty's window is one token too long.",
        Rule(window=_one_more),
    ),
    (
        "penalty window 0 is all",
        "A repeat_penalty_last_n_token_count of 0 penalizes all previous tokens: it must switch "
        "the penalty off.",
        Rule(window=_all_for_zero),
    ),
    (
        "ties to the highest id",
        "Of equally likely tokens the one with the highest id comes first: take the lowest.",
        Rule(highest_on_ties=True, highest_on_greedy_ties=True),
    ),
    (
        "greedy ties to the highest id",
        "Of equally large logits the one with the highest id is taken at temperature 0: take the "
        "lowest.",
        Rule(highest_on_greedy_ties=True),
    ),
    (
        "candidates tied to the highest id",
        "Of equally likely candidates the one with the highest id comes first: order them by "
        "ascending id.",
        Rule(highest_on_ties=True),
    ),
    (
        "temperature multiplied",
        "The logits are multiplied by the temperature: divide them.",
        Rule(divide=lambda logits, temperature: logits * temperature),
    ),
    (
        "temperature ignored",
        "The temperature is not applied.",
        Rule(divide=lambda logits, _temperature: logits),
    ),
    (
        "temperature 0 drawn",
        "A temperature of 0 or less is not greedy: take the largest logit, without a draw.",
        Rule(divide=lambda logits, _temperature: logits, is_greedy=lambda _temperature: False),
    ),
    (
        "parameters not rounded",
        "The parameters are used as float64: the interface has float32, so round them first.",
        Rule(as_float32=float),
    ),
    (
        "draw not scaled",
        "The draw takes u itself for the border, though the kept probabilities sum to less than "
        "1: multiply u by their sum.",
        Rule(draw=_unscaled_draw),
    ),
    (
        "draw from the end",
        "The draw counts from the least likely token up: begin with the most likely one.",
        Rule(draw=_draw_from_the_end),
    ),
    (
        "draw takes the border",
        "The draw stops at a sum that equals u times the total: the sum must exceed it.",
        Rule(draw=_draw_at_the_border),
    ),
    (
        "always greedy",
        "The most likely token is taken at every temperature: draw where it is above 0.",
        Rule(draw=_most_likely),
    ),
)
