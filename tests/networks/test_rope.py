"""RoPE frequencies against arithmetic by hand."""

from __future__ import annotations

import math

import pytest

from refllm.rope import Llama3Scaling, rope_frequencies


def test_frequencies_of_base_10000_over_8_elements_are_powers_of_ten() -> None:
    assert rope_frequencies(base=10000.0, rope_dim=8).tolist() == [1.0, 0.1, 0.01, 0.001]


def test_linear_scaling_divides_every_frequency() -> None:
    scaled = rope_frequencies(base=10000.0, rope_dim=8, linear_scale=4.0)
    assert scaled.tolist() == [0.25, 0.025, 0.0025, 0.00025]


def test_factors_divide_each_pair_by_its_own() -> None:
    scaled = rope_frequencies(base=10000.0, rope_dim=8, factors=[1.0, 2.0, 4.0, 8.0])
    assert scaled.tolist() == [1.0, 0.05, 0.0025, 0.000125]


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1000000.0])
def test_frequencies_are_within_an_ulp_of_the_c_library(base: float) -> None:
    for i, frequency in enumerate(rope_frequencies(base=base, rope_dim=128)):
        exact = base ** (-2 * i / 128)
        assert abs(frequency - exact) <= 4 * math.ulp(exact)


def llama_3_1() -> Llama3Scaling:
    """The values in Llama 3.1's config.json."""
    return Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
    )


def test_llama_3_leaves_short_waves_alone_and_slows_long_ones() -> None:
    factors = llama_3_1().factors(base=500000.0, rope_dim=128)
    for i, factor in enumerate(factors):
        wave_length = 2 * math.pi * 500000.0 ** (2 * i / 128)
        if wave_length < 8192 / 4:
            assert factor == 1.0
        elif wave_length > 8192 / 1:
            assert factor == 8.0
        else:
            smooth = (8192 / wave_length - 1) / (4 - 1)
            assert factor == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-7)
    assert len(set(factors)) > 2, "some waves lie between"
