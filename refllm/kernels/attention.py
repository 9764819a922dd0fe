"""Scaled dot-product attention with grouped queries.

T new tokens, S context so far (T included), H heads, Hkv key/value heads, G = H/Hkv heads that
share a key/value head, E head width, C capacity of a cache (C ≥ S, a multiple of W), W lanes, Q
queries that are multiplied together.

Keys are stored as [Hkv, E, C] and values as [Hkv, C, E]. With these layouts both products are that
of `refllm.kernels.linear`, a vector of results side by side with each sum from left to right: W
scores from W columns of the keys, W elements of the result from W columns of the values. The
queries that attend to the same keys (a few tokens, G heads each) are multiplied together, so that
loaded keys and values are used several times; only their scores [Q, S] are kept.

This module has attention for a group of queries and BERT's self-attention within texts. Attention
over a KV cache is in `refllm.kernels.kv_attention`. Texts are short and a BERT's heads narrow, so W
is 32 there at most; over a KV cache it is that of a panel.

Source: Vaswani et al. 2017, arXiv:1706.03762; grouping: Ainslie et al. 2023, arXiv:2305.13245.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from refllm.jit.buffers import Floats, Ints, empty
from refllm.jit.compile import HOLE, both, inner, jit, parallel_jit, prange, template
from refllm.kernels.math import LOG2_E, exp2
from refllm.kernels.packed.tile import add_products_of
from refllm.kernels.simd.doubles import (
    SUMS,
    add_halves,
    at_least,
    largest_of,
    load,
    load_some,
    no_sums,
    store,
)
from refllm.kernels.simd.lanes import LANES

__all__ = [
    "MULTIPLICATIONS",
    "QUERIES",
    "attend_queries",
    "attention_over_texts",
    "attention_scale",
    "attention_weights",
    "biased_attention_over_texts",
    "biased_attention_weights",
    "key_value_buffers",
]

# So many multiplications take as long as one element of an elementwise kernel (`SERIAL_WORK`).
MULTIPLICATIONS = 2
# Queries that are multiplied together: enough to use what is loaded, few enough for the cache.
QUERIES = 24
# The same within a text, whose queries are not copied; and the lanes of a vector there.
TEXT_QUERIES = 48
TEXT_LANES = min(LANES, 32)


def key_value_buffers(*leading: int, n_tokens: int, head_dim: int) -> tuple[Floats, Floats]:
    """Return buffers for keys [*leading, E, C] and values [*leading, C, E] of ≥ n_tokens tokens.

    C is n_tokens rounded up to whole vectors, and the values are followed by another vector: the
    kernels read whole vectors and ignore the lanes beyond. The buffers are zeros, because
    arithmetic with arbitrary contents could be slow (denormal numbers).
    """
    capacity = -(-n_tokens // LANES) * LANES
    keys = np.zeros((*leading, head_dim, capacity), np.float32)
    n_values = math.prod(leading) * capacity * head_dim
    padded = np.zeros(n_values + LANES, np.float32)
    return keys, padded[:n_values].reshape(*leading, capacity, head_dim)


def attention_scale(head_dim: int) -> float:
    """Return 1/√E."""
    return 1.0 / math.sqrt(head_dim)


lanes: Any = HOLE
add_products: Any = HOLE


@template
def softmax_scores(queries: Floats, keys: Floats, n_visible: Ints, scale: float) -> Floats:
    """Return softmax(q·k·scale) of queries [Q, E] and keys [E, C], [Q, ≥ S].

    Row r is valid up to n_visible[r], here and below.
    """
    head_dim = queries.shape[1]
    scores: Floats = scores_of(queries, 0, head_dim, keys, n_visible[-1])  # [Q, ≥ S]
    _softmax(scores, n_visible, scale)
    return scores


@template
def scores_of(queries: Floats, first: int, head_dim: int, keys: Floats, n_seen: int) -> Floats:
    """Return q·k of queries [Q, E], columns `first` … of a matrix, and keys [E, C]: [Q, ≥ S]."""
    n_vectors = (n_seen + lanes - 1) // lanes
    scores = np.empty((queries.shape[0], n_vectors * lanes), np.float32)  # [Q, S]
    no_bias = scores[0, :0]
    for at in range(0, n_vectors * lanes, lanes):
        add_products(queries, first, head_dim, keys, at, scores, at, True, no_bias, 0)
    return scores


@inner
def _softmax(scores: Floats, n_visible: Ints, scale: float) -> None:
    """Replace the scores [Q, ≥ S] by the softmax of scores·scale."""
    to_power = LOG2_E * np.float64(scale)
    capacity = scores.shape[1]
    powers = np.empty(capacity, np.float64)  # [S]
    for r in range(scores.shape[0]):
        n, row = n_visible[r], r * capacity
        maxima = no_sums() - np.inf
        for s in range(0, n, SUMS):
            if s + SUMS <= n:
                some = load(scores, row + s)
            else:
                some = load_some(scores, row + s, n - s, -np.inf)
            maxima = at_least(maxima, some)
        largest = largest_of(maxima)
        sums = no_sums()
        for s in range(0, n, SUMS):
            some = exp2((load(scores, row + s) - largest) * to_power)
            store(powers, s, some)
            if s + SUMS > n:
                some = load_some(powers, s, n - s, 0.0)
            sums = sums + some
        inverse = 1.0 / add_halves(sums)
        for s in range(0, n, SUMS):
            store(scores, row + s, load(powers, s) * inverse)


@template
def _attend_queries(
    queries: Floats, keys: Floats, values: Floats, n_visible: Ints, scale: float
) -> Floats:
    """Return softmax(q·k·scale)·v of queries [Q, E], keys [E, C] and values [C, E]: [Q, ≥ E]."""
    weights = softmax_scores(queries, keys, n_visible, scale)  # [Q, ≥ S]
    for r in range(weights.shape[0]):
        for s in range(n_visible[r], weights.shape[1]):
            weights[r, s] = 0.0
    # The tokens beyond a row's own have weight 0: they add +0 or -0 at the end of its sum.
    head_dim = values.shape[1]
    width = (head_dim + lanes - 1) // lanes * lanes
    results = np.empty((weights.shape[0], width), np.float32)  # [Q, ≥ E]
    weighted_values(weights, n_visible[-1], values, 0, head_dim, results, 0)
    return results


@template
def weighted_values(
    weights: Floats,
    n_seen: int,
    values: Floats,
    column: int,
    head_dim: int,
    results: Floats,
    place: int,
) -> None:
    """Write weights·v of weights [Q, ≥ S] and values [S, E] to results [Q, ≥ E].

    Values and results are columns `column` … and `place` … of matrices, up to a whole vector.
    """
    no_bias = results[0, :0]
    for e in range(0, head_dim, lanes):
        at, to = column + e, place + e
        add_products(weights, 0, n_seen, values, at, results, to, True, no_bias, 0)


def _parts(n_lanes: int) -> Mapping[str, Any]:
    """Return the functions above for vectors of so many lanes, by name."""
    values: dict[str, Any] = {"lanes": n_lanes, "add_products": add_products_of(n_lanes)}
    for part in (scores_of, softmax_scores, weighted_values, _attend_queries):
        filled = part.fill(
            f"{part.name}_by_{n_lanes}", **{name: values[name] for name in part.holes}
        )
        values[part.name] = inner(filled)
    return values


PANEL_PARTS, TEXT_PARTS = _parts(LANES), _parts(TEXT_LANES)
attend_queries = PANEL_PARTS["_attend_queries"]
_softmax_scores = PANEL_PARTS["softmax_scores"]
_scores_of_text = TEXT_PARTS["scores_of"]
_weighted_values = TEXT_PARTS["weighted_values"]


@jit
def attention_weights(
    query: Floats, keys: Floats, n_visible: Ints, scale: float, n_seen: int
) -> Floats:
    """Return the softmax that attention computes and drops.

    Args:
        query: [T, H, E].
        keys: [Hkv, E, C].
        n_visible: int64 [T], how many tokens each token attends to.
        scale: From `attention_scale`.
        n_seen: S.

    Returns:
        [H, T, S]; 0 where a token is not visible.
    """
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


def attention_over_texts(qkv: Floats, starts: Ints) -> Floats:
    """Return softmax(q·k/√E)·v within each of several texts that are end to end.

    Args:
        qkv: [T, 3·H, E]: the queries of all heads, then the keys, then the values.
        starts: int64 [texts + 1]. Text n is tokens starts[n] … starts[n + 1] − 1; each of its
            tokens attends to all of them and to no tokens of another text.

    Returns:
        [T, H, E].
    """
    n_tokens, n_all, head_dim = qkv.shape
    out = empty(n_tokens, n_all // 3, head_dim)  # [T, H, E]
    mean_length = n_tokens // max(len(starts) - 1, 1)
    run = _attend_texts.choose(out.size * mean_length // MULTIPLICATIONS)
    run(qkv, starts, attention_scale(head_dim), out)
    return out


@both
def _attend_texts(qkv: Floats, starts: Ints, scale: float, out: Floats) -> None:
    for item in prange((starts.size - 1) * out.shape[1]):
        _attend_text(item, qkv, starts, scale, out)


@inner
def _attend_text(item: int, qkv: Floats, starts: Ints, scale: float, out: Floats) -> None:
    """Write the results of one head of one text: item = text·H + h."""
    n_heads, head_dim = out.shape[1:]
    text, h = item // n_heads, item % n_heads
    first, last = starts[text], starts[text + 1]
    tokens = qkv[first:last].reshape(last - first, 3 * n_heads * head_dim)  # [S, 3·H·E]
    keys = _keys_of_text(tokens, n_heads + h, head_dim)  # [E, C]
    for start in range(0, last - first, TEXT_QUERIES):
        queries = tokens[start : start + TEXT_QUERIES]  # [Q, 3·H·E]
        weights = _scores_of_text(queries, h * head_dim, head_dim, keys, last - first)  # [Q, ≥ S]
        visible = np.full(len(queries), last - first)  # [Q]
        _softmax(weights, visible, scale)
        _write_values(weights, tokens, h, out, first + start)


@inner
def _keys_of_text(tokens: Floats, head: int, head_dim: int) -> Floats:
    """Return one head's keys, columns head·E … of tokens [S, 3·H·E], turned: [E, C]."""
    n_tokens = len(tokens)
    capacity = (n_tokens + TEXT_LANES - 1) // TEXT_LANES * TEXT_LANES
    keys = np.zeros((head_dim, capacity), np.float32)  # [E, C]
    for s in range(n_tokens):
        for e in range(head_dim):
            keys[e, s] = tokens[s, head * head_dim + e]
    return keys


