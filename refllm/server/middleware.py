"""Middleware: access, limits and metrics, before the application reads a request's body.

Plain ASGI, because no other layer sees a request before its body. Source: ASGI specification 3.0.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refllm.errors import InvalidInput
from refllm.server.errors import UNAVAILABLE, refusal, unavailable
from refllm.server.limits import Limits
from refllm.server.worker import Closed

__all__ = [
    "Arrival",
    "BodyMiddleware",
    "CheckMiddleware",
    "MetricsMiddleware",
    "ShutdownMiddleware",
    "check_connection",
    "head_as_get",
    "host_check",
    "is_local",
    "late",
    "one_too_many",
    "token_check",
]

Check: TypeAlias = Callable[[Scope], Response | None]

SCHEME = b"bearer "
TOO_MANY_CONNECTIONS = "too many connections; retry after 1 second"
UNAUTHORIZED = "send the header authorization: bearer TOKEN, with the token of this server"


@dataclass(frozen=True, slots=True)
class Arrival:
    """Data of a connection about its request; in the scope's `state`, under `key`.

    Attributes:
        deadline: When the request must have arrived, by the loop's clock.
        has_room: Whether the connection is within the limit of connections.
    """

    deadline: float
    has_room: bool
    key: ClassVar[str] = "refllm_arrival"


class CheckMiddleware:
    """Answers a request with the response of a check, or passes it on where that is None."""

    def __init__(self, app: ASGIApp, check: Check) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        response = self._check(scope) if scope["type"] == "http" else None
        await (self._app if response is None else response)(scope, receive, send)


def check_connection(scope: Scope) -> Response | None:
    """Return a 503 for a request over a connection beyond the limit."""
    arrival = _arrival(scope)
    return None if arrival is None or arrival.has_room else one_too_many(scope["path"])


def token_check(token: str) -> Check:
    """Return the check that answers 401 to a request without the token, whatever its path."""
    expected = token.encode()

    def check(scope: Scope) -> Response | None:
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        is_bearer = len(sent) == 1 and sent[0][: len(SCHEME)].lower() == SCHEME
        # In constant time: the duration must not reveal how much of the token is right.
        if is_bearer and hmac.compare_digest(sent[0][len(SCHEME) :].strip(), expected):
            return None
        return refusal(scope["path"], 401, "unauthorized", UNAUTHORIZED)

    return check


def host_check(hosts: Iterable[str], origins: Iterable[str]) -> Check:
    """Return the check that answers 403 to requests of other sites' web pages.

    A page whose name resolves to this machine (DNS rebinding) sends its own name as `Host`; any
    other page sends its own as `Origin`. Source: RFC 9110, 7.2; RFC 6454, 7.

    Args:
        hosts: Names that clients may use for the server besides those of this machine.
        origins: Allowed origins, such as "https://app.example", besides this machine's and those
            of `hosts`; "*" allows all.
    """
    known_hosts = {host.lower() for host in hosts}
    known_origins = {origin.lower() for origin in origins}

    def is_known(url: str) -> bool:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            return False
        return host is not None and (host in known_hosts or is_local(host))

    def check(scope: Scope) -> Response | None:
        for name, value in scope["headers"]:
            text = value.decode("latin-1").strip().lower()
            problem = None
            if name == b"host" and not is_known(f"//{text}"):
                problem = (
                    f"the header Host is {text!r:.80}, which is not this machine; "
                    "refllm serve --allow-host NAME allows another name"
                )
            elif name == b"origin" and not (
                "*" in known_origins or text in known_origins or is_known(text)
            ):
                problem = (
                    f"the header Origin is {text!r:.80}, a page of another site; "
                    "refllm serve --cors ORIGIN allows it"
                )
            if problem is not None:
                return refusal(scope["path"], 403, InvalidInput.kind, problem)
        return None

    return check


def is_local(host: str) -> bool:
    """Return whether a name or address can only be this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761, 6.3


def head_as_get(app: ASGIApp) -> ASGIApp:
    """Return an application that answers HEAD as GET; the HTTP server leaves out the body."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await app(scope, receive, send)

    return answer


class ShutdownMiddleware:
    """Answers 503 to requests that the server cancels when it shuts down."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; an answer that has begun is aborted."""
        has_begun = False

        async def watched_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if not has_begun:
                response = _closing(unavailable(scope["path"], UNAVAILABLE[Closed]))
                # Cancelled again when the loop ends, if the client does not read.
                with contextlib.suppress(asyncio.CancelledError):
                    await response(scope, receive, send)


class BodyMiddleware:
    """Reads the whole body first, within the limits of its length and its time to arrive."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 413 or 408, or pass on a body that has arrived."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes, seconds = self._limits.max_body_bytes, self._limits.arrival_seconds
        arrival = _arrival(scope)
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(now + seconds if arrival is None else arrival.deadline):
                body = await _body(scope, receive, max_bytes)
        except TimeoutError:
            await late(scope["path"], seconds)(scope, receive, send)
            return
        if body is None:
            message = f"the body is longer than this server's limit of {max_bytes} bytes"
            await refusal(scope["path"], 413, InvalidInput.kind, message)(scope, receive, send)
            return
        # A body is JSON, whatever its type: Spin's client sends none, and `curl -d` sends a form's.
        # In the scope itself, not in a copy: `MetricsMiddleware` finds there what the router adds.
        scope["headers"] = [
            *(header for header in scope["headers"] if header[0] != b"content-type"),
            (b"content-type", b"application/json"),
        ]
        replay: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def receive_again() -> Message:
            nonlocal replay
            if replay is None:
                return await receive()
            message, replay = replay, None
            return message

        await self._app(scope, receive_again, send)


def late(path: str, seconds: float) -> Response:
    """Return the answer to a request for that path that did not arrive in so many seconds."""
    message = f"the request did not arrive within this server's limit of {seconds:g} s"
    return _closing(refusal(path, 408, InvalidInput.kind, message))


def one_too_many(path: str) -> Response:
    """Return the answer to a request for that path over a connection beyond the limit."""
    return _closing(unavailable(path, TOO_MANY_CONNECTIONS))


def _arrival(scope: Scope) -> Arrival | None:
    """Return the connection's data; None under an HTTP server other than refllm's."""
    arrival: Arrival | None = scope.get("state", {}).get(Arrival.key)
    return arrival


def _closing(response: Response) -> Response:
    """Return the response as the last of its connection."""
    response.headers["connection"] = "close"
    return response


async def _body(scope: Scope, receive: Receive, max_bytes: int) -> bytes | None:
    """Return the body; None where it is, or announces that it is, longer than `max_bytes`."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > max_bytes:
            return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > max_bytes:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return bytes(body)


class MetricsMiddleware:
    """Counts each request's status and duration.

    Args:
        app: The application.
        count: Called with the route, the status and the seconds.
    """

    def __init__(self, app: ASGIApp, count: Callable[[str, int, float], object]) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            # The application's route, and not the path, which is any text of a client.
            route = getattr(scope.get("route"), "path", "other")
            self._count(route, status, time.monotonic() - start)
