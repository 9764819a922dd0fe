"""The one thread that computes: it takes requests from a bounded queue and answers several at once.

A turn of its loop is short: one token for each text that is being written, one group of texts for
each embedding. Between turns requests come in, and those that nobody waits for any more go.

N texts, D width of an embedding.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refllm.api import InferencingParams, LlmError, LlmRuntimeError
from refllm.batching import step_together
from refllm.engine import LocalEngine
from refllm.generate import Chunk, Generation
from refllm.llama import Llama
from refllm.sampling import Step
from refllm.spin.server.limits import Limits
from refllm.tokenizer import Tokenizer

__all__ = [
    "Begun",
    "Busy",
    "Chat",
    "Closed",
    "Done",
    "EmbeddingJob",
    "Event",
    "Job",
    "Scores",
    "TextEvent",
    "TextJob",
    "Worker",
]

Floats = NDArray[np.float32]

logger = logging.getLogger(__name__)


class Busy(Exception):
    """As many requests wait as may; come again."""


class Closed(Exception):
    """The server finishes what it has, and takes nothing new."""


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer: what it took, and why it ended there."""

    n_prompt_tokens: int
    n_generated_tokens: int = 0
    reason: Literal["stop", "length"] = "stop"


@dataclass(frozen=True, slots=True)
class Begun:
    """The first of an answer: the prompt is read, and the model of that name answers."""

    n_prompt_tokens: int
    model: str
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely a drawn token was, and which were likeliest: natural logarithms of the softmax of
    the logits as the network gave them, before any penalty or temperature.
    """

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


TextEvent: TypeAlias = Begun | Chunk | Scores | Done
Event: TypeAlias = TextEvent | Floats | LlmError
Chat: TypeAlias = Sequence[Mapping[str, str]]
Deliver: TypeAlias = Callable[[Sequence[Event]], object]


class Job(ABC):
    """One request: waiting, then answered turn by turn.

    `deliver` is called in the worker's thread, the last time with a `Done` or an error as the last
    event. `is_wanted` may be set to False at any time, from any thread.
    """

    def __init__(self, *, deliver: Deliver, deadline: float) -> None:
        self.is_wanted = True
        self.is_over = False
        self.deadline = deadline
        self._deliver = deliver

    @abstractmethod
    def begin(self, engine: LocalEngine, limits: Limits) -> None:
        """Load the model, and see what there is to do. Errors: the interface's."""

    def hand_over(self, *events: Event) -> None:
        """Give whoever asked what there is; after `Done` or an error nothing follows."""
        if not self.is_over:
            self.is_over = isinstance(events[-1], Done | LlmError)
            self._deliver(events)


class TextJob(Job):
    """A prompt to be continued. Where it is not streamed, everything comes at the end.

    With `n_likeliest` each token's `Scores` come before its text.
    """

    def __init__(
        self,
        model: str,
        prompt: str | Chat,
        params: InferencingParams,
        *,
        seed: int | None,
        n_likeliest: int | None = None,
        is_streamed: bool,
        deliver: Deliver,
        deadline: float,
    ) -> None:
        super().__init__(deliver=deliver, deadline=deadline)
        self.generation: Generation
        self.network: Llama
        self._asked = (model, prompt, params, seed)
        self._n_likeliest = n_likeliest
        self._is_streamed = is_streamed
        self._kept: list[Event] = []

    def begin(self, engine: LocalEngine, limits: Limits) -> None:
        """Load the model and read the prompt's text into tokens."""
        model, prompt, params, seed = self._asked
        limits.check_max_tokens(params.max_tokens)
        if not isinstance(prompt, str):
            prompt = engine.inferencing_model(model).chat_prompt(prompt)
        llama, self.generation = engine.open(model, prompt, params, seed=seed)
        limits.check_prompt_tokens(len(self.generation.tokens))
        self.network = llama.network
        self._end_tokens = llama.tokenizer.eos_ids
        self._n_prompt = len(self.generation.tokens)
        self._stream = llama.tokenizer.stream(previous=self.generation.tokens)
        answering = engine.answering_model(model)
        self._give(Begun(self._n_prompt, answering, llama.tokenizer))
        self._is_spin_local = engine.profile == "spin-local"
        if self._is_spin_local:
            self._give(Chunk(prompt, None))
        if self.generation.is_over:
            self._finish("length")

    def take(self, step: Step) -> None:
        """The next token: its text is handed over, or kept."""
        if self._n_likeliest is not None and self.generation.logits is not None:
            self._give(_scores(self.generation.logits, step.token, self._n_likeliest))
        self._give(Chunk(self._stream.push(step.token), step))
        if self.generation.is_over:
            self._finish("stop" if step.token in self._end_tokens else "length")

    def _finish(self, reason: Literal["stop", "length"]) -> None:
        rest = self._stream.finish()
        n_generated = self.generation.n_drawn
        n_prompt = self._n_prompt + (n_generated if self._is_spin_local else 0)
        chunks = [Chunk(rest, None)] if rest else []
        self.hand_over(*self._kept, *chunks, Done(n_prompt, n_generated, reason))

    def _give(self, event: TextEvent) -> None:
        if self._is_streamed:
            self.hand_over(event)
        else:
            self._kept.append(event)


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
        self, model: str, texts: Sequence[str], *, deliver: Deliver, deadline: float
    ) -> None:
        super().__init__(deliver=deliver, deadline=deadline)
        self._asked = (model, texts)
        self._vectors: list[Floats] = []

    def begin(self, engine: LocalEngine, limits: Limits) -> None:
        """Load the model and read the texts into tokens."""
        model, texts = self._asked
        limits.check_texts(texts)
        self._n_tokens, self._groups = engine.open_embeddings(model, texts)

    def take_turn(self) -> None:
        """Embed the next group of texts."""
        group = next(self._groups, None)
        if group is None:
            self.hand_over(np.concatenate(self._vectors), Done(self._n_tokens))
        else:
            self._vectors.append(group)


