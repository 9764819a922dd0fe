"""Jobs: the worker's unit of work, one for each text to continue or group of texts to embed.

N texts, D width of an embedding, V vocabulary.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refllm.engine import LocalEngine
from refllm.errors import LlmError
from refllm.generate import Chunk, Generation, GenerationOptions
from refllm.interface import InferencingParams
from refllm.llama import Llama
from refllm.models.load import BertModel, LlamaModel
from refllm.sampling import Step
from refllm.server.limits import Limits
from refllm.tokenizer.base import Tokenizer

__all__ = [
    "Chat",
    "Counters",
    "Echo",
    "EmbeddingJob",
    "Event",
    "Finished",
    "Job",
    "Prompt",
    "PromptRead",
    "Started",
    "TextEvent",
    "TextJob",
    "TextRequest",
    "TokenLogprobs",
]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of an answer: the prompt's length, and the model that answers."""

    n_prompt_tokens: int
    model: str
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt's text, before the text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The network has read the prompt; `n_reused_tokens` of it came from the prompt cache."""

    n_reused_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probability of a sampled token, and of the most likely tokens.

    These are natural logarithms of the softmax of the network's logits, before any penalty or
    temperature.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of an answer: token counts, why it ended, and which texts were cut.

    `n_reused_tokens` of the prompt came from the prompt cache.
    """

    n_prompt_tokens: int
    n_generated_tokens: int = 0
    reason: Literal["stop", "length"] = "stop"
    is_cut: tuple[bool, ...] = ()
    n_reused_tokens: int = 0


TextEvent: TypeAlias = Started | Echo | PromptRead | Chunk | TokenLogprobs | Finished
Event: TypeAlias = TextEvent | Floats | LlmError
Chat: TypeAlias = Sequence[Mapping[str, str]]
Prompt: TypeAlias = str | Sequence[int] | Chat
Deliver: TypeAlias = Callable[[Sequence[Event]], object]


@dataclass(slots=True)
class Counters:
    """Token counts of all jobs so far: tokens of prompts and texts, and sampled tokens."""

    n_prompt_tokens: int = 0
    n_generated_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_prompt_tokens(self, n_tokens: int) -> None:
        """Count tokens that are read; safe to use from several threads."""
        with self._lock:
            self.n_prompt_tokens += n_tokens


class Job(ABC):
    """One request; `refllm.server.worker` draws the stages that it passes.

    The computing thread calls `load` and the steps; `prepare` may run in another thread meanwhile.

    Attributes:
        is_wanted: Set it to False, at any time and from any thread, to cancel the job.
        is_finished: Whether `Finished` or an error has been delivered.
        deadline: By `time.monotonic`.
        n_characters: How much text `prepare` reads, known once `load` has returned.
        counters: The worker's; they count work whether or not the client still waits.
    """

    def __init__(self, *, deliver: Deliver, deadline: float) -> None:
        """`deliver` is called in the threads above; `Finished` or an error is its last event."""
        self.is_wanted = True
        self.is_finished = False
        self.deadline = deadline
        self.n_characters = 0
        self.counters = Counters()
        self._deliver = deliver
        self._emitting = threading.Lock()

    @abstractmethod
    def load(self, engine: LocalEngine, limits: Limits) -> None:
        """Check the limits that need no model, and load the model. Raises `LlmError`."""

    @abstractmethod
    def prepare(self, engine: LocalEngine, limits: Limits) -> None:
        """Encode the request's texts as tokens, unless the job is finished. Raises `LlmError`."""

    @abstractmethod
    def has_room(self, engine: LocalEngine) -> bool:
        """Return whether the model fits beside the models in use. Raises what `load` raises."""

    @abstractmethod
    def release(self) -> None:
        """Drop the reference to the model, which stays in memory as long as a job has one."""

    def emit(self, *events: Event) -> None:
        """Deliver events; after `Finished` or an error nothing is delivered."""
        with self._emitting:
            if not self.is_finished:
                self._deliver(events)
                self.is_finished = isinstance(events[-1], Finished | LlmError)
                if self.is_finished:
                    self.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """A prompt and how to continue it.

    Attributes:
        model: The model's name.
        prompt: A text, token ids, or the messages of a chat.
        params: The interface's parameters.
        seed: The seed; None is the engine's.
        generation_options: Everything beyond the interface's parameters.
        is_echoed: The text of the prompt comes first.
        is_message: The answer is a text of its own: it does not begin with the space that
            separates it from the prompt's last token.
        top_logprobs: A `TokenLogprobs` with so many alternatives comes before each token's text;
            None for none.
        is_streamed: Each event is delivered at once. Otherwise all come at the end, which saves a
            switch of threads for each token.
    """

    model: str
    prompt: Prompt
    params: InferencingParams
    seed: int | None = None
    generation_options: GenerationOptions = field(default_factory=GenerationOptions)
    is_echoed: bool = False
    is_message: bool = False
    top_logprobs: int | None = None
    is_streamed: bool = False


