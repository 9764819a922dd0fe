"""What a server under attack sends back: read from its socket, parsed, and looked at for faults."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import h11

import refllm
from refllm.api import InvalidInput
from tools.attack.target import NotFinite

__all__ = ["Answer", "FaultError", "answers_in", "check", "conversation", "expected_methods"]

SECONDS = 20.0  # until an answer counts as missing; the watch gives up later
NOT_OFFERED = (501, 505)  # of a method, of a version: right answers all the same
CHUNK = 1 << 16
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SECRETS = tuple(
    folder.encode()
    for folder in {str(Path(refllm.__file__).resolve().parent.parent), sys.prefix, sys.base_prefix}
    if len(folder) > len("/usr/local")
)
"""Folders of this machine that no answer may name."""

OF_THE_MOMENT = re.compile(
    rb'"(?:chatcmpl-|cmpl-)[0-9a-f]+"|"created": ?\d+|"cached_tokens": ?\d+'
    rb"|^(?:refllm_|# HELP |# TYPE ).*\n",
    re.MULTILINE,
)
"""What the same request does not get twice."""


class FaultError(Exception):
    """What came back is a fault, whatever was sent."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def conversation(port: int, pieces: Sequence[bytes], methods: Sequence[str] | None) -> bytes:
    """All that comes back for these bytes, until the server closes the connection.

    This side says that it is done once the answers to `methods` are there; None says so at once.
    Errors: `FaultError` for a server that says nothing.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        is_done = False
        # A server closes what it has refused, whether or not all of it was read.
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
            while True:
                if not is_done and (methods is None or _has(received, methods)):
                    is_done = True
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_WR)
                try:
                    part = connection.recv(CHUNK)
                except TimeoutError:
                    raise FaultError(
                        f"no end of an answer that begins {received[:500]!r}"
                    ) from None
                if not part:
                    break
                received += part
    return received


def _has(received: bytes, methods: Sequence[str]) -> bool:
    """Whether whole answers to all these methods have come."""
    try:
        for method in methods:
            _, received = _first(received, method, is_end=False)
    except FaultError:
        return False
    return True


def answers_in(received: bytes, methods: Sequence[str] | None = None) -> list[Answer]:
    """The answers to requests of these methods; None tries which of them were HEAD.

    Errors: `FaultError` for what is no HTTP.
    """
    if methods is not None:
        answers = []
        for method in methods:
            answer, received = _first(received, method)
            answers.append(answer)
        return answers
    if received in (b"", CONTINUE):  # the request was not whole
        return []
    try:
        answer, rest = _first(received, "GET")
        return [answer, *answers_in(rest)]
    except FaultError as error:
        try:
            answer, rest = _first(received, "HEAD")
            return [answer, *answers_in(rest)]
        except FaultError:
            raise error from None


def _first(received: bytes, method: str, *, is_end: bool = True) -> tuple[Answer, bytes]:
    """The first answer, and what follows it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "localhost")]))
    client.send(h11.EndOfMessage())
    if received:
        client.receive_data(received)
    if is_end:
        client.receive_data(b"")
    response: h11.Response | None = None
    body = bytearray()
    try:
        while True:
            event = client.next_event()
            if isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif not isinstance(event, h11.InformationalResponse):
                raise FaultError(f"an answer is not whole: {received[:500]!r}")
    except h11.RemoteProtocolError as error:
        raise FaultError(f"an answer is no HTTP: {error}: {received[:500]!r}") from error
    assert response is not None
    headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
    return Answer(response.status_code, headers, bytes(body)), client.trailing_data[0]


def expected_methods(raw: bytes) -> list[str]:
    """The method of each request that is whole in these bytes, as h11 reads them.

    The last is "GET" where h11 refuses what it reads, which is answered, too.
    """
    server = h11.Connection(h11.SERVER)
    if raw:
        server.receive_data(raw)
    methods: list[str] = []
    method = "GET"
    while True:
        try:
            event = server.next_event()
        except h11.RemoteProtocolError:
            return [*methods, "GET"]
        if isinstance(event, h11.Request):
            method = event.method.decode("latin-1")
        elif isinstance(event, h11.EndOfMessage):
            methods.append("HEAD" if method == "HEAD" else "GET")
            server.send(h11.Response(status_code=405, headers=[("content-length", "0")]))
            server.send(h11.EndOfMessage())
            if server.our_state is not h11.DONE or server.their_state is not h11.DONE:
                return methods
            server.start_next_cycle()
        elif not isinstance(event, h11.Data):
            return methods


def check(answers: Sequence[Answer]) -> bytes:
    """The answers, without what changes from time to time.

    Errors: `InvalidInput` where one is a refusal; `FaultError`; `NotFinite`.
    """
    refusal = None
    kept = []
    for answer in answers:
        if answer.status >= 500 and answer.status not in NOT_OFFERED:
            raise FaultError(f"status {answer.status}: {answer.body[:2000]!r}")
        if b"Traceback (most recent call last)" in answer.body:
            raise FaultError(f"an answer has a traceback: {answer.body[:2000]!r}")
        for secret in SECRETS:
            if secret in answer.body:
                raise FaultError(f"an answer names a folder: {answer.body[:2000]!r}")
        if answer.headers.get("content-type") == "application/json" and answer.body:
            _check_json(answer.body)
        if answer.status >= 400:
            refusal = answer
        kept.append(b"%d " % answer.status + _lasting(answer))
    if refusal is not None:
        raise InvalidInput(f"{refusal.status}: {refusal.body[:200]!r}")
    return b"".join(kept)


def _lasting(answer: Answer) -> bytes:
    """What of an answer does not change; the choices of a stream may come in any order."""
    kind = answer.headers.get("content-type", "")
    body = OF_THE_MOMENT.sub(b"", answer.body)
    if kind.startswith("text/event-stream"):
        body = b"\n\n".join(sorted(body.split(b"\n\n")))
    return kind.encode("latin-1") + b"\n" + body


def _check_json(body: bytes) -> None:
    try:
        json.loads(body, parse_constant=_not_finite)
    except ValueError as error:
        raise FaultError(f"an answer is no JSON: {error}: {body[:2000]!r}") from error


def _not_finite(name: str) -> NoReturn:
    raise NotFinite(f"an answer has {name}")
