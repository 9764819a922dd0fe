"""The generation loop, one step at a time.

Prompt tokens go through the network, the last token's logits through the sampler, the drawn token
through the network, and so on. Whoever wants text, a trace or a stream iterates; stopping early
costs nothing that was not asked for. Several at a time: `step_together`.

Continuous batching: requests come and go at any step. Each sequence gets the bits that it gets
alone, because no row of a matrix product or of attention depends on another row (`refllm.llama`);
one pass over the weights serves all sequences.
Source: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
Models" (iteration-level scheduling).

T tokens that are read together, D model width, V vocabulary.
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
    "Chunk",
    "Generation",
    "Wishes",
    "generate",
    "generate_text",
    "step_together",
    "steps_of",
]

# A long prompt goes through in pieces, so that its intermediate values stay small. No bit depends
# on where it is cut.
PROMPT_PIECE = 512

# Tokens of one step, prompts included: a larger limit raises the latency of running requests and
# does not raise throughput.
MAX_BATCH_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text that became certain, and the step that made it so.

    `text` is empty while a character's bytes are incomplete. What no step made has none: bytes that
    never became a character, which come last, as U+FFFD; and a prompt that is repeated.
    """

    text: str
    step: Step | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What clients of other protocols ask for beyond the interface's parameters.

    Attributes:
        adjustments: Changes of the logits of each draw.
        min_tokens: So many tokens are drawn before one that ends the text may be.
        ignore_eos: The model's end tokens are never drawn.
        stop_token_ids: Tokens that end the text beside the model's own.
        grammar: What the text must be. Where a text of it can only end, it ends, whatever
            `min_tokens` and `ignore_eos` are.
    """

    adjustments: Adjustments = field(default_factory=Adjustments)
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: Set[int] = frozenset()
    grammar: Grammar | None = None


class Generation:
    """One request between its prompt and its last token: what is read, and what is drawn next.

    `tokens` are the prompt's and the drawn ones; those in `cache` the network has read. `logits`
    float32 [V] are those that the last token was drawn from, None before the first. Draw i uses
    `uniform(seed, i)`. `n_tokens` is the tokenizer's number of tokens, where the network's
    vocabulary is padded beyond it: what no token stands for is not drawn. `n_reused` tokens of the
    prompt came from `prompt_cache`, which also gets the prompt when it is read, and all tokens that
    are read at the end.
    """

    __slots__ = (
        "_draw_from",
        "_end_tokens",
        "_matcher",
        "_network",
        "_params",
        "_prompt_cache",
        "_wishes",
        "cache",
        "is_over",
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
        wishes: Wishes | None = None,
        matcher: Matcher | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        """`matcher` is of the wishes' grammar. Errors: `InvalidInput` for unusable parameters."""
        params.check()
        self.cache = network.new_cache()
        self.tokens = list(prompt)
        self.n_drawn = 0
        self.n_reused = 0
        self.logits: NDArray[np.float32] | None = None
        self.is_over = params.max_tokens == 0
        self._params = params
        self._wishes = Wishes() if wishes is None else wishes
        self._end_tokens = end_tokens
        self._matcher = matcher
        self._draw_from = (n_tokens, seed, profile)
        self._network = network
        self._prompt_cache = prompt_cache

    def reuse_prompt(self) -> None:
        """Take from the prompt cache what it has of the prompt, as long as no token is computed.

        The beginning of a turn is the time: requests that come together with the same beginning
        then find what the first of them has read.
        """
        if self._prompt_cache is not None and self.cache.length == self.n_reused:
            self.n_reused += self._prompt_cache.extend(self._network, self.tokens, self.cache)

    @property
    def segment(self) -> Segment:
        """What the network reads next: tokens that it has not read, one or a piece of a prompt."""
        start = self.cache.length
        return Segment(self.tokens[start : start + PROMPT_PIECE], self.cache)

    @property
    def is_read(self) -> bool:
        """Whether the network has read every token, so that the next can be drawn."""
        return self.cache.length == len(self.tokens)

    def draw(self, logits: NDArray[np.float32]) -> Step:
        """The next token, from the logits [V] after the last one.

        It is the last at an end token, after max_tokens, or where the context is full. Errors:
        `LlmRuntimeError` where a logit is not finite.
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
            adjustments=self._wishes.adjustments,
            n_drawn=i,
            allowed=self._allowed(len(logits)),
        )
        self.tokens.append(step.token)
        self.n_drawn += 1
        is_full = self.cache.length == self.cache.n_ctx
        is_end = step.token in self._end_tokens | self._wishes.stop_token_ids
        self.is_over = is_end or is_full or self.n_drawn == params.max_tokens
        if self._matcher is not None and not self.is_over:
            self._matcher.advance(step.token)
        if self._prompt_cache is not None and (i == 0 or self.is_over):
            self._prompt_cache.store(self._network, self.tokens[: self.cache.length], self.cache)
        return step

    def _allowed(self, n_vocab: int) -> NDArray[np.bool_] | None:
        """Return of each token whether it may be drawn next, bool [V]; None where all may."""
        wishes = self._wishes
        withheld = self._end_tokens if wishes.ignore_eos else frozenset()
        if self.n_drawn < wishes.min_tokens:
            withheld = withheld | self._end_tokens | wishes.stop_token_ids
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
    """The steps that continue `prompt`: up to max_tokens, an end token (itself a step), or the
    end of the context. Arguments as `Generation`'s.

    Errors: `InvalidInput` for unusable parameters or a prompt that does not fit the context,
    `LlmRuntimeError` where the network's values are not finite.
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
    """The steps that are left of a generation, alone. Errors: as `generate`."""
    generation.reuse_prompt()
    while not generation.is_over:
        hidden = network.hidden([generation.segment])  # [T, D]
        if generation.is_read:
            yield generation.draw(network.logits(hidden[-1:])[0])


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
        if chosen and n_tokens > MAX_BATCH_TOKENS:
            break
        chosen.append(generation)
    return chosen


def _logits(
    network: Llama, generations: Sequence[Generation]
) -> list[tuple[Generation, NDArray[np.float32]]]:
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
