"""From logits to one token: penalty, temperature, softmax, top-k, top-p, draw.

One draw, from the logits x [V] and one random number u in [0, 1):

    x_i ← x_i / r  or  x_i · r      for each recent token i: the repeat penalty r
    x   ← x / t                     temperature
    p_i ← exp(x_i) / Σ exp(x_j)     softmax
    the k largest p_i               top-k
    the fewest p_i with Σ ≥ p       top-p (the nucleus), from the largest down
    the first i with Σ p_j > u·Σ p  draw

Each line is a pure function of its arguments, and `sample` runs them in the order of a profile:

    contract, spin-local   penalty → temperature → softmax → top-k → top-p → draw
    llama.cpp              penalty → top-k → softmax → top-p → temperature → softmax → draw

The order matters. With logits [3, 2, 1], top_p 0.8 and temperature 0.5, softmax gives the first
token 0.867 when the temperature comes first, which alone crosses 0.8; it gives 0.665 when the
temperature comes last, and the second token is kept as well.

V tokens in the vocabulary, C candidates left, P penalized tokens, A allowed tokens. Everything is
float64, computed from float32 logits and from parameters rounded to float32. The largest quotient,
the largest float32 over the smallest, is 2.4e83: nothing here can overflow. Every operation is one
IEEE operation in a stated order, so every machine gets the same bits.

Sources of the profiles:
- Spin's local engine uses candle (`apply_repeat_penalty` in candle-transformers/src/utils.rs,
  `Sampling::TopKThenTopP` in candle-transformers/src/generation/mod.rs): softmax over the whole
  vocabulary, then top-k, then top-p on those same probabilities, which are not normalized again.
- llama.cpp chains samplers (src/llama-sampling.cpp; the default order is in common/common.h). Its
  top-p takes softmax over what top-k left, so those probabilities sum to 1. Only top_p >= 1
  switches it off: at top_p <= 0 the first candidate reaches the sum, and is the only one kept.
- Both leave the order of equal tokens to an unstable selection. Here it is by id, everywhere.

Clients of other protocols can send more than the interface's six parameters (`Adjustments`). These
surround the repeat penalty, in every profile:

    logit bias → repeat penalty → frequency and presence penalty → the profile's stages, over the
    tokens that are allowed

As in vLLM, the allowed tokens are selected before every stage: probabilities, top-k and top-p are
those of the allowed tokens alone. The bias and the penalties change each logit by itself, so their
order relative to the selection does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.interface import InferencingParams, as_f32
from refllm.kernels import math64
from refllm.kernels.topk import topk

__all__ = [
    "PROFILES",
    "Adjustments",
    "Candidates",
    "Penalties",
    "Stage",
    "Step",
    "apply_bias",
    "apply_count_penalties",
    "apply_penalty",
    "apply_temperature",
    "argmax",
    "draw",
    "exp",
    "sample",
    "softmax",
    "splitmix64",
    "top_k",
    "top_p",
    "uniform",
]

PROFILES = frozenset({"contract", "spin-local", "llama.cpp"})

U64_MAX = 2**64 - 1
INSERTION_LIMIT = 128  # up to this k, insertion into a sorted buffer is fastest
GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, made odd


# --- The steps, one function each ----------------------------------------------------------------


def apply_penalty(
    logits: NDArray[np.float32] | NDArray[np.float64],
    previous_tokens: Sequence[int],
    *,
    penalty: float,
    last_n: int,
) -> tuple[NDArray[np.float64], Penalties]:
    """Return logits float64 [V] with recent tokens made less likely, and the changes.

    Each distinct token among the last `last_n` previous tokens is penalized once: a logit >= 0 is
    divided by the penalty, one < 0 multiplied. (llama.cpp multiplies at 0 instead: 0 either way,
    sign included.)

    Args:
        logits: The logits [V].
        previous_tokens: The tokens of the prompt and of the text so far, oldest first.
        penalty: The repeat penalty; 1 is off.
        last_n: The number of tokens in the window; 0 is off.

    Raises:
        InvalidInput: If the penalty is not a float32 above 0.
        LlmRuntimeError: For a token outside the vocabulary: tokenizer and model do not match.

    Example:
        >>> apply_penalty(np.array([4.0, -1.0, 3.0]), [1, 0, 0], penalty=2.0, last_n=64)[0]
        array([ 2., -2.,  3.])

    Source: Keskar et al. 2019, "CTRL", section 4.1, with the division of negative logits corrected.
    """
    penalized = logits.astype(np.float64)  # [V]
    divisor = as_f32(penalty)
    if last_n > 0 and not 0.0 < divisor < math.inf:
        raise InvalidInput(
            f"repeat_penalty must be greater than 0 as a float32, got {penalty!r}; "
            "1.0 switches it off"
        )
    is_off = last_n == 0 or divisor == 1.0
    window = () if is_off else previous_tokens[-last_n:]
    ids = _distinct_tokens(window, n_vocab=len(logits))  # [P]
    before = penalized[ids]  # [P]
    after = np.where(before >= 0, before / divisor, before * divisor)  # [P]
    penalized[ids] = after
    return penalized, Penalties(ids, before, after)


def apply_temperature(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return the logits divided by the temperature, in the same shape.

    Raises:
        InvalidInput: If the temperature is not a float32 above 0; there `argmax` chooses.
    """
    temperature = as_f32(temperature)
    if not 0.0 < temperature < math.inf:
        raise InvalidInput(
            f"temperature must be greater than 0 to divide by, got {temperature!r}; "
            "0 or less means the most likely token, without a draw"
        )
    return logits / temperature


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities float64 [C]: exp(x - max) / sum, summed left to right.

    The logits must be finite. The largest term of the sum is exactly 1.

    Example:
        >>> softmax(np.array([3.0, 2.0, 1.0])).round(3)
        array([0.665, 0.245, 0.09 ])
    """
    return math64.softmax(logits)


def exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return e^x for x <= 0, in the same shape: the same bits everywhere, unlike `np.exp`.

    x = n ln 2 + r with |r| <= ln 2 / 2, so e^x = 2^n e^r, and e^r is its Taylor polynomial of
    degree 13 (the rest of the series is below 2^-57), by Horner, product and sum rounded apart.

    The worst error found is 1.16 ulp, over 2.4 million points against mpmath at 200 bits: uniform
    in [-745.2, 0] and in [-2, 0], and around every multiple of ln 2 / 2. A result below 2^-1022 is
    rounded twice, the second time to a multiple of 2^-1074, and the worst found is 0.81 of that;
    it is 0 below about -745.13.
    """
    return math64.exp(x)


