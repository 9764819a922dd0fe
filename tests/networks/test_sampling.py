from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from decimal import Context, Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from refllm.api import InferencingParams, InvalidInput, LlmRuntimeError
from refllm.kernels import math64 as powers
from refllm.sampling import (
    PROFILES,
    apply_penalty,
    apply_temperature,
    argmax,
    draw,
    exp,
    sample,
    softmax,
    splitmix64,
    top_k,
    top_p,
    uniform,
)
from tests.support.other_cpus import CPUS, environment_for, skip_unless_runnable

NEUTRAL = InferencingParams(repeat_penalty=1.0, temperature=1.0, top_k=0, top_p=1.0)


def f32(*logits: float) -> NDArray[np.float32]:
    return np.array(logits, dtype=np.float32)


def running_sum(values: list[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


# --- exp -----------------------------------------------------------------------------------------


def exp_points() -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    near_multiples_of_half_ln2 = -np.arange(1, 2049) * (math.log(2) / 2)
    return np.concatenate(
        (
            rng.uniform(-708, 0, 3000),
            rng.uniform(-2, 0, 2000),
            near_multiples_of_half_ln2,
            np.nextafter(near_multiples_of_half_ln2, 0),
        )
    )


def test_exp_is_within_1_2_ulp_of_the_true_value() -> None:
    x = exp_points()
    x = x[x > -708]  # above: normal numbers
    forty_digits = Context(prec=40)
    for point, value in zip(x.tolist(), exp(x).tolist(), strict=True):
        truth = forty_digits.exp(Decimal(point))
        error = abs(Decimal(value) - truth) / Decimal(math.ulp(float(truth)))
        assert error < Decimal("1.2"), point


def test_a_subnormal_exp_is_within_one_unit() -> None:
    x = np.random.default_rng(1).uniform(-745.2, -708.4, 2000)
    forty_digits = Context(prec=40)
    for point, value in zip(x.tolist(), exp(x).tolist(), strict=True):
        truth = forty_digits.exp(Decimal(point))
        assert abs(Decimal(value) - truth) < Decimal(math.ulp(0.0)), point


def test_exp_gives_the_bits_of_a_plain_python_loop() -> None:
    inverse_ln2, ln2_high, ln2_low = (
        float.fromhex(constant)
        for constant in ("0x1.71547652b82fep+0", "0x1.62e42feep-1", "0x1.a39ef35793c76p-33")
    )

    def plain(x: float) -> float:
        n = round(x * inverse_ln2)
        r = (x - n * ln2_high) - n * ln2_low
        result = 1.0 / math.factorial(13)
        for k in range(12, -1, -1):
            result = result * r + 1.0 / math.factorial(k)  # Python never fuses the two
        return math.ldexp(result, n)

    x = exp_points()
    assert exp(x).tolist() == [plain(point) for point in x.tolist()]


EXP_OF_INPUT = """
import sys
import numpy as np
from refllm.sampling import exp
sys.stdout.buffer.write(exp(np.frombuffer(sys.stdin.buffer.read())).tobytes())
"""


@pytest.mark.parametrize("cpu", CPUS)
def test_exp_has_the_same_bits_on_another_cpu(cpu: str) -> None:
    skip_unless_runnable(cpu)
    command = [sys.executable, "-c", EXP_OF_INPUT]
    x = exp_points()
    given = x.tobytes()
    done = subprocess.run(
        command, input=given, env=environment_for(cpu), capture_output=True, check=True
    )
    assert done.stdout == exp(x).tobytes()


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.0, 1.0),
        (-0.0, 1.0),
        (-1e-300, 1.0),
        (-745.0, 5e-324),
        (-745.2, 0.0),
        (-746.0, 0.0),
        (-1e300, 0.0),
        (-math.inf, 0.0),
    ],
)
def test_exp_at_its_ends(x: float, expected: float) -> None:
    assert exp(np.array([x])).tolist() == [expected]


def test_ln2_in_two_parts_is_ln2() -> None:
    high, low = powers.LN2_HIGH, powers.LN2_LOW
    ln2 = Decimal("0.693147180559945309417232121458176568")
    assert abs(Decimal(high) + Decimal(low) - ln2) < Decimal(2) ** -86
    assert high.as_integer_ratio()[0].bit_length() <= 32


# --- penalty, temperature, softmax ---------------------------------------------------------------


def test_the_penalty_leaves_the_given_logits_alone() -> None:
    logits = f32(3, -1, 2)
    apply_penalty(logits, [0, 1], penalty=2.0, last_n=64)
    assert logits.tolist() == [3, -1, 2]


