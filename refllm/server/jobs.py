"""What the worker works on: one request each, begun, and then answered turn by turn.

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
from refllm.generate import Chunk, Generation, Wishes
from refllm.interface import InferencingParams
from refllm.llama import Llama
from refllm.models.load import BertModel, LlamaModel
from refllm.sampling import Step
from refllm.server.limits import Limits
from refllm.tokenizer.base import Tokenizer

__all__ = [
    "Begun",
    "Chat",
    "Done",
    "Echo",
    "EmbeddingJob",
    "Event",
    "Job",
    "Prompt",
    "PromptRead",
    "Scores",
    "Tally",
    "TextEvent",
    "TextJob",
]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer: what it took, why it ended there, and which texts were cut.

    `n_reused_tokens` of the prompt came from the prompt cache.
    """

    n_prompt_tokens: int
    n_generated_tokens: int = 0
    reason: Literal["stop", "length"] = "stop"
    is_cut: tuple[bool, ...] = ()
    n_reused_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Begun:
    """The first of an answer: the prompt has so many tokens, and the model of that name answers."""

    n_prompt_tokens: int
    model: str
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt's text, before that of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The network has read the prompt: so many of its tokens came from the prompt cache."""

    n_reused_tokens: int


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely a drawn token was, and which were likeliest: natural logarithms of the softmax of
    the logits as the network gave them, before any penalty or temperature.
    """

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


TextEvent: TypeAlias = Begun | Echo | PromptRead | Chunk | Scores | Done
Event: TypeAlias = TextEvent | Floats | LlmError
Chat: TypeAlias = Sequence[Mapping[str, str]]
Prompt: TypeAlias = str | Sequence[int] | Chat
Deliver: TypeAlias = Callable[[Sequence[Event]], object]


@dataclass(slots=True)
class Tally:
    """What all jobs have taken so far: tokens of prompts and texts, and drawn ones."""

    n_prompt_tokens: int = 0
    n_generated_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_prompt_tokens(self, n_tokens: int) -> None:
        """Count tokens that are read; safe to use from several threads."""
        with self._lock:
            self.n_prompt_tokens += n_tokens


class Job(ABC):
    """One request: waiting, loaded, begun, and then answered turn by turn.

    `load` and the turns are the computing thread's; `begin` may run in another thread meanwhile.
    `n_characters` is how much text `begin` reads, known when `load` has ended.
    `deliver` is called in those threads, the last time with a `Done` or an error as the last event.
    `is_wanted` may be set to False at any time, from any thread. `tally` is the worker's, which
    counts what is taken, whether or not a client still waits for the answer.
    """

    def __init__(self, *, deliver: Deliver, deadline: float) -> None:
        self.is_wanted = True
        self.is_over = False
        self.deadline = deadline
        self.n_characters = 0
        self.tally = Tally()
        self._deliver = deliver
        self._handing_over = threading.Lock()

    @abstractmethod
    def load(self, engine: LocalEngine, limits: Limits) -> None:
        """Check what can be checked without the model, and load it. Errors: the interface's."""

    @abstractmethod
    def begin(self, engine: LocalEngine, limits: Limits) -> None:
        """Read the request's texts into tokens, while others compute. Errors: the interface's.

        It begins nothing where the job is over.
        """

    @abstractmethod
    def has_room(self, engine: LocalEngine) -> bool:
        """Return whether the model fits beside those in use. Errors: what `load` raises, too."""

    @abstractmethod
    def release(self) -> None:
        """Let go of the model, which stays in memory as long as a job refers to it."""

    def hand_over(self, *events: Event) -> None:
        """Give whoever asked what there is; after `Done` or an error nothing follows."""
        with self._handing_over:
            if not self.is_over:
                self._deliver(events)
                self.is_over = isinstance(events[-1], Done | LlmError)
                if self.is_over:
                    self.release()


