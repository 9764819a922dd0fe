"""Attention over caches: what the new tokens of several sequences see of their own sequence.

N sequences, T new tokens of all of them, H heads, K key/value heads, G = H/K heads that share one,
E head width, L layers, C capacity of a cache.

The tokens of all sequences lie end to end, and each sequence has its own cache. One call visits all
of them, because calls cost time too: where eight texts are continued, a token each, eight calls
would take longer than what they compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy.typing import NDArray

from refllm.jit.buffers import empty
from refllm.jit.compile import inner, jit, parallel_jit, prange, specialized
from refllm.kernels.attention import QUERIES, SERIAL_WORK, attend_queries, attention_scale

__all__ = ["Caches", "attention", "caches_of", "remember"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Of each sequence: its first new token and how many there are, how many came before, how many
# tokens its cache has room for, and the addresses of layer 0's keys and values. A kernel takes an
# array of these, where it could not take a list of arrays.
PLACE = np.dtype(
    [(name, np.int64) for name in ("first", "n_new", "n_before", "capacity", "keys", "values")]
)
FLOAT_BYTES = 4
# Tokens whose keys are written together. A key's numbers come to rows that are a power of two
# apart, and so compete for the same few places of the CPU's cache; with more, those of qkv would.
TOKENS_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class Caches:
    """The caches of some sequences, for one step: until a cache grows or takes in its new tokens.

    `places` [N] are PLACEs, `n_seen` is how many tokens the new ones see in all, `buffers` are the
    arrays that the places point into.
    """

    places: NDArray[np.void]
    n_seen: int
    buffers: tuple[tuple[Floats, Floats], ...]

    @property
    def n_kv_heads(self) -> int:
        """K."""
        return int(self.buffers[0][0].shape[1])


def caches_of(
    buffers: Sequence[tuple[Floats, Floats]], *, n_before: Sequence[int], n_new: Sequence[int]
) -> Caches:
    """The caches with these keys [L, K, E, C] and values [L, K, C, E], as `key_value_buffers` gives
    them, of sequences with `n_before` tokens in the cache and room for `n_new` more.
    """
    places = np.empty(len(buffers), PLACE)  # [N]
    first = n_seen = 0
    for n, (keys, values) in enumerate(buffers):
        before, new = n_before[n], n_new[n]
        places[n] = (first, new, before, keys.shape[3], _address(keys), _address(values))
        first += new
        n_seen += new * before + new * (new + 1) // 2
    return Caches(places, n_seen, tuple(buffers))


def _address(array: Floats) -> int:
    return int(array.__array_interface__["data"][0])


def remember(qkv: Floats, caches: Caches, *, layer: int = 0) -> None:
    """Write the keys and values in qkv [T, H + 2·K, E] to the caches, behind the tokens before.

    The first H heads of qkv are queries, then K keys, then K values.
    """
    run = _remember_serial if qkv.size < SERIAL_WORK else _remember_parallel
    run(qkv, caches.places, layer, caches.n_kv_heads)


def attention(
    query: Floats, caches: Caches, n_visible: Ints, *, n_heads: int, layer: int = 0
) -> Floats:
    """softmax(q·k/√E)·v for query [T, ≥ H, E] and the keys and values of a layer, [T, H, E].

    The first n_heads heads of query are queries. Token t attends to the first n_visible[t] tokens
    of its own sequence (causal: its own position + 1); n_visible must not decrease within a
    sequence. Scores are scaled after their sum; the softmax is normalized before it meets the
    values.
    """
    n_tokens, _, head_dim = query.shape
    out = empty(n_tokens, n_heads, head_dim)  # [T, H, E]
    scale = attention_scale(head_dim)
    run = _serial if caches.n_seen * n_heads * head_dim < SERIAL_WORK else _parallel
    run(query, caches.places, n_visible, layer, caches.n_kv_heads, scale, out)
    return out


def _floats_at(_typing: Any, _address: Any) -> Any:
    """A pointer to the floats at an address."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
        return builder.inttoptr(values[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), emit  # type: ignore[no-untyped-call]


floats_at: Any = intrinsic(_floats_at)


@inner
def _keys(place: Any, layer: int, n_kv_heads: int, head_dim: int) -> Floats:
    """A sequence's keys in a layer, [K, E, C]."""
    size = n_kv_heads * head_dim * place.capacity * FLOAT_BYTES
    return carray(floats_at(place.keys + layer * size), (n_kv_heads, head_dim, place.capacity))


@inner
def _values(place: Any, layer: int, n_kv_heads: int, head_dim: int) -> Floats:
    """A sequence's values in a layer, [K, C, E]."""
    size = n_kv_heads * head_dim * place.capacity * FLOAT_BYTES
    return carray(floats_at(place.values + layer * size), (n_kv_heads, place.capacity, head_dim))


@inner
def _remember_head(
    item: int, qkv: Floats, places: NDArray[np.void], layer: int, n_kv_heads: int
) -> None:
    """One head of one sequence: item = sequence·K + head."""
    head, place = item % n_kv_heads, places[item // n_kv_heads]
    head_dim = qkv.shape[2]
    values_at = qkv.shape[1] - n_kv_heads + head
    keys_at = values_at - n_kv_heads
    keys = _keys(place, layer, n_kv_heads, head_dim)[head]  # [E, C]
    values = _values(place, layer, n_kv_heads, head_dim)[head]  # [C, E]
    for start in range(0, place.n_new, TOKENS_TOGETHER):
        stop = min(start + TOKENS_TOGETHER, place.n_new)
        for e in range(head_dim):
            for t in range(start, stop):
                keys[e, place.n_before + t] = qkv[place.first + t, keys_at, e]
    for t in range(place.n_new):
        for e in range(head_dim):
            values[place.n_before + t, e] = qkv[place.first + t, values_at, e]


def _remember_all(qkv: Floats, places: NDArray[np.void], layer: int, n_kv_heads: int) -> None:
    for item in prange(places.size * n_kv_heads):
        _remember_head(item, qkv, places, layer, n_kv_heads)


def _attend_all(
    query: Floats,
    places: NDArray[np.void],
    n_visible: Ints,
    layer: int,
    n_kv_heads: int,
    scale: np.float32,
    out: Floats,
) -> None:
    blocks = _blocks(places, out.shape[1] // n_kv_heads)
    n_items = blocks.shape[0] * n_kv_heads
    for turn in prange(n_items):
        item = _folded(turn, n_items)
        _attend(item, blocks, query, places, n_visible, layer, n_kv_heads, scale, out)


@inner
def _folded(turn: int, n: int) -> int:
    """The turn-th of 0 … n − 1 in the order 0, n − 1, 1, n − 2, 2, …

    Later tokens see more and take longer. In this order, any stretch of turns is as much work as
    another of its length, and threads get stretches.
    """
    return n - 1 - turn // 2 if turn % 2 else turn // 2


@inner
def _tokens_at_a_time(group: int) -> int:
    """How many tokens make QUERIES queries, at least one."""
    return max(QUERIES // group, 1)


@inner
def _blocks(places: NDArray[np.void], group: int) -> Ints:
    """The sequence and the first token of each block of tokens that go through together, [B, 2]."""
    size = _tokens_at_a_time(group)
    n_blocks = 0
    for n in range(places.size):
        n_blocks += (places[n].n_new + size - 1) // size
    blocks = np.empty((n_blocks, 2), np.int64)
    b = 0
    for n in range(places.size):
        for start in range(0, places[n].n_new, size):
            blocks[b, 0] = n
            blocks[b, 1] = places[n].first + start
            b += 1
    return blocks


@inner
def _attend(
    item: int,
    blocks: Ints,
    query: Floats,
    places: NDArray[np.void],
    n_visible: Ints,
    layer: int,
    n_kv_heads: int,
    scale: np.float32,
    out: Floats,
) -> None:
    """All heads of one key/value head, for one block of tokens: item = block·K + kv_head."""
    n_heads, head_dim = out.shape[1:]
    group = n_heads // n_kv_heads
    kv_head, (n, first) = item % n_kv_heads, blocks[item // n_kv_heads]
    place = places[n]
    n_tokens = min(_tokens_at_a_time(group), place.first + place.n_new - first)
    queries = np.empty((n_tokens * group, head_dim), np.float32)  # [R, E]
    visible = np.empty(n_tokens * group, np.int64)  # [R]
    for t in range(n_tokens):
        for g in range(group):
            for e in range(head_dim):
                queries[t * group + g, e] = query[first + t, kv_head * group + g, e]
            visible[t * group + g] = n_visible[first + t]
    keys = _keys(place, layer, n_kv_heads, head_dim)[kv_head]  # [E, C]
    values = _values(place, layer, n_kv_heads, head_dim)[kv_head]  # [C, E]
    results = attend_queries(queries, keys, values, visible, scale)
    for t in range(n_tokens):
        for g in range(group):
            for e in range(head_dim):
                out[first + t, kv_head * group + g, e] = results[t * group + g, e]


# In what is compiled for one thread, prange is range.
_serial = jit(specialized(_attend_all, "cached_attention_serial"))
_parallel = parallel_jit(specialized(_attend_all, "cached_attention_parallel"))
_remember_serial = jit(specialized(_remember_all, "remember_serial"))
_remember_parallel = parallel_jit(specialized(_remember_all, "remember_parallel"))
