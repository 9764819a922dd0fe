"""The formulas of the networks in float64, each with a bound of what float32 can change.

A bound is the worst case over all orders of a sum: of n terms, each order is within n·u·Σ|terms| of
the exact sum, with u = 2^-24 (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
section 4.2). An input that is itself known within a bound only adds what it changes to first order.

T tokens, S tokens that are seen, D columns, N outputs, H heads, Hkv key/value heads, E head width,
R rotated part of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from refllm.trace.faults.formulas import Doubles, Mask, rotate, softmax

__all__ = [
    "UNIT",
    "Near",
    "attention_weights",
    "elementwise",
    "exactly",
    "half_rounding",
    "normalized",
    "of_length_1",
    "pooled",
    "product",
    "rope",
    "total",
    "weighted_values",
]

UNIT = 2.0**-24
"""Half of the distance from 1 to the next float32."""

FUNCTION_ULPS = 16  # e^x, x / (1 + e^−x) and erf in float32, however they are computed


@dataclass(frozen=True, slots=True)
class Near:
    """A value, and for each of its numbers how far a right float32 computation can be from it."""

    value: Doubles
    bound: Doubles

    def admits(self, found: Doubles) -> bool:
        """Return whether each number of an array in this shape is within its bound."""
        return self.distance(found) <= 1.0

    def distance(self, found: Doubles) -> float:
        """Return the largest |found − value| / bound."""
        return float(self.distances(found).max(initial=0.0))

    def distances(self, found: Doubles) -> Doubles:
        """Return |found − value| / bound of each number; infinite where one is not finite."""
        with np.errstate(all="ignore"):
            apart = np.abs(found - self.value) / np.maximum(self.bound, np.finfo(np.float32).tiny)
        return np.where(np.isfinite(apart), apart, np.inf)

    def map(self, change: Callable[[Doubles], Doubles]) -> Near:
        """Return the same with both arrays in another shape or order."""
        return Near(change(self.value), change(self.bound))


def exactly(value: Doubles) -> Near:
    """Return a value that is recorded, and so has no bound of its own."""
    return Near(value, np.zeros_like(value))


def half_rounding(value: Doubles) -> Doubles:
    """Return how far rounding to float16 moves each number, at most."""
    return 2.0**-11 * np.abs(value) + 2.0**-25  # the second for subnormal numbers


def product(x: Near, w: Doubles, bias: Doubles | None = None) -> Near:
    """Return x·Wᵀ + b: x [T, D], w [N, D], bias [N] → [T, N]."""
    size = np.abs(w)
    bound = (x.value.shape[1] + 2) * UNIT * (np.abs(x.value) @ size.T)
    if x.bound.any():
        bound = bound + x.bound @ size.T
    value = x.value @ w.T
    if bias is None:
        return Near(value, bound)
    return Near(value + bias, bound + UNIT * (np.abs(value) + 2 * np.abs(bias)))


def total(*parts: Near) -> Near:
    """Return the sum of arrays of one shape."""
    value = np.sum([part.value for part in parts], axis=0)
    size = np.sum([np.abs(part.value) for part in parts], axis=0)
    return Near(value, len(parts) * UNIT * size + np.sum([p.bound for p in parts], axis=0))


def normalized(
    x: Near, norm: Callable[[Doubles], Doubles], gain: Doubles, eps: float, *, centers: bool
) -> Near:
    """Return RMSNorm or LayerNorm of each row: x [T, D] → [T, D].

    Args:
        x: The rows.
        norm: The whole formula.
        gain: The weight [D], for the bound.
        eps: ε of the formula, for the bound.
        centers: Whether the formula subtracts the mean, as LayerNorm does.
    """
    n = x.value.shape[-1]
    size = np.abs(x.value)
    around = x.value - x.value.mean(axis=-1, keepdims=True) if centers else x.value
    scale = 1 / np.sqrt((around**2).mean(axis=-1, keepdims=True) + eps)  # [T, 1]
    value = norm(x.value)
    of_root = (np.abs(around) * x.bound).mean(axis=-1, keepdims=True) * scale**2  # relative
    bound = np.abs(value) * ((n / 2 + FUNCTION_ULPS) * UNIT + of_root)
    moved = 4 * UNIT * size + x.bound
    if centers:
        moved = moved + n * UNIT * size.mean(axis=-1, keepdims=True)
        moved = moved + x.bound.mean(axis=-1, keepdims=True)
    return Near(value, bound + np.abs(gain) * scale * moved)


def rope(x: Near, angles: Doubles, *, halves: bool, magnitude: float = 1.0) -> Near:
    """Return x [T, H, E] with its pairs turned by angles [T, 1, R/2].

    A program that multiplies its way from one frequency to the next has R/2 roundings in an angle.
    """
    n_pairs = angles.shape[-1]
    value = rotate(x.value, angles, halves=halves)  # [T, H, E]
    first = slice(0, n_pairs) if halves else slice(0, 2 * n_pairs, 2)
    second = slice(n_pairs, 2 * n_pairs) if halves else slice(1, 2 * n_pairs, 2)
    size, bound = np.abs(x.value), x.bound.copy()
    of_pair = (4 + (n_pairs + 4) * np.abs(angles)) * UNIT * (size[..., first] + size[..., second])
    of_pair = of_pair + x.bound[..., first] + x.bound[..., second]  # [T, H, R/2]
    bound[..., first] = bound[..., second] = of_pair
    scaled = np.ones(x.value.shape[-1])
    scaled[: 2 * n_pairs] = magnitude
    return Near(value * scaled, (bound + 2 * UNIT * np.abs(value)) * scaled)


def attention_weights(
    q: Near,
    k: Near,
    mask: Mask,
    *,
    scale: float,
    shared: Sequence[int],
    bias: Doubles | None = None,
) -> Near:
    """Return softmax(q·k·scale + bias): q [T, H, E], k [S, Hkv, E], mask [T, S] → [H, T, S].

    Args:
        q: Queries after RoPE.
        k: Keys after RoPE.
        mask: Which tokens each token sees.
        scale: What each score is multiplied by.
        shared: The key/value head of each query head.
        bias: What is added to each score, [H, T, S].
    """
    keys, moved = k.value[:, shared], k.bound[:, shared]  # [S, H, E]
    scores = np.einsum("the,she->hts", q.value, keys) * scale  # [H, T, S]
    size = np.einsum("the,she->hts", np.abs(q.value), np.abs(keys)) * scale
    off = (q.value.shape[2] + 2) * UNIT * size
    off = off + np.einsum("the,she->hts", q.bound, np.abs(keys)) * scale
    off = off + np.einsum("the,she->hts", np.abs(q.value), moved) * scale
    if bias is not None:
        off = off + 2 * UNIT * (np.abs(scores) + np.abs(bias))
        scores = scores + bias
    most = np.where(mask, off, 0.0).max(axis=-1, keepdims=True)  # [H, T, 1]
    with np.errstate(all="ignore"):
        value = softmax(np.where(mask, scores, -np.inf))
        most = most + UNIT * np.where(mask, np.abs(scores), 0.0).max(axis=-1, keepdims=True)
        n = scores.shape[-1]
        bound = value * (np.expm1(np.minimum(2 * most, 50.0)) + (n + FUNCTION_ULPS) * UNIT)
    return Near(value, bound + 1e-30)


def weighted_values(weights: Near, v: Near, *, shared: Sequence[int]) -> Near:
    """Return weights·v: weights [H, T, S], v [S, Hkv, E] → [T, H·E]."""
    values, moved = v.value[:, shared], v.bound[:, shared]  # [S, H, E]
    value = np.einsum("hts,she->the", weights.value, values)
    size = np.einsum("hts,she->the", weights.value, np.abs(values))
    bound = (len(values) + FUNCTION_ULPS) * UNIT * size
    bound = bound + np.einsum("hts,she->the", weights.bound, np.abs(values))
    bound = bound + np.einsum("hts,she->the", weights.value, moved)
    return Near(value, bound).map(lambda array: array.reshape(len(array), -1))


def pooled(x: Near, pool: Callable[[Doubles], Doubles]) -> Near:
    """Return a weighted sum of the rows, of weights that are not negative, or their largest.

    x [T, D] → [1, K]. Both move by no more than they give for the rows' own bounds.
    """
    n_terms = len(x.value) + 4  # the weights, their sum and the division are rounded, too
    return Near(pool(x.value), n_terms * UNIT * pool(np.abs(x.value)) + pool(x.bound))


def of_length_1(x: Near, normalize: Callable[[Doubles], Doubles]) -> Near:
    """Return x / max(‖x‖, 1e-12) of each row: x [N, K] → [N, K]."""
    value = normalize(x.value)
    length = np.maximum(np.linalg.norm(x.value, axis=-1, keepdims=True), 1e-12)
    of_length = np.linalg.norm(x.bound, axis=-1, keepdims=True) / length  # relative
    n_terms = x.value.shape[-1] / 2 + 4
    return Near(value, np.abs(value) * (n_terms * UNIT + of_length) + x.bound / length)


def elementwise(x: Near, function: Callable[[Doubles], Doubles]) -> Near:
    """Return an activation, whose slope is at most 1.2, of each number.

    x/2·(1 + erf(x/√2)) cancels where x < 0, so an error of erf counts beside 1. PyTorch 2.15's GELU
    is up to 5.6·2^-24·|x| away from the formula.
    """
    value = function(x.value)
    bound = FUNCTION_ULPS * UNIT * (np.abs(value) + np.abs(x.value) / 2) + 1.2 * x.bound
    return Near(value, bound)
