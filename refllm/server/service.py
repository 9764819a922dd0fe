"""From a route's coroutine to the worker's thread, and the answer's way back.

N texts, D width of an embedding.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from refllm.errors import LlmError
from refllm.generate import Wishes
from refllm.interface import InferencingParams
from refllm.server.errors import for_clients
from refllm.server.jobs import Done, EmbeddingJob, Event, Job, Prompt, TextEvent, TextJob
from refllm.server.limits import Limits
from refllm.server.metrics import Metrics
from refllm.server.worker import Worker

__all__ = ["Service", "TextRequest"]

Floats = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """A prompt, its token ids or a chat's messages, and how to continue it.

    `seed` None is the server's own. `wishes`, `is_echoed`, `is_message` and `n_likeliest` are those
    of `TextJob`. With `is_streamed` False all events come at the end, which saves the way from
    thread to thread for each token.
    """

    model: str
    prompt: Prompt
    params: InferencingParams
    seed: int | None = None
    wishes: Wishes | None = None
    is_echoed: bool = False
    is_message: bool = False
    n_likeliest: int | None = None
    is_streamed: bool = False


class Service:
    """Answers requests, several at a time. Its methods raise the interface's errors and
    `Unavailable`; a coroutine that is cancelled stops costing at the worker's next turn.
    """

    def __init__(self, worker: Worker, metrics: Metrics) -> None:
        self.worker = worker
        self.metrics = metrics

    @property
    def limits(self) -> Limits:
        """What one request may cost."""
        return self.worker.limits

    def told(self, error: LlmError) -> LlmError:
        """Return an error of the engine as clients may read it; see `errors.for_clients`."""
        roots: Sequence[Path] = ()
        with contextlib.suppress(LlmError):  # where no home is known
            roots = self.worker.engine.roots
        return for_clients(error, roots)

    async def in_time(self, work: Awaitable[T]) -> T:
        """What the work comes to. Errors: `LlmRuntimeError` where it takes longer than it may."""
        try:
            async with asyncio.timeout(self.limits.request_seconds):
                return await work
        except TimeoutError:
            raise self.limits.took_too_long() from None

    async def text(self, request: TextRequest) -> AsyncGenerator[TextEvent]:
        """A `Begun`, the text in parts, then a `Done`."""
        job_of = functools.partial(
            TextJob,
            request.model,
            request.prompt,
            request.params,
            seed=request.seed,
            wishes=request.wishes,
            is_echoed=request.is_echoed,
            is_message=request.is_message,
            n_likeliest=request.n_likeliest,
            is_streamed=request.is_streamed,
        )
        async for event in self._events(job_of):
            assert isinstance(event, TextEvent)
            yield event

    async def embed(
        self,
        model: str,
        texts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int | None = None,
    ) -> tuple[Floats, Done]:
        """The vectors of the texts, or of their token ids, float32 [N, D]."""
        events = self._events(functools.partial(EmbeddingJob, model, texts, max_tokens=max_tokens))
        vectors, done = [event async for event in events]
        assert isinstance(vectors, np.ndarray)
        assert isinstance(done, Done)
        return vectors, done

    async def _events(self, job_of: Callable[..., Job]) -> AsyncIterator[Event]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Event] = asyncio.Queue()

        def deliver(events: Sequence[Event]) -> None:
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_put_all, arrived, events)

        seconds = self.limits.request_seconds
        deadline = loop.time() + seconds
        job = job_of(deliver=deliver, deadline=time.monotonic() + seconds)
        self.worker.submit(job)
        try:
            while True:
                try:
                    # Here as well as in the worker, which may be busy with a model's files.
                    async with asyncio.timeout_at(deadline):
                        event = await arrived.get()
                except TimeoutError:
                    raise self.limits.took_too_long() from None
                if isinstance(event, LlmError):
                    raise self.told(event)
                yield event
                if isinstance(event, Done):
                    return
        finally:
            job.is_wanted = False


def _put_all(queue: asyncio.Queue[Event], events: Sequence[Event]) -> None:
    for event in events:
        queue.put_nowait(event)