@inner
def _write_values(weights: Floats, tokens: Floats, h: int, out: Floats, start: int) -> None:
    """Write weights [Q, ≥ S] times the values of head h of tokens [S, 3·H·E] to out[start:, h].

    Values and results are whole vectors where they stand, or are copied to where they are.
    """
    n_heads, head_dim = out.shape[1:]
    n_tokens, n_queries, values_at = len(tokens), len(weights), (2 * n_heads + h) * head_dim
    if head_dim % TEXT_LANES == 0:
        results = out.reshape(out.shape[0], n_heads * head_dim)[start : start + n_queries]
        _weighted_values(weights, n_tokens, tokens, values_at, head_dim, results, h * head_dim)
        return
    width = (head_dim + TEXT_LANES - 1) // TEXT_LANES * TEXT_LANES
    values = np.zeros((n_tokens, width), np.float32)  # [S, ≥ E]
    for s in range(n_tokens):
        for e in range(head_dim):
            values[s, e] = tokens[s, values_at + e]
    results = np.empty((n_queries, width), np.float32)  # [Q, ≥ E]
    _weighted_values(weights, n_tokens, values, 0, head_dim, results, 0)
    for r in range(n_queries):
        for e in range(head_dim):
            out[start + r, h, e] = results[r, e]


# With a bias for each distance