class TextJob(Job):
    """A prompt to be continued. Where it is not streamed, everything comes at the end.

    With `n_likeliest` each token's `Scores` come before its text. With `is_echoed` the text of the
    prompt comes first. With `is_message` the answer is a text of its own: it does not begin
    with the space that separates it from the prompt's last token.
    """

    def __init__(
        self,
        model: str,
        prompt: Prompt,
        params: InferencingParams,
        *,
        seed: int | None,
        wishes: Wishes | None = None,
        is_echoed: bool = False,
        is_message: bool = False,
        n_likeliest: int | None = None,
        is_streamed: bool,
        deliver: Deliver,
        deadline: float,
    ) -> None:
        super().__init__(deliver=deliver, deadline=deadline)
        self.generation: Generation
        self.network: Llama
        self._llama: LlamaModel  # what keeps the model loaded
        self._answering: str
        self._asked = (model, prompt, params, seed)
        self._wishes = Wishes() if wishes is None else wishes
        self._is_echoed = is_echoed
        self._is_message = is_message
        self._n_likeliest = n_likeliest
        self._is_streamed = is_streamed
        self._kept: list[Event] = []

    def has_room(self, engine: LocalEngine) -> bool:
        """As `LocalEngine.has_room`."""
        return engine.has_room(self._asked[0])

    def release(self) -> None:
        """Forget the model and the generation, if there are any."""
        for name in ("_llama", "network", "generation"):
            vars(self).pop(name, None)

    def load(self, engine: LocalEngine, limits: Limits) -> None:
        """Load the model, for a request that is within the limits."""
        model, prompt, params, _ = self._asked
        limits.check_max_tokens(params.max_tokens)
        said = [text for part in prompt if isinstance(part, Mapping) for text in part.values()]
        text = prompt if isinstance(prompt, str) else "".join(said)
        limits.check_text(text, "the chat" if said else "the prompt")
        self.n_characters = len(text)
        self._llama = engine.inferencing_model(model)
        self._answering = engine.answering_model(model)

    def begin(self, engine: LocalEngine, limits: Limits) -> None:
        """Write a chat as a prompt, and read the prompt's text into tokens."""
        llama: LlamaModel | None = vars(self).get("_llama")
        if llama is None:
            return
        _, prompt, params, seed = self._asked
        messages = [] if isinstance(prompt, str) else [m for m in prompt if isinstance(m, Mapping)]
        if messages:
            prompt = llama.chat_prompt(messages)
        text_or_ids = prompt if isinstance(prompt, str) else _ids(prompt)
        if isinstance(text_or_ids, str):
            n_at_least = llama.tokenizer.minimum_tokens(text_or_ids)
            limits.check_prompt_tokens(min(n_at_least, llama.config.n_ctx), at_least=True)
        _, self.generation = engine.open(llama, text_or_ids, params, seed=seed, wishes=self._wishes)
        limits.check_prompt_tokens(len(self.generation.tokens))
        self.network = llama.network
        self._end_tokens = llama.tokenizer.eos_ids | self._wishes.stop_token_ids
        self._n_prompt = len(self.generation.tokens)
        self.tally.add_prompt_tokens(self._n_prompt)
        self._is_spin_local = engine.profile == "spin-local"
        is_own_text = self._is_message and not self._is_spin_local
        previous = () if is_own_text else self.generation.tokens
        self._stream = llama.tokenizer.stream(previous=previous)
        self._give(Begun(self._n_prompt, self._answering, llama.tokenizer))
        if self._is_spin_local or self._is_echoed:
            if not isinstance(text_or_ids, str):
                text_or_ids = llama.tokenizer.decode(text_or_ids)
            self._give(Echo(text_or_ids))
        if self.generation.is_over:
            self._finish("length")

    def take(self, step: Step) -> None:
        """The next token: its text is handed over, or kept."""
        if step.step == 0:
            self._give(PromptRead(self.generation.n_reused))
        if self._n_likeliest is not None and self.generation.logits is not None:
            self._give(_scores(self.generation.logits, step.token, self._n_likeliest))
        is_stop = step.token in self._wishes.stop_token_ids
        self._give(Chunk("" if is_stop else self._stream.push(step.token), step))
        if self.generation.is_over:
            self._finish("stop" if step.token in self._end_tokens else "length")

    def _finish(self, reason: Literal["stop", "length"]) -> None:
        rest = self._stream.finish()
        n_generated = self.generation.n_drawn
        n_prompt = self._n_prompt + (n_generated if self._is_spin_local else 0)
        chunks = [Chunk(rest, None)] if rest else []
        n_reused = self.generation.n_reused
        done = Done(n_prompt, n_generated, reason, n_reused_tokens=n_reused)
        self.hand_over(*self._kept, *chunks, done)

    def _give(self, event: TextEvent) -> None:
        if self._is_streamed:
            self.hand_over(event)
        else:
            self._kept.append(event)


def _ids(prompt: Sequence[int] | Chat) -> Sequence[int]:
    return [token_id for token_id in prompt if isinstance(token_id, int)]


def _scores(logits: Floats, token: int, n_likeliest: int) -> Scores:
    """Of a token that was drawn after logits [V]; equal ones in the order of their ids."""
    wide = logits.astype(np.float64)
    logprobs = wide - wide.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    best = np.argsort(-logprobs, kind="stable")[:n_likeliest]
    likeliest = tuple((int(i), float(logprobs[i])) for i in best)
    return Scores(token, float(logprobs[token]), likeliest)


class EmbeddingJob(Job):
    """Texts to be embedded; their vectors come at the end, float32 [N, D]."""

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
        self._asked = (model, texts, max_tokens)
        self._vectors: list[Floats] = []

    def has_room(self, engine: LocalEngine) -> bool:
        """As `LocalEngine.has_room`."""
        return engine.has_room(self._asked[0], is_for_embeddings=True)

    def release(self) -> None:
        """Forget the model, and the vectors that are not computed yet."""
        for name in ("_bert", "_opened"):
            vars(self).pop(name, None)

    def load(self, engine: LocalEngine, limits: Limits) -> None:
        """Load the model, for texts that are within the limits."""
        model, texts, _ = self._asked
        limits.check_texts(texts)
        self.n_characters = sum(len(text) for text in texts if isinstance(text, str))
        self._bert = engine.embedding_model(model)

    def begin(self, engine: LocalEngine, limits: Limits) -> None:
        """Read the texts into tokens."""
        bert: BertModel | None = vars(self).get("_bert")
        if bert is None:
            return
        _, texts, max_tokens = self._asked
        self._opened = engine.open_embeddings(bert, texts, max_tokens=max_tokens)
        self.tally.add_prompt_tokens(self._opened.n_tokens)

    def take_turn(self) -> None:
        """Embed the next group of texts."""
        group = next(self._opened.groups, None)
        if group is None:
            done = Done(self._opened.n_tokens, is_cut=self._opened.is_cut)
            self.hand_over(np.concatenate(self._vectors), done)
        else:
            self._vectors.append(group)
