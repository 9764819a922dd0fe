"""The elementary functions: their stated errors, and the same bits as the oracle.

The references are Python's `math`, float64 from the C library: its error is 2^-29 of a float32
unit. Every float32 is too much for a test; `tools/measure_math.py` does that. Here it is every
20,011th (a prime), which covers every exponent and both signs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm import oracle
from refllm.kernels.attention import attention_weights, key_value_buffers
from refllm.kernels.elementwise import (
    gelu,
    gelu_tanh,
    l2_normalize,
    layer_norm,
    quick_gelu,
    rms_norm,
    rope_table,
    swiglu,
)
from refllm.kernels.math import exp_f32, gelu_f32, sigmoid_f32, silu_f32, sin_cos, tanh_f32
from tests.support.networks import same_bits

Floats = NDArray[np.float32]


def every_so_many(low: float, high: float) -> Floats:
    """Float32s from all over, within [low, high]."""
    patterns = np.arange(0, 2**32, 20_011, dtype=np.uint64).astype(np.uint32)
    values = patterns.view(np.float32)
    with np.errstate(invalid="ignore"):
        return values[(values >= low) & (values <= high)]


def ulps(got: Floats, exact: NDArray[np.float64]) -> float:
    """The largest error in units of the last place of the exact value as float32."""
    size = np.maximum(np.abs(exact), 2.0**-126)
    unit = 2.0 ** (np.floor(np.log2(size)) - 23)
    return float(np.max(np.abs(got.astype(np.float64) - exact) / unit))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700 else 0.0


def sigmoid_weighted(x: float) -> float:
    return x / (1.0 + math.exp(-x)) if x > -700 else 0.0


def gauss_weighted(x: float) -> float:
    return x * (0.5 * math.erfc(-x / math.sqrt(2.0)))


@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "stated"),
    [
        (exp_f32, math.exp, -np.inf, 0, 0.500002),
        (silu_f32, sigmoid_weighted, -3.4e38, 3.4e38, 0.500004),
        (sigmoid_f32, sigmoid, -3.4e38, 3.4e38, 0.500002),
        (tanh_f32, math.tanh, -3.4e38, 3.4e38, 0.500002),
        (gelu_f32, gauss_weighted, -3.4e38, 3.4e38, 0.500016),
        (lambda x: sin_cos(x)[0], math.sin, -(2.0**20), 2.0**20, 0.5000001),
        (lambda x: sin_cos(x)[1], math.cos, -(2.0**20), 2.0**20, 0.5000001),
    ],
    ids=["exp", "silu", "sigmoid", "tanh", "gelu", "sin", "cos"],
)
def test_the_error_is_no_larger_than_stated(
    function: Callable[[np.float32], np.float32],
    exact: Callable[[float], float],
    low: float,
    high: float,
    stated: float,
) -> None:
    inputs = every_so_many(low, high)
    assert len(inputs) > 10_000
    got = np.array([function(x) for x in inputs], np.float32)
    assert ulps(got, np.array([exact(float(x)) for x in inputs])) <= stated + 1e-6


@pytest.mark.parametrize(
    ("function", "of_oracle", "low", "high"),
    [
        (exp_f32, oracle.exp, -np.inf, 88.0),
        (silu_f32, oracle.silu, -3.4e38, 3.4e38),
        (gelu_f32, oracle.gelu, -3.4e38, 3.4e38),
    ],
    ids=["exp", "silu", "gelu"],
)
def test_kernel_and_oracle_give_the_same_bits(
    function: Callable[[np.float32], np.float32],
    of_oracle: Callable[[Floats], Floats],
    low: float,
    high: float,
) -> None:
    inputs = every_so_many(low, high)
    got = np.array([function(x) for x in inputs], np.float32)
    assert got.tobytes() == of_oracle(inputs).tobytes()


@pytest.mark.parametrize(("kernel", "name"), [(gelu_tanh, "gelu_tanh"), (quick_gelu, "quick_gelu")])
def test_the_approximations_of_gelu_equal_the_oracle(
    kernel: Callable[[Floats], Floats], name: str
) -> None:
    inputs = every_so_many(-3.4e38, 3.4e38)[None]
    assert same_bits(kernel(inputs), oracle.activation(name, inputs))


def test_the_functions_of_the_largest_and_smallest_inputs() -> None:
    tiny = 2.0**-148  # two times the smallest float32
    x = np.array([np.inf, 3.4e38, tiny, 0.0, -0.0, -tiny, -3.4e38, -np.inf], np.float32)
    expected = {
        gelu_f32: [np.inf, 3.4e38, tiny / 2, 0.0, -0.0, -tiny / 2, -0.0, -np.inf],
        silu_f32: [np.inf, 3.4e38, tiny / 2, 0.0, -0.0, -tiny / 2, -0.0, -np.inf],
        sigmoid_f32: [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0],
        tanh_f32: [1.0, 1.0, tiny, 0.0, -0.0, -tiny, -1.0, -1.0],
    }
    for function, values in expected.items():
        got = np.array([function(number) for number in x], np.float32)
        assert same_bits(got, np.array(values, np.float32))
    assert [exp_f32(number) for number in x[-4:]] == [1.0, 1.0, 0.0, 0.0]


def test_functions_of_nan_are_nan() -> None:
    nan = np.float32(np.nan)
    assert all(
        np.isnan(function(nan)) for function in (exp_f32, silu_f32, gelu_f32, sigmoid_f32, tanh_f32)
    )


def test_arrays_and_single_numbers_give_the_same_bits() -> None:
    inputs = every_so_many(-50, 50)[:4099]
    ones = np.ones_like(inputs)
    assert gelu(inputs[None])[0].tolist() == [gelu_f32(x) for x in inputs]
    assert swiglu(np.concatenate([inputs, ones])[None])[0].tolist() == [silu_f32(x) for x in inputs]


def test_the_tanh_gelu_is_its_formula() -> None:
    inputs = every_so_many(-8, 8)[:2000]
    inner = [math.sqrt(2 / math.pi) * (x + 0.044715 * x**3) for x in inputs.tolist()]
    exact = [x / 2 * (1 + math.tanh(i)) for x, i in zip(inputs.tolist(), inner, strict=True)]
    np.testing.assert_allclose(gelu_tanh(inputs[None])[0], exact, rtol=1e-6, atol=1e-7)


def test_the_rope_table_holds_cosine_and_sine_of_position_times_frequency() -> None:
    positions = np.array([0, 1, 5, 4095, 1_000_000])
    frequencies = np.array([1.0, 0.1, 0.00316])
    angles = positions[:, None] * frequencies  # [T, R/2]
    table = rope_table(positions, frequencies, 1.0)
    np.testing.assert_array_equal(table, [np.cos(angles).astype("f4"), np.sin(angles).astype("f4")])


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 33, 100])
def test_sums_of_any_width_equal_the_oracle_s(width: int) -> None:
    x = np.random.default_rng(width).standard_normal((3, width)).astype(np.float32)
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    assert same_bits(rms_norm(x, ones, 1e-5), oracle.rms_norm(x, ones, 1e-5))
    assert same_bits(layer_norm(x, ones, zeros, 1e-5), oracle.layer_norm(x, ones, zeros, 1e-5))
    assert same_bits(l2_normalize(x[0]), oracle.normalize(x[0]))
    assert same_bits(softmax(x), oracle.softmax(x))


def test_a_sum_is_sixteen_sums_of_every_sixteenth_number_and_then_of_halves() -> None:
    numbers = np.random.default_rng(0).standard_normal(100)
    sums = [0.0] * 16
    for i, number in enumerate(numbers.tolist()):
        sums[i % 16] += number
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [sums[i] + sums[i + half] for i in range(half)]
    assert oracle.row_sums(numbers).tolist() == sums


def test_a_sum_of_minus_zeros_is_plus_zero() -> None:
    assert not np.signbit(oracle.row_sums(np.full(20, -0.0, np.float32)))
    assert not np.signbit(oracle.mean_rows(np.full((3, 2), -0.0, np.float32))).any()


def softmax(scores: Floats) -> Floats:
    """By attention's weights for a query of 1 over keys that are the scores."""
    one = np.ones((1, 1, 1), np.float32)
    rows = []
    for row in scores:
        keys, _ = key_value_buffers(1, n_tokens=len(row), head_dim=1)
        keys[0, 0, : len(row)] = row
        rows.append(attention_weights(one, keys, np.array([len(row)]), 1.0, len(row))[0, 0])
    return np.stack(rows)