class TextJob(Job):
    """A prompt to be continued."""

    def __init__(self, request: TextRequest, *, deliver: Deliver, deadline: float) -> None:
        super().__init__(deliver=deliver, deadline=deadline)
        self.generation: Generation
        self.network: Llama
        self._llama: LlamaModel  # this reference keeps the model loaded
        self._answering: str
        self._request = request
        self._kept: list[Event] = []

    def has_room(self, engine: LocalEngine) -> bool:
        """As `LocalEngine.has_room`."""
        return engine.has_room(self._request.model)

    def release(self) -> None:
        """Drop the model and the generation, if there are any."""
        for name in ("_llama", "network", "generation"):
            vars(self).pop(name, None)

    def load(self, engine: LocalEngine, limits: Limits) -> None:
        """Load the model, for a request that is within the limits."""
        model, prompt = self._request.model, self._request.prompt
        limits.check_max_tokens(self._request.params.max_tokens)
        parts = [text for part in prompt if isinstance(part, Mapping) for text in part.values()]
        text = prompt if isinstance(prompt, str) else "".join(parts)
        limits.check_text(text, "the chat" if parts else "the prompt")
        self.n_characters = len(text)
        self._llama = engine.inferencing_model(model)
        self._answering = engine.answering_model(model)

    def prepare(self, engine: LocalEngine, limits: Limits) -> None:
        """Render a chat as a prompt, and encode the prompt as tokens."""
        llama: LlamaModel | None = vars(self).get("_llama")
        if llama is None:
            return
        request, prompt = self._request, self._request.prompt
        text_or_ids: str | list[int]
        if isinstance(prompt, str):
            text_or_ids = prompt
        elif messages := [message for message in prompt if isinstance(message, Mapping)]:
            text_or_ids = llama.chat_prompt(messages)
        else:
            text_or_ids = [token_id for token_id in prompt if isinstance(token_id, int)]
        if isinstance(text_or_ids, str):
            n_at_least = llama.tokenizer.minimum_tokens(text_or_ids)
            limits.check_prompt_tokens(min(n_at_least, llama.config.n_ctx), at_least=True)
        _, self.generation = engine.open(
            llama,
            text_or_ids,
            request.params,
            seed=request.seed,
            generation_options=request.generation_options,
        )
        limits.check_prompt_tokens(len(self.generation.tokens))
        self.network = llama.network
        self._end_tokens = llama.tokenizer.eos_ids | request.generation_options.stop_token_ids
        self._n_prompt = len(self.generation.tokens)
        self.counters.add_prompt_tokens(self._n_prompt)
        self._is_spin_local = engine.profile == "spin-local"
        is_own_text = request.is_message and not self._is_spin_local
        previous = () if is_own_text else self.generation.tokens
        self._stream = llama.tokenizer.stream(previous=previous)
        self._add(Started(self._n_prompt, self._answering, llama.tokenizer))
        if self._is_spin_local or request.is_echoed:
            if not isinstance(text_or_ids, str):
                text_or_ids = llama.tokenizer.decode(text_or_ids)
            self._add(Echo(text_or_ids))
        if self.generation.is_finished:
            self._finish("length")

    def on_token(self, step: Step) -> None:
        """Add the events of the next token."""
        if step.step == 0:
            self._add(PromptRead(self.generation.n_reused))
        logits, n_top = self.generation.logits, self._request.top_logprobs
        if n_top is not None and logits is not None:
            self._add(_token_logprobs(logits, step.token, n_top))
        is_stop = step.token in self._request.generation_options.stop_token_ids
        self._add(Chunk("" if is_stop else self._stream.push(step.token), step))
        if self.generation.is_finished:
            self._finish("stop" if step.token in self._end_tokens else "length")

    def _finish(self, reason: Literal["stop", "length"]) -> None:
        rest = self._stream.finish()
        n_generated, n_reused = self.generation.n_drawn, self.generation.n_reused
        n_prompt = self._n_prompt + (n_generated if self._is_spin_local else 0)
        chunks = [Chunk(rest, None)] if rest else []
        finished = Finished(n_prompt, n_generated, reason, n_reused_tokens=n_reused)
        self.emit(*self._kept, *chunks, finished)

    def _add(self, event: TextEvent) -> None:
        """Emit an event now, or keep it for the end."""
        if self._request.is_streamed:
            self.emit(event)
        else:
            self._kept.append(event)


def _token_logprobs(logits: Floats, token: int, n_top: int) -> TokenLogprobs:
    """Return the log-probabilities after logits [V]; equal ones in the order of their ids."""
    wide = logits.astype(np.float64)
    logprobs = wide - wide.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    best = np.argsort(-logprobs, kind="stable")[:n_top]
    top = tuple((int(i), float(logprobs[i])) for i in best)
    return TokenLogprobs(token, float(logprobs[token]), top)


class EmbeddingJob(Job):
    """Texts to be embedded, or their token ids; the vectors come at the end, float32 [N, D]."""

    def __init__(
        self,
        model: str,
        texts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int | None = None,
        deliver: Deliver,
        deadline: float,
    ) -> None:
        super().__init__(deliver=deliver, deadline=deadline)
        self._request = (model, texts, max_tokens)
        self._vectors: list[Floats] = []

    def has_room(self, engine: LocalEngine) -> bool:
        """As `LocalEngine.has_room`."""
        return engine.has_room(self._request[0], is_for_embeddings=True)

    def release(self) -> None:
        """Drop the model, and the vectors that are not computed yet."""
        for name in ("_bert", "_opened"):
            vars(self).pop(name, None)

    def load(self, engine: LocalEngine, limits: Limits) -> None:
        """Load the model, for texts that are within the limits."""
        model, texts, _ = self._request
        limits.check_texts(texts)
        self.n_characters = sum(len(text) for text in texts if isinstance(text, str))
        self._bert = engine.embedding_model(model)

    def prepare(self, engine: LocalEngine, limits: Limits) -> None:
        """Encode the texts as tokens."""
        bert: BertModel | None = vars(self).get("_bert")
        if bert is None:
            return
        _, texts, max_tokens = self._request
        self._opened = engine.open_embeddings(bert, texts, max_tokens=max_tokens)
        self.counters.add_prompt_tokens(self._opened.n_tokens)

    def run_step(self) -> None:
        """Embed the next group of texts."""
        group = next(self._opened.groups, None)
        if group is None:
            finished = Finished(self._opened.n_tokens, is_cut=self._opened.is_cut)
            self.emit(np.concatenate(self._vectors), finished)
        else:
            self._vectors.append(group)
