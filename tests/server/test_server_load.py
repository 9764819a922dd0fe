"""64 clients of every kind for half a minute: no wrong answer, no 500, and nothing left over."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from refllm.api import InferencingParams
from refllm.engine import LocalEngine
from refllm.testing.server_process import RunningServer, running_server
from tests.support.client import ask, eventually, http_connection, is_idle, spin_infer

N_CLIENTS = 64
SECONDS = 30.0
MAX_GROWTH = 1.1
N_TOKENS = 20

PROMPTS = ("Once upon a time", "[INST] Hello! [/INST]", "[INST] What is 3 + 4? [/INST]", "The", "")
TEXTS = ("A cat sat on the mat.", "One day, Anna found a red ball.", "Errors name the file.")
MALFORMED = (b"{", b"[]", b'{"model": 1}', b"\xff", b'{"model": "absent", "prompt": ""}')

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(["--max-waiting", "100"]) as server:
        yield server


@pytest.fixture(scope="module")
def expected() -> Mapping[str, object]:
    """What each prompt and each text is answered with alone."""
    engine, params = LocalEngine(), InferencingParams(max_tokens=N_TOKENS)
    written = {prompt: engine.infer("tiny-chat", prompt, params).text for prompt in PROMPTS}
    vectors = engine.generate_embeddings("tiny-embed", TEXTS).embeddings
    return {**written, **dict(zip(TEXTS, vectors, strict=True))}


class Client:
    """One of many: asks at random until the time is up, and notes what is not as it should be."""

    def __init__(self, url: str, expected: Mapping[str, object], seed: int) -> None:
        self.url = url
        self.expected = expected
        self.choose = random.Random(seed)
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []

    def run(self, until: float) -> None:
        kinds: list[Callable[[], None]] = [
            *(self.infer, self.infer, self.embed, self.stream, self.leave, self.stammer)
        ]
        while time.monotonic() < until:
            try:
                self.choose.choice(kinds)()
            except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
                self.wrong.append(f"{type(error).__name__}: {error}")

    def infer(self) -> None:
        prompt = self.choose.choice(PROMPTS)
        answer = ask(self.url, "/infer", spin_infer("tiny-chat", prompt, maxTokens=N_TOKENS))
        self.note(answer.status, answer.json, "text", prompt)

    def embed(self) -> None:
        text = self.choose.choice(TEXTS)
        answer = ask(self.url, "/embed", {"model": "tiny-embed", "input": [text]})
        self.statuses[answer.status] += 1
        if answer.status == 200:
            [vector] = answer.json["embeddings"]
            if not np.array_equal(np.float32(vector), np.float32(self.expected[text])):  # type: ignore[arg-type]
                self.wrong.append(f"another vector for {text!r}")

    def stream(self) -> None:
        prompt = self.choose.choice(PROMPTS)
        answer = ask(self.url, "/v1/completions", self.streamed(prompt))
        self.statuses[answer.status] += 1
        if answer.status == 200:
            events = answer.body.decode().split("\n\n")[:-2]
            parts = [json.loads(event.removeprefix("data: ")) for event in events]
            text = "".join(part["choices"][0]["text"] for part in parts)
            self.compare(text, prompt)

    def leave(self) -> None:
        connection = http_connection(self.url)
        connection.request("POST", "/v1/completions", json.dumps(self.streamed("Once")))
        if self.choose.random() < 0.5:
            connection.getresponse().read(10)
        connection.close()

    def stammer(self) -> None:
        answer = ask(self.url, "/infer", self.choose.choice(MALFORMED))
        self.statuses[answer.status] += 1
        if answer.status not in (400, 503):
            self.wrong.append(f"{answer.status} for a malformed body")

    def streamed(self, prompt: str) -> Mapping[str, object]:
        return {"model": "tiny-chat", "prompt": prompt, "max_tokens": N_TOKENS, "stream": True}

    def note(self, status: int, answer: Mapping[str, object], key: str, prompt: str) -> None:
        self.statuses[status] += 1
        if status == 200:
            self.compare(str(answer[key]), prompt)

    def compare(self, text: str, prompt: str) -> None:
        if text != self.expected[prompt]:
            self.wrong.append(f"{text!r} for {prompt!r}")


def memory_bytes(process_id: int) -> int:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def n_sockets_at_rest(process_id: int) -> int:
    """The fewest of many looks: the server closes the last connection when it comes to it."""
    return min(n_sockets(process_id) for _ in range(10_000))


def n_sockets(process_id: int) -> int:
    return sum(map(is_socket, Path(f"/proc/{process_id}/fd").iterdir()))


def is_socket(link: Path) -> bool:
    try:
        return str(link.readlink()).startswith("socket:")
    except FileNotFoundError:  # closed since it was listed
        return False


def play(server: RunningServer, expected: Mapping[str, object], seconds: float) -> list[Client]:
    clients = [Client(server.url, expected, seed) for seed in range(N_CLIENTS)]
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=client.run, args=[until]) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clients


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_half_a_minute_of_everything_leaves_right_answers_and_nothing_else(
    server: RunningServer, expected: Mapping[str, object]
) -> None:
    play(server, expected, seconds=3)  # both models are loaded, threads and buffers are there
    eventually(lambda: is_idle(server.url), "requests go on")
    process_id = server.process.pid
    memory, sockets = memory_bytes(process_id), n_sockets_at_rest(process_id)
    clients = play(server, expected, SECONDS)
    eventually(lambda: is_idle(server.url), "requests go on")
    assert [wrong for client in clients for wrong in client.wrong] == []
    statuses = sum((client.statuses for client in clients), Counter())
    assert statuses[200] > 0
    assert set(statuses) <= {200, 400, 503}
    assert memory_bytes(process_id) <= MAX_GROWTH * memory
    eventually(lambda: n_sockets(process_id) <= sockets)
