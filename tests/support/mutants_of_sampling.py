"""Wrong backends whose sampler does one step otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm import sampling
from refllm.api import InferencingParams
from refllm.interface import as_f32
from refllm.sampling import Candidates, Penalties, Stage, Step
from tests.support.mutants import Mutant

__all__ = ["MUTANTS_OF_SAMPLING"]

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

real_apply_penalty = sampling.apply_penalty
real_softmax = sampling.softmax
real_top_k = sampling.top_k
real_uniform = sampling.uniform


def top_p_before_top_k(logits: Doubles, params: InferencingParams) -> tuple[Stage, ...]:
    probabilities = real_softmax(sampling.apply_temperature(logits, params.temperature))
    whole = Candidates(np.arange(len(logits)), probabilities)
    ids = real_top_k(probabilities, 0)
    ordered = Candidates(ids, probabilities[ids])
    nucleus = ordered.first(sampling.top_p(ordered.probabilities, params.top_p))
    likely = nucleus.first(params.top_k or len(nucleus))
    return Stage("softmax", whole), Stage("top_p", nucleus), Stage("top_k", likely)


def top_p_without_the_crossing(probabilities: Doubles, p: float) -> int:
    p = as_f32(p)
    if p <= 0.0 or p >= 1.0:
        return len(probabilities)
    sums = np.add.accumulate(probabilities)
    return max(1, int(np.searchsorted(sums, p, side="right")))


def penalty_per_occurrence(
    logits: Floats, previous_tokens: Sequence[int], *, penalty: float, last_n: int
) -> tuple[Doubles, Penalties]:
    penalized, changed = real_apply_penalty(logits, previous_tokens, penalty=penalty, last_n=last_n)
    window = list(previous_tokens[-last_n:]) if last_n > 0 else []
    after = changed.after.copy()
    for i, token in enumerate(changed.ids.tolist()):
        for _ in range(window.count(token) - 1):
            factor = as_f32(penalty)
            after[i] = after[i] / factor if after[i] >= 0 else after[i] * factor
    penalized[changed.ids] = after
    return penalized, Penalties(changed.ids, changed.before, after)


def penalty_divides_all(
    logits: Floats, previous_tokens: Sequence[int], *, penalty: float, last_n: int
) -> tuple[Doubles, Penalties]:
    penalized, changed = real_apply_penalty(logits, previous_tokens, penalty=penalty, last_n=last_n)
    after = changed.before / as_f32(penalty)
    penalized[changed.ids] = after
    return penalized, Penalties(changed.ids, changed.before, after)


def penalty_window_one_short(
    logits: Floats, previous_tokens: Sequence[int], *, penalty: float, last_n: int
) -> tuple[Doubles, Penalties]:
    shorter = max(last_n - 1, 0)
    return real_apply_penalty(logits, previous_tokens, penalty=penalty, last_n=shorter)


def penalty_without_the_newest(
    logits: Floats, previous_tokens: Sequence[int], *, penalty: float, last_n: int
) -> tuple[Doubles, Penalties]:
    return real_apply_penalty(logits, previous_tokens[:-1], penalty=penalty, last_n=last_n)


def last_of_the_largest(logits: Doubles) -> int:
    return len(logits) - 1 - int(np.argmax(logits[::-1]))


def overflowing_softmax(logits: Doubles) -> Doubles:
    with np.errstate(all="ignore"):
        powers = np.exp(logits)
        return np.asarray(powers / np.add.accumulate(powers)[-1])


def one_for_top_k_0(scores: Doubles, k: int) -> NDArray[np.int64]:
    return real_top_k(scores, k or 1)


def check_nothing(_params: InferencingParams) -> None:
    pass


def sum_of_what_is_left(probabilities: Doubles, u: float) -> int:
    sums = np.add.accumulate(probabilities)
    return min(int(np.searchsorted(sums, u, side="right")), len(probabilities) - 1)


def sample_without_prompt(
    logits: Floats,
    params: InferencingParams,
    previous_tokens: Sequence[int],
    u: float,
    *,
    step: int,
    **options: Any,
) -> Step:
    drawn = previous_tokens[len(previous_tokens) - step :]
    return sampling.sample(logits, params, drawn, u, step=step, **options)


def other_random_numbers(seed: int, step: int) -> float:
    return real_uniform((seed + 12345) % 2**64, step)


def mutant(name: str, changed: str, replacement: Any, *symptoms: str) -> Mutant:
    return Mutant(
        name=name,
        groups=("sampling",),
        changes={f"refllm.sampling.{changed}": replacement},
        symptoms=frozenset(symptoms),
    )


MUTANTS_OF_SAMPLING = (
    mutant(
        "temperature last", "_temperature_first", sampling._temperature_last, "temperature last"
    ),
    mutant("top-p before top-k", "_temperature_first", top_p_before_top_k, "top-p before top-k"),
    mutant(
        "top-p without the crossing token",
        "top_p",
        top_p_without_the_crossing,
        "top-p without the crossing token",
    ),
    mutant(
        "penalty per occurrence",
        "apply_penalty",
        penalty_per_occurrence,
        "penalty per occurrence",
    ),
    mutant("penalty divides all", "apply_penalty", penalty_divides_all, "penalty divides all"),
    mutant(
        "penalty window one short",
        "apply_penalty",
        penalty_window_one_short,
        "penalty window one short",
    ),
    mutant(
        "penalty without the newest token",
        "apply_penalty",
        penalty_without_the_newest,
        "penalty misses the newest token",
    ),
    mutant(
        "greedy ties to the highest id",
        "argmax",
        last_of_the_largest,
        "greedy ties to the highest id",
    ),
    mutant("softmax overflows", "softmax", overflowing_softmax, "softmax overflows"),
    mutant("top-k 0 keeps one", "top_k", one_for_top_k_0, "top-k 0 is greedy"),
    mutant("parameters as float64", "as_f32", float, "parameters not rounded"),
    mutant("draw not scaled", "draw", sum_of_what_is_left, "draw not scaled"),
    Mutant(
        name="parameters not checked",
        groups=("sampling", "api"),
        changes={"refllm.api.InferencingParams.check": check_nothing},
        symptoms=frozenset({"parameters not checked", "penalty not checked"}),
    ),
    Mutant(
        name="penalty without the prompt",
        groups=("text",),
        changes={"refllm.generate.sample": sample_without_prompt},
        symptoms=frozenset({"penalty without the prompt"}),
    ),
    Mutant(
        name="other random numbers",
        groups=("text",),
        changes={"refllm.generate.uniform": other_random_numbers},
        symptoms=frozenset({"other random numbers"}),
    ),
)