def test_apply_penalty_returns_the_changed_tokens() -> None:
    _, penalties = apply_penalty(f32(3, -1, 2), [2, 1, 2], penalty=2.0, last_n=64)
    assert penalties.ids.tolist() == [1, 2]
    assert penalties.before.tolist() == [-1, 2]
    assert penalties.after.tolist() == [-2, 1]


@pytest.mark.parametrize("penalty", [0.0, -0.0, -1.0, math.nan, math.inf, 1e-60, 1e39])
def test_a_penalty_that_is_no_float32_above_zero_is_named(penalty: float) -> None:
    with pytest.raises(InvalidInput, match="repeat_penalty"):
        apply_penalty(f32(1, 2), [0], penalty=penalty, last_n=1)


@pytest.mark.parametrize("token_id", [-1, 2, 2**70])
def test_a_previous_token_outside_the_vocabulary_is_named(token_id: int) -> None:
    with pytest.raises(LlmRuntimeError, match=f"previous token {token_id} is outside"):
        apply_penalty(f32(1, 2), [0, token_id, 1], penalty=2.0, last_n=64)


@pytest.mark.parametrize("temperature", [0.0, -0.0, -1.0, math.nan, math.inf, 1e-60])
def test_only_a_temperature_above_zero_divides(temperature: float) -> None:
    with pytest.raises(InvalidInput, match="temperature"):
        apply_temperature(np.array([1.0]), temperature)


def test_softmax_sums_from_left_to_right() -> None:
    logits = np.random.default_rng(2).normal(0, 4, 4000)
    powers = exp(logits - logits.max())
    total = running_sum(powers.tolist())
    assert total != np.sum(powers)  # in pairs: the test would not see the difference otherwise
    assert softmax(logits).tolist() == [power / total for power in powers.tolist()]


def test_softmax_leaves_the_given_logits_alone() -> None:
    logits = np.array([1.0, 2.0])
    softmax(logits)
    assert logits.tolist() == [1.0, 2.0]


def test_argmax_takes_the_lowest_id_of_a_tie() -> None:
    assert argmax(np.array([1.0, 5.0, 5.0, 2.0])) == 1


# --- top-k, top-p, draw --------------------------------------------------------------------------

few_distinct_scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)
weights = st.lists(st.floats(0, 1), min_size=1, max_size=20).map(
    lambda values: sorted(values, reverse=True)
)


@settings(deadline=None)
@given(few_distinct_scores, st.integers(0, 50))
def test_top_k_is_the_head_of_the_sorted_list(scores: list[float], k: int) -> None:
    in_order = sorted(range(len(scores)), key=lambda token_id: (-scores[token_id], token_id))
    assert top_k(np.array(scores), k).tolist() == (in_order[:k] if k else in_order)


def test_top_k_of_a_large_vocabulary_keeps_the_lowest_ids_of_a_tie() -> None:
    scores = np.random.default_rng(3).integers(0, 50, 128_000).astype(np.float64)
    in_order = np.lexsort((np.arange(len(scores)), -scores))
    assert top_k(scores, 3000).tolist() == in_order[:3000].tolist()


@settings(deadline=None)
@given(weights, st.floats(-0.5, 1.5, width=32))
def test_top_p_keeps_a_candidate_while_the_sum_before_it_is_less(
    probabilities: list[float], p: float
) -> None:
    if 0 < p < 1:
        befores = [running_sum(probabilities[:i]) for i in range(len(probabilities))]
        expected = sum(before < p for before in befores)
    else:
        expected = len(probabilities)
    assert top_p(np.array(probabilities), p) == expected


@settings(deadline=None)
@given(weights.filter(lambda values: values[0] > 1e-3), st.floats(0, 1, exclude_max=True))
def test_draw_takes_the_first_sum_above_u_times_the_total(
    probabilities: list[float], u: float
) -> None:
    sums = [running_sum(probabilities[: i + 1]) for i in range(len(probabilities))]
    expected = next(i for i, total in enumerate(sums) if total > u * sums[-1])
    assert draw(np.array(probabilities), u) == expected


def test_draw_never_falls_off_the_end_where_a_product_rounds_up() -> None:
    smallest = math.ulp(0.0)
    assert smallest * 0.9 == smallest
    assert draw(np.array([smallest]), 0.9) == 0


@pytest.mark.parametrize("u", [1.0, -0.1, math.nan, math.inf])
def test_a_random_number_outside_zero_to_one_is_refused(u: float) -> None:
    with pytest.raises(InvalidInput, match="u must be"):
        draw(np.array([1.0]), u)


# --- random numbers ------------------------------------------------------------------------------


