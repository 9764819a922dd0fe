"""Who may ask, and how much: in front of the application, before a body is read as anything.

Plain ASGI, because nothing else sees a request before its body. Source: ASGI specification 3.0.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refllm.errors import InvalidInput
from refllm.server.errors import UNAVAILABLE, refusal, unavailable
from refllm.server.limits import Limits
from refllm.server.worker import Closed

__all__ = [
    "Arrival",
    "BodyGuard",
    "ConnectionGuard",
    "Counting",
    "EndGuard",
    "HostGuard",
    "TokenGuard",
    "answering_head",
    "is_local",
    "late",
    "one_too_many",
]

SCHEME = b"bearer "
NO_CONNECTION_LEFT = "the server has as many connections as it takes; come again in a second"
UNAUTHORIZED = "send the header authorization: bearer TOKEN, with the token of this server"


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a connection knows of a request: until when, by the loop's clock, it must be there, and
    whether the connection is none too many. It is in the scope's `state`, by `key`.
    """

    deadline: float
    has_room: bool
    key: ClassVar[str] = "refllm_arrival"


class ConnectionGuard:
    """Sends away whoever comes over one connection too many."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 503, or pass on."""
        arrival = _arrival(scope)
        if scope["type"] != "http" or arrival is None or arrival.has_room:
            await self._app(scope, receive, send)
            return
        await one_too_many(scope["path"])(scope, receive, send)


class EndGuard:
    """Answers with 503 what the server cancels because its time to end has come."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; an answer that has begun is broken off."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if not has_begun:
                response = _closing(unavailable(scope["path"], UNAVAILABLE[Closed]))
                # Of a client that does not read: it is cancelled again when the loop ends.
                with contextlib.suppress(asyncio.CancelledError):
                    await response(scope, receive, send)


class HostGuard:
    """Refuses requests of web pages from elsewhere, with 403.

    A page whose name is made to resolve to this machine (DNS rebinding) sends its own name as
    `Host`; any other page sends its own as `Origin`. Source: RFC 9110, 7.2; RFC 6454, 7.

    Args:
        app: What answers otherwise.
        hosts: Names that clients may use for the server besides those of this machine.
        origins: Origins that may ask, such as "https://app.example", beside this machine's and
            those of `hosts`; "*" is all of them.
    """

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], origins: Iterable[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._origins = {origin.lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 403, or pass on."""
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
            return
        await refusal(scope["path"], 403, InvalidInput.kind, problem)(scope, receive, send)

    def _problem(self, scope: Scope) -> str | None:
        for name, value in scope["headers"]:
            text = value.decode("latin-1").strip().lower()
            if name == b"host" and not self._is_known(f"//{text}"):
                return (
                    f"the header Host is {text!r:.80}, which is not this machine; "
                    "refllm serve --allow-host NAME allows another name"
                )
            if name == b"origin" and not (
                "*" in self._origins or text in self._origins or self._is_known(text)
            ):
                return (
                    f"the header Origin is {text!r:.80}, a page of another site; "
                    "refllm serve --cors ORIGIN allows it"
                )
        return None

    def _is_known(self, url: str) -> bool:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            return False
        return host is not None and (host in self._hosts or is_local(host))


def is_local(host: str) -> bool:
    """Whether a name or address can only be this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761, 6.3


def answering_head(app: ASGIApp) -> ASGIApp:
    """Return an application that answers HEAD as GET; the HTTP server leaves out the body."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await app(scope, receive, send)

    return answer


class TokenGuard:
    """Lets only requests through that know the token; others do not even learn what is here."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 401, or pass on."""
        if scope["type"] != "http" or self._knows_the_token(scope):
            await self._app(scope, receive, send)
            return
        response = refusal(scope["path"], 401, "unauthorized", UNAUTHORIZED)
        await response(scope, receive, send)

    def _knows_the_token(self, scope: Scope) -> bool:
        """In constant time: how long it takes says nothing about how much of the token is right."""
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(sent) != 1 or sent[0][: len(SCHEME)].lower() != SCHEME:
            return False
        return hmac.compare_digest(sent[0][len(SCHEME) :].strip(), self._token)


class BodyGuard:
    """Reads the whole body first, if it is not too long and does not take too long."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 413 or 408, or pass on a body that is there."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most, seconds = self._limits.max_body_bytes, self._limits.arrival_seconds
        arrival = _arrival(scope)
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(now + seconds if arrival is None else arrival.deadline):
                body = await _body(scope, receive, most)
        except TimeoutError:
            await late(scope["path"], seconds)(scope, receive, send)
            return
        if body is None:
            message = f"the body is longer than this server's limit of {most} bytes"
            await refusal(scope["path"], 413, InvalidInput.kind, message)(scope, receive, send)
            return
        # In the scope itself, not in a copy: `Counting` finds there what the router puts in.
        scope["headers"] = _as_json(scope["headers"])
        await self._app(scope, _replayed(body, receive), send)


def late(path: str, seconds: float) -> Response:
    """The answer to a request for that path that did not arrive in so many seconds."""
    message = f"the request did not arrive within this server's limit of {seconds:g} s"
    return _closing(refusal(path, 408, InvalidInput.kind, message))


def one_too_many(path: str) -> Response:
    """The answer to a request for that path over a connection for which there is no room."""
    return _closing(unavailable(path, NO_CONNECTION_LEFT))


def _arrival(scope: Scope) -> Arrival | None:
    """None where another server runs the application."""
    arrival: Arrival | None = scope.get("state", {}).get(Arrival.key)
    return arrival


def _closing(response: Response) -> Response:
    """The response as the last of its connection."""
    response.headers["connection"] = "close"
    return response


def _as_json(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers with JSON for the content type: a body is JSON here, or it is refused.

    Spin's client names no type at all, and `curl -d` calls everything a form.
    """
    others = [header for header in headers if header[0] != b"content-type"]
    return [*others, (b"content-type", b"application/json")]


async def _body(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """The body, None where it is longer than `most` bytes or says that it will be."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > most:
            return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > most:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` that begins with a body which was read already."""
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replay() -> Message:
        nonlocal message
        if message is None:
            return await receive()
        first, message = message, None
        return first

    return replay


class Counting:
    """Tells what a request's answer was, and how long it took."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int, float], object]) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            # The application's route where there is one: a path is anybody's text.
            route = getattr(scope.get("route"), "path", "other")
            self._count(route, status, time.monotonic() - start)
