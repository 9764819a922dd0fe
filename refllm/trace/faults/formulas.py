"""The formulas of the networks in float64, and with the options that make each of them wrong.

Without options each is right. `refllm.oracle` has the same formulas in the order of the kernels.

T tokens, S context so far, D model width, H heads, Hkv key/value heads, E head width, R rotated
part of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Doubles",
    "Mask",
    "attention",
    "attention_weights",
    "causal",
    "gelu",
    "gelu_sigmoid",
    "gelu_tanh",
    "head_scale",
    "layer_norm",
    "neighboring_heads",
    "relu",
    "rms_norm",
    "rotate",
    "shared_heads",
    "sigmoid",
    "silu",
    "softmax",
]

Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]

_ERFC = np.vectorize(math.erfc, otypes=[np.float64])


def silu(x: Doubles) -> Doubles:
    """Return x / (1 + e^−x)."""
    with np.errstate(over="ignore"):
        return np.asarray(x / (1.0 + np.exp(-x)))


def sigmoid(x: Doubles) -> Doubles:
    """Return 1 / (1 + e^−x)."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-x)))


def relu(x: Doubles) -> Doubles:
    """Return max(x, 0)."""
    return np.maximum(x, 0.0)


def gelu(x: Doubles) -> Doubles:
    """Return x·Φ(x), by the normal distribution's upper tail: no cancellation where x < 0."""
    return np.asarray(0.5 * x * _ERFC(-x / math.sqrt(2.0)))


def gelu_tanh(x: Doubles) -> Doubles:
    """Return x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def gelu_sigmoid(x: Doubles) -> Doubles:
    """Return x·sigmoid(1.702·x)."""
    return x * sigmoid(1.702 * x)


def softmax(x: Doubles, *, axis: int = -1) -> Doubles:
    """Return e^x / Σ e^x."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def _normalized(
    x: Doubles, eps: float, *, centers: bool, n_less: int = 0, eps_outside: bool
) -> Doubles:
    x = x - x.mean(axis=-1, keepdims=True) if centers else x
    squares = (x * x).sum(axis=-1, keepdims=True) / (x.shape[-1] - n_less)
    return np.asarray(x / (np.sqrt(squares) + eps if eps_outside else np.sqrt(squares + eps)))


def rms_norm(
    x: Doubles,
    weight: Doubles,
    eps: float,
    *,
    centers: bool = False,
    averages: bool = True,
    weigh: Callable[[Doubles], Doubles] = lambda weight: weight,
    eps_outside: bool = False,
) -> Doubles:
    """Return x / √(mean(x²) + ε) · weight for each row of x [..., D]."""
    n_less = 0 if averages else x.shape[-1] - 1
    normal = _normalized(x, eps, centers=centers, n_less=n_less, eps_outside=eps_outside)
    return normal * weigh(weight)


def layer_norm(
    x: Doubles,
    weight: Doubles,
    bias: Doubles,
    eps: float,
    *,
    centers: bool = True,
    n_less: int = 0,
    adds_bias: bool = True,
    eps_outside: bool = False,
) -> Doubles:
    """Return (x − mean) / √(variance + ε) · weight + bias for each row of x [..., D]."""
    normal = _normalized(x, eps, centers=centers, n_less=n_less, eps_outside=eps_outside)
    return normal * weight + adds_bias * bias


def rotate(x: Doubles, angles: Doubles, *, halves: bool) -> Doubles:
    """Return x [T, H, E] with its pairs turned by angles [T, 1, R/2], as RoPE does.

    Pairs are (2i, 2i + 1), or (i, i + R/2) with `halves`; the elements from R on stay as they are.
    """
    n_pairs = angles.shape[-1]
    first = slice(0, n_pairs) if halves else slice(0, 2 * n_pairs, 2)
    second = slice(n_pairs, 2 * n_pairs) if halves else slice(1, 2 * n_pairs, 2)
    out = x.copy()
    a, b = x[..., first], x[..., second]
    out[..., first] = a * np.cos(angles) - b * np.sin(angles)
    out[..., second] = a * np.sin(angles) + b * np.cos(angles)
    return out


def causal(n_tokens: int, n_seen: int, *, ahead: int = 0) -> Mask:
    """Return which tokens each token attends to, [T, S]: the T tokens are the last of the S."""
    return np.tri(n_tokens, n_seen, k=n_seen - n_tokens + ahead, dtype=bool)


def head_scale(head_dim: int) -> float:
    """Return 1/√E."""
    return 1.0 / math.sqrt(head_dim)


def neighboring_heads(h: int, _n_kv_heads: int, group: int) -> int:
    """Return the key/value head of query head h; neighbors, H/Hkv of them, share one."""
    return h // group


def attention(
    q: Doubles,
    k: Doubles,
    v: Doubles,
    mask: Mask | np.bool_,
    *,
    scale: Callable[[int], float] = head_scale,
    kv_head: Callable[[int, int, int], int] = neighboring_heads,
) -> Doubles:
    """Return softmax(q·k·scale)·v: q [..., T, H, E], k and v [..., S, Hkv, E] → [..., T, H, E]."""
    weights = attention_weights(q, k, mask, scale=scale, kv_head=kv_head)  # [..., H, T, S]
    shared = shared_heads(q.shape[-2], v.shape[-2], kv_head)
    return np.asarray(np.einsum("...hts,...she->...the", weights, v[..., shared, :]))


def attention_weights(
    q: Doubles,
    k: Doubles,
    mask: Mask | np.bool_,
    *,
    scale: Callable[[int], float] = head_scale,
    kv_head: Callable[[int, int, int], int] = neighboring_heads,
) -> Doubles:
    """Return softmax(q·k·scale): q [..., T, H, E], k [..., S, Hkv, E] → [..., H, T, S]."""
    shared = shared_heads(q.shape[-2], k.shape[-2], kv_head)
    scores = np.einsum("...the,...she->...hts", q, k[..., shared, :]) * scale(q.shape[-1])
    return softmax(np.where(mask, scores, -np.inf))


def shared_heads(
    n_heads: int, n_kv_heads: int, kv_head: Callable[[int, int, int], int] = neighboring_heads
) -> list[int]:
    """Return the key/value head of each of H query heads."""
    return [kv_head(h, n_kv_heads, n_heads // n_kv_heads) for h in range(n_heads)]
