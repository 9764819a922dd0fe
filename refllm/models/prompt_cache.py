"""A prefix cache: keys and values of recent prompts, reused by prompts with the same beginning.

A token's keys and values depend only on the tokens before it, bit for bit (see `refllm.llama`), so
a copy equals the result of computing them again. The cache of a network is a tree of blocks of
`BLOCK_TOKENS` tokens each. A path from the root is the beginning of a sequence; sequences share the
blocks of their common prefix:

    root ── [tokens 0 … 63 of A and B] ─┬─ [64 … 127 of A] ── [128 … 150 of A]
                                        └─ [64 …  99 of B]

A block that is not full ends a path. The least recently used block is evicted first. It never has
children, because a use of a block is also a use of all blocks before it.

Source: Kwon et al. 2023, arXiv:2309.06180 (a KV cache in blocks that requests share); vLLM calls
this automatic prefix caching.

L layers, Hkv key/value heads, E head width, n tokens of a block.
"""

from __future__ import annotations

import logging
import threading
import weakref
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from refllm.errors import InvalidInput
from refllm.llama import KVCache, Llama

__all__ = ["BLOCK_TOKENS", "DEFAULT_BYTES", "PromptCache"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]

logger = logging.getLogger("refllm")

BLOCK_TOKENS = 64
TOKEN_ID_BYTES = np.dtype(np.int32).itemsize
DEFAULT_BYTES = 256 * 2**20
BY_KEY = attrgetter("key")


