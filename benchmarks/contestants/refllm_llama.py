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
from refllm.errors import LlmError
from refllm.generate import PROMPT_PIECE, Generation, step_together, steps_of
from refllm.interface import InferencingParams
from refllm.jit.compile import use_threads
from refllm.llama import KVCache, Llama, Segment
from refllm.models.load import LlamaModel, load_path
from refllm.models.prompt_cache import PromptCache

Floats = NDArray[np.float32]

ANSWER = 64  # logits of the last token that are sent back, to be compared


class Contestant:
    """One model, the caches of a batch with their prompts, and the cache of prompts."""

    def __init__(self) -> None:
        self.model: LlamaModel | None = None
        self.batch: list[KVCache] = []
        self.prompts: Sequence[Sequence[int]] = ()
        self.prompt_cache = PromptCache()

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
        """Make one sequence of each prompt, for `decode_batch` and `continue_together`."""
        self.prompts = prompts
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

    def continue_together(self, n_tokens: int) -> Mapping[str, Any]:
        """Continue all filled sequences by the likeliest tokens, afterwards forgotten.

        The first token of each, which ends its prompt, is not timed. The answer are the logits that
        the last sequence's first token is drawn from.
        """
        params = _greedy(1 + n_tokens)
        generations = [Generation(self.network, prompt, params) for prompt in self.prompts]
        for generation, cache in zip(generations, self.batch, strict=True):
            cache.truncate(len(generation.tokens) - 1)
            generation.cache = cache
        self._step_together(generations)
        logits = generations[-1].logits
        assert logits is not None
        answer = logits[:ANSWER].tolist()

        def continue_all() -> None:
            while running := [each for each in generations if not each.is_finished]:
                self._step_together(running)

        seconds, _ = timed(continue_all)
        n_drawn = sum(generation.n_drawn - 1 for generation in generations)
        for prompt, cache in zip(self.prompts, self.batch, strict=True):
            cache.truncate(len(prompt))
        return {"seconds": [seconds], "answer": answer, "n_tokens": n_drawn}

    def first_token(
        self, token_ids: Sequence[int], is_kept: bool, repeat: int = 1
    ) -> Mapping[str, Any]:
        """Draw the token after a prompt; without `is_kept`, no prompt is kept beforehand."""
        seconds = []
        for _ in range(repeat):
            if not is_kept:
                self.prompt_cache = PromptCache()
            each, generation = timed(lambda: self._first_token(token_ids))
            seconds.append(each)
        n_computed = len(token_ids) - generation.n_reused
        answer = generation.logits[:ANSWER].tolist()
        return {"seconds": seconds, "answer": answer, "n_tokens": n_computed}

    def _first_token(self, token_ids: Sequence[int]) -> Generation:
        generation = Generation(self.network, token_ids, _greedy(1), prompt_cache=self.prompt_cache)
        next(steps_of(self.network, generation))
        return generation

    def _step_together(self, generations: Sequence[Generation]) -> None:
        """Draw the next token of each sequence."""
        for _, step in step_together(self.network, generations):
            if isinstance(step, LlmError):
                raise step

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


def _greedy(max_tokens: int) -> InferencingParams:
    """Draw the likeliest token each time, and penalize none."""
    return InferencingParams(max_tokens=max_tokens, temperature=0.0, repeat_penalty=1.0)


if __name__ == "__main__":
    contestant = Contestant()
    serve(
        {
            "load": contestant.load,
            "prefill": contestant.prefill,
            "decode": contestant.decode,
            "fill": contestant.fill,
            "decode_batch": contestant.decode_batch,
            "continue_together": contestant.continue_together,
            "first_token": contestant.first_token,
        }
    )
