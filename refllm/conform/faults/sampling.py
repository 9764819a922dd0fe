"""Faults of samplers: each answers the case itself, and is recognized by its answer."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import Doubles
from refllm.conform.faults.catalog import Faults
from refllm.conform.faults.faulty_sampler import LLAMA_CPP, Rule, answer, draw, keep_until_p
from refllm.interface import as_f32

__all__ = ["SAMPLING"]

SAMPLING = Faults("sampling")

# float32 has 24 bits and float64 53: their roundings add up to less than this.
FLOAT32_ROUNDING = 1e-5
FLOAT64_ROUNDING = 1e-12


def _rule(name: str, cause: str, rule: Rule) -> None:
    def answered(case: Case) -> Json | None:
        # The interface refuses these, so that a fault inside the sampler does not matter.
        return None if "error" in case.expected else answer(case.input, rule)

    SAMPLING.answering(
        name, cause, answered, at_least=lambda got: {"token": got["token"]}, wrong=rule
    )


def _without_crossing(probabilities: Doubles, p: float) -> int:
    if p <= 0.0 or p >= 1.0:
        return len(probabilities)
    return max(1, int(np.searchsorted(np.add.accumulate(probabilities), p, side="right")))


def _per_occurrence(logit: float, penalty: float, count: int) -> float:
    for _ in range(count):
        logit = logit / penalty if logit >= 0 else logit * penalty
    return logit


_rule(
    "temperature last",
    "The temperature is applied last, in llama.cpp's order: divide the logits by it before "
    "softmax, top-k and top-p.",
    Rule(order=LLAMA_CPP),
)
_rule(
    "top-p before top-k",
    "Top-p cuts before top-k: let top-k cut first.",
    Rule(order=("penalty", "temperature", "softmax", "top_p", "top_k")),
)
_rule(
    "penalty after temperature",
    "The repeat penalty is applied to what the temperature left: apply it first.",
    Rule(order=("temperature", "penalty", "softmax", "top_k", "top_p")),
)
_rule(
    "profile ignored",
    "The profile llama.cpp is sampled in the contract's order: there the temperature comes last, "
    "and top-p looks at a softmax of what top-k left.",
    Rule(llama_cpp=("penalty", "temperature", "softmax", "top_k", "top_p")),
)
_rule(
    "renormalized after top-k",
    "The probabilities are normalized again after top-k: top-p must see those of the softmax over "
    "the whole vocabulary.",
    Rule(normalizes_after_top_k=True),
)
_rule(
    "top-p without the crossing token",
    "Top-p drops the token that crosses p: keep it, so that the sum of what stays is at least p.",
    Rule(keep_p=_without_crossing),
)
_rule(
    "top-p one too many",
    "Top-p keeps one more token where the sum meets p exactly: a token stays only while the sum "
    "of those before it is less than p.",
    Rule(keep_p=partial(keep_until_p, side="right")),
)
_rule(
    "top-p 0 keeps one",
    "A top_p of 0 or less keeps the first token only: it must switch top-p off.",
    Rule(keep_p=lambda p, limit: 1 if limit <= 0.0 else keep_until_p(p, limit)),
)
_rule(
    "top-k 0 is greedy",
    "A top_k of 0 keeps one token: it must switch top-k off.",
    Rule(keep_k=lambda k, n: min(max(k, 1), n)),
)
_rule(
    "top-k one too many",
    "Top-k keeps one token too many.",
    Rule(keep_k=lambda k, n: min(k + 1, n) if k > 0 else n),
)
_rule(
    "top-k one too few",
    "Top-k keeps one token too few.",
    Rule(keep_k=lambda k, n: max(1, min(k - 1, n)) if k > 0 else n),
)
_rule("top-k ignored", "Top-k is not applied.", Rule(keep_k=lambda _k, n: n))
_rule(
    "top-p ignored",
    "Top-p is not applied.",
    Rule(keep_p=lambda probabilities, _p: len(probabilities)),
)
_rule(
    "penalty per occurrence",
    "The repeat penalty is applied once for each occurrence of a token: apply it once for each "
    "distinct token in the window.",
    Rule(penalize=_per_occurrence),
)
_rule(
    "penalty divides all",
    "The repeat penalty divides negative logits too, which makes their tokens more likely: "
    "multiply a logit below 0.",
    Rule(penalize=lambda logit, penalty, _count: logit / penalty),
)
_rule(
    "penalty multiplies all",
    "The repeat penalty multiplies logits from 0 up too, which makes their tokens more likely: "
    "divide them.",
    Rule(penalize=lambda logit, penalty, _count: logit * penalty),
)
_rule(
    "penalty inverted",
    "The repeat penalty rewards repetition: divide a logit from 0 up and multiply one below 0.",
    Rule(
        penalize=lambda logit, penalty, _count: logit * penalty if logit >= 0 else logit / penalty
    ),
)
_rule(
    "penalty subtracted",
    "The repeat penalty is subtracted, as a presence penalty is: divide and multiply by it.",
    Rule(penalize=lambda logit, penalty, _count: logit - penalty),
)
_rule(
    "penalty as frequency penalty",
    "The repeat penalty is subtracted for each occurrence, as a frequency penalty is: divide and "
    "multiply by it, once for each distinct token.",
    Rule(penalize=lambda logit, penalty, count: logit - penalty * count),
)
_rule("penalty ignored", "The repeat penalty is not applied.", Rule(window=lambda _tokens, _n: ()))
_rule(
    "penalty on all tokens",
    "The repeat penalty looks at all previous tokens: look only at the last "
    "repeat_penalty_last_n_token_count.",
    Rule(window=lambda tokens, _n: tokens),
)
_rule(
    "penalty on the first tokens",
    "The repeat penalty looks at the first n previous tokens: look at the last n.",
    Rule(window=lambda tokens, n: tokens[:n]),
)
_rule(
    "penalty misses the newest token",
    "The repeat penalty's window ends before the newest token: it must end with it.",
    Rule(window=lambda tokens, n: tokens[:-1][-n:] if n > 0 else ()),
)
_rule(
    "penalty window one short",
    "The repeat penalty's window is one token short.",
    Rule(window=lambda tokens, n: tokens[-(n - 1) :] if n > 1 else ()),
)
_rule(
    "penalty window one long",
    "The repeat penalty's window is one token too long.",
    Rule(window=lambda tokens, n: tokens[-(n + 1) :] if n > 0 else ()),
)
_rule(
    "penalty window 0 is all",
    "A repeat_penalty_last_n_token_count of 0 penalizes all previous tokens: it must switch the "
    "penalty off.",
    Rule(window=lambda tokens, n: tokens[-n:]),  # -0 begins at the beginning
)
_rule(
    "ties to the highest id",
    "Of equally likely tokens the one with the highest id comes first: take the lowest.",
    Rule(highest_on_ties=True, highest_on_greedy_ties=True),
)
_rule(
    "greedy ties to the highest id",
    "Of equally large logits the one with the highest id is taken at temperature 0: take the "
    "lowest.",
    Rule(highest_on_greedy_ties=True),
)
_rule(
    "candidates tied to the highest id",
    "Of equally likely candidates the one with the highest id comes first: order them by "
    "ascending id.",
    Rule(highest_on_ties=True),
)
_rule(
    "temperature multiplied",
    "The logits are multiplied by the temperature: divide them.",
    Rule(divide=lambda logits, temperature: logits * temperature),
)
_rule(
    "temperature ignored",
    "The temperature is not applied.",
    Rule(divide=lambda logits, _temperature: logits),
)
_rule(
    "temperature 0 drawn",
    "A temperature of 0 or less is not greedy: take the largest logit, without a draw.",
    Rule(divide=lambda logits, _temperature: logits, is_greedy=lambda _temperature: False),
)
_rule(
    "parameters not rounded",
    "The parameters are used as float64: the interface has float32, so round them first.",
    Rule(as_float32=float),
)
_rule(
    "draw not scaled",
    "The draw takes u itself for the border, though the kept probabilities sum to less than 1: "
    "multiply u by their sum.",
    Rule(draw=partial(draw, scales=False)),
)
_rule(
    "draw from the end",
    "The draw counts from the least likely token up: begin with the most likely one.",
    Rule(draw=lambda probabilities, u: draw(probabilities, 1.0 - u)),
)
_rule(
    "draw takes the border",
    "The draw stops at a sum that equals u times the total: the sum must exceed it.",
    Rule(draw=partial(draw, side="left")),
)
_rule(
    "always greedy",
    "The most likely token is taken at every temperature: draw where it is above 0.",
    Rule(draw=lambda _probabilities, _u: 0),
)


@SAMPLING.seen("softmax overflows", "The softmax overflows: subtract the largest logit before exp.")
def _softmax_overflows(_case: Case, got: Json) -> bool:
    """A stage has probabilities that are no numbers."""
    stages = got.get("stages", ())
    values = [value for stage in stages for value in stage.get("probabilities", ())]
    return any(v == "nan" or (isinstance(v, float) and math.isnan(v)) for v in values)


def _accepts(case: Case, got: Json, key: str, value: str) -> bool:
    return case.expected.get("error", {}).get(key) == value and "error" not in got


@SAMPLING.seen(
    "parameters not checked",
    "A parameter that is NaN or infinite is accepted: answer invalid-input and name it.",
)
def _parameters_not_checked(case: Case, got: Json) -> bool:
    floats = [value for value in case.input["params"].values() if isinstance(value, float)]
    is_finite = all(math.isfinite(as_f32(value)) for value in floats)
    return _accepts(case, got, "kind", "invalid-input") and not is_finite


@SAMPLING.seen(
    "penalty not checked",
    "A repeat_penalty of 0 or less is accepted: answer invalid-input and name it.",
)
def _penalty_not_checked(case: Case, got: Json) -> bool:
    return _accepts(case, got, "names", "repeat_penalty")


@SAMPLING.seen(
    "logits not checked",
    "A logit that is not finite is accepted: answer runtime-error and name its token.",
)
def _logits_not_checked(case: Case, got: Json) -> bool:
    is_finite = all(map(math.isfinite, case.input["logits"]))
    return _accepts(case, got, "kind", "runtime-error") and not is_finite


@SAMPLING.seen("top-k 0 refused", "A top_k of 0 is refused: it switches top-k off.")
def _top_k_0_refused(case: Case, got: Json) -> bool:
    is_off = case.input["params"]["top_k"] == 0 and case.input["profile"] != "spin-local"
    return is_off and "error" in got and "error" not in case.expected


def _is_nearly_right(case: Case, got: Json, rounding: float) -> bool:
    """Return whether the ids are right and all numbers nearly are."""
    stages = got.get("stages", ())
    if not stages or got.get("token") != case.expected.get("token"):
        return False
    known = {stage["stage"]: stage for stage in case.expected["stages"]}
    for found in stages:
        expected = known.get(found["stage"])
        if expected is None or list(expected["ids"]) != list(found["ids"]):
            return False
        for kind in {"logits", "probabilities"} & expected.keys() & found.keys():
            a, b = np.array(expected[kind], float), np.array(found[kind], float)
            if a.shape != b.shape or not np.allclose(b, a, rtol=rounding, atol=1e-37):
                return False
    return True


SAMPLING.seen(
    "probabilities rounded otherwise",
    "The probabilities are right but for some last bits: take an exp that is within 2 ulp, and add "
    "from left to right.",
    is_vague=True,
)(lambda case, got: _is_nearly_right(case, got, FLOAT64_ROUNDING))
SAMPLING.seen(
    "sampling in float32",
    "The sampler computes in float32: compute in float64 from the float32 logits.",
    is_vague=True,
)(lambda case, got: _is_nearly_right(case, got, FLOAT32_ROUNDING))
