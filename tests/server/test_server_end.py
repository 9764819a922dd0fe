"""What does not come to its end keeps neither other requests nor the server's own end waiting."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from refllm.engine import LocalEngine
from refllm.server.jobs import Finished
from refllm.server.limits import Limits
from refllm.server.worker import Worker
from refllm.testing.server_process import RunningServer, running_server
from tests.conftest import HUNG_SECONDS
from tests.support.client import BODY_WITHOUT_END, ask, eventually, spin_infer
from tests.support.jobs import Held

PAGE = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
N_PAGES = 500  # more than a connection holds that is not read
SECONDS_TO_END = 60  # with a grace time of one, on a machine that does something else, too

# A model, a template and a tokenizer that take longer than any test.
ENDLESS = f"""
import time
from refllm.models import load as loading
from refllm import engine

def endless(work, is_endless):
    def done(*arguments, **options):
        if is_endless(*arguments):
            time.sleep({2 * HUNG_SECONDS})
        return work(*arguments, **options)
    return done

llama = loading.LlamaModel
engine.load_path = endless(engine.load_path, lambda path: path.name == "tiny-embed.gguf")
llama.prompt_tokens = endless(llama.prompt_tokens, lambda _, prompt: prompt == "endless")
llama.chat_prompt = endless(llama.chat_prompt, lambda _, messages: True)
"""


@contextmanager
def endless_server(folder: Path, *arguments: str) -> Iterator[RunningServer]:
    (folder / "sitecustomize.py").write_text(ENDLESS)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    with running_server(arguments, environment={**os.environ, "PYTHONPATH": path}) as server:
        yield server


WITHOUT_END: Mapping[str, Mapping[str, object]] = {
    "/infer": spin_infer("tiny-chat", "endless"),
    "/v1/chat/completions": {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hi"}]},
    "/embed": {"model": "tiny-embed", "input": ["Hi"]},
}


def answers_another(url: str) -> bool:
    return ask(url, "/infer", spin_infer("tiny-chat", "Once", maxTokens=2)).status == 200


def is_answering(url: str) -> bool:
    return [ask(url, path).status for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(HUNG_SECONDS)
        connection.connect((address.hostname, address.port))
        yield connection


def test_max_seconds_ends_a_request_in_every_phase(tmp_path: Path) -> None:
    with endless_server(tmp_path, "--max-seconds", "1", "--grace", "1") as server:
        for path, body in WITHOUT_END.items():
            answer = ask(server.url, path, body)
            assert answer.status == 500
            assert b"took longer than this server's limit of 1 s" in answer.body
            assert is_answering(server.url)
            if path != "/embed":  # whose model the thread that computes waits for
                eventually(lambda: answers_another(server.url))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SECONDS_TO_END) == 0
        assert "Traceback" not in server.log()


def ask_in_vain(url: str, path: str, body: object) -> None:
    with suppress(OSError, http.client.HTTPException):
        ask(url, path, body)


@pytest.mark.parametrize("n_signals", [1, 2])
def test_sigterm_ends_a_request_without_end(n_signals: int, tmp_path: Path) -> None:
    grace = 1 if n_signals == 1 else HUNG_SECONDS
    with (
        endless_server(tmp_path, "--grace", str(grace)) as server,
        connected(server.url) as slow,
        connected(server.url) as deaf,
    ):
        for path, body in WITHOUT_END.items():
            arguments = (server.url, path, body)
            threading.Thread(target=ask_in_vain, args=arguments, daemon=True).start()
        slow.sendall(BODY_WITHOUT_END.replace(b"100000", b"1000"))
        deaf.sendall(PAGE * N_PAGES)
        assert is_answering(server.url)
        for _ in range(n_signals):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)  # two signals of one kind that are pending count as one
        assert server.process.wait(SECONDS_TO_END) == 0
        assert "Traceback" not in server.log()


def test_a_client_that_does_not_read_is_disconnected_at_the_time_limit() -> None:
    limits = ["--max-seconds", "0.5", "--max-arrival-seconds", "0.5"]
    with running_server(limits) as server, connected(server.url) as deaf:
        deaf.sendall(PAGE)
        assert deaf.recv(1) == b"H"  # the connection is there
        before = n_sockets(server)
        deaf.sendall(PAGE * N_PAGES)
        eventually(lambda: n_sockets(server) < before, "the connection stays")
        assert "Traceback" not in server.log()


def n_sockets(server: RunningServer) -> int:
    folder = Path(f"/proc/{server.process.pid}/fd")
    if not folder.exists():
        pytest.skip("open files are counted in /proc")
    ends = []
    for link in folder.iterdir():
        try:
            ends.append(str(link.readlink()))
        except FileNotFoundError:  # closed since it was listed
            continue
    return sum(end.startswith("socket:") for end in ends)


class Reading(Held):
    """A job whose texts are computed until the test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reading, self.has_read = threading.Event(), threading.Event()

    def prepare(self, engine: LocalEngine, limits: Limits) -> None:
        self.is_reading.set()
        assert self.has_read.wait(HUNG_SECONDS)


def test_other_requests_have_their_turns_while_a_text_is_read() -> None:
    worker = Worker(LocalEngine(), Limits(max_at_once=2))
    worker.start()
    reading, other = Reading(), Held()
    worker.submit(reading)
    assert reading.is_reading.wait(HUNG_SECONDS)
    worker.submit(other)
    for _ in range(3):
        assert other.turns.acquire(timeout=HUNG_SECONDS)
        other.may_go_on.release()
    assert reading.turns.acquire(blocking=False) is False
    assert worker.n_running == 2
    reading.has_read.set()
    for job in (other, reading):
        job.is_last = True
        job.may_go_on.release()
    other.may_go_on.release()
    assert worker.close(HUNG_SECONDS)
    assert (other.events, reading.events) == ([Finished(1)], [Finished(1)])


def test_a_text_that_cannot_be_read_is_its_own_request_s_error() -> None:
    class Fails(Held):
        def prepare(self, engine: LocalEngine, limits: Limits) -> None:
            raise SystemExit

    worker = Worker(LocalEngine(), Limits(max_at_once=1))
    worker.start()
    failing, other = Fails(), Held()
    other.is_last = True
    other.may_go_on.release()
    for job in (failing, other):
        worker.submit(job)
    assert worker.close(HUNG_SECONDS)
    assert [str(event) for event in failing.events] == [
        "unexpected SystemExit; this is a bug in refllm"
    ]
    assert other.events == [Finished(1)]
