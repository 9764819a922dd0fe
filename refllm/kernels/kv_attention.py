"""Attention over KV caches: what the new tokens of several sequences see of their own sequence.

T new tokens of all sequences, S context so far, H heads, Hkv key/value heads, G = H/Hkv heads that
share one, E head width, C capacity of a cache, L layers, Q queries that are multiplied together.

The tokens of all sequences are end to end, and each sequence has its own cache. One call computes
all sequences, because a call has a cost too: for eight texts that are continued by a token each,
eight calls would take longer than their arithmetic.
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

from refllm.jit.buffers import FLOAT_BYTES, Floats, Ints, empty
from refllm.jit.compile import both, inner, prange
from refllm.kernels.attention import MULTIPLICATIONS, QUERIES, attend_queries, attention_scale

__all__ = ["Caches", "append_kv", "attention", "describe_caches"]

Descriptors = NDArray[np.void]

# A sequence and its cache: its first new token and how many there are, how many tokens are in the
# cache, for how many it has room, and the addresses of layer 0's keys and values. Addresses,
# because a kernel takes an array of descriptors, but no list of arrays.
CACHE_DESCRIPTOR = np.dtype(
    [(name, np.int64) for name in ("first", "n_new", "n_before", "capacity", "keys", "values")]
)
# Tokens whose keys are written together. A key's elements are written to rows that are a power of
# two apart and so share few sets of the CPU's cache; with more tokens, they would evict qkv's.
KEY_TILE = 8


@dataclass(frozen=True, slots=True)
class Caches:
    """The caches of some sequences, until one of them grows or its new tokens become old.

    Attributes:
        descriptors: Of `CACHE_DESCRIPTOR`, [sequences].
        n_seen: How many tokens the new ones attend to, summed over the new tokens.
        buffers: The keys [L, Hkv, E, C] and values [L, Hkv, C, E] that the descriptors point to.
    """

    descriptors: Descriptors
    n_seen: int
    buffers: tuple[tuple[Floats, Floats], ...]

    @property
    def n_kv_heads(self) -> int:
        """Hkv."""
        return int(self.buffers[0][0].shape[1])


def describe_caches(
    buffers: Sequence[tuple[Floats, Floats]], *, n_before: Sequence[int], n_new: Sequence[int]
) -> Caches:
    """Return the caches with these buffers.

    Args:
        buffers: For each sequence, keys [L, Hkv, E, C] and values [L, Hkv, C, E], from
            `key_value_buffers`.
        n_before: For each sequence, the tokens in its cache.
        n_new: For each sequence, its new tokens; the cache has room for them.
    """
    descriptors = np.empty(len(buffers), CACHE_DESCRIPTOR)  # [sequences]
    first = n_seen = 0
    for n, (keys, values) in enumerate(buffers):
        before, new = n_before[n], n_new[n]
        addresses = (int(array.__array_interface__["data"][0]) for array in (keys, values))
        descriptors[n] = (first, new, before, keys.shape[3], *addresses)
        first += new
        n_seen += new * before + new * (new + 1) // 2
    return Caches(descriptors, n_seen, tuple(buffers))


def append_kv(qkv: Floats, caches: Caches, *, layer: int = 0) -> None:
    """Write keys and values to a layer's caches, behind the tokens before.

    Args:
        qkv: [T, H + 2·Hkv, E]: queries, which are skipped, then keys, then values.
        caches: Of the T tokens' sequences.
        layer: Index of the layer.
    """
    _append.choose(qkv.size // MULTIPLICATIONS)(qkv, caches.descriptors, layer, caches.n_kv_heads)


def attention(
    query: Floats, caches: Caches, n_visible: Ints, *, n_heads: int, layer: int = 0
) -> Floats:
    """Return softmax(q·k/√E)·v for the keys and values of a layer.

    The softmax scales the scores, and is normalized before the product with the values.

    Args:
        query: [T, ≥ H, E]; the first H heads are queries.
        caches: Of the T tokens' sequences.
        n_visible: int64 [T]. Token t attends to the first n_visible[t] tokens of its sequence
            (causal: its own position + 1); it must not decrease within a sequence.
        n_heads: H.
        layer: Index of the layer.

    Returns:
        [T, H, E].
    """
    n_tokens, _, head_dim = query.shape
    out = empty(n_tokens, n_heads, head_dim)  # [T, H, E]
    scale = attention_scale(head_dim)
    run = _kv_attention.choose(caches.n_seen * n_heads * head_dim // MULTIPLICATIONS)
    run(query, caches.descriptors, n_visible, layer, caches.n_kv_heads, scale, out)
    return out


def _floats_at(_typing: Any, _address: Any) -> Any:
    """An intrinsic: an address → a pointer to floats."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
        return builder.inttoptr(values[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), emit  # type: ignore[no-untyped-call]


floats_at: Any = intrinsic(_floats_at)


@inner
def _keys(cache: Any, layer: int, n_kv_heads: int, head_dim: int) -> Floats:
    """Return a sequence's keys in a layer, [Hkv, E, C]."""
    size = n_kv_heads * head_dim * cache.capacity * FLOAT_BYTES
    return carray(floats_at(cache.keys + layer * size), (n_kv_heads, head_dim, cache.capacity))


@inner
def _values(cache: Any, layer: int, n_kv_heads: int, head_dim: int) -> Floats:
    """Return a sequence's values in a layer, [Hkv, C, E]."""
    size = n_kv_heads * head_dim * cache.capacity * FLOAT_BYTES
    return carray(floats_at(cache.values + layer * size), (n_kv_heads, cache.capacity, head_dim))


@both
def _append(qkv: Floats, descriptors: Descriptors, layer: int, n_kv_heads: int) -> None:
    for item in prange(descriptors.size * n_kv_heads):
        _append_head(item, qkv, descriptors, layer, n_kv_heads)


@inner
def _append_head(
    item: int, qkv: Floats, descriptors: Descriptors, layer: int, n_kv_heads: int
) -> None:
    """Write one head of one sequence: item = sequence·Hkv + head."""
    head, cache = item % n_kv_heads, descriptors[item // n_kv_heads]
    head_dim = qkv.shape[2]
    values_at = qkv.shape[1] - n_kv_heads + head
    keys_at = values_at - n_kv_heads
    keys = _keys(cache, layer, n_kv_heads, head_dim)[head]  # [E, C]
    values = _values(cache, layer, n_kv_heads, head_dim)[head]  # [C, E]
    for start in range(0, cache.n_new, KEY_TILE):
        stop = min(start + KEY_TILE, cache.n_new)
        for e in range(head_dim):
            for t in range(start, stop):
                keys[e, cache.n_before + t] = qkv[cache.first + t, keys_at, e]
    for t in range(cache.n_new):
        for e in range(head_dim):
            values[cache.n_before + t, e] = qkv[cache.first + t, values_at, e]


@both
def _kv_attention(
    query: Floats,
    descriptors: Descriptors,
    n_visible: Ints,
    layer: int,
    n_kv_heads: int,
    scale: float,
    out: Floats,
) -> None:
    tiles = _tiles(descriptors, out.shape[1] // n_kv_heads)
    n_items = tiles.shape[0] * n_kv_heads
    for turn in prange(n_items):
        # Later tokens see more and take longer, and a thread gets a range of turns. In the order
        # 0, n − 1, 1, n − 2, 2, … ranges of one length are about the same amount of work.
        item = n_items - 1 - turn // 2 if turn % 2 else turn // 2
        _attend(item, tiles, query, descriptors, n_visible, layer, n_kv_heads, scale, out)


@inner
def _tile_size(group: int) -> int:
    """Return how many tokens make `QUERIES` queries, at least one."""
    return max(QUERIES // group, 1)


@inner
def _tiles(descriptors: Descriptors, group: int) -> Ints:
    """Return the sequence and the first token of each tile of tokens, [tiles, 2]."""
    size = _tile_size(group)
    n_tiles = 0
    for n in range(descriptors.size):
        n_tiles += (descriptors[n].n_new + size - 1) // size
    tiles = np.empty((n_tiles, 2), np.int64)
    i = 0
    for n in range(descriptors.size):
        for start in range(0, descriptors[n].n_new, size):
            tiles[i, 0] = n
            tiles[i, 1] = descriptors[n].first + start
            i += 1
    return tiles


@inner
def _attend(
    item: int,
    tiles: Ints,
    query: Floats,
    descriptors: Descriptors,
    n_visible: Ints,
    layer: int,
    n_kv_heads: int,
    scale: float,
    out: Floats,
) -> None:
    """Write the results of one key/value head for one tile of tokens: item = tile·Hkv + kv_head."""
    n_heads, head_dim = out.shape[1:]
    group = n_heads // n_kv_heads
    kv_head, (n, first) = item % n_kv_heads, tiles[item // n_kv_heads]
    cache = descriptors[n]
    n_tokens = min(_tile_size(group), cache.first + cache.n_new - first)
    queries = np.empty((n_tokens * group, head_dim), np.float32)  # [Q, E]
    visible = np.empty(n_tokens * group, np.int64)  # [Q]
    for t in range(n_tokens):
        for g in range(group):
            for e in range(head_dim):
                queries[t * group + g, e] = query[first + t, kv_head * group + g, e]
            visible[t * group + g] = n_visible[first + t]
    keys = _keys(cache, layer, n_kv_heads, head_dim)[kv_head]  # [E, C]
    values = _values(cache, layer, n_kv_heads, head_dim)[kv_head]  # [C, E]
    results = attend_queries(queries, keys, values, visible, scale)
    for t in range(n_tokens):
        for g in range(group):
            for e in range(head_dim):
                out[first + t, kv_head * group + g, e] = results[t * group + g, e]
