"""Clients of a server: requests, a client that is slow, and waiting for a condition."""

from __future__ import annotations

import http.client
import inspect
import json
import select
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import HUNG_SECONDS

__all__ = [
    "BODY_WITHOUT_END",
    "HEAD_WITHOUT_END",
    "Answer",
    "answer_to_drops",
    "ask",
    "connected",
    "eventually",
    "http_connection",
    "is_idle",
    "sent",
    "spin_infer",
]

HEAD_WITHOUT_END = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-slow: "
BODY_WITHOUT_END = b"POST /infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n"
SECONDS_BETWEEN_DROPS = 0.01


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers in lower case, and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    url: str,
    path: str,
    body: object = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request. A body that is not bytes is sent as JSON, without a content type."""
    connection = http_connection(url)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    method = method or ("GET" if data is None else "POST")
    try:
        connection.request(method, path, data, dict(headers or {}))
        response = connection.getresponse()
        lower = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, lower, response.read())
    finally:
        connection.close()


def http_connection(url: str) -> http.client.HTTPConnection:
    """Return a client that can send several requests, or leave before it has the answer."""
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=HUNG_SECONDS)


def connected(url: str) -> socket.socket:
    """Return a connection to the server at `url`."""
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=HUNG_SECONDS)


def sent(url: str, request: bytes) -> bytes:
    """Return all bytes of the answer to `request`, which is sent as it is."""
    with connected(url) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def answer_to_drops(url: str, begin: bytes) -> bytes:
    """Send `begin`, then a byte now and then; return what is received until the server closes."""
    received = b""
    with suppress(ConnectionError), connected(url) as connection:  # reset while a byte was sent
        connection.sendall(begin)
        until = time.monotonic() + HUNG_SECONDS
        while time.monotonic() < until:
            if not select.select([connection], [], [], SECONDS_BETWEEN_DROPS)[0]:
                connection.sendall(b"x")
                continue
            data = connection.recv(65536)
            if not data:
                return received
            received += data
        pytest.fail(f"the server does not close the connection; it sent {received!r}")
    return received


def eventually(
    condition: Callable[[], bool], message: str = "", *, seconds: float = HUNG_SECONDS
) -> None:
    """Check `condition` again and again; fail with `message`, or its source, after `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            source = inspect.getsource(condition).strip()
            pytest.fail(f"after {seconds:g} s: {message or f'still false: {source}'}")
        time.sleep(0.01)


def is_idle(url: str) -> bool:
    """Return whether no request runs or waits at the server at `url`."""
    counted = ask(url, "/metrics").body
    return b"refllm_requests_running 0.0" in counted and b"refllm_waiting 0.0" in counted


def spin_infer(model: str, prompt: str, **options: float) -> Mapping[str, object]:
    """The body of Spin's request to POST /infer: all six options, in its names."""
    defaults = {
        "maxTokens": 100,
        "repeatPenalty": 1.1,
        "repeatPenaltyLastNTokenCount": 64,
        "temperature": 0.8,
        "topK": 40,
        "topP": 0.9,
    }
    return {"model": model, "prompt": prompt, "options": {**defaults, **options}}