class Worker:
    """A thread that answers jobs until it is closed."""

    def __init__(self, engine: LocalEngine, limits: Limits) -> None:
        self.engine = engine
        self.limits = limits
        self._waiting: deque[Job] = deque()
        self._going: deque[Job] = deque()
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="refllm-worker", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take a job in. Errors: `Busy`, `Closed`."""
        with self._changed:
            if self._is_closed:
                raise Closed
            if len(self._waiting) >= self.limits.max_waiting:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Take nothing new, answer what is there, and end; returns when that is done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def n_waiting(self) -> int:
        """How many jobs are not begun."""
        return len(self._waiting)

    @property
    def n_going(self) -> int:
        """How many jobs are being answered."""
        return len(self._going)

    @property
    def is_open(self) -> bool:
        """Whether new jobs are taken."""
        return not self._is_closed and self._thread.is_alive()

    def _run(self) -> None:
        while self._has_work():
            for job in self._admitted():
                self._guarded(job, partial(job.begin, self.engine, self.limits))
                self._going.append(job)
            self._drop_late_and_unwanted()
            for job in [job for job in self._going if isinstance(job, EmbeddingJob)]:
                self._guarded(job, job.take_turn)
            for network, jobs in self._texts_by_network():
                self._step(network, jobs)
            self._going = deque(job for job in self._going if not job.is_over)
            # Who did not have a turn because those in front had much to read comes nearer.
            self._going.rotate(-1)

    def _has_work(self) -> bool:
        """Wait for some; False where nothing is left and nothing will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._going or self._waiting or self._is_closed)
            return bool(self._going or self._waiting)

    def _admitted(self) -> Iterator[Job]:
        """Jobs from the queue, as long as fewer are going than may."""
        while len(self._going) < self.limits.max_at_once:
            with self._changed:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
            if job.is_wanted:
                yield job

    def _drop_late_and_unwanted(self) -> None:
        now = time.monotonic()
        with self._changed:
            late = [job for job in self._waiting if now > job.deadline]
            self._waiting = deque(
                job for job in self._waiting if job.is_wanted and now <= job.deadline
            )
        late += [job for job in self._going if now > job.deadline]
        seconds = self.limits.request_seconds
        for job in late:
            message = f"the request took longer than this server's limit of {seconds:g} s"
            job.hand_over(LlmRuntimeError(f"{message}; ask for less, or raise the limit"))
        self._going = deque(job for job in self._going if job.is_wanted and not job.is_over)

    def _texts_by_network(self) -> Iterator[tuple[Llama, list[TextJob]]]:
        texts = [job for job in self._going if isinstance(job, TextJob)]
        texts = [job for job in texts if not job.is_over]
        for network in {id(job.network): job.network for job in texts}.values():
            yield network, [job for job in texts if job.network is network]

    def _step(self, network: Llama, jobs: Sequence[TextJob]) -> None:
        """One token for each of the jobs."""
        by_generation = {id(job.generation): job for job in jobs}
        try:
            with self.engine.computing():
                outcomes = list(step_together(network, [job.generation for job in jobs]))
        except Exception as error:  # noqa: BLE001 - see `_guarded`
            for job in jobs:
                job.hand_over(_as_llm_error(error))
            return
        for generation, outcome in outcomes:
            job = by_generation[id(generation)]
            if isinstance(outcome, LlmError):
                job.hand_over(outcome)
            else:
                self._guarded(job, partial(job.take, outcome))

    def _guarded(self, job: Job, work: Callable[[], object]) -> None:
        """Do it; what goes wrong is this job's answer, and never the worker's end."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the other jobs go on
            job.hand_over(_as_llm_error(error))


def _as_llm_error(error: Exception) -> LlmError:
    """What a client is told; what is nobody's mistake but ours is logged in full."""
    if isinstance(error, LlmError):
        return error
    if isinstance(error, MemoryError):
        return LlmRuntimeError("there is not enough memory")
    logger.error("a request failed", exc_info=error)
    return LlmRuntimeError(f"unexpected {type(error).__name__}; this is a bug in refllm")