@pytest.mark.parametrize("n", [1, 16, 40])
def test_a_weight_is_the_exact_one_rounded_once(n: int) -> None:
    scores = np.random.default_rng(n).standard_normal((50, n)).astype(np.float32) * np.float32(9)
    weights = softmax(scores)
    for row, got in zip(scores.astype(np.float64), weights, strict=True):
        powers = [math.exp(score - row.max()) for score in row]
        exact = np.array(powers) / math.fsum(powers)
        assert ulps(got, exact) <= 0.5001


@pytest.mark.parametrize(
    ("row", "weights"),
    [
        ([-3.5], [1.0]),
        ([0.0, -0.0], [0.5, 0.5]),
        ([3.0, -np.inf, 3.0], [0.5, 0.0, 0.5]),
        ([0.0, -110.0, -3e38], [1.0, 0.0, 0.0]),
        ([-3e38] * 4, [0.25] * 4),
        ([1e-45, 0.0], [0.5, 0.5]),
    ],
)
def test_the_softmax_of_a_row_of_extremes(row: list[float], weights: list[float]) -> None:
    assert softmax(np.array([row], np.float32))[0].tolist() == weights


@pytest.mark.parametrize(
    "row",
    [[np.nan, 1.0], [1.0, -np.nan, 2.0], [1.0, np.nan, np.inf], [np.inf, 1.0], [-np.inf] * 2],
)
def test_a_row_without_a_finite_largest_score_has_no_weights(row: list[float]) -> None:
    assert np.isnan(softmax(np.array([row], np.float32))).any()
