"""Continuous batching: texts that one network writes are continued together, step by step.

Requests come and go at any step. What each gets is what it would get alone, bit for bit, because no
row of a matrix product or of attention depends on another (see `refllm.llama`); what is saved is
reading the weights, which one row needs as much as eight.

Source: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
Models" (iteration-level scheduling).

T tokens that are read together, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from refllm.api import LlmError
from refllm.generate import Generation
from refllm.llama import Llama
from refllm.sampling import Step

__all__ = ["MOST_TOKENS_TOGETHER", "step_together"]

Floats = NDArray[np.float32]

# Tokens that are read in one step, prompts included: more would keep those who wait for their next
# token waiting longer, and win nothing.
MOST_TOKENS_TOGETHER = 512


def step_together(
    network: Llama, generations: Sequence[Generation]
) -> Iterator[tuple[Generation, Step | LlmError]]:
    """One step of each generation that has its turn: its next token, or why there is none.

    A generation whose prompt is not read to its end yet gives nothing. Those in front have their
    turn first; whoever calls again and again moves a generation that had it behind the others.
    """
    chosen = _having_their_turn(generations)
    if not chosen:
        return
    try:
        rows = _logits(network, chosen)
    except LlmError as error:
        if len(chosen) == 1:
            yield chosen[0], error
            return
        # Values that are not finite are somebody's; alone, each gets its own answer.
        for generation in chosen:
            yield from step_together(network, [generation])
        return
    for generation, logits in rows:
        try:
            yield generation, generation.draw(logits)
        except LlmError as error:
            yield generation, error


def _having_their_turn(generations: Sequence[Generation]) -> list[Generation]:
    """As many from the front as are read together; at least one."""
    chosen: list[Generation] = []
    n_tokens = 0
    for generation in generations:
        generation.reuse_prompt()
        n_tokens += len(generation.segment.token_ids)
        if chosen and n_tokens > MOST_TOKENS_TOGETHER:
            break
        chosen.append(generation)
    return chosen


def _logits(network: Llama, generations: Sequence[Generation]) -> list[tuple[Generation, Floats]]:
    """The logits [V] after the last token of each generation that has no token left to read.

    Errors: those of `Llama.forward`; the caches are then as before.
    """
    lengths = [generation.cache.length for generation in generations]
    hidden = network.hidden([generation.segment for generation in generations])  # [T, D]
    ends = np.cumsum([g.cache.length - n for g, n in zip(generations, lengths, strict=True)])
    are_read = [generation.is_read for generation in generations]
    readers = [generation for generation in generations if generation.is_read]
    if not readers:
        return []
    try:
        logits = network.logits(hidden[ends[are_read] - 1])  # [those that are read, V]
    except LlmError:
        for generation, length in zip(generations, lengths, strict=True):
            generation.cache.truncate(length)
        raise
    return list(zip(readers, logits, strict=True))
