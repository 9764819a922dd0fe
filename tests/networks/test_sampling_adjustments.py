"""What clients ask of a draw beyond the interface: bias, OpenAI's penalties, allowed tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.api import InferencingParams, InvalidInput, LlmRuntimeError
from refllm.generate import Generation, GenerationOptions, steps_of
from refllm.models.load import LlamaModel, load
from refllm.sampling import (
    PROFILES,
    Adjustments,
    apply_bias,
    apply_count_penalties,
    sample,
    uniform,
)

NEUTRAL = InferencingParams(repeat_penalty=1.0, temperature=1.0, top_k=0, top_p=1.0)
GREEDY = InferencingParams(repeat_penalty=1.0, temperature=0.0, max_tokens=12)


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def f64(*values: float) -> NDArray[np.float64]:
    return np.array(values, np.float64)


# Arithmetic, by hand


def test_the_frequency_penalty_counts_and_the_presence_penalty_does_not() -> None:
    lowered = apply_count_penalties(f64(1, 2, 3, -1), [2, 0, 2, 3, 2], frequency=0.5, presence=0.25)
    # 1 - 1 * 0.5 - 0.25; not drawn; 3 - 3 * 0.5 - 0.25; -1 - 1 * 0.5 - 0.25
    assert lowered.tolist() == [0.25, 2.0, 1.25, -1.75]


def test_negative_penalties_raise_a_logit() -> None:
    lowered = apply_count_penalties(f64(1, 2), [1, 1], frequency=-0.5, presence=-2)
    assert lowered.tolist() == [1.0, 5.0]


def test_the_frequency_penalty_is_subtracted_first_and_each_difference_is_rounded() -> None:
    # 2^53 + 2 - 1 is a tie, and 2^53 the even one; 2^53 - 0.9 rounds to 2^53 - 1. Neither the
    # other order nor the sum of both penalties gives that: 2^53 + 2 - 0.9 rounds to 2^53 + 2.
    lowered = apply_count_penalties(f64(2.0**53 + 2), [0, 0], frequency=0.5, presence=0.9)
    assert lowered[0] == 2.0**53 - 1
    assert (2.0**53 + 2 - 0.9) - 1.0 == 2.0**53 + 2 - 1.9 == 2.0**53


def test_a_bias_is_added_as_a_float32() -> None:
    biased = apply_bias(f32(1, 2, 3), {0: 0.1, 2: -100})
    assert biased.tolist() == [1 + float(np.float32(0.1)), 2.0, -97.0]


def test_the_given_logits_are_left_as_they_are() -> None:
    logits = f64(1, 2)
    apply_bias(logits, {0: 1})
    apply_count_penalties(logits, [0], frequency=1, presence=1)
    assert logits.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_a_value_that_is_no_finite_float32_is_refused_by_name(value: float) -> None:
    with pytest.raises(InvalidInput, match="frequency_penalty must be a finite float32"):
        apply_count_penalties(f64(1), [0], frequency=value, presence=0)
    with pytest.raises(InvalidInput, match="presence_penalty must be a finite float32"):
        apply_count_penalties(f64(1), [0], frequency=0, presence=value)
    with pytest.raises(InvalidInput, match="logit_bias must be finite float32 numbers, token 0"):
        apply_bias(f32(1), {0: value})


@pytest.mark.parametrize("token_id", [-1, 2])
def test_a_token_outside_the_vocabulary_is_refused(token_id: int) -> None:
    with pytest.raises(InvalidInput, match=f"logit_bias names the token {token_id}"):
        apply_bias(f32(1, 2), {token_id: 1})
    with pytest.raises(LlmRuntimeError, match=f"token {token_id} is outside"):
        apply_count_penalties(f64(1, 2), [token_id], frequency=1, presence=0)


# All steps together


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_without_adjustments_a_draw_has_the_same_bits(profile: str, temperature: float) -> None:
    logits = np.random.default_rng(1).normal(0, 3, 200).astype(np.float32)
    params = InferencingParams(temperature=temperature)
    for i in range(20):
        plain = sample(logits, params, [3, 5], uniform(1, i), profile=profile)
        same = sample(
            *(logits, params, [3, 5], uniform(1, i)),
            profile=profile,
            adjustments=Adjustments(),
            n_drawn=1,
        )
        assert plain.token == same.token
        assert plain.candidates.ids.tobytes() == same.candidates.ids.tobytes()
        assert plain.candidates.probabilities.tobytes() == same.candidates.probabilities.tobytes()


def test_the_bias_comes_before_the_repeat_penalty_and_openai_s_after_it() -> None:
    params = InferencingParams(repeat_penalty=2.0, temperature=1.0, top_k=0, top_p=1.0)
    adjustments = Adjustments(bias={0: 2.0}, frequency_penalty=0.5)
    step = sample(f32(2, 0), params, [0], 0.5, adjustments=adjustments, n_drawn=1)
    # Token 0: (2 + 2) / 2 - 1 * 0.5 = 1.5; token 1 stays at 0.
    first = step.stages[0].candidates.probabilities
    assert first[0] / first[1] == pytest.approx(math.exp(1.5), rel=1e-14)


def test_the_prompt_s_tokens_do_not_count() -> None:
    adjustments = Adjustments(presence_penalty=2.0)
    step = sample(f32(1, 1), NEUTRAL, [0, 0, 1], 0.5, adjustments=adjustments, n_drawn=1)
    first = step.stages[0].candidates.probabilities
    assert first[0] / first[1] == pytest.approx(math.exp(2), rel=1e-14)
    step = sample(f32(1, 1), NEUTRAL, [0, 0, 1], 0.5, adjustments=adjustments, n_drawn=0)
    assert step.stages[0].candidates.probabilities.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("temperature", [0.0, 1.0, 3e38])
def test_a_token_that_is_not_allowed_is_never_drawn(profile: str, temperature: float) -> None:
    params = InferencingParams(temperature=temperature, repeat_penalty=1.0, top_k=40, top_p=1.0)
    allowed = np.array([True, False, True, False, True])
    drawn = {
        sample(*(f32(1, 9, 2, 8, 2), params, [], u), profile=profile, allowed=allowed).token
        for u in (0.0, 0.3, 0.6, 0.999999)
    }
    assert drawn == {2} if temperature == 0 else drawn <= {0, 2, 4}


def test_a_mask_leaves_the_probabilities_of_a_smaller_vocabulary() -> None:
    step = sample(f32(1, 9, 2), NEUTRAL, [], 0.5, allowed=np.array([True, False, True]))
    alone = sample(f32(1, 2), NEUTRAL, [], 0.5)
    assert step.candidates.ids.tolist() == [2, 0]
    assert step.candidates.probabilities.tobytes() == alone.candidates.probabilities.tobytes()


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("change", [{"top_k": 2}, {"top_p": 0.6}])
def test_top_k_and_top_p_count_allowed_tokens_only(profile: str, change: dict[str, float]) -> None:
    params = InferencingParams(repeat_penalty=1.0, temperature=1.0, **{"top_k": 3, **change})  # type: ignore[arg-type]
    allowed = np.array([False, True, False, True, True])
    step = sample(*(f32(9, 2, 8, 2, 1), params, [], 0.5), profile=profile, allowed=allowed)
    assert step.candidates.ids.tolist() == [1, 3]


def test_a_vocabulary_of_which_nothing_is_allowed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no token of the vocabulary is allowed"):
        sample(f32(1, 2), NEUTRAL, [], 0.5, allowed=np.zeros(2, np.bool_))


# A generation


@pytest.fixture(scope="module")
def tiny() -> LlamaModel:
    model = load("tiny-chat")
    assert isinstance(model, LlamaModel)
    return model


def drawn(
    model: LlamaModel, prompt: str, params: InferencingParams, generation_options: GenerationOptions
) -> list[int]:
    generation = Generation(
        model.network,
        model.prompt_tokens(prompt),
        params,
        end_tokens=model.tokenizer.eos_ids,
        n_tokens=model.tokenizer.n_vocab,
        generation_options=generation_options,
    )
    return [step.token for step in steps_of(model.network, generation)]


HELLO = "[INST] Hello! [/INST]"


def test_an_end_token_is_not_drawn_before_min_tokens(tiny: LlamaModel) -> None:
    params = InferencingParams(repeat_penalty=1.0, temperature=0.0, max_tokens=60)
    plain = drawn(tiny, HELLO, params, GenerationOptions())
    assert plain[-1] in tiny.tokenizer.eos_ids
    longer = drawn(tiny, HELLO, params, GenerationOptions(min_tokens=len(plain) + 5))
    assert longer[: len(plain) - 1] == plain[:-1]
    assert len(longer) >= len(plain) + 5
    assert set(longer[: len(plain) + 5]) & tiny.tokenizer.eos_ids == set()
    assert drawn(tiny, HELLO, params, GenerationOptions(min_tokens=len(plain) - 1)) == plain


def test_ignore_eos_draws_as_many_tokens_as_are_asked_for(tiny: LlamaModel) -> None:
    params = InferencingParams(repeat_penalty=1.0, temperature=0.0, max_tokens=80)
    tokens = drawn(tiny, HELLO, params, GenerationOptions(ignore_eos=True))
    assert len(tokens) == 80
    assert set(tokens) & tiny.tokenizer.eos_ids == set()


def test_a_stop_token_ends_the_text_and_min_tokens_withholds_it(tiny: LlamaModel) -> None:
    plain = drawn(tiny, "Once upon a time", GREEDY, GenerationOptions())
    stops = frozenset({plain[3]})
    assert (
        drawn(tiny, "Once upon a time", GREEDY, GenerationOptions(stop_token_ids=stops))
        == plain[:4]
    )
    later = drawn(
        tiny, "Once upon a time", GREEDY, GenerationOptions(stop_token_ids=stops, min_tokens=6)
    )
    assert plain[3] not in later[:6]


def test_a_bias_of_100_makes_every_token_the_same(tiny: LlamaModel) -> None:
    generation_options = GenerationOptions(adjustments=Adjustments(bias={42: 100.0}))
    assert drawn(tiny, "Once", GREEDY, generation_options) == [42] * 12


def test_the_frequency_penalty_of_a_generation_counts_its_own_tokens(tiny: LlamaModel) -> None:
    bias = {42: 40.0}
    params = InferencingParams(repeat_penalty=1.0, temperature=0.0, max_tokens=60)
    tokens = drawn(tiny, "Once", params, GenerationOptions(adjustments=Adjustments(bias=bias)))
    assert tokens == [42] * 60
    # Sixty draws at 2 each take away three times the bias.
    adjustments = Adjustments(bias=bias, frequency_penalty=2.0)
    tokens = drawn(tiny, "Once", params, GenerationOptions(adjustments=adjustments))
    assert tokens[0] == 42
    assert 0 < tokens.count(42) < 60
