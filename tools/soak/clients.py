"""Clients: each asks by chance until it is told to stop, and notes what is not as it should be."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from tools.soak.questions import Question
from tools.soak.server import SECONDS, Answer, Server, asked

__all__ = ["SHARES", "Client", "Notes"]

OVERLOAD = 503
PAUSE = 0.5  # seconds, of a client that is told that the server is busy, or that left
SLOWNESS = 1.0  # seconds between two bytes
BAD: Sequence[tuple[str, bytes, int]] = (
    ("/infer", b"{", 400),
    ("/infer", b"[]", 400),
    ("/infer", b"\xff", 400),
    ("/infer", b'{"model": "tiny-chat", "prompt": "a", "temperatur": 1}', 400),
    ("/infer", b'{"model": "absent", "prompt": "a"}', 400),
    ("/infer", b'{"model": "tiny-embed", "prompt": "a"}', 404),
    ("/embed", b'{"model": "absent", "input": ["a"]}', 404),
    ("/v1/completions", b'{"model": "../x", "prompt": "a"}', 400),
    ("/v1/completions", b'{"model": "absent", "prompt": "a"}', 404),
    ("/v1/completions", b'{"model": "tiny-chat", "prompt": "a", "max_tokens": 1e9}', 400),
    ("/v1/chat/completions", b'{"model": "tiny-chat", "messages": []}', 400),
    ("/v1/embeddings", b'{"model": "tiny-embed", "input": [[]]}', 400),
    ("/nowhere", b"{}", 404),
)
"""Of what is refused the path, the body and the status."""


@dataclass(slots=True)
class Notes:
    """What happened to all clients; used by several threads."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str, outcome: str) -> None:
        """One request of a kind of client has ended so."""
        with self.lock:
            self.counts[kind, outcome] += 1

    def complain(self, kind: str, what: str) -> None:
        """Something is not as it should be."""
        with self.lock:
            self.counts[kind, "WRONG"] += 1
            self.wrong.append(f"{kind}: {what}")


class Client:
    """One client, of one kind of `SHARES`."""

    def __init__(
        self, kind: str, seed: int, server: Server, questions: Sequence[Question], notes: Notes
    ) -> None:
        self._kind = kind
        self._random = Random(f"{kind} {seed}")
        self._server = server
        self._questions = questions
        self._notes = notes

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop` is set."""
        while not stop.is_set():
            if not self._server.is_up.wait(0.1):
                continue
            n_ends = self._server.n_ends
            try:
                outcome = _KINDS[self._kind](self)
            except (OSError, http.client.HTTPException) as error:
                if n_ends == self._server.n_ends and self._server.is_up.is_set():
                    self._notes.complain(self._kind, f"{type(error).__name__}: {error}")
                else:
                    self._notes.count(self._kind, "killed")
            except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
                self._notes.complain(self._kind, f"{type(error).__name__}: {error}")
            else:
                self._notes.count(self._kind, outcome)
                if outcome == str(OVERLOAD) or self._kind == "vanishing":
                    time.sleep(PAUSE)

    def good(self) -> str:
        """A request whose answer is known."""
        question = self._random.choice([q for q in self._questions if not q.is_streamed])
        return self._compared(question, asked(self._server.port, question.path, question.body))

    def streaming(self) -> str:
        """The same, as a stream."""
        question = self._random.choice([q for q in self._questions if q.is_streamed])
        return self._compared(question, asked(self._server.port, question.path, question.body))

    def bad(self) -> str:
        """A request that is refused."""
        path, body, status = self._random.choice(BAD)
        answer = asked(self._server.port, path, body)
        if answer.status not in (status, OVERLOAD):
            self._notes.complain(self._kind, f"{path} {body!r}: {answer.status} {answer.body!r}")
        return str(answer.status)

    def slow(self) -> str:
        """A request that does not arrive in time."""
        head = b"POST /infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
        n_at_once = self._random.choice((0, len(head)))
        with self._connection() as connection:
            connection.settimeout(SLOWNESS)
            connection.sendall(head[:n_at_once])
            received = b""
            with suppress(BrokenPipeError, ConnectionResetError):
                for byte in (head + b"{" * 100)[n_at_once:]:
                    connection.sendall(bytes([byte]))
                    with suppress(TimeoutError):
                        received += connection.recv(1 << 16)
                        break
        if received and not received.startswith(b"HTTP/1.1 408 "):
            self._notes.complain(self._kind, f"an answer that is no 408: {received!r}")
        return "408" if received else "closed"

    def vanishing(self) -> str:
        """A request that is left in its middle, or before or in its answer."""
        question = self._random.choice(self._questions)
        body = json.dumps(question.body).encode()
        head = f"POST {question.path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}"
        request = head.encode() + b"\r\n\r\n" + body
        where = self._random.randrange(3)
        with self._connection() as connection:
            if where == 0:
                connection.sendall(request[: self._random.randrange(len(request))])
                return "left a request"
            connection.sendall(request)
            if where == 1:
                return "left before an answer"
            connection.recv(self._random.randrange(1, 300))
            return "left an answer"

    def _connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._server.port), timeout=SECONDS)

    def _compared(self, question: Question, answer: Answer) -> str:
        if answer.status == OVERLOAD and answer.headers.get("retry-after"):
            return str(OVERLOAD)
        if answer.status != http.client.OK:
            what = f"{answer.status} for {question.path}: {answer.body[:500]!r}"
            self._notes.complain(self._kind, what)
        elif question.answered(answer.body) != question.expected:
            what = f"{question.path} {question.body}: {answer.body[:500]!r}"
            self._notes.complain(self._kind, f"not the answer computed alone: {what}")
        return str(answer.status)


_KINDS: Mapping[str, Callable[[Client], str]] = {
    "good": Client.good,
    "streaming": Client.streaming,
    "bad": Client.bad,
    "slow": Client.slow,
    "vanishing": Client.vanishing,
}
SHARES: Mapping[str, int] = {"good": 26, "streaming": 14, "bad": 8, "slow": 8, "vanishing": 8}
"""Of 64 clients, how many are of each kind."""
