"""The worker's queue, and the socket and the process around it."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from refllm.api import InvalidInput
from refllm.engine import LocalEngine
from refllm.server.jobs import Finished
from refllm.server.limits import Limits
from refllm.server.run import bound_socket
from refllm.server.worker import Busy, Worker
from refllm.testing.server_process import running_server
from tests.conftest import HUNG_SECONDS
from tests.support.client import ask
from tests.support.jobs import Held

SECONDS = HUNG_SECONDS


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A worker that answers one request at a time, while one more may wait."""
    worker = Worker(LocalEngine(), Limits(max_waiting=1, max_at_once=1))
    worker.start()
    yield worker
    worker.close()


def test_a_queued_job_that_is_cancelled_leaves_its_place_to_another(worker: Worker) -> None:
    going, waiting, another = Held(), Held(), Held()
    worker.submit(going)
    assert going.turns.acquire(timeout=SECONDS)
    worker.submit(waiting)
    with pytest.raises(Busy):
        worker.submit(another)
    waiting.is_wanted = False
    going.may_go_on.release()
    assert going.turns.acquire(timeout=SECONDS)
    try:
        worker.submit(another)
    finally:
        for job in (going, another):
            job.is_last = True
            job.may_go_on.release()
    worker.close()
    assert (waiting.events, going.events, another.events) == ([], [Finished(1)], [Finished(1)])


def test_a_socket_that_cannot_be_bound_is_closed() -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with suppress(InvalidInput):
            bound_socket("192.0.2.1", 0)
        gc.collect()
    assert warned == []


def test_a_server_that_logs_much_at_its_start_becomes_ready(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.stderr.write('a warning\\n' * 100_000)\n"
    )
    with running_server(environment={**os.environ, "PYTHONPATH": str(tmp_path)}) as server:
        assert ask(server.url, "/healthz").status == 200
