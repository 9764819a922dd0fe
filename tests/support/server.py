"""Requests as clients send them, to a server that runs as a process of its own."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import HUNG_SECONDS

__all__ = ["Answer", "ask", "eventually", "is_idle", "spin_infer"]

SECONDS = HUNG_SECONDS


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
    """The answer to one request. A body that is not bytes is sent as JSON, without a type."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=SECONDS)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    method = method or ("GET" if data is None else "POST")
    try:
        connection.request(method, path, data, dict(headers or {}))
        response = connection.getresponse()
        lower = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, lower, response.read())
    finally:
        connection.close()


def eventually(is_so: Callable[[], bool]) -> bool:
    """Whether it comes to be so; asked again and again until only a hang takes longer."""
    until = time.monotonic() + HUNG_SECONDS
    while time.monotonic() < until:
        if is_so():
            return True
    return False


def is_idle(url: str) -> bool:
    """Whether the server at `url` computes for no request, and none waits."""
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