def top_k(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the ids int64 [C] of the `k` largest scores of [V]; k = 0 or k >= V keeps all.

    The order is by descending score, then ascending id: on a tie for the last place the lower ids
    are kept.
    Source: Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.4.
    """
    n = len(scores)
    if not 0 < k < n:
        return np.argsort(-scores, kind="stable")
    if k <= INSERTION_LIMIT:
        return topk(scores, k)
    border = np.partition(scores, n - k)[n - k]  # the k-th largest, without sorting V scores
    above = np.flatnonzero(scores > border)  # fewer than k, ascending ids
    tied = np.flatnonzero(scores == border)[: k - len(above)]
    ids = np.sort(np.concatenate((above, tied)))  # [k]
    return ids[np.argsort(-scores[ids], kind="stable")]


def top_p(probabilities: NDArray[np.float64], p: float) -> int:
    """Return how many of the probabilities [C], in descending order, top-p keeps: at least one.

    A candidate is kept while the sum of the candidates before it is < p, so the one that reaches p
    is the last one kept. p <= 0 or p >= 1 keeps all.

    Example:
        >>> top_p(np.array([0.5, 0.3, 0.2]), 0.75)
        2

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    p = as_f32(p)
    if p <= 0.0 or p >= 1.0:
        return len(probabilities)
    before = np.add.accumulate(probabilities)[:-1]  # [C-1], before[i] precedes candidate i + 1
    return 1 + int(np.searchsorted(before, p, side="left"))


def draw(probabilities: NDArray[np.float64], u: float) -> int:
    """Return the index of the first candidate whose cumulative sum exceeds u times the total.

    The probabilities [C] need not sum to 1. Sums run left to right. u * total can round up to the
    total itself only where the total is subnormal; the last candidate is drawn then.

    Raises:
        InvalidInput: If u is not in [0, 1).

    Example:
        >>> draw(np.array([0.5, 0.3, 0.2]), 0.6)
        1
    """
    if not 0.0 <= u < 1.0:
        raise InvalidInput(f"u must be at least 0 and less than 1, got {u!r}")
    cumulative = np.add.accumulate(probabilities)  # [C]
    index = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return min(index, len(probabilities) - 1)


def argmax(logits: NDArray[np.float64]) -> int:
    """Return the id of the largest logit, on a tie the lowest: the token at temperature <= 0."""
    return int(np.argmax(logits))  # the first of equals, as NumPy documents


def _distinct_tokens(window: Sequence[int], *, n_vocab: int) -> NDArray[np.int64]:
    ids = sorted(set(window))
    for token_id in ids[:1] + ids[-1:]:  # the lowest and the highest
        if not 0 <= token_id < n_vocab:
            raise LlmRuntimeError(
                f"previous token {token_id} is outside the vocabulary of {n_vocab} logits; "
                "the tokenizer does not belong to this model"
            )
    return np.array(ids, dtype=np.int64)


# --- Random numbers ------------------------------------------------------------------------------


def splitmix64(seed: int, step: int) -> int:
    """Return output number `step` (from 0) of the SplitMix64 generator that starts at `seed`.

    The output is addressed, not iterated: draw i does not depend on the number of draws before it.

    Raises:
        InvalidInput: If seed or step is not a whole number from 0 to 2^64 - 1.

    Example:
        >>> splitmix64(1234567, 0)
        6457827717110365317

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    for name, value in (("seed", seed), ("step", step)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= U64_MAX:
            raise InvalidInput(f"{name} must be a whole number from 0 to {U64_MAX}, got {value!r}")
    z = (seed + (step + 1) * GOLDEN_GAMMA) & U64_MAX
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & U64_MAX
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & U64_MAX
    return z ^ (z >> 31)


def uniform(seed: int, step: int) -> float:
    """Return a float64 in [0, 1): the high 53 bits of `splitmix64(seed, step)` over 2^53."""
    return (splitmix64(seed, step) >> 11) * 2.0**-53


# --- What clients of other protocols can send ----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustments:
    """Changes of the logits beyond the interface's parameters; by default there are none.

    Attributes:
        bias: What is added to the logit of a token, by its id; see `apply_bias`.
        frequency_penalty: OpenAI's, for each time that a token was drawn before; 0 is off.
        presence_penalty: OpenAI's, once for a token that was drawn before; 0 is off.
    """

    bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


NO_ADJUSTMENTS = Adjustments()


def apply_bias(
    logits: NDArray[np.float32] | NDArray[np.float64], bias: Mapping[int, float]
) -> NDArray[np.float64]:
    """Return logits float64 [V] with a bias added to some of them: x + b, each rounded once.

    Args:
        logits: The logits [V].
        bias: What is added, by token id; each is rounded to float32 first.

    Raises:
        InvalidInput: For a bias that is not a finite float32, and for a token id outside the
            vocabulary; both name the token.

    Source: OpenAI's API reference, `logit_bias`.
    """
    biased = logits.astype(np.float64)  # [V]
    for token_id, value in bias.items():
        if not 0 <= token_id < len(biased):
            raise InvalidInput(
                f"logit_bias names the token {token_id}, the model's vocabulary has "
                f"{len(biased)} tokens, counted from 0"
            )
        if not math.isfinite(as_f32(value)):
            raise InvalidInput(
                f"logit_bias must be finite float32 numbers, token {token_id} has {value!r}"
            )
        biased[token_id] += as_f32(value)
    return biased


def apply_count_penalties(
    logits: NDArray[np.float64],
    drawn_tokens: Sequence[int],
    *,
    frequency: float,
    presence: float,
) -> NDArray[np.float64]:
    """Return logits float64 [V], those of tokens that were drawn before lowered.

    The logit x of a token that was drawn c > 0 times becomes (x - c * frequency) - presence; the
    product and both differences are rounded, in this order. A negative penalty raises the logit.

    Args:
        logits: The logits [V].
        drawn_tokens: What was drawn so far; the prompt does not count.
        frequency: The penalty for each time, rounded to float32; 0 is off.
        presence: The penalty for all times together, rounded to float32; 0 is off.

    Raises:
        InvalidInput: For a penalty that is not a finite float32, named as OpenAI names it.
        LlmRuntimeError: For a drawn token that is not in the vocabulary.

    Example:
        >>> apply_count_penalties(np.array([1.0, 2.0, 3.0]), [2, 0, 2], frequency=0.5, presence=1)
        array([-0.5,  2. ,  1. ])

    Source: OpenAI's API reference, `frequency_penalty` and `presence_penalty`.
    """
    for name, value in (("frequency_penalty", frequency), ("presence_penalty", presence)):
        if not math.isfinite(as_f32(value)):
            raise InvalidInput(f"{name} must be a finite float32, got {value!r}")
    frequency, presence = as_f32(frequency), as_f32(presence)
    lowered = logits.copy()  # [V]
    ids = _distinct_tokens(drawn_tokens, n_vocab=len(logits))  # [P]
    counts = np.bincount(np.array(drawn_tokens, dtype=np.int64), minlength=len(logits))  # [V]
    lowered[ids] = (lowered[ids] - counts[ids] * frequency) - presence
    return lowered


# --- What a draw leaves to be read ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Tokens that can be drawn: ids int64 [C] and their probabilities float64 [C]."""

    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, n: int) -> Candidates:
        """Return the first `n` candidates."""
        return Candidates(self.ids[:n], self.probabilities[:n])


