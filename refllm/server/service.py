"""From a route's coroutine to the worker's thread, and the answer's way back.

N texts, D width of an embedding.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from refllm.errors import LlmError
from refllm.server.errors import for_clients
from refllm.server.jobs import EmbeddingJob, Event, Finished, Job, TextEvent, TextJob, TextRequest
from refllm.server.limits import Limits
from refllm.server.metrics import Metrics
from refllm.server.worker import Worker

__all__ = ["ClientDisconnectedError", "Service", "cancel_on_disconnect"]

Floats = NDArray[np.float32]
T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client closed its connection before it had an answer."""


class Service:
    """Answers requests, several at a time.

    Its methods raise the interface's errors and `Unavailable`. Cancelling a coroutine cancels its
    job at the worker's next step.
    """

    def __init__(self, worker: Worker, metrics: Metrics) -> None:
        self.worker = worker
        self.metrics = metrics

    @property
    def limits(self) -> Limits:
        """The limits of a request."""
        return self.worker.limits

    def for_clients(self, error: LlmError) -> LlmError:
        """Return an error of the engine as clients may read it; see `errors.for_clients`."""
        roots: Sequence[Path] = ()
        with contextlib.suppress(LlmError):  # there is no home directory
            roots = self.worker.engine.roots
        return for_clients(error, roots)

    async def in_time(self, work: Awaitable[T]) -> T:
        """Return the result of `work`.

        Raises:
            LlmRuntimeError: If it takes longer than `Limits.request_seconds`.
        """
        try:
            async with asyncio.timeout(self.limits.request_seconds):
                return await work
        except TimeoutError:
            raise self.limits.timeout_error() from None

    async def text(self, request: TextRequest) -> AsyncGenerator[TextEvent]:
        """Yield a `Started`, the text in parts, then a `Finished`."""
        async for event in self._events(partial(TextJob, request)):
            assert isinstance(event, TextEvent)
            yield event

    async def embed(
        self, model: str, texts: Sequence[str | Sequence[int]], *, max_tokens: int | None = None
    ) -> tuple[Floats, Finished]:
        """Return the vectors of texts, or of their token ids, float32 [N, D]."""
        events = self._events(partial(EmbeddingJob, model, texts, max_tokens=max_tokens))
        vectors, finished = [event async for event in events]
        assert isinstance(vectors, np.ndarray)
        assert isinstance(finished, Finished)
        return vectors, finished

    async def _events(self, job_of: Callable[..., Job]) -> AsyncIterator[Event]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Event] = asyncio.Queue()

        def put_all(events: Sequence[Event]) -> None:
            for event in events:
                arrived.put_nowait(event)

        def deliver(events: Sequence[Event]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: no request waits
                loop.call_soon_threadsafe(put_all, events)

        seconds = self.limits.request_seconds
        deadline = loop.time() + seconds
        job = job_of(deliver=deliver, deadline=time.monotonic() + seconds)
        self.worker.submit(job)
        try:
            while True:
                try:
                    # The worker checks deadlines, too, but not while it loads a model.
                    async with asyncio.timeout_at(deadline):
                        event = await arrived.get()
                except TimeoutError:
                    raise self.limits.timeout_error() from None
                if isinstance(event, LlmError):
                    raise self.for_clients(event)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            job.is_wanted = False


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`.

    Raises:
        ClientDisconnectedError: If the client disconnects first; `work` is then cancelled.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnectedError
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each
