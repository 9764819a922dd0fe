"""refllm's llamas, called as `refllm.generate` calls them.

T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants.serve import memory, serve, timed, versions
from refllm.generate import PROMPT_PIECE
from refllm.jit.compile import use_threads
from refllm.llama import KVCache, Llama, Segment
from refllm.models.load import LlamaModel, load_path

Floats = NDArray[np.float32]

ANSWER = 64  # logits of the last token that are sent back, to be compared


class Contestant:
    """One model, and the caches of a batch."""

    def __init__(self) -> None:
        self.model: LlamaModel | None = None
        self.batch: list[KVCache] = []

    @property
    def network(self) -> Llama:
        """The network of the model that was loaded."""
        if self.model is None:
            raise RuntimeError("load a model first")
        return self.model.network

    def load(
        self,
        path: str,
        threads: int,
        n_ctx: int,
        numerics: str = "exact",
        keep_packed_bytes: int = 0,
    ) -> Mapping[str, Any]:
        """Load the model at `path`; its context grows as needed, so `n_ctx` sets nothing."""
        del n_ctx
        use_threads(threads)
        before = memory()
        seconds, model = timed(
            lambda: load_path(Path(path), numerics=numerics, keep_packed_bytes=keep_packed_bytes)
        )
        if not isinstance(model, LlamaModel):
            raise TypeError(f"{path} is not a llama")
        self.model = model
        return {
            "seconds": [seconds],
            "before": before,
            "after": memory(),
            "versions": versions("refllm", "numpy", "numba", "llvmlite"),
        }

    def prefill(self, token_ids: Sequence[int]) -> Mapping[str, Any]:
        """Compute a prompt in an empty cache."""
        seconds, logits = timed(lambda: self._read(token_ids, self.network.new_cache()))
        return {"seconds": [seconds], "answer": logits[:ANSWER].tolist(), "memory": memory()}

    def decode(self, prompt: Sequence[int], token_ids: Sequence[int]) -> Mapping[str, Any]:
        """After a prompt, compute tokens one at a time; the prompt is not timed."""
        cache = self.network.new_cache()
        self._read(prompt, cache)
        seconds, answers = timed(lambda: [self._step(token_id, cache) for token_id in token_ids])
        return {"seconds": [seconds], "answer": answers[-1][:ANSWER].tolist()}

    def fill(self, prompts: Sequence[Sequence[int]]) -> Mapping[str, Any]:
        """Make one sequence of each prompt, for `decode_batch`."""
        self.batch = [self.network.new_cache() for _ in prompts]
        for prompt, cache in zip(prompts, self.batch, strict=True):
            self._read(prompt, cache)
        return {}

    def decode_batch(self, sequences: Sequence[int], token_ids: Sequence[int]) -> Mapping[str, Any]:
        """Steps of some of the filled sequences together, afterwards forgotten."""
        caches = [self.batch[i] for i in sequences]
        lengths = [cache.length for cache in caches]

        def step(token_id: int) -> None:
            segments = [Segment([token_id], cache) for cache in caches]
            self.network.logits(self.network.hidden(segments))

        step(token_ids[0])  # a first step may have to enlarge the caches
        seconds, _ = timed(lambda: list(map(step, token_ids)))
        for cache, length in zip(caches, lengths, strict=True):
            cache.truncate(length)
        return {"seconds": [seconds]}

    def _read(self, token_ids: Sequence[int], cache: KVCache) -> Floats:
        """The logits [V] after the last token."""
        for start in range(0, len(token_ids), PROMPT_PIECE):
            piece = token_ids[start : start + PROMPT_PIECE]
            hidden = self.network.hidden([Segment(piece, cache)])  # [T, D]
        logits: Floats = self.network.logits(hidden[-1:])[0]
        return logits

    def _step(self, token_id: int, cache: KVCache) -> Floats:
        """The logits [V] after one more token."""
        hidden = self.network.hidden([Segment([token_id], cache)])  # [1, D]
        logits: Floats = self.network.logits(hidden)[0]
        return logits


if __name__ == "__main__":
    contestant = Contestant()
    serve(
        {
            "load": contestant.load,
            "prefill": contestant.prefill,
            "decode": contestant.decode,
            "fill": contestant.fill,
            "decode_batch": contestant.decode_batch,
        }
    )
