"""Scaled dot-product attention with grouped queries.

T new tokens, S tokens seen so far (T included), H heads, K key/value heads, G = H/K heads that
share a key/value head, E head width, C capacity of a cache (C ≥ S, a multiple of a vector's lanes).

Keys lie as [K, E, C] and values as [K, C, E]. Then both products are the one of
`refllm.kernels.linear`, a vector of results side by side with each sum from left to right: scores
of some tokens from rows of keys, elements of the result from rows of values. The queries that
look at the same keys (a few tokens, G heads each) go through together, so that what has been
loaded is used for all of them; their scores, [queries, S], are all that is kept.

Here is what happens to some queries, and attention within texts, as BERT has it; a llama's, over
caches, stands in `refllm.kernels.kv_attention`.

Source: Vaswani et al. 2017, arXiv:1706.03762; grouping: Ainslie et al. 2023, arXiv:2305.13245.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refllm.jit.buffers import empty
from refllm.jit.compile import inner, jit, parallel_jit, prange
from refllm.kernels.math import exp_f32, largest_of
from refllm.kernels.packed.tile import add_products
from refllm.kernels.simd.lanes import LANES

__all__ = [
    "attend_queries",
    "attention_over_texts",
    "attention_scale",
    "attention_weights",
    "biased_attention_over_texts",
    "biased_attention_weights",
    "key_value_buffers",
]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Below this many multiplications one thread is done before a second has woken up.
SERIAL_WORK = 1 << 16
# Scores are computed so many at a time; a few beyond the last visible one take less time than the
# rest of a row one by one.
SIDE_BY_SIDE = 16
# Rows whose sums advance together.
TOGETHER = 4
# How many queries go through together: enough to use what is loaded, few enough for the cache.
QUERIES = 24


def key_value_buffers(*leading: int, n_tokens: int, head_dim: int) -> tuple[Floats, Floats]:
    """Room for the keys [*leading, E, C] and values [*leading, C, E] of at least n_tokens.

    C is n_tokens rounded up to whole vectors, and behind the last value there is room for one
    more vector: the kernels read whole vectors and leave aside what lies beyond. Zeros, because
    reading must not meet a slow denormal.
    """
    capacity = -(-n_tokens // LANES) * LANES
    keys = np.zeros((*leading, head_dim, capacity), np.float32)
    n_values = math.prod(leading) * capacity * head_dim
    padded = np.zeros(n_values + LANES, np.float32)
    return keys, padded[:n_values].reshape(*leading, capacity, head_dim)


def attention_scale(head_dim: int) -> np.float32:
    """1/√E, rounded once to float32."""
    return np.float32(1.0 / math.sqrt(head_dim))


@jit
def attention_weights(
    query: Floats, keys: Floats, n_visible: Ints, scale: np.float32, n_seen: int
) -> Floats:
    """The softmax that attention uses and never keeps, [H, T, S]; 0 where nothing is visible."""
    n_tokens, n_heads, _ = query.shape
    group = n_heads // keys.shape[0]
    out = np.zeros((n_heads, n_tokens, n_seen), np.float32)  # [H, T, S]
    for h in range(n_heads):
        for t in range(n_tokens):
            n = n_visible[t : t + 1]
            scores = _softmax_scores(query[t, h : h + 1], keys[h // group], n, scale)
            for i in range(n[0]):
                out[h, t, i] = scores[0, i]
    return out


@inner
def _softmax_scores(queries: Floats, keys: Floats, n_visible: Ints, scale: np.float32) -> Floats:
    """softmax(q·k·scale) of queries [R, E] against keys [E, C]: [R, ≥ S], row r to n_visible[r]."""
    scores = _scores(queries, keys, n_visible, scale)  # [R, ≥ S]
    _softmax(scores, n_visible)
    return scores


@inner
def _scores(queries: Floats, keys: Floats, n_visible: Ints, scale: np.float32) -> Floats:
    """q·k·scale of queries [R, E] against keys [E, C]: [R, ≥ S], row r to n_visible[r]."""
    n_rows = queries.shape[0]
    n_vectors = (n_visible[-1] + LANES - 1) // LANES
    scores = np.zeros((n_rows, n_vectors * LANES), np.float32)  # [R, S]
    for vector in range(n_vectors):
        add_products(queries, 0, queries.shape[1], keys, vector * LANES, scores, vector * LANES)
    for r in range(n_rows):
        row = scores[r, : (n_visible[r] + SIDE_BY_SIDE - 1) // SIDE_BY_SIDE * SIDE_BY_SIDE]
        for s in range(row.size):
            row[s] *= scale
    return scores


@inner
def _softmax(scores: Floats, n_visible: Ints) -> None:
    """Replace the scores [R, ≥ S], row r to n_visible[r], by their softmax."""
    for r in range(scores.shape[0]):
        row = scores[r, : (n_visible[r] + SIDE_BY_SIDE - 1) // SIDE_BY_SIDE * SIDE_BY_SIDE]
        largest = largest_of(row[: n_visible[r]])
        for s in range(row.size):
            row[s] = exp_f32(row[s] - largest)
    _normalize(scores, n_visible)


@inner
def _normalize(scores: Floats, n_visible: Ints) -> None:
    """Divide each row by its sum.

    An addition waits for the one before it, so the sums of four rows advance together, over the
    tokens that all of them see; each row then goes on alone.
    """
    totals = np.zeros(TOGETHER, np.float64)
    for first in range(0, scores.shape[0], TOGETHER):
        n_rows = min(TOGETHER, scores.shape[0] - first)
        common = 0
        if n_rows == TOGETHER:
            common = n_visible[first]
            totals[0], totals[1], totals[2], totals[3] = _totals(scores, first, common)
        else:
            totals[:] = 0.0
        for i in range(n_rows):
            row = scores[first + i, : n_visible[first + i]]
            total = totals[i]
            for s in range(common, row.size):
                total += np.float64(row[s])
            denominator = np.float32(total)
            for s in range(row.size):
                row[s] /= denominator


@inner
def _totals(scores: Floats, r: int, n: int) -> tuple[float, float, float, float]:
    """The sums of the first n scores of rows r … r + 3."""
    total0 = total1 = total2 = total3 = 0.0
    for s in range(n):
        total0 += np.float64(scores[r, s])
        total1 += np.float64(scores[r + 1, s])
        total2 += np.float64(scores[r + 2, s])
        total3 += np.float64(scores[r + 3, s])
    return total0, total1, total2, total3


@inner
def attend_queries(
    queries: Floats, keys: Floats, values: Floats, n_visible: Ints, scale: np.float32
) -> Floats:
    """softmax(q·k·scale)·v of queries [R, E] against keys [E, C] and values [C, E]: [R, ≥ E]."""
    weights = _softmax_scores(queries, keys, n_visible, scale)  # [R, ≥ S]
    return _weighted_values(weights, values, n_visible)


@inner
def _weighted_values(weights: Floats, values: Floats, n_visible: Ints) -> Floats:
    """weights·v of weights [R, ≥ S], row r to n_visible[r], and values [C, E]: [R, ≥ E]."""
    for r in range(weights.shape[0]):
        for s in range(n_visible[r], weights.shape[1]):
            weights[r, s] = 0.0
    # What is beyond a row's own tokens has weight 0 and adds +0 or -0 at the end of its sum.
    head_dim = values.shape[1]
    width = (head_dim + LANES - 1) // LANES * LANES
    results = np.zeros((weights.shape[0], width), np.float32)
    for e in range(0, head_dim, LANES):
        add_products(weights, 0, n_visible[-1], values, e, results, e)
    return results


def attention_over_texts(qkv: Floats, starts: Ints) -> Floats:
    """softmax(q·k/√E)·v within each of several texts that lie end to end, [T, H, E].

    qkv [T, 3·H, E] holds the queries of all heads, then the keys, then the values. Text n is tokens
    starts[n] … starts[n + 1] − 1 (starts has one entry more than there are texts); each of its
    tokens attends to all of them and to no others.
    """
    n_tokens, n_all, head_dim = qkv.shape
    out = empty(n_tokens, n_all // 3, head_dim)  # [T, H, E]
    longest = int(np.max(np.diff(starts)))
    run = _texts_serial if out.size * longest < SERIAL_WORK else _texts_parallel
    run(qkv, starts, attention_scale(head_dim), out)
    return out


@inner
def _attend_text(item: int, qkv: Floats, starts: Ints, scale: np.float32, out: Floats) -> None:
    """One head of one text: item = text·H + h."""
    n_heads, head_dim = out.shape[1:]
    text, h = item // n_heads, item % n_heads
    first, last = starts[text], starts[text + 1]
    n_tokens = last - first
    capacity = (n_tokens + LANES - 1) // LANES * LANES
    keys = np.zeros((head_dim, capacity), np.float32)  # [E, C]
    padded = np.zeros(n_tokens * head_dim + LANES, np.float32)
    values = padded[: n_tokens * head_dim].reshape(n_tokens, head_dim)  # [S, E]
    for s in range(n_tokens):
        for e in range(head_dim):
            keys[e, s] = qkv[first + s, n_heads + h, e]
            values[s, e] = qkv[first + s, 2 * n_heads + h, e]
    for start in range(first, last, QUERIES):
        n_queries = min(QUERIES, last - start)
        queries = np.empty((n_queries, head_dim), np.float32)  # [R, E]
        for r in range(n_queries):
            for e in range(head_dim):
                queries[r, e] = qkv[start + r, h, e]
        visible = np.full(n_queries, n_tokens)
        results = attend_queries(queries, keys, values, visible, scale)
        for r in range(n_queries):
            for e in range(head_dim):
                out[start + r, h, e] = results[r, e]


@jit
def _texts_serial(qkv: Floats, starts: Ints, scale: np.float32, out: Floats) -> None:
    for item in range((starts.size - 1) * out.shape[1]):
        _attend_text(item, qkv, starts, scale, out)


@parallel_jit
def _texts_parallel(qkv: Floats, starts: Ints, scale: np.float32, out: Floats) -> None:
    for item in prange((starts.size - 1) * out.shape[1]):
        _attend_text(item, qkv, starts, scale, out)


# With a bias for each distance


def biased_attention_over_texts(qkv: Floats, starts: Ints, bias: Floats) -> Floats:
    """`attention_over_texts` with a bias for each head and distance, [T, H, E].

    bias [H, 2·L − 1], where L is the longest text's length or more: bias[h, L − 1 + s − t] is added
    to the scaled score of the query at place t of a text and the key at place s.
    """
    n_tokens, n_all, head_dim = qkv.shape
    out = empty(n_tokens, n_all // 3, head_dim)  # [T, H, E]
    _biased_texts(qkv, starts, attention_scale(head_dim), bias, out)
    return out


@jit
def biased_attention_weights(qkv: Floats, scale: np.float32, bias: Floats) -> Floats:
    """The softmax of `biased_attention_over_texts` for one text qkv [S, 3·H, E]: [H, S, S]."""
    n_tokens, n_heads = qkv.shape[0], qkv.shape[1] // 3
    out = np.empty((n_heads, n_tokens, n_tokens), np.float32)  # [H, S, S]
    for h in range(n_heads):
        weights = _biased_weights(h, qkv, scale, bias)
        for t in range(n_tokens):
            for s in range(n_tokens):
                out[h, t, s] = weights[t, s]
    return out


@inner
def _biased_weights(h: int, qkv: Floats, scale: np.float32, bias: Floats) -> Floats:
    """Head h's softmax for one text qkv [S, 3·H, E]: [S, ≥ S]."""
    n_tokens, n_all, head_dim = qkv.shape
    capacity = (n_tokens + LANES - 1) // LANES * LANES
    queries = np.empty((n_tokens, head_dim), np.float32)  # [S, E]
    keys = np.zeros((head_dim, capacity), np.float32)  # [E, C]
    for s in range(n_tokens):
        for e in range(head_dim):
            queries[s, e] = qkv[s, h, e]
            keys[e, s] = qkv[s, n_all // 3 + h, e]
    visible = np.full(n_tokens, n_tokens)
    weights = _scores(queries, keys, visible, scale)  # [S, ≥ S]
    at_zero = bias.shape[1] // 2
    for t in range(n_tokens):
        for s in range(n_tokens):
            weights[t, s] += bias[h, at_zero + s - t]
    _softmax(weights, visible)
    return weights


@parallel_jit
def _biased_texts(qkv: Floats, starts: Ints, scale: np.float32, bias: Floats, out: Floats) -> None:
    n_heads, head_dim = out.shape[1:]
    for item in prange((starts.size - 1) * n_heads):
        text, h = item // n_heads, item % n_heads
        first, last = starts[text], starts[text + 1]
        n_tokens = last - first
        weights = _biased_weights(h, qkv[first:last], scale, bias)  # [S, ≥ S]
        padded = np.zeros(n_tokens * head_dim + LANES, np.float32)
        values = padded[: n_tokens * head_dim].reshape(n_tokens, head_dim)  # [S, E]
        for s in range(n_tokens):
            for e in range(head_dim):
                values[s, e] = qkv[first + s, 2 * n_heads + h, e]
        results = _weighted_values(weights, values, np.full(n_tokens, n_tokens))  # [S, ≥ E]
        for t in range(n_tokens):
            for e in range(head_dim):
                out[first + t, h, e] = results[t, e]
