"""The keys and values of recent prompts: a prompt that begins like one of them is read from there.

A token's keys and values depend on the tokens before it and on nothing else, bit for bit (see
`refllm.llama`), so a copy of them is what computing them again would give. What is kept of a
network is a tree of blocks of `BLOCK_TOKENS` tokens each. A path from the root is the beginning of
a sequence, and sequences that begin alike share the blocks of their common beginning:

    root ── [tokens 0 … 63 of A and B] ─┬─ [64 … 127 of A] ── [128 … 150 of A]
                                        └─ [64 …  99 of B]

A block that is not full ends a path. The block that was not used for longest goes first, and no
block goes before those behind it: a use of a block is one of all blocks before it.

Source: Kwon et al. 2023, arXiv:2309.06180 (a KV cache in blocks that requests share); vLLM calls
this automatic prefix caching.

L layers, K key/value heads, E head width, n tokens of a block.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from refllm.api import InvalidInput
from refllm.llama import KVCache, Llama

__all__ = ["BLOCK_TOKENS", "DEFAULT_BYTES", "PromptCache"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]

BLOCK_TOKENS = 64
DEFAULT_BYTES = 256 * 2**20


class Children(dict[bytes, "Block"]):
    """Blocks by the bytes of their token ids; a `dict` that weak references may point to."""

    __slots__ = ("__weakref__",)

    def longest(self, token_ids: Ids) -> tuple[Block, int] | None:
        """The block that has most tokens in common with the beginning of `token_ids`, and how many.

        None where no block has one.
        """
        exact = self.get(token_ids[:BLOCK_TOKENS].tobytes())
        if exact is not None:
            return exact, len(exact.token_ids)
        pairs = ((block, block.n_common(token_ids)) for block in self.values())
        best = max(pairs, key=lambda pair: pair[1], default=None)
        return best if best is not None and best[1] > 0 else None


@dataclass(slots=True, eq=False)
class Block:
    """Some tokens of a sequence, and their keys and values, which never change.

    Attributes:
        token_ids: int32 [n].
        keys: float32 [L, K, E, n].
        values: float32 [L, K, n, E].
        siblings: The blocks of the tree with the same blocks before them, this one included.
        last_use: Larger than that of any earlier use of any block.
        children: The blocks that follow, by the bytes of their token ids.
    """

    token_ids: Ids
    keys: Floats
    values: Floats
    siblings: weakref.ref[Children]
    last_use: int = 0
    children: Children = field(default_factory=Children)

    @property
    def n_bytes(self) -> int:
        """What the arrays take."""
        return self.token_ids.nbytes + self.keys.nbytes + self.values.nbytes

    def n_common(self, token_ids: Ids) -> int:
        """How many tokens the block and `token_ids` have in common at their beginnings."""
        n = min(len(token_ids), len(self.token_ids))
        differing = np.flatnonzero(self.token_ids[:n] != token_ids[:n])
        return int(differing[0]) if differing.size else n


class Tree:
    """The blocks of one network."""

    def __init__(self) -> None:
        self.root = Children()
        self.by_use: OrderedDict[Block, None] = OrderedDict()  # least recently used first
        self.n_bytes = 0

    def path(self, token_ids: Ids) -> Iterator[tuple[Block, int]]:
        """The blocks of the longest known beginning of `token_ids`, and how much of each it is."""
        children, start = self.root, 0
        while start < len(token_ids):
            found = children.longest(token_ids[start:])
            if found is None:
                return
            yield found
            block, n_common = found
            if n_common < BLOCK_TOKENS:
                return
            children, start = block.children, start + n_common

    def add(self, block: Block, siblings: Children) -> None:
        """Add a block to its siblings."""
        siblings[block.token_ids.tobytes()] = block
        self.by_use[block] = None
        self.n_bytes += block.n_bytes

    def remove(self, block: Block) -> None:
        """Remove a block that no other follows."""
        siblings = block.siblings()
        assert siblings is not None
        assert not block.children
        del siblings[block.token_ids.tobytes()]
        del self.by_use[block]
        self.n_bytes -= block.n_bytes

    def use(self, path: Sequence[Block], now: int) -> None:
        """Make the blocks of a path the most recently used ones, the first of them most."""
        for block in reversed(path):
            self.by_use.move_to_end(block)
            block.last_use = now


class PromptCache:
    """Keys and values of what networks have read, at most `budget_bytes` of them.

    Safe to use from several threads. What belongs to a network goes with it.

    Attributes:
        budget_bytes: The most bytes of keys, values and token ids; 0 keeps nothing.
        n_hits: How many sequences began with tokens that were known.
        n_reused_tokens: How many tokens were copied instead of computed.

    Example:
        >>> cache = network.new_cache()
        >>> prompt_cache.extend(network, [1, 403, 407], cache)
        2
    """

    def __init__(self, budget_bytes: int = DEFAULT_BYTES) -> None:
        """Raises `InvalidInput` for a negative budget."""
        if budget_bytes < 0:
            raise InvalidInput(f"prompt_cache_bytes must be at least 0, got {budget_bytes}")
        self.budget_bytes = budget_bytes
        self.n_hits = 0
        self.n_reused_tokens = 0
        self._n_uses = 0
        self._trees: weakref.WeakKeyDictionary[Llama, Tree] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    @property
    def n_bytes(self) -> int:
        """What the keys, values and token ids of all blocks take."""
        with self._lock:
            return self._n_bytes()

    def extend(self, network: Llama, token_ids: Sequence[int], cache: KVCache) -> int:
        """Copy what is known of a sequence behind what `cache` has of it.

        Args:
            network: The network that the sequence is for.
            token_ids: The sequence. Its last token is never copied: the network must compute it,
                because the logits after it are not kept.
            cache: Holds the first tokens of the sequence, or none.

        Returns:
            How many tokens were copied.
        """
        with self._lock:
            tree = self._trees.get(network)
            if tree is None:
                return 0
            path = list(tree.path(np.asarray(token_ids[:-1], np.int32)))
            n_before, start = cache.length, 0
            if sum(n for _, n in path) <= n_before:
                return 0
            cache.reserve(len(token_ids))
            for block, n in path:
                part = slice(max(n_before - start, 0), n)
                if part.start < n:
                    cache.append(block.keys[..., part], block.values[:, :, part])
                start += n
            self._n_uses += 1
            tree.use([block for block, _ in path], self._n_uses)
            self.n_hits += n_before == 0
            self.n_reused_tokens += cache.length - n_before
            return cache.length - n_before

    def store(self, network: Llama, token_ids: Sequence[int], cache: KVCache) -> None:
        """Keep a copy of the keys and values in `cache`, as much from the beginning as fits.

        Args:
            network: The network that has computed them.
            token_ids: The tokens in the cache, all that the network has read.
            cache: Their keys and values.
        """
        bytes_each = np.dtype(np.int32).itemsize + cache.n_bytes_per_token
        ids = np.array(token_ids[: self.budget_bytes // bytes_each], np.int32)
        if not ids.size:
            return
        with self._lock:
            tree = self._trees.setdefault(network, Tree())
            self._n_uses += 1
            path: list[Block] = []
            siblings = tree.root
            for start in range(0, len(ids), BLOCK_TOKENS):
                stop = min(start + BLOCK_TOKENS, len(ids))
                found = siblings.longest(ids[start:stop])
                if found is not None and found[1] == stop - start:
                    block = found[0]
                    tree.use([block], self._n_uses)
                else:
                    if found is not None and found[1] == len(found[0].token_ids):
                        tree.remove(found[0])  # the new block begins with all of its tokens
                    # The blocks of the path fit the budget, and were used just now: the blocks
                    # that make room are others.
                    self._make_room((stop - start) * bytes_each)
                    keys, values = cache.copy_of(start, stop)
                    block = Block(ids[start:stop].copy(), keys, values, weakref.ref(siblings))
                    tree.add(block, siblings)
                path.append(block)
                siblings = block.children
            tree.use(path, self._n_uses)

    def _make_room(self, n_bytes: int) -> None:
        """Remove the blocks that were not used for longest until `n_bytes` more fit the budget."""
        while self._n_bytes() + n_bytes > self.budget_bytes:
            trees = [tree for tree in self._trees.values() if tree.by_use]
            oldest = {id(tree): next(iter(tree.by_use)) for tree in trees}
            tree = min(trees, key=lambda tree: oldest[id(tree)].last_use)
            tree.remove(oldest[id(tree)])

    def _n_bytes(self) -> int:
        return sum(tree.n_bytes for tree in self._trees.values())
