"""Guests in processes: several compute at once, a process that ends costs one request."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from refllm.api import EmbeddingsResult, InferencingParams, InferencingResult
from refllm.wasm.channel import Channel, Gone
from refllm.wasm.guest import GuestFailed, Limits
from refllm.wasm.host import Host, Program, Services
from refllm.wasm.wasi.http import Request, Response
from refllm.wasm.workers import WorkerHost
from tests.conftest import HUNG_SECONDS
from tests.support.client import eventually
from tools.attack.wat import HANDLER, handler

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")

SECONDS = 0.5


class NoEngine:
    """An engine that is never called."""

    def infer(
        self, model: str, prompt: str, params: InferencingParams | None = None
    ) -> InferencingResult:
        raise NotImplementedError

    def generate_embeddings(self, model: str, texts: Sequence[str]) -> EmbeddingsResult:
        raise NotImplementedError


SERVICES = Services(NoEngine())
GET = Request("GET", "/")


def parents() -> dict[int, int]:
    """The parent of each process that runs."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has just ended
                state, parent = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
                # The first thread may end before another, which holds the process's sockets.
                if state != "Z" or len(list((entry / "task").iterdir())) > 1:
                    found[int(entry.name)] = int(parent)
    return found


def workers(server: int) -> set[int]:
    """The workers of a server: what the templates that it has started have forked."""
    parent_of = parents()
    templates = {
        pid for pid, parent in parent_of.items() if parent == server and is_of_template(pid)
    }
    return {pid for pid, parent in parent_of.items() if parent in templates}


def is_of_template(pid: int) -> bool:
    """Whether a process is a template: other processes have children, too."""
    try:
        return b"run_template" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return False


@pytest.fixture
def answering(tmp_path: Path) -> Path:
    """A component that answers at once."""
    path = tmp_path / "answering.wasm"
    path.write_bytes(wat2wasm(HANDLER))
    return path


@pytest.fixture
def looping(tmp_path: Path) -> Path:
    """A component that never answers."""
    path = tmp_path / "looping.wasm"
    path.write_bytes(wat2wasm(handler("(loop (br 0))")))
    return path


@contextmanager
def responding(host: Host, *programs: Program) -> Iterator[list[Future[Response]]]:
    """Requests to these programs, all at once."""
    with ThreadPoolExecutor(len(programs)) as threads:
        yield [threads.submit(host.respond, program, GET, SERVICES) for program in programs]


def test_a_guest_is_answered_while_another_computes(answering: Path, looping: Path) -> None:
    with WorkerHost(Limits(seconds=HUNG_SECONDS), n_computing=2) as host:
        quick, slow = host.load_handler(answering), host.load_handler(looping)
        with responding(host, slow) as (endless,):
            eventually(lambda: host.n_guests == 1)
            for _ in range(3):
                assert host.respond(quick, GET, SERVICES) == Response(200, (), b"")
            assert not endless.done()
            host.stop()
        with pytest.raises(GuestFailed, match="the server is shutting down"):
            endless.result()


def test_the_time_of_a_guest_does_not_pass_while_others_compute(
    answering: Path, looping: Path
) -> None:
    with WorkerHost(Limits(seconds=SECONDS), n_computing=1) as host:
        quick, slow = host.load_handler(answering), host.load_handler(looping)
        # One after another they take more than the time of each.
        with responding(host, slow, slow, slow, quick) as (*endless, answered):
            pass
    assert answered.result().status == 200
    for each in endless:
        with pytest.raises(GuestFailed, match=f"it took more than {SECONDS:g} seconds"):
            each.result()


def test_a_process_that_is_killed_costs_one_request(answering: Path, looping: Path) -> None:
    host = WorkerHost(Limits(seconds=HUNG_SECONDS), n_computing=2)
    quick, slow = host.load_handler(answering), host.load_handler(looping)
    with host:
        eventually(lambda: len(workers(os.getpid())) == 1)
        first = workers(os.getpid())  # it may have nothing to do; each further one has a guest
        with responding(host, slow, slow) as endless:
            eventually(lambda: bool(workers(os.getpid()) - first))
            os.kill((workers(os.getpid()) - first).pop(), signal.SIGKILL)
            eventually(lambda: any(each.done() for each in endless))
            assert [each.done() for each in endless].count(True) == 1
            assert host.respond(quick, GET, SERVICES).status == 200
            host.stop()
    messages = {str(each.exception()) for each in endless}
    assert messages == {"its process ended by signal SIGKILL", "the server is shutting down"}


def test_where_the_process_that_starts_others_is_killed_the_next_request_is_answered(
    answering: Path,
) -> None:
    host = WorkerHost()
    program = host.load_handler(answering)
    with host:
        eventually(lambda: len(workers(os.getpid())) == 1)
        host.respond(program, GET, SERVICES)
        started = workers(os.getpid())
        (template,) = {parents()[pid] for pid in started}
        os.kill(template, signal.SIGKILL)
        eventually(lambda: not started & set(parents()))
        assert host.respond(program, GET, SERVICES).status == 200


def test_a_component_that_is_built_again_is_not_served_before_the_next_start(
    answering: Path, looping: Path
) -> None:
    with WorkerHost(Limits(seconds=HUNG_SECONDS), n_computing=2) as host:
        quick, slow = host.load_handler(answering), host.load_handler(looping)
        host.respond(quick, GET, SERVICES)
        answering.write_bytes(looping.read_bytes())
        with responding(host, slow):  # has the worker, so that the next request gets another one
            eventually(lambda: host.n_guests == 1)
            assert host.respond(quick, GET, SERVICES).status == 200
            assert len(workers(os.getpid())) >= 2
            host.stop()


def test_a_host_that_is_closed_leaves_no_process(answering: Path, looping: Path) -> None:
    before = set(parents())
    with WorkerHost(Limits(seconds=HUNG_SECONDS)) as host:
        quick, slow = host.load_handler(answering), host.load_handler(looping)
        host.respond(quick, GET, SERVICES)
        with responding(host, slow, slow):
            eventually(lambda: len(workers(os.getpid())) >= 2)
            started = workers(os.getpid()) - before
            host.stop()
    assert len(started) >= 2
    eventually(lambda: not started & set(parents()))


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_a_server_that_is_ended_leaves_no_process(number: signal.Signals, looping: Path) -> None:
    command = [sys.executable, "-m", "refllm", "run", str(looping), "--port", "0", "--grace", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().removeprefix("Serving ").strip()
        address = url.removeprefix("http://")
        try:
            with closing(http.client.HTTPConnection(address, timeout=HUNG_SECONDS)) as client:
                client.request("GET", "/")
                eventually(lambda: bool(workers(server.pid)))
                started = workers(server.pid)
                started |= {pid for pid, parent in parents().items() if parent == server.pid}
                server.send_signal(number)
                server.wait(HUNG_SECONDS)
        finally:
            server.kill()
    eventually(lambda: not started & set(parents()))


def test_a_message_of_a_worker_has_no_class() -> None:
    ours, theirs = socket.socketpair()
    channel, worker = Channel(ours, is_trusted=False), Channel(theirs, is_trusted=True)
    with closing(channel), closing(worker):
        worker.send("printed", b"data", 1, None, [0.5])
        assert channel.receive() == ("printed", b"data", 1, None, [0.5])
        worker.send("printed", threading.Event)
        with pytest.raises(Gone):
            channel.receive()