def biased_attention_over_texts(qkv: Floats, starts: Ints, bias: Floats) -> Floats:
    """Return `attention_over_texts` with a bias for each head and distance.

    Args:
        qkv: [T, 3·H, E].
        starts: int64 [texts + 1].
        bias: [H, 2·M − 1], where M is the longest text's length or more: bias[h, M − 1 + s − t]
            is added to q·k/√E of a text's query t and key s; to be exact, √E times it to q·k.

    Returns:
        [T, H, E].
    """
    n_tokens, n_all, head_dim = qkv.shape
    out = empty(n_tokens, n_all // 3, head_dim)  # [T, H, E]
    _biased_texts(qkv, starts, attention_scale(head_dim), bias, out)
    return out


@jit
def biased_attention_weights(qkv: Floats, scale: float, bias: Floats) -> Floats:
    """Return the softmax of `biased_attention_over_texts` for one text [S, 3·H, E]: [H, S, S]."""
    n_tokens, n_heads = qkv.shape[0], qkv.shape[1] // 3
    out = np.empty((n_heads, n_tokens, n_tokens), np.float32)  # [H, S, S]
    for h in range(n_heads):
        weights = _biased_weights(h, qkv, scale, bias)
        for t in range(n_tokens):
            for s in range(n_tokens):
                out[h, t, s] = weights[t, s]
    return out


@inner
def _biased_weights(h: int, qkv: Floats, scale: float, bias: Floats) -> Floats:
    """Return head h's softmax for one text qkv [S, 3·H, E]: [S, ≥ S]."""
    n_tokens, n_all, head_dim = qkv.shape
    tokens = qkv.reshape(n_tokens, n_all * head_dim)  # [S, 3·H·E]
    keys = _keys_of_text(tokens, n_all // 3 + h, head_dim)  # [E, C]
    weights: Floats = _scores_of_text(tokens, h * head_dim, head_dim, keys, n_tokens)  # [S, ≥ S]
    root = np.float32(math.sqrt(head_dim))
    at_zero = bias.shape[1] // 2
    for t in range(n_tokens):
        for s in range(n_tokens):
            weights[t, s] += bias[h, at_zero + s - t] * root
    _softmax(weights, np.full(n_tokens, n_tokens), scale)
    return weights


@parallel_jit
def _biased_texts(qkv: Floats, starts: Ints, scale: float, bias: Floats, out: Floats) -> None:
    n_heads, head_dim = out.shape[1:]
    for item in prange((starts.size - 1) * n_heads):
        text, h = item // n_heads, item % n_heads
        first, last = starts[text], starts[text + 1]
        weights = _biased_weights(h, qkv[first:last], scale, bias)  # [S, ≥ S]
        tokens = qkv[first:last].reshape(last - first, 3 * n_heads * head_dim)  # [S, 3·H·E]
        _write_values(weights, tokens, h, out, first)
