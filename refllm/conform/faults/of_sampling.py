"""Mistakes of samplers: each answers the case itself, and is recognized by its answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.faults.mistaken_sampler import Rule, answer
from refllm.conform.faults.mistakes_in_sampling import RULES
from refllm.conform.faults.symptom import Symptom, answering, seen
from refllm.interface import as_f32

__all__ = ["SAMPLING"]

# float32 has 24 bits and float64 53: what they round is off by less than this, after some steps.
FLOAT32_ROUNDING = 1e-5
FLOAT64_ROUNDING = 1e-12


def _by_rule(rule: Rule) -> Callable[[Case], Json | None]:
    def answered(case: Case) -> Json | None:
        # The interface refuses these, so that a mistake inside the sampler does not matter.
        return None if "error" in case.expected else answer(case.input, rule)

    return answered


def _token(answered: Json) -> Json:
    return {"token": answered["token"]}


def _is_nan(value: object) -> bool:
    return value == "nan" or (isinstance(value, float) and math.isnan(value))


def _overflows(_case: Case, got: Json) -> bool:
    """Whether a stage has probabilities that are no numbers."""
    stages = got.get("stages", ())
    return any(_is_nan(value) for stage in stages for value in stage.get("probabilities", ()))


def _accepts_what_is_no_number(case: Case, got: Json) -> bool:
    """Whether a parameter that is NaN or infinite got an answer."""
    floats = [value for value in case.input["params"].values() if isinstance(value, float)]
    is_refused = case.expected.get("error", {}).get("kind") == "invalid-input"
    return is_refused and "error" not in got and not all(map(math.isfinite, map(as_f32, floats)))


def _accepts_any_penalty(case: Case, got: Json) -> bool:
    is_refused = case.expected.get("error", {}).get("names") == "repeat_penalty"
    return is_refused and "error" not in got


def _accepts_any_logit(case: Case, got: Json) -> bool:
    is_refused = case.expected.get("error", {}).get("kind") == "runtime-error"
    is_number = all(map(math.isfinite, case.input["logits"]))
    return is_refused and "error" not in got and not is_number


def _refuses_top_k_0(case: Case, got: Json) -> bool:
    is_off = case.input["params"]["top_k"] == 0 and case.input["profile"] != "spin-local"
    return is_off and "error" in got and "error" not in case.expected


def _is_float32(case: Case, got: Json) -> bool:
    return _is_nearly_right(case, got, FLOAT32_ROUNDING)


def _is_float64(case: Case, got: Json) -> bool:
    return _is_nearly_right(case, got, FLOAT64_ROUNDING)


def _is_nearly_right(case: Case, got: Json, rounding: float) -> bool:
    """Whether all that is decided is right and all numbers are nearly."""
    stages = got.get("stages", ())
    if not stages or got.get("token") != case.expected.get("token"):
        return False
    known = {stage["stage"]: stage for stage in case.expected["stages"]}
    pairs = [(known.get(stage["stage"]), stage) for stage in stages]
    return all(
        wanted is not None
        and list(wanted["ids"]) == list(found["ids"])
        and _nearly(wanted, found, "logits", rounding)
        and _nearly(wanted, found, "probabilities", rounding)
        for wanted, found in pairs
    )


def _nearly(wanted: Json, found: Json, key: str, rounding: float) -> bool:
    if key not in wanted or key not in found:
        return True
    a, b = np.array(wanted[key], float), np.array(found[key], float)
    return a.shape == b.shape and bool(np.allclose(b, a, rtol=rounding, atol=1e-37))


SAMPLING: tuple[Symptom, ...] = (
    *(
        answering(name, cause, "sampling", _by_rule(rule), at_least=_token)
        for name, cause, rule in RULES
    ),
    seen(
        "softmax overflows",
        "The softmax overflows: subtract the largest logit before exp.",
        "sampling",
        _overflows,
    ),
    seen(
        "parameters not checked",
        "A parameter that is NaN or infinite is accepted: answer invalid-input and name it.",
        "sampling",
        _accepts_what_is_no_number,
    ),
    seen(
        "penalty not checked",
        "A repeat_penalty of 0 or less is accepted: answer invalid-input and name it.",
        "sampling",
        _accepts_any_penalty,
    ),
    seen(
        "logits not checked",
        "A logit that is not finite is accepted: answer runtime-error and name its token.",
        "sampling",
        _accepts_any_logit,
    ),
    seen(
        "top-k 0 refused",
        "A top_k of 0 is refused: it switches top-k off.",
        "sampling",
        _refuses_top_k_0,
    ),
    seen(
        "probabilities rounded otherwise",
        "The probabilities are right but for some last bits: take an exp that is within 2 ulp, "
        "and add from left to right.",
        "sampling",
        _is_float64,
        is_vague=True,
    ),
    seen(
        "sampling in float32",
        "The sampler computes in float32: compute in float64 from the float32 logits.",
        "sampling",
        _is_float32,
        is_vague=True,
    ),
)
