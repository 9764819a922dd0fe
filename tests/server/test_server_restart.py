"""A server whose worker fails with an unexpected error."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
from starlette.types import ASGIApp, Message

from refllm.api import InferencingParams, LlmRuntimeError
from refllm.engine import LocalEngine
from refllm.generate import Chunk
from refllm.server.app import routes
from refllm.server.jobs import EmbeddingJob, Event, Finished, TextJob, TextRequest
from refllm.server.limits import Limits
from refllm.server.metrics import Metrics
from refllm.server.service import Service
from refllm.server.worker import Restarting, Worker
from tests.conftest import HUNG_SECONDS
from tests.support.client import Answer, spin_infer
from tests.support.jobs import ModellessJob

SECONDS = HUNG_SECONDS


class Fatal(BaseException):
    """What no job's guard catches."""


class Client:
    """A client: keeps the events of its job, and blocks until the last one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._is_over = threading.Event()

    def deliver(self, events: Sequence[Event]) -> None:
        self.events += events
        if isinstance(events[-1], Finished | LlmRuntimeError):
            self._is_over.set()

    def error(self) -> str:
        """What came, which must be one error."""
        assert self._is_over.wait(SECONDS), "it waits forever"
        [error] = self.events
        assert isinstance(error, LlmRuntimeError)
        return str(error)


class Scripted(ModellessJob):
    """A job that nothing is loaded for, and whose only turn comes when it may."""

    def __init__(self, client: Client, *, error: BaseException | None = None) -> None:
        deadline = time.monotonic() + SECONDS
        super().__init__("model", [], deliver=client.deliver, deadline=deadline)
        self.has_turn, self.may_go_on = threading.Event(), threading.Event()
        self._error = error

    def run_step(self) -> None:
        self.has_turn.set()
        assert self.may_go_on.wait(SECONDS)
        if self._error is not None:
            raise self._error
        self.emit(Finished(1))


class FailsAtOnce(Scripted):
    """A job that nothing can be done about even while its model is loaded."""

    def load(self, engine: LocalEngine, limits: Limits) -> None:
        raise Fatal("by hand")


@contextmanager
def working(*, pause_seconds: float) -> Iterator[Worker]:
    worker = Worker(LocalEngine(), Limits(max_at_once=1), pause_seconds=pause_seconds)
    worker.start()
    try:
        yield worker
    finally:
        worker.close()


def submit(worker: Worker, job: EmbeddingJob) -> None:
    """Take it in as soon as the worker is there again."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            worker.submit(job)
        except Restarting:
            assert time.monotonic() < until, "the worker does not begin again"
        else:
            return


def fail(worker: Worker) -> str:
    """The events of a job of a worker that fails."""
    client = Client()
    submit(worker, FailsAtOnce(client))
    return client.error()


def test_every_waiting_client_gets_an_error_and_no_job_is_accepted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    going, waiting = Client(), Client()
    with working(pause_seconds=SECONDS) as worker:
        job = Scripted(going, error=Fatal("by hand"))
        worker.submit(job)
        assert job.has_turn.wait(SECONDS)
        worker.submit(Scripted(waiting))
        job.may_go_on.set()
        errors = {going.error(), waiting.error()}
        assert (worker.is_open, worker.is_restarting) == (False, True)
        assert (worker.n_running, worker.n_waiting) == (0, 0)
        with pytest.raises(Restarting):
            worker.submit(Scripted(Client()))
    assert errors == {"unexpected Fatal; this is a bug in refllm"}
    [record] = caplog.records
    assert record.getMessage() == (
        f"the worker failed; 2 requests get an error, new ones are accepted in {SECONDS} s"
    )
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], Fatal)


def test_a_job_that_fails_while_loading_gets_an_error() -> None:
    with working(pause_seconds=0) as worker:
        assert "unexpected Fatal" in fail(worker)


def test_a_client_that_cannot_be_reached_does_not_block_the_other_clients() -> None:
    class Gone(Client):
        def deliver(self, events: Sequence[Event]) -> None:
            raise Fatal("disconnected")

    waiting = Client()
    with working(pause_seconds=0) as worker:
        job = Scripted(Gone())
        worker.submit(job)
        assert job.has_turn.wait(SECONDS)
        worker.submit(Scripted(waiting))
        job.may_go_on.set()
        assert "unexpected Fatal" in waiting.error()


def test_after_the_pause_it_answers_again() -> None:
    client = Client()
    with working(pause_seconds=0) as worker:
        fail(worker)
        job = Scripted(client)
        job.may_go_on.set()
        submit(worker, job)
        assert job.has_turn.wait(SECONDS)
        assert worker.is_open
    assert client.events == [Finished(1)]


def test_the_pause_doubles_until_something_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    with working(pause_seconds=0.001) as worker:
        for _ in range(3):
            fail(worker)
        job = Scripted(Client())
        job.may_go_on.set()
        submit(worker, job)
        assert job.has_turn.wait(SECONDS)
        fail(worker)
    pauses = [record.getMessage().split()[-2] for record in caplog.records]
    assert pauses == ["0.001", "0.002", "0.004", "0.001"]


# Over HTTP


def ask(app: ASGIApp, path: str, body: object = None) -> Answer:
    """The application's answer, without a server around it."""
    sent: list[Message] = []
    to_come: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> Message:
        if not to_come:
            await asyncio.Event().wait()  # the client stays
        return to_come.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    start, *bodies = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], headers, b"".join(each["body"] for each in bodies))


def test_a_server_whose_worker_has_failed_is_not_ready() -> None:
    with working(pause_seconds=SECONDS) as worker:
        app = routes(Service(worker, Metrics(worker)))
        assert ask(app, "/readyz").status == 200
        fail(worker)
        ready, refused = ask(app, "/readyz"), ask(app, "/infer", spin_infer("tiny-chat", "Hi"))
        assert ask(app, "/healthz").status == 200
    assert (ready.status, ready.body) == (503, b"restarting\n")
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert refused.json.startswith("runtime-error: the server has failed and is restarting")


# What it has done until then


def test_tokens_of_an_answer_that_comes_too_late_are_counted() -> None:
    late = Client()

    def deliver(job: list[TextJob], events: Sequence[Event]) -> None:
        late.deliver(events)
        if isinstance(events[-1], Chunk):
            job[0].deadline = 0

    jobs: list[TextJob] = []
    params = InferencingParams(max_tokens=400)
    request = TextRequest(
        model="tiny-chat", prompt="Once upon a time", params=params, is_streamed=True
    )
    deadline = time.monotonic() + SECONDS
    jobs.append(TextJob(request, deliver=partial(deliver, jobs), deadline=deadline))
    with working(pause_seconds=0) as worker:
        worker.submit(jobs[0])
    error = late.events[-1]
    chunks = [event for event in late.events if isinstance(event, Chunk)]
    assert "took longer" in str(error)
    assert worker.counters.n_generated_tokens == len(chunks) > 0
