"""A Spin application as an ASGI application: requests go to components, responses come back.

    app = SpinApp(application, Host(), engines)

Each component's request runs in a thread. A response is sent as soon as the component has returned;
of a component that still writes to the body, what is written so far. How many connections there may
be, and how slow a client may be, is limited by `refllm.server.connections`.

Sources: ASGI specification 3.0; RFC 9112 and RFC 9110 for what is refused;
https://spinframework.dev/http-trigger for the health check.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any

from refllm.errors import LlmRuntimeError
from refllm.interface import Engine
from refllm.server.connections import Arrival, ConnectionLimits, Refusal, connection_class
from refllm.wasm.guest import STOPPED, GuestFailed, Output
from refllm.wasm.host import Host, Program, Services
from refllm.wasm.http.application import Application
from refllm.wasm.http.routes import Match, best_match
from refllm.wasm.wasi.http import (
    CONNECTION_HEADERS,
    METHODS,
    Request,
    Response,
    ResponseOutparam,
)

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["SpinApp", "connection_with"]

HEALTH = "/.well-known/spin/health"
ORIGIN = re.compile(r"^https?://[^/?]*", re.IGNORECASE)
CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
LENGTH = re.compile(rb"[0-9]{1,19}")
NO_BODY = (204, 304)
# A response of 200 to CONNECT would begin a tunnel (RFC 9110, 9.3.6), which no component can serve.
ANSWERED_METHODS = [method for method in METHODS if method != "CONNECT"]
CLIENT_CLOSED_REQUEST = 499  # nginx's name, for the log

MAX_LINE_BYTES = 64 * 1024
MAX_HEADERS = 100
UNREAD_BYTES = 1024 * 1024  # of a refused request, which are read so that the client reads why
SECONDS_UNREAD = 2.0
SECONDS_UNSENT = 0.25
"""How long a response is held back that may soon be whole, and is then sent with its length."""
SECONDS_TO_END = 1.0  # for guests, when no client waits any more

TOO_MANY = "too many connections, the limit is {}; retry after 1 second"
TOO_MANY_GUESTS = "too many requests, the limit is {}; retry after 1 second"
TOO_LATE = "the request did not arrive within the limit of {:g} s"
REASONS = {
    414: "the first line of the request is too long",
    431: "the head of the request has a line that is too long, or too many lines",
    505: "HTTP/1.0 and HTTP/1.1 are spoken here",
}

logger = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request is refused with `status`; the message is the reason."""

    def __init__(self, status: int, message: str, *, is_read: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_read = is_read  # the whole request


class ClientGoneError(Exception):
    """The client has closed the connection."""


def connection_with(*, max_connections: int, arrival_seconds: float) -> type[asyncio.Protocol]:
    """Return the class of the connections in front of a `SpinApp`.

    Args:
        max_connections: How many may be open.
        arrival_seconds: The time for a request to arrive, and for a client to read 64 KiB.
    """
    own = {
        408: TOO_LATE.format(arrival_seconds),
        503: TOO_MANY.format(max_connections),
        **REASONS,
    }

    def refuse(status: int, reason: str) -> Refusal:
        problem = own.get(status, f"the request is not HTTP/1.1: {reason:.200}")
        response = _text_response(status, f"refllm: {problem}")
        return Refusal(status, _headers(response), response.body)

    limits = ConnectionLimits(connections=max_connections, arrival_seconds=arrival_seconds)
    return connection_class(limits, refuse)


class SpinApp:
    """The ASGI application. Its lifespan starts the host and ends it.

    Args:
        application: From spin.toml.
        host: Runs the components.
        engines: An engine for each component, by its id.
        max_body_bytes: Of one request.
        max_connections: How many components may run at once; a connection has one at most.
        arrival_seconds: The time for a request to arrive where the connection sets no deadline.

    Raises:
        LlmRuntimeError: Names a component, and its file, that cannot run.
    """

    def __init__(
        self,
        application: Application,
        host: Host,
        engines: Mapping[str, Engine],
        *,
        max_body_bytes: int = 16 * 1024 * 1024,
        max_connections: int = 128,
        arrival_seconds: float = 30.0,
    ) -> None:
        self._application = application
        self._host = host
        self._max_body_bytes = max_body_bytes
        self._max_connections = max_connections
        self._arrival_seconds = arrival_seconds
        self._threads = ThreadPoolExecutor(max_connections, "refllm-wasm")
        self._components: dict[str, tuple[Program, Services]] = {}
        for id_, component in application.components.items():
            try:
                program = host.load_handler(component.source)
            except LlmRuntimeError as error:
                problem, *fixes = error.args
                raise LlmRuntimeError(f"component {id_}: {problem}", *fixes) from error
            services = Services(
                engine=engines[id_],
                environment=component.environment,
                variables=component.variables,
                files=component.files,
            )
            self._components[id_] = program, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or start and end with the server."""
        if scope["type"] == "lifespan":
            await receive()
            self._host.__enter__()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self._threads.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(self._host.close, SECONDS_TO_END)
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            response = await self._response(scope, receive, send)
        except ClientGoneError:
            return
        except RefusedError as error:
            await _refuse(error, receive, send)
            return
        except asyncio.CancelledError:  # the server ends
            response = _text_response(503, f"refllm: {STOPPED}")
        except Exception as error:  # noqa: BLE001 - the client gets a response whatever it is
            problem = f"unexpected {type(error).__name__}: {error}; this is a bug in refllm"
            logger.error("a request failed: %s", problem)
            response = _text_response(500, f"refllm: {problem}")
        if response is not None:
            await _send_start(send, response, _length(response, is_head=scope["method"] == "HEAD"))
            body = b"" if response.status in NO_BODY else response.body
            await send({"type": "http.response.body", "body": body})

    async def _response(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Return the whole response to a request; None where it has been sent.

        Raises:
            ClientGoneError: The client has closed the connection.
            RefusedError: The request is not taken.
        """
        loop = asyncio.get_running_loop()
        arrival = scope.get("state", {}).get(Arrival.key) or Arrival(
            loop.time() + self._arrival_seconds, has_room=True
        )
        if not arrival.has_room:
            raise RefusedError(503, TOO_MANY.format(self._max_connections))
        _check_head(scope)
        body = await self._body(scope, receive, arrival.deadline)
        # A target is a path with a query, a URL, or an asterisk (OPTIONS); a component gets a path.
        query = scope["query_string"]
        raw_target = (scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1")
        target = ORIGIN.sub("", re.sub("^//+", "/", raw_target))
        if not target.startswith("/"):
            target = f"/{target.removeprefix('*')}"
        path = target.partition("?")[0]
        if path == HEALTH:
            return _text_response(200, "OK")
        match = best_match(self._application.routes, path)
        if match is None:
            return _text_response(404, f"refllm: no route of the application matches {path}")
        # A model's answer for a client that has gone cannot be interrupted, and has no connection.
        if self._host.n_guests >= self._max_connections:
            raise RefusedError(503, TOO_MANY_GUESTS.format(self._max_connections), is_read=True)
        return await self._run(match, _request(scope, match, target, body), receive, send)

    async def _body(self, scope: Scope, receive: Receive, deadline: float) -> bytes:
        """Return the whole body. Raises: as `_response`."""
        limit = self._max_body_bytes
        too_long = f"the body is longer than the limit of {limit} bytes"
        if any(n == b"content-length" and int(value) > limit for n, value in scope["headers"]):
            raise RefusedError(413, too_long)
        body = bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    body += message.get("body", b"")
                    is_whole = not message.get("more_body", False)
                    if len(body) > limit:
                        raise RefusedError(413, too_long, is_read=is_whole)
                    if is_whole:
                        return bytes(body)
        except TimeoutError:
            raise RefusedError(408, TOO_LATE.format(self._arrival_seconds)) from None

    async def _run(
        self, match: Match, request: Request, receive: Receive, send: Send
    ) -> Response | None:
        """Have a component answer, and log what it prints. Returns and raises: as `_response`."""
        id_ = match.route.component
        output = Output()
        begin = time.monotonic()
        status, response = 500, None
        try:
            status, response = await self._respond(id_, request, output, receive, send)
        except GuestFailed as error:
            logger.error("%s: failed: %s", id_, _printable(str(error)))
            response = _text_response(500, f"refllm: component {id_} failed: {error}")
        except ClientGoneError:
            status = CLIENT_CLOSED_REQUEST
            raise
        finally:
            milliseconds = (time.monotonic() - begin) * 1000
            if output.text():
                lines = [f"{id_}| {_printable(line)}" for line in output.text().splitlines()]
                logger.info("%s", "\n".join(lines))
            line = f"{id_}: {request.method} {_printable(request.target)} {status}"
            logger.info("%s, %.0f ms", line, milliseconds)
        return response

    async def _respond(
        self, id_: str, request: Request, output: Output, receive: Receive, send: Send
    ) -> tuple[int, Response | None]:
        """Return the status and the whole response of a component, None where it has been sent.

        Raises:
            GuestFailed: The component failed before its response began.
            ClientGoneError: The client has closed the connection; the component is ended.
        """
        loop = asyncio.get_running_loop()
        changed, end = asyncio.Event(), threading.Event()
        outparam = ResponseOutparam(partial(loop.call_soon_threadsafe, changed.set))
        program, services = self._components[id_]
        respond = partial(
            self._host.respond, program, request, services, output, outparam=outparam, end=end
        )
        guest: asyncio.Future[Response] = loop.run_in_executor(self._threads, respond)
        gone = loop.create_task(_until_gone(receive))
        for task in (guest, gone):
            task.add_done_callback(lambda _: changed.set())
        guest.add_done_callback(lambda it: it.cancelled() or it.exception())
        is_sent = False
        try:
            while not guest.done() and (outparam.begun is None or request.method == "HEAD"):
                await _changed(changed, gone)
            if not guest.done():
                either: set[asyncio.Future[Any]] = {guest, gone}
                await asyncio.wait(either, timeout=SECONDS_UNSENT)
            if guest.done():
                response = guest.result()
                return response.status, response
            begun = outparam.begun
            assert begun is not None
            is_sent = True
            await _send_start(send, Response(begun.status, tuple(begun.fields), b""), None)
            n_bytes = 0
            while True:
                is_whole = guest.done()
                data = bytes(begun.data[n_bytes:])
                n_bytes += len(data)
                if begun.status not in NO_BODY and data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                if is_whole:
                    break
                await _changed(changed, gone)
            guest.result()
            await send({"type": "http.response.body"})
        except (GuestFailed, asyncio.CancelledError) as error:
            failure = error if isinstance(error, GuestFailed) else GuestFailed(STOPPED)
            if not is_sent:
                raise failure from None
            # The body's end is not sent, so that the client sees that the response is cut off.
            logger.error("%s: failed: %s", id_, _printable(str(failure)))
            return 500, None
        else:
            return begun.status, None
        finally:
            end.set()
            guest.cancel()  # if it waits for a thread
            gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _changed(changed: asyncio.Event, gone: asyncio.Task[None]) -> None:
    """Wait until a component has done something. Raises: ClientGoneError."""
    await changed.wait()
    changed.clear()
    if gone.done():
        raise ClientGoneError


async def _refuse(error: RefusedError, receive: Receive, send: Send) -> None:
    """Send a refusal, the last response of its connection."""
    logger.info("a request is refused: %d, %s", error.status, error)
    response = _text_response(error.status, f"refllm: {error}", (("connection", b"close"),))
    await _send_start(send, response, len(response.body))
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    if error.status != 408 and not error.is_read:
        # A socket that is closed with unread data is reset, which can discard the response.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS_UNREAD):
                n_bytes, is_whole = 0, False
                while n_bytes <= UNREAD_BYTES and not is_whole:
                    message = await receive()
                    n_bytes += len(message.get("body", b""))
                    is_whole = not message.get("more_body", False)
    await send({"type": "http.response.body"})


async def _send_start(send: Send, response: Response, n_bytes: int | None) -> None:
    headers = _headers(response)
    if n_bytes is not None:
        headers.append((b"content-length", b"%d" % n_bytes))
    if all(name != b"date" for name, _ in headers):
        headers.append((b"date", formatdate(usegmt=True).encode()))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})


