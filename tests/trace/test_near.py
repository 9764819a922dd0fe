"""Every honest float32 computation is within the bound, and a small fault is outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.oracle import layer_norm as oracle_layer_norm
from refllm.trace import near
from refllm.trace.faults.formulas import causal, layer_norm, rms_norm, silu
from tools.oracle_orders import (
    backwards,
    float32_rms_norm,
    float32_rope,
    float32_silu,
    float32_softmax,
    halves,
    lanes,
    left_to_right,
    product_by,
)

T, D, N = 5, 384, 96
ORDERS = (left_to_right, backwards, halves, lanes)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(19)


def float32(random: np.random.Generator, *shape: int) -> NDArray[Any]:
    return random.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: str(order.__name__))
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_a_product_in_another_order_is_within_its_bound(
    order: Callable[..., Any], shift: float, random: np.random.Generator
) -> None:
    x, w = float32(random, T, D) + np.float32(shift), float32(random, N, D)
    bias = float32(random, N)
    found = product_by(order)(x, w) + bias
    must = near.product(near.exactly(x.astype(np.float64)), w.astype(np.float64), bias)
    assert must.admits(found)
    assert not must.admits(found * np.float32(1.01))


def test_norms_in_float32_are_within_their_bounds(random: np.random.Generator) -> None:
    x, w, b = float32(random, T, D) * np.float32(0.05), float32(random, D), float32(random, D)
    wide, weight, bias = (each.astype(np.float64) for each in (x, w, b))
    rms = near.normalized(
        near.exactly(wide), lambda rows: rms_norm(rows, weight, 1e-5), weight, 1e-5, centers=False
    )
    assert rms.admits(float32_rms_norm(x, w, 1e-5))
    assert not rms.admits(float32_rms_norm(x, w, 1e-6))
    layer = near.normalized(
        near.exactly(wide),
        lambda rows: layer_norm(rows, weight, bias, 1e-12),
        weight,
        1e-12,
        centers=True,
    )
    assert layer.admits(oracle_layer_norm(x, w, b, 1e-12))
    assert not layer.admits(oracle_layer_norm(x, w, b, 1e-5))


def test_rope_with_float32_angles_is_within_its_bound(random: np.random.Generator) -> None:
    x, positions = float32(random, T, 4, 64), np.arange(500, 500 + T)
    frequencies = 10000.0 ** (-np.arange(0, 64, 2) / 64)
    angles = positions[:, None, None] * frequencies
    must = near.rope(near.exactly(x.astype(np.float64)), angles, halves=False)
    assert must.admits(float32_rope(x, positions, frequencies))
    assert not must.admits(float32_rope(x, positions + 1, frequencies))


def test_attention_in_float32_is_within_its_bound(random: np.random.Generator) -> None:
    q, k, v = (float32(random, T, 4, 64) for _ in range(3))
    mask, scale = causal(T, T), 1 / 8
    scores = np.einsum("the,she->hts", q, k).astype(np.float32)  # in NumPy's order
    weights = float32_softmax(np.where(mask, scores, np.float32(-np.inf)), scale)
    exact = [near.exactly(each.astype(np.float64)) for each in (q, k, v)]
    must = near.attention_weights(exact[0], exact[1], mask, scale=scale, shared=range(4))
    assert must.admits(weights)
    assert not must.admits(float32_softmax(scores, scale))
    mixed = np.einsum("hts,she->the", weights, v).reshape(T, -1)
    given = near.exactly(weights.astype(np.float64))
    must = near.weighted_values(given, exact[2], shared=range(4))
    assert must.admits(mixed)
    assert not must.admits(mixed * np.float32(1.001))


def test_silu_in_float32_is_within_its_bound() -> None:
    x = np.linspace(-30, 30, 10_001, dtype=np.float32)
    must = near.elementwise(near.exactly(x.astype(np.float64)), silu)
    assert must.admits(float32_silu(x))
    assert not must.admits(np.maximum(x, 0))


@pytest.mark.parametrize("part", ["product", "norm", "rope", "weights", "mixed"])
def test_an_input_within_its_bound_gives_a_result_within_its_own(
    part: str, random: np.random.Generator
) -> None:
    weight = random.standard_normal(64)
    w = random.standard_normal((N, 64))
    angles = np.arange(T)[:, None, None] * 10000.0 ** (-np.arange(0, 64, 2) / 64)
    heads = near.exactly(random.standard_normal((T, 2, 64)))
    given = near.exactly(
        near.attention_weights(heads, heads, causal(T, T), scale=0.1, shared=(0, 1)).value
    )
    compute: dict[str, Callable[[near.Near], near.Near]] = {
        "product": lambda x: near.product(x.map(lambda a: a.reshape(-1, 64)), w),
        "norm": lambda x: near.normalized(
            x, partial(rms_norm, weight=weight, eps=1e-5), weight, 1e-5, centers=False
        ),
        "rope": lambda x: near.rope(x, angles, halves=True),
        "weights": lambda x: near.attention_weights(
            x, heads, causal(T, T), scale=0.1, shared=(0, 1)
        ),
        "mixed": lambda x: near.weighted_values(given, x, shared=(0, 1)),
    }
    x = random.standard_normal((T, 2, 64))
    bound = np.abs(random.standard_normal(x.shape)) * 1e-4
    must = compute[part](near.Near(x, bound))
    for sign in (1, -1, np.sign(random.standard_normal(x.shape))):
        # To first order: a tenth more.
        moved = compute[part](near.exactly(x + sign * bound)).value
        assert near.Near(must.value, 1.1 * must.bound).admits(moved)
