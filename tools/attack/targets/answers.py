"""What another server answers to refllm's own HTTP client."""

from __future__ import annotations

import functools
import json
import queue
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from refllm.spin.remote import RemoteEngine
from tools.attack.mutate import ODD_INTEGERS, ODD_TEXTS, damaged_bytes, damaged_json_text
from tools.attack.target import Input, NotFinite, Target

__all__ = ["TARGET"]

USAGE = {"promptTokenCount": 3, "generatedTokenCount": 4}
OPENAI_USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
VECTORS = [[0.6, 0.8], [1.0, 0.0]]
RESULTS: Mapping[tuple[str, str], Any] = {
    ("default", "infer"): {"text": " there was", "usage": USAGE},
    ("default", "embed"): {"embeddings": VECTORS, "usage": USAGE, "truncated": [True, False]},
    ("open_ai", "infer"): {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}}],
        "usage": OPENAI_USAGE,
    },
    ("open_ai", "embed"): {
        "data": [{"embedding": vector, "index": i} for i, vector in enumerate(VECTORS)],
        "usage": OPENAI_USAGE,
    },
}
"""By the dialect and what is asked, right answers."""

REFUSALS: Sequence[Any] = (
    {"error": {"message": "no such model", "type": "x", "code": "model-not-supported"}},
    {"error": "no such model"},
    "invalid-input: secret token",
    "no JSON object",
)
STATUS_LINES = (
    *("HTTP/1.1 200 OK", "HTTP/1.1 200", "HTTP/1.0 200 OK", "HTTP/2 200", "HTTP/1.1 299 a"),
    *("HTTP/1.1 100 Continue", "HTTP/1.1 204 No Content", "HTTP/1.1 301 M", "HTTP/1.1 400 B"),
    *("HTTP/1.1 404 N", "HTTP/1.1 429 T", "HTTP/1.1 500 I", "HTTP/1.1 503 S", "HTTP/1.1 999 x"),
    *("HTTP/1.1 99 x", "HTTP/1.1 -200 OK", "HTTP/1.1 2²0 OK", "ICY 200 OK", "HTTP/1.1", ""),
    *("HTTP/1.1 200 " + "a" * 70_000, "GET / HTTP/1.1", "HTTP/1.1 1000 x", "HTTP/1.1 101 S"),
)
HEADERS: Mapping[str, Sequence[str]] = {
    "location": ("http://elsewhere/secret", "\x1b[31m", "é" * 100, ""),
    "retry-after": ("5", "Wed, 21 Oct 2015 07:28:00 GMT", "-1", "9" * 5000, "\x07"),
    "transfer-encoding": ("chunked", "gzip", "Chunked", "chunked, chunked", ""),
    "content-length": ("0", "1", "999999999999999999999", "-1", "1, 1", "a", "²", "1_0"),
    "content-encoding": ("gzip",),
    "connection": ("close", "keep-alive", "upgrade"),
    "x": ("a" * 70_000, "\x00", "", "a\r\n b", "a\rb"),
    "bad name": ("a",),
    "": ("a",),
}
ODD_SIZES = ("-1", "-5", "0x5", "1_0", "+5", "", "g", "f" * 16, "f" * 400, "5;a", " 5 ", "５")
SECONDS = 10.0
ANSWER_LIMIT = 1 << 20


class _Server:
    """Answers each connection with the bytes that it was given, and ends it."""

    def __init__(self) -> None:
        self.next: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with connection, suppress(OSError):  # the client does not wait for all of it
                connection.settimeout(SECONDS)
                answer = self.next.get()
                _read_request(connection)
                connection.sendall(answer)


def _read_request(connection: socket.socket) -> None:
    """Read a request whole: what is left unread when a connection ends takes the answer with it."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16)
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(1 << 16)


@functools.cache
def _server() -> _Server:
    return _Server()


@functools.cache
def _engine(api_type: str) -> RemoteEngine:
    return RemoteEngine(
        _server().url,
        auth_token="secret",  # noqa: S106 - none
        api_type=api_type,
        timeout=SECONDS,
        answer_limit=ANSWER_LIMIT,
    )


def _prepare(_folder: Path) -> None:
    for api_type, _ in RESULTS:
        _engine(api_type)


def _build(random: Random, _folder: Path) -> Input:
    asked = random.choice([*RESULTS])
    is_refusal = random.random() < 0.15
    value = random.choice(REFUSALS) if is_refusal else RESULTS[asked]
    body = damaged_json_text(random, value) if random.random() < 0.8 else _json(value)
    if random.random() < 0.002:
        body *= ANSWER_LIMIT // max(len(body), 1) + 1
    status = random.choice(STATUS_LINES) if random.random() < 0.2 else "HTTP/1.1 200 OK"
    headers = [("content-type", "application/json")]
    how = random.random()
    if how < 0.6:
        headers.append(("content-length", _length(random, len(body))))
    elif how < 0.9:
        headers.append(("transfer-encoding", "chunked"))
        body = _in_chunks(random, body)
    while random.random() < 0.2:
        name = random.choice([*HEADERS])
        headers.append((name, random.choice(HEADERS[name])))
    if random.random() < 0.02:
        headers += [(f"x-{i}", "a") for i in range(random.choice((50, 99, 101, 2000)))]
    lines = [status, *(f"{name}: {value}" for name, value in headers), "", ""]
    answer = "\r\n".join(lines).encode("utf-8") + body
    if random.random() < 0.1:
        answer = b"HTTP/1.1 100 Continue\r\n\r\n" * random.choice((1, 2, 1000)) + answer
    if random.random() < 0.3:
        answer = damaged_bytes(random, answer, n_most=2)
    return Input((asked, answer), len(answer))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _length(random: Random, n_bytes: int) -> str:
    if random.random() < 0.9:
        return str(n_bytes)
    return random.choice((*ODD_TEXTS[:13], *map(str, ODD_INTEGERS), str(n_bytes + 1)))[:500]


def _in_chunks(random: Random, body: bytes) -> bytes:
    written = b""
    while body:
        n_bytes = random.randint(1, len(body))
        size = random.choice(ODD_SIZES) if random.random() < 0.05 else f"{n_bytes:x}"
        written += size.encode() + b"\r\n" + body[:n_bytes] + b"\r\n"
        body = body[n_bytes:]
    return written + random.choice(
        (b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\na: b\r\n\r\n", b"0\r\n", b"")
    )


def _infer(engine: RemoteEngine) -> bytes:
    return repr(engine.infer("tiny-chat", "Once upon a time")).encode()


def _embed(engine: RemoteEngine) -> bytes:
    result = engine.generate_embeddings("tiny-embed", ["A cat.", "A dog."])
    if not all(np.isfinite(vector).all() for vector in result.embeddings):
        raise NotFinite("a vector")
    return repr((result.embeddings, result.usage, result.truncated)).encode()


_ASK: Mapping[str, Callable[[RemoteEngine], bytes]] = {"infer": _infer, "embed": _embed}


def _read(given: Input) -> bytes:
    (api_type, what), answer = given.value
    _server().next.put(answer)
    return _ASK[what](_engine(api_type))


TARGET = Target(
    name="answers",
    what="answers of a server that refllm asks",
    weight=100,
    build=_build,
    read=_read,
    prepare=_prepare,
)
