"""Scaled dot-product attention with grouped queries.

T new tokens, S tokens seen so far (T included), H heads, K key/value heads, E head width,
C capacity of the cache (C ≥ S).

Keys lie as [K, E, C] and values as [K, C, E]: then the inner loop of both products walks along
memory, over tokens for the scores and over the head's width for the result, while each sum still
runs from left to right. Source: Vaswani et al. 2017, arXiv:1706.03762; grouping: Ainslie et al.
2023, arXiv:2305.13245.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refllm.kernels.jit import jit, parallel_jit, prange
from refllm.kernels.math import exp_f32

__all__ = ["attention", "attention_weights"]

Floats = NDArray[np.float32]

# Below this many multiplications one thread is done before a second has woken up.
SERIAL_WORK = 1 << 16


def attention(query: Floats, keys: Floats, values: Floats, n_visible: NDArray[np.int64]) -> Floats:
    """softmax(q·k/√E)·v for query [T, H, E] against keys [K, E, C] and values [K, C, E]: [T, H, E].

    Token t attends to the first n_visible[t] tokens of the cache (causal: its own position + 1).
    Scores are scaled after their sum; the softmax is normalized before it meets the values.
    """
    out = np.empty_like(query)  # [T, H, E]
    scale = attention_scale(query.shape[2])
    work = query.shape[0] * query.shape[1] * query.shape[2] * int(n_visible[-1])
    run = _attention_serial if work < SERIAL_WORK else _attention_parallel
    run(query, keys, values, n_visible, scale, out)
    return out


def attention_scale(head_dim: int) -> np.float32:
    """1/√E, rounded once to float32."""
    return np.float32(1.0 / math.sqrt(head_dim))


@jit
def attention_weights(
    query: Floats, keys: Floats, n_visible: NDArray[np.int64], scale: np.float32, n_seen: int
) -> Floats:
    """The softmax that `attention` uses and never keeps, [H, T, S]; 0 where nothing is visible."""
    n_tokens, n_heads, _ = query.shape
    group = n_heads // keys.shape[0]
    out = np.zeros((n_heads, n_tokens, n_seen), np.float32)  # [H, T, S]
    for h in range(n_heads):
        for t in range(n_tokens):
            softmax_scores(query[t, h], keys[h // group], n_visible[t], scale, out[h, t])
    return out


@jit
def softmax_scores(
    query: Floats, keys: Floats, n_visible: int, scale: np.float32, out: Floats
) -> None:
    """Write softmax(q·k·scale) of one query [E] against keys [E, C] into out[:n_visible]."""
    for s in range(n_visible):
        out[s] = 0.0
    for e in range(query.size):
        q = query[e]
        row = keys[e]
        for s in range(n_visible):
            out[s] += q * row[s]
    largest = np.float32(-np.inf)
    for s in range(n_visible):
        out[s] *= scale
        largest = max(largest, out[s])
    total = 0.0
    for s in range(n_visible):
        out[s] = exp_f32(out[s] - largest)
        total += np.float64(out[s])
    denominator = np.float32(total)
    for s in range(n_visible):
        out[s] /= denominator


@jit
def _attend(
    pair: int,
    query: Floats,
    keys: Floats,
    values: Floats,
    n_visible: NDArray[np.int64],
    scale: np.float32,
    out: Floats,
) -> None:
    """One head of one token: pair = t·H + h."""
    n_heads = query.shape[1]
    t, h = pair // n_heads, pair % n_heads
    kv_head = h // (n_heads // keys.shape[0])
    weights = np.empty(n_visible[t], np.float32)  # [S]
    softmax_scores(query[t, h], keys[kv_head], n_visible[t], scale, weights)
    result = out[t, h]  # [E]
    result[:] = 0.0
    for s in range(n_visible[t]):
        weight = weights[s]
        row = values[kv_head, s]  # [E]
        for e in range(result.size):
            result[e] += weight * row[e]


@jit
def _attention_serial(
    query: Floats,
    keys: Floats,
    values: Floats,
    n_visible: NDArray[np.int64],
    scale: np.float32,
    out: Floats,
) -> None:
    for pair in range(query.shape[0] * query.shape[1]):
        _attend(pair, query, keys, values, n_visible, scale, out)


@parallel_jit
def _attention_parallel(
    query: Floats,
    keys: Floats,
    values: Floats,
    n_visible: NDArray[np.int64],
    scale: np.float32,
    out: Floats,
) -> None:
    for pair in prange(query.shape[0] * query.shape[1]):
        _attend(pair, query, keys, values, n_visible, scale, out)