class Children:
    """The blocks that follow a block, or begin sequences, sorted by `key`."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def longest(self, token_ids: Ids) -> tuple[Block, int] | None:
        """Return the block with the longest prefix of `token_ids`, and the prefix's length.

        It is one of the two neighbors of `token_ids` in sorted order. None if neither has a token
        in common.
        """
        key = token_ids[:BLOCK_TOKENS].tobytes()
        place = bisect_left(self.blocks, key, key=BY_KEY)
        beside = self.blocks[max(place - 1, 0) : place + 1]
        pairs = ((block, block.n_common(token_ids)) for block in beside)
        best = max(pairs, key=lambda pair: pair[1], default=None)
        return best if best is not None and best[1] > 0 else None

    def add(self, block: Block) -> None:
        """Insert a block."""
        insort(self.blocks, block, key=BY_KEY)

    def remove(self, block: Block) -> None:
        """Remove a block."""
        del self.blocks[bisect_left(self.blocks, block.key, key=BY_KEY)]


@dataclass(slots=True, eq=False)
class Block:
    """Some tokens of a sequence with their keys and values, which never change.

    Attributes:
        key: The bytes of its token ids, int32 [n]. Sorted by bytes, sequences with a common prefix
            are adjacent.
        keys: float32 [L, Hkv, E, n].
        values: float32 [L, Hkv, n, E].
        siblings: The blocks with the same blocks before them, this one included.
        last_use: The time of the last use: larger than those of all earlier uses of any block.
        children: The blocks that follow.
    """

    key: bytes
    keys: Floats
    values: Floats
    siblings: weakref.ref[Children]
    last_use: int = 0
    children: Children = field(default_factory=Children)

    @property
    def n_bytes(self) -> int:
        """The size of token ids, keys and values."""
        return len(self.key) + self.keys.nbytes + self.values.nbytes

    @property
    def n_tokens(self) -> int:
        """n."""
        return len(self.key) // TOKEN_ID_BYTES

    def n_common(self, token_ids: Ids) -> int:
        """Return the length of the common prefix of the block and `token_ids`."""
        own = np.frombuffer(self.key, np.int32)
        n = min(len(token_ids), len(own))
        differing = np.flatnonzero(own[:n] != token_ids[:n])
        return int(differing[0]) if differing.size else n


class Tree:
    """The blocks of one network."""

    def __init__(self) -> None:
        self.root = Children()
        self.by_use: OrderedDict[Block, None] = OrderedDict()  # least recently used first
        self.n_bytes = 0

    def path(self, token_ids: Ids) -> Iterator[tuple[Block, int]]:
        """Yield the blocks of the longest cached prefix of `token_ids`, and its tokens in each."""
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
        siblings.add(block)
        self.by_use[block] = None
        self.n_bytes += block.n_bytes

    def remove(self, block: Block) -> None:
        """Remove a block without children."""
        siblings = block.siblings()
        assert siblings is not None
        assert not block.children.blocks
        siblings.remove(block)
        del self.by_use[block]
        self.n_bytes -= block.n_bytes

    def use(self, path: Sequence[Block], now: int) -> None:
        """Make the blocks of a path the most recently used ones, the first block last of all."""
        for block in reversed(path):
            self.by_use.move_to_end(block)
            block.last_use = now


class PromptCache:
    """Keys and values of the sequences of networks, at most `budget_bytes`.

    Safe to use from several threads. The blocks of a network are freed with it.

    Attributes:
        budget_bytes: The maximum bytes of keys, values and token ids; 0 keeps nothing.
        n_hits: The number of sequences with a cached prefix.
        n_reused_tokens: The number of tokens that were copied instead of computed.

    Example:
        >>> from refllm.llama import Segment
        >>> from refllm.models.bundled import ROOT
        >>> from refllm.models.load import load
        >>> network = load(ROOT / "llama" / "tiny-chat.gguf").network
        >>> cache = network.new_cache()
        >>> _ = network.forward([Segment([1, 403, 407], cache)])
        >>> prompt_cache = PromptCache()
        >>> prompt_cache.store(network, [1, 403, 407], cache)
        >>> prompt_cache.extend(network, [1, 403, 407], network.new_cache())
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
        """The size of the keys, values and token ids of all blocks."""
        with self._lock:
            return self._n_bytes()

    def extend(self, network: Llama, token_ids: Sequence[int], cache: KVCache) -> int:
        """Append the cached keys and values of a sequence to its KV cache.

        Args:
            network: The sequence's network.
            token_ids: The sequence. Its last token is never copied: the network must compute it,
                because the logits after it are not cached.
            cache: Has the first tokens of the sequence, or none.

        Returns:
            The number of tokens that were copied.
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
        """Keep a copy of the keys and values in `cache`, from its beginning up to the budget.

        If memory for a copy runs out, the rest is not kept.

        Args:
            network: The network that has computed them.
            token_ids: The tokens in the cache.
            cache: Their keys and values.
        """
        bytes_each = TOKEN_ID_BYTES + cache.n_bytes_per_token
        ids = np.array(token_ids[: self.budget_bytes // bytes_each], np.int32)
        if not ids.size:
            return
        with self._lock:
            tree = self._trees.setdefault(network, Tree())
            self._n_uses += 1
            path: list[Block] = []
            try:
                self._store(tree, ids, cache, path)
            except MemoryError:
                logger.warning("refllm: not enough memory to cache a prompt")
            finally:
                tree.use(path, self._n_uses)

    def _store(self, tree: Tree, ids: Ids, cache: KVCache, path: list[Block]) -> None:
        """Find or add the blocks of a sequence, one after the other, and append them to `path`."""
        siblings = tree.root
        for start in range(0, len(ids), BLOCK_TOKENS):
            some = ids[start : start + BLOCK_TOKENS]
            found = siblings.longest(some)
            if found is not None and found[1] == len(some):
                block = found[0]
                tree.use([block], self._n_uses)
            else:
                if found is not None and found[1] == found[0].n_tokens:
                    tree.remove(found[0])  # the new block begins with all of its tokens
                # Never evicts a block of this path: they fit the budget, and were used last.
                self._make_room(len(some) * (TOKEN_ID_BYTES + cache.n_bytes_per_token))
                keys, values = cache.copy_of(start, start + len(some))
                block = Block(some.tobytes(), keys, values, weakref.ref(siblings))
                tree.add(block, siblings)
            path.append(block)
            siblings = block.children

    def _make_room(self, n_bytes: int) -> None:
        """Evict the least recently used blocks until `n_bytes` more fit the budget."""
        while self._n_bytes() + n_bytes > self.budget_bytes:
            trees = [tree for tree in self._trees.values() if tree.by_use]
            oldest = {id(tree): next(iter(tree.by_use)) for tree in trees}
            tree = min(trees, key=lambda tree: oldest[id(tree)].last_use)
            tree.remove(oldest[id(tree)])

    def _n_bytes(self) -> int:
        return sum(tree.n_bytes for tree in self._trees.values())
