"""The generation loop, one step at a time.

Prompt tokens go through the network, the last token's logits through the sampler, the drawn token
through the network, and so on. Text, traces and streams are iterators: a caller that stops early
computes nothing in vain. Several sequences at a time: `step_together`.

Continuous batching: requests come and go at any step. Each sequence gets the bits that it gets
alone, because no row of a matrix product or of attention depends on another row (`refllm.llama`);
one pass over the weights serves all sequences.
Source: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
Models" (iteration-level scheduling).

T tokens of one call of the network, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from refllm.errors import LlmError
from refllm.interface import InferencingParams
from refllm.llama import Llama, Segment
from refllm.models.prompt_cache import PromptCache
from refllm.sampling import Adjustments, Step, sample, uniform
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.grammar import Grammar, Matcher

__all__ = [
    "MAX_BATCH_TOKENS",
    "PROMPT_PIECE",
    "Chunk",
    "Generation",
    "GenerationOptions",
    "generate",
    "generate_text",
    "step_together",
    "steps_of",
]

# A long prompt is computed in parts, so that intermediate values stay small. No bit depends on the
# size of a part.
PROMPT_PIECE = 512

# Tokens of one step, prompts included: a larger limit raises the latency of running requests and
# does not raise throughput.
MAX_BATCH_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of decoded text and the step that completed it.

    `text` is empty while a character's bytes are incomplete. `step` is None for text without a
    step: bytes that never became a character, which come last, as U+FFFD; and a repeated prompt.
    """

    text: str
    step: Step | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Options of clients of other protocols, beyond the interface's parameters.

    Attributes:
        adjustments: Changes of the logits of each draw.
        min_tokens: The number of tokens to draw before an end token can be drawn.
        ignore_eos: Whether the model's end tokens are never drawn.
        stop_token_ids: Tokens that end the text besides the model's own.
        grammar: A grammar that the text must match. Where the grammar allows only the end, the text
            ends, whatever `min_tokens` and `ignore_eos` are.
    """

    adjustments: Adjustments = field(default_factory=Adjustments)
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: Set[int] = frozenset()
    grammar: Grammar | None = None


class Generation:
    """The state of one request between its prompt and its last token.

    Attributes:
        tokens: The prompt's token ids and the drawn ones.
        cache: The keys and values of the tokens that the network has computed.
        logits: float32 [V], from which the last token was drawn; None before the first draw.
        n_drawn: The number of drawn tokens; draw i uses `uniform(seed, i)`.
        n_reused: The number of the prompt's tokens that came from the prompt cache.
        is_finished: Whether the last token is drawn.
    """

    __slots__ = (
        "_draw_from",
        "_end_tokens",
        "_matcher",
        "_network",
        "_options",
        "_params",
        "_prompt_cache",
        "cache",
        "is_finished",
        "logits",
        "n_drawn",
        "n_reused",
        "tokens",
    )

    def __init__(
        self,
        network: Llama,
        prompt: Sequence[int],
        params: InferencingParams,
        *,
        end_tokens: Set[int] = frozenset(),
        n_tokens: int | None = None,
        seed: int = 0,
        profile: str = "contract",
        generation_options: GenerationOptions | None = None,
        matcher: Matcher | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        """Begin a request; nothing is computed yet.

        Args:
            network: The llama.
            prompt: The prompt's token ids.
            params: The interface's parameters.
            end_tokens: Token ids that end the text.
            n_tokens: The tokenizer's number of tokens, for a network whose vocabulary is padded
                beyond it: the ids above are never drawn.
            seed: Selects the random numbers.
            profile: One of `refllm.sampling.PROFILES`.
            generation_options: Options beyond the interface.
            matcher: The matcher of the options' grammar.
            prompt_cache: Where to look for the beginning of the prompt, and where to store it.

        Raises:
            InvalidInput: For unusable parameters.
        """
        params.check()
        self.cache = network.new_cache()
        self.tokens = list(prompt)
        self.n_drawn = 0
        self.n_reused = 0
        self.logits: NDArray[np.float32] | None = None
        self.is_finished = params.max_tokens == 0
        self._params = params
        self._options = GenerationOptions() if generation_options is None else generation_options
        self._end_tokens = end_tokens
        self._matcher = matcher
        self._draw_from = (n_tokens, seed, profile)
        self._network = network
        self._prompt_cache = prompt_cache

    def reuse_prompt(self) -> None:
        """Copy the beginning of the prompt from the prompt cache, unless a token is computed.

        Called at the beginning of each step, not of the request, so that simultaneous requests with
        the same beginning find the tokens that the first of them has computed.
        """
        if self._prompt_cache is not None and self.cache.length == self.n_reused:
            self.n_reused += self._prompt_cache.extend(self._network, self.tokens, self.cache)

    @property
    def segment(self) -> Segment:
        """The next tokens for the network: one drawn token, or a part of the prompt."""
        start = self.cache.length
        return Segment(self.tokens[start : start + PROMPT_PIECE], self.cache)

    @property
    def is_read(self) -> bool:
        """Whether the network has computed every token, so that the next can be drawn."""
        return self.cache.length == len(self.tokens)

    def draw(self, logits: NDArray[np.float32]) -> Step:
        """Draw the next token from the logits [V] after the last one.

        It is the last one if it is an end token, the max_tokens-th, or if the context is full.

        Raises:
            LlmRuntimeError: If a logit is not finite.
        """
        self.logits = logits
        n_tokens, seed, profile = self._draw_from
        logits = logits[:n_tokens]
        i, params = self.n_drawn, self._params
        step = sample(
            logits,
            params,
            self.tokens,
            uniform(seed, i),
            step=i,
            profile=profile,
            adjustments=self._options.adjustments,
            n_drawn=i,
            allowed=self._allowed(len(logits)),
        )
        self.tokens.append(step.token)
        self.n_drawn += 1
        is_full = self.cache.length == self.cache.n_ctx
        is_end = step.token in self._end_tokens | self._options.stop_token_ids
        self.is_finished = is_end or is_full or self.n_drawn == params.max_tokens
        if self._matcher is not None and not self.is_finished:
            self._matcher.advance(step.token)
        if self._prompt_cache is not None and (i == 0 or self.is_finished):
            self._prompt_cache.store(self._network, self.tokens[: self.cache.length], self.cache)
        return step

    def _allowed(self, n_vocab: int) -> NDArray[np.bool_] | None:
        """Return which tokens can be drawn next, bool [V]; None for all."""
        withheld = self._end_tokens if self._options.ignore_eos else frozenset()
        if self.n_drawn < self._options.min_tokens:
            withheld = withheld | self._end_tokens | self._options.stop_token_ids
        if self._matcher is None and not withheld:
            return None
        fits = np.ones(n_vocab, np.bool_) if self._matcher is None else self._matcher.allowed()
        fits = fits[:n_vocab]  # a tokenizer may have tokens that the network has not
        allowed = fits.copy()
        allowed[[token_id for token_id in withheld if token_id < n_vocab]] = False
        return allowed if allowed.any() or self._matcher is None else fits


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
    """Yield the steps that continue `prompt`; arguments as `Generation`'s.

    The last step draws an end token, the max_tokens-th token, or the last token of the context.

    Raises:
        InvalidInput: For unusable parameters, or a prompt that does not fit the context.
        LlmRuntimeError: If a value of the network is not finite.
    """
    generation = Generation(
        network,
        prompt,
        params,
        end_tokens=end_tokens,
        n_tokens=n_tokens,
        seed=seed,
        profile=profile,
    )
    yield from steps_of(network, generation)


def steps_of(network: Llama, generation: Generation) -> Iterator[Step]:
    """Yield the remaining steps of one generation; errors as `generate`."""
    generation.reuse_prompt()
    while not generation.is_finished:
        hidden = network.hidden([generation.segment])  # [T, D]
        if generation.is_read:
            yield generation.draw(network.logits(hidden[-1:])[0])


def generate_text(
    steps: Iterator[Step], tokenizer: Tokenizer, prompt: Sequence[int]
) -> Iterator[Chunk]:
    """Yield the text of each step as soon as it is complete: never half a UTF-8 character.

    End tokens and other special tokens have empty text.
    """
    stream = tokenizer.stream(previous=prompt)
    for step in steps:
        yield Chunk(stream.push(step.token), step)
    rest = stream.finish()
    if rest:
        yield Chunk(rest, None)


def step_together(
    network: Llama, generations: Sequence[Generation]
) -> Iterator[tuple[Generation, Step | LlmError]]:
    """Compute one batch, and yield each generation that is in it with its next token or error.

    The batch takes generations from the front, up to `MAX_BATCH_TOKENS`; a caller that repeats this
    rotates the list. A generation with a part of its prompt left yields nothing.
    """
    chosen: list[Generation] = []
    n_tokens = 0
    for generation in generations:
        generation.reuse_prompt()
        n_tokens += len(generation.segment.token_ids)
        if chosen and n_tokens > MAX_BATCH_TOKENS:
            break
        chosen.append(generation)
    if not chosen:
        return
    try:
        rows = _logits(network, chosen)
    except LlmError as error:
        if len(chosen) == 1:
            yield chosen[0], error
            return
        # One sequence has a value that is not finite. One by one, only that one fails.
        for generation in chosen:
            yield from step_together(network, [generation])
        return
    for generation, logits in rows:
        try:
            yield generation, generation.draw(logits)
        except LlmError as error:
            yield generation, error


def _logits(
    network: Llama, generations: Sequence[Generation]
) -> list[tuple[Generation, NDArray[np.float32]]]:
    """Return the logits [V] after the last token of each generation that is computed to its end.

    After an error, which is one of `Llama.forward`, the caches are as before.
    """
    lengths = [generation.cache.length for generation in generations]
    hidden = network.hidden([generation.segment for generation in generations])  # [T, D]
    ends = np.cumsum([g.cache.length - n for g, n in zip(generations, lengths, strict=True)])
    are_read = [generation.is_read for generation in generations]
    readers = [generation for generation in generations if generation.is_read]
    if not readers:
        return []
    try:
        logits = network.logits(hidden[ends[are_read] - 1])  # [generations to draw, V]
    except LlmError:
        for generation, length in zip(generations, lengths, strict=True):
            generation.cache.truncate(length)
        raise
    return list(zip(readers, logits, strict=True))