def test_uniform_has_the_published_histogram() -> None:
    # Rosetta Code, "Pseudo-random numbers/Splitmix64": floor(5 * u), 100000 times, this seed.
    counts = Counter(int(uniform(987654321, step) * 5) for step in range(100_000))
    assert counts == {0: 20027, 1: 19892, 2: 20073, 3: 19978, 4: 20030}


def test_the_largest_output_stays_below_one() -> None:
    seed = 3558559446808474027  # found by running the generator backward
    assert splitmix64(seed, 0) == 2**64 - 1
    assert uniform(seed, 0) == math.nextafter(1, 0)


@pytest.mark.parametrize("value", [-1, 2**64, 1.5, True, "7", None])
@pytest.mark.parametrize("name", ["seed", "step"])
def test_a_seed_or_step_that_is_no_u64_is_named(name: str, value: Any) -> None:
    arguments = {"seed": 0, "step": 0, name: value}
    with pytest.raises(InvalidInput, match=f"{name} must be a whole number"):
        splitmix64(**arguments)


# --- sample --------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_tokens_are_drawn_as_often_as_they_are_likely(profile: str) -> None:
    params = InferencingParams(repeat_penalty=1.0, temperature=1.0, top_k=3, top_p=1.0)
    logits = f32(0, math.log(2), math.log(5))
    draws = 4000
    tokens = Counter(
        sample(logits, params, [], uniform(1, step), profile=profile).token for step in range(draws)
    )
    for token_id, share in enumerate((1 / 8, 2 / 8, 5 / 8)):
        standard_deviation = math.sqrt(draws * share * (1 - share))
        assert abs(tokens[token_id] - draws * share) < 3 * standard_deviation


def test_a_trace_has_the_candidates_after_each_stage() -> None:
    params = InferencingParams(repeat_penalty=2.0, temperature=1.0, top_k=2, top_p=0.6)
    step = sample(f32(3, 2, 1), params, [2], 0.25, step=7)
    assert step.counts == {"softmax": 3, "top_k": 2, "top_p": 1}
    assert step.candidates.ids.tolist() == [0]
    assert step.penalties.ids.tolist() == [2]
    assert (step.step, step.profile, step.n_vocab, step.u, step.token) == (
        7,
        "contract",
        3,
        0.25,
        0,
    )


def test_a_step_of_llama_cpp_names_its_own_stages() -> None:
    step = sample(f32(3, 2, 1), NEUTRAL, [], 0.25, profile="llama.cpp")
    assert list(step.counts) == ["top_k", "top_p", "softmax"]


@pytest.mark.parametrize("u", [0.0, 0.5, math.nextafter(1, 0)])
def test_a_greedy_step_has_one_candidate_whatever_u_is(u: float) -> None:
    params = InferencingParams(temperature=0.0)
    step = sample(f32(1, 3, 2), params, [], u)
    assert (step.counts, step.token) == ({"argmax": 1}, 1)


def test_sampling_leaves_the_given_logits_alone() -> None:
    logits = f32(3, -1, 2)
    sample(logits, InferencingParams(), [0, 1], 0.5)
    assert logits.tolist() == [3, -1, 2]


def test_an_unknown_profile_is_named_beside_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"'ollama'.*'contract', 'llama\.cpp', 'spin-local'"):
        sample(f32(1), NEUTRAL, [], 0.5, profile="ollama")


@pytest.mark.parametrize(
    "logits",
    [np.array([1.0, 2.0]), np.zeros((1, 2), dtype=np.float32), np.zeros(0, dtype=np.float32)],
    ids=["float64", "a matrix", "empty"],
)
def test_logits_of_another_kind_are_refused(logits: NDArray[Any]) -> None:
    with pytest.raises(LlmRuntimeError, match="logits must be float32"):
        sample(logits, NEUTRAL, [], 0.5)


def test_the_first_logit_that_is_not_finite_is_named() -> None:
    with pytest.raises(LlmRuntimeError, match="token 2 is nan"):
        sample(f32(1, 2, math.nan, math.inf), NEUTRAL, [], 0.5)


def test_extreme_parameters_raise_no_warning() -> None:
    smallest, largest = 2.0**-149, (2 - 2.0**-23) * 2.0**127  # of float32
    params = InferencingParams(repeat_penalty=smallest, temperature=smallest, top_k=0, top_p=0.5)
    with np.errstate(all="raise", under="ignore"):
        step = sample(f32(largest, -largest, 0), params, [0, 1], 0.5)
    assert step.token == 0
    assert step.penalties.after.tolist() == [largest / smallest, -largest * smallest]
