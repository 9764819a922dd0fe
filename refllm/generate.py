"""The generation loop, one step at a time.

Prompt tokens go through the network, the last token's logits through the sampler, the drawn token
through the network, and so on. Whoever wants text, a trace or a stream iterates; stopping early
costs nothing that was not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refllm.api import InferencingParams
from refllm.llama import KVCache, Llama, Segment
from refllm.sampling import Step, sample, uniform
from refllm.tokenizer import Tokenizer

__all__ = ["Chunk", "generate", "generate_text"]

# A long prompt goes through in pieces, so that its intermediate values stay small. No bit depends
# on where it is cut.
PROMPT_PIECE = 512


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text that became certain, and the step that made it so.

    `text` is empty while a character's bytes are incomplete. What no step made has none: bytes that
    never became a character, which come last, as U+FFFD; and a prompt that is repeated.
    """

    text: str
    step: Step | None


def generate(
    network: Llama,
    prompt: Sequence[int],
    params: InferencingParams,
    *,
    end_tokens: Set[int] = frozenset(),
    n_tokens: int | None = None,
    seed: int = 0,
    profile: str = "contract",
) -> Iterator[Step]:
    """The steps that continue `prompt`: up to max_tokens, an end token (itself a step), or the
    end of the context.

    `n_tokens` is the tokenizer's number of tokens, where the network's vocabulary is padded beyond
    it: what no token stands for is not drawn. Draw i uses `uniform(seed, i)`.

    Errors: `InvalidInput` for unusable parameters or a prompt that does not fit the context,
    `LlmRuntimeError` where the network's values are not finite.
    """
    params.check()
    if params.max_tokens == 0:
        return
    cache = network.new_cache()
    tokens = list(prompt)
    last = _read_prompt(network, tokens, cache)  # [1, D]
    for i in range(params.max_tokens):
        logits = network.logits(last)[0][:n_tokens]  # [V]
        step = sample(logits, params, tokens, uniform(seed, i), step=i, profile=profile)
        yield step
        is_full = cache.length == network.config.n_ctx
        if step.token in end_tokens or is_full or i + 1 == params.max_tokens:
            return
        tokens.append(step.token)
        last = network.hidden([Segment([step.token], cache)])


def generate_text(
    steps: Iterator[Step], tokenizer: Tokenizer, prompt: Sequence[int]
) -> Iterator[Chunk]:
    """The text of each step, as soon as it is certain: never half a UTF-8 character.

    End tokens and other special tokens give empty text.
    """
    stream = tokenizer.stream(previous=prompt)
    for step in steps:
        yield Chunk(stream.push(step.token), step)
    rest = stream.finish()
    if rest:
        yield Chunk(rest, None)


def _read_prompt(network: Llama, prompt: Sequence[int], cache: KVCache) -> NDArray[np.float32]:
    """The normalized output of the prompt's last token, [1, D]; fills the cache."""
    for start in range(0, len(prompt), PROMPT_PIECE):
        hidden = network.hidden([Segment(prompt[start : start + PROMPT_PIECE], cache)])
    return hidden[-1:]