@dataclass(frozen=True, slots=True, eq=False)
class Penalties:
    """What the repeat penalty changed: ids int64 [P] ascending, logits float64 [P] around it."""

    ids: NDArray[np.int64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stage:
    """The candidates that one stage left, by the stage's name."""

    name: str
    candidates: Candidates


@dataclass(frozen=True, slots=True)
class Step:
    """One draw: what each stage did, the number `u` it drew with, and the token.

    `stages` are in the order they ran; what a stage was given is what the one before it left.
    The stages of `contract` and `spin-local` are softmax (the whole vocabulary, by ascending id),
    top_k and top_p. Those of `llama.cpp` are top_k (with the softmax of what it left), top_p, and
    softmax (after the temperature). A greedy step has the single stage argmax, with one candidate
    of probability 1, and does not use `u`.

    The arrays are those that sampling computed anyway: no copies, 16 bytes for each candidate.
    """

    step: int
    profile: str
    n_vocab: int
    penalties: Penalties
    stages: tuple[Stage, ...]
    u: float
    token: int

    @property
    def candidates(self) -> Candidates:
        """The candidates that the token was drawn from, the most probable first."""
        return self.stages[-1].candidates

    @property
    def counts(self) -> dict[str, int]:
        """How many candidates each stage left: {"softmax": 32000, "top_k": 40, "top_p": 7}."""
        return {stage.name: len(stage.candidates) for stage in self.stages}


# --- All steps together --------------------------------------------------------------------------


def sample(
    logits: NDArray[np.float32],
    params: InferencingParams,
    previous_tokens: Sequence[int],
    u: float,
    *,
    step: int = 0,
    profile: str = "contract",
    adjustments: Adjustments = NO_ADJUSTMENTS,
    n_drawn: int = 0,
    allowed: NDArray[np.bool_] | None = None,
) -> Step:
    """Draw one token, and return what each stage did.

    Args:
        logits: The logits, float32 [V].
        params: The interface's parameters.
        previous_tokens: The tokens of the prompt and of the text so far, oldest first.
        u: The random number, in [0, 1).
        step: The number of this draw; only stored in the result.
        profile: One of `PROFILES`.
        adjustments: What a client sends beyond the interface.
        n_drawn: How many of the previous tokens were drawn: OpenAI's penalties count these.
        allowed: The tokens that may be drawn, bool [V]; None for all.

    Raises:
        InvalidInput: For an unusable parameter, an unknown profile, and no allowed token.
        LlmRuntimeError: For a logit that is not finite, a previous token outside the vocabulary,
            and top_k 0 in the profile spin-local (candle draws from an empty list and fails; at
            temperature <= 0 it does not read top_k).
    """
    params.check()
    if profile not in PROFILES:
        raise InvalidInput(f"unknown profile {profile!r}; use one of {sorted(PROFILES)}")
    _check_logits(logits)
    penalized, penalties = apply_penalty(
        apply_bias(logits, adjustments.bias) if adjustments.bias else logits,
        previous_tokens,
        penalty=params.repeat_penalty,
        last_n=params.repeat_penalty_last_n_token_count,
    )
    if adjustments.frequency_penalty != 0 or adjustments.presence_penalty != 0:
        penalized = apply_count_penalties(
            penalized,
            previous_tokens[len(previous_tokens) - n_drawn :],
            frequency=adjustments.frequency_penalty,
            presence=adjustments.presence_penalty,
        )
    ids = _every_id(len(logits))  # [A]
    if allowed is not None:
        ids = np.flatnonzero(allowed)
        if len(ids) == 0:
            raise InvalidInput("no token of the vocabulary is allowed, and none can be drawn")
        penalized = penalized[ids]  # [A]
    if as_f32(params.temperature) <= 0.0:
        stages: tuple[Stage, ...] = (
            Stage("argmax", Candidates(np.array([argmax(penalized)]), np.ones(1))),
        )
    elif profile == "llama.cpp":
        stages = _temperature_last(penalized, params)
    elif profile == "spin-local" and params.top_k == 0:
        raise LlmRuntimeError(
            "top_k 0 leaves Spin's local engine no token to draw; "
            "use at least 1, or profile 'contract', where 0 switches top-k off"
        )
    else:
        stages = _temperature_first(penalized, params)
    if len(ids) < len(logits):  # ids so far are indices into the allowed tokens
        stages = tuple(
            Stage(s.name, Candidates(ids[s.candidates.ids], s.candidates.probabilities))
            for s in stages
        )
    drawn_from = stages[-1].candidates
    return Step(
        step=step,
        profile=profile,
        n_vocab=len(logits),
        penalties=penalties,
        stages=stages,
        u=u,
        token=int(drawn_from.ids[draw(drawn_from.probabilities, u)]),
    )


def _temperature_first(logits: NDArray[np.float64], params: InferencingParams) -> tuple[Stage, ...]:
    probabilities = softmax(apply_temperature(logits, params.temperature))  # [V]
    whole = Candidates(_every_id(len(logits)), probabilities)
    ids = top_k(probabilities, params.top_k)  # [C]
    likely = Candidates(ids, probabilities[ids])
    nucleus = likely.first(top_p(likely.probabilities, params.top_p))
    return Stage("softmax", whole), Stage("top_k", likely), Stage("top_p", nucleus)


def _temperature_last(logits: NDArray[np.float64], params: InferencingParams) -> tuple[Stage, ...]:
    ids = top_k(logits, params.top_k)  # [C]
    likely = Candidates(ids, softmax(logits[ids]))
    # llama.cpp has no "off" at the lower end: the first candidate already reaches p.
    keeps_one = as_f32(params.top_p) <= 0.0
    nucleus = likely.first(1 if keeps_one else top_p(likely.probabilities, params.top_p))
    ids = nucleus.ids
    warmed = Candidates(ids, softmax(apply_temperature(logits[ids], params.temperature)))
    return Stage("top_k", likely), Stage("top_p", nucleus), Stage("softmax", warmed)


def _check_logits(logits: NDArray[np.float32]) -> None:
    if logits.dtype != np.float32 or logits.ndim != 1 or logits.size == 0:
        raise LlmRuntimeError(
            "logits must be float32, one for each token of the vocabulary, "
            f"got {logits.dtype} of shape {logits.shape}"
        )
    finite = np.isfinite(logits)
    if not finite.all():
        token_id = int(np.argmin(finite))
        raise LlmRuntimeError(
            f"the logit of token {token_id} is {logits[token_id]}, not a finite number; "
            "the model's weights or a layer before are damaged"
        )


@cache
def _every_id(n_vocab: int) -> NDArray[np.int64]:
    """Return 0, 1, 2, …, read-only."""
    ids = np.arange(n_vocab)
    ids.flags.writeable = False
    return ids