def _length(response: Response, *, is_head: bool) -> int | None:
    """Return the content-length; a response to HEAD may have that of a response to GET."""
    if response.status in NO_BODY and not is_head:
        return None
    named = [value for name, value in response.headers if name.lower() == "content-length"]
    if is_head and named and LENGTH.fullmatch(named[-1]):
        return int(named[-1])
    return None if response.status in NO_BODY else len(response.body)


def _text_response(status: int, text: str, headers: tuple[tuple[str, bytes], ...] = ()) -> Response:
    """Return a response of the host's own."""
    headers = (("content-type", b"text/plain; charset=utf-8"), *headers)
    if status == 503:
        headers = (*headers, ("retry-after", b"1"))
    return Response(status, headers, f"{text}\n".encode("utf-8", "replace"))


def _headers(response: Response) -> list[tuple[bytes, bytes]]:
    """Return headers for ASGI, without the length. h11 refuses white space around a value."""
    pairs = [(name.lower().encode(), value.strip(b" \t")) for name, value in response.headers]
    return [pair for pair in pairs if pair[0] != b"content-length"]


def _check_head(scope: Scope) -> None:
    """Raise `RefusedError` for what h11 takes, and servers may read in two ways or not at all."""
    version = scope["http_version"]
    if version not in ("1.0", "1.1"):
        if version < "1":
            raise RefusedError(400, "the first line of a request must be METHOD TARGET HTTP/1.1")
        raise RefusedError(505, REASONS[505])
    if scope["method"] not in ANSWERED_METHODS:
        raise RefusedError(501, f"the method must be one of {', '.join(ANSWERED_METHODS)}")
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_LINE_BYTES:
        raise RefusedError(414, REASONS[414])
    headers = scope["headers"]
    sizes = [len(name) + len(value) for name, value in headers]
    if len(headers) > MAX_HEADERS or max(sizes, default=0) > MAX_LINE_BYTES:
        raise RefusedError(431, REASONS[431])
    if any(CONTROLS.search(value) for _, value in headers):
        raise RefusedError(400, "each line of a request's head must be NAME: VALUE")
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
        raise RefusedError(400, "the request has both a content-length and a transfer-encoding")


def _request(scope: Scope, match: Match, target: str, body: bytes) -> Request:
    """Return a request as a component sees it."""
    headers = [(name.decode("latin-1"), value) for name, value in scope["headers"]]
    hosts = [value.decode("latin-1") for name, value in headers if name == "host" and value]
    authority = hosts[0] if hosts else _address(*scope["server"])
    client = _address(*scope["client"])
    return Request(
        method=scope["method"],
        target=target,
        headers=(
            # Without those of the connection, and those that only the host may set.
            *(
                header
                for header in headers
                if header[0] not in CONNECTION_HEADERS and not header[0].startswith("spin-")
            ),
            *match.headers(full_url=f"http://{authority}{target}", client=client),
        ),
        body=body,
        authority=authority,
    )


def _address(host: str, port: int) -> str:
    """Return host and port as a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _printable(text: str) -> str:
    """Return the text with characters escaped that could move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
