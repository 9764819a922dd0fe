"""A real HTTP port in front of an application.

    with Host() as host, Port(application, host, engines, address) as port:
        print(port.url)
        wait_for_the_end()

Each connection has its thread; http.server reads requests from it, and what it does not do is done
here: bodies in chunks, limits, and errors that reach the log in one line. A response is sent when
the guest has made the whole of it.

Source: RFC 9112; for the health check, https://spinframework.dev/http-trigger.
"""

from __future__ import annotations

import logging
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from refllm.api import Engine, InvalidInput
from refllm.spin.wasm.application import Application
from refllm.spin.wasm.body import BadRequest, read_body
from refllm.spin.wasm.guest import GuestFailed, Output
from refllm.spin.wasm.host import Host, Services
from refllm.spin.wasm.routes import Match, best_match
from refllm.spin.wasm.wasi_http import METHODS, OF_THE_CONNECTION, Request, Response

__all__ = ["Port"]

HEALTH = "/.well-known/spin/health"
IDLE_SECONDS = 30
POLL_SECONDS = 0.05
NO_BODY = (204, 304)
ORIGIN = re.compile(r"^https?://[^/?]*", re.IGNORECASE)
FOLD = re.compile(r"\r?\n[ \t]+")  # a value over several lines, as RFC 9112 had it long ago

logger = logging.getLogger(__name__)


class Port:
    """The application on a port, for as long as the context lasts."""

    def __init__(
        self,
        application: Application,
        host: Host,
        engines: Mapping[str, Engine],
        address: tuple[str, int],
        *,
        max_body_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        """Compile every component and take the port; 0 takes a free one.

        `engines` has an engine for each component. Errors: `LlmRuntimeError` naming a component's
        file that cannot run; `InvalidInput` if the port cannot be had.
        """
        self._application = application
        self._host = host
        self._max_body_bytes = max_body_bytes
        self._programs = {
            id_: host.load_handler(component.source)
            for id_, component in application.components.items()
        }
        self._services = {
            id_: Services(
                engine=engines[id_],
                environment=component.environment,
                variables=component.variables,
                files=component.files,
            )
            for id_, component in application.components.items()
        }
        self._server = _Server(address, self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="refllm-wasm-port"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens, such as http://127.0.0.1:3000."""
        return f"http://{_address(*self._server.server_address[:2])}"

    def drain(self, seconds: float) -> bool:
        """Take no more requests, and give running ones so long; whether all have ended by then."""
        self._server.shutdown()
        return self._server.wait_for_connections(seconds)

    def answer(self, request: BaseHTTPRequestHandler) -> Response:
        """The response to a request whose head has been read. Errors: `BadRequest`."""
        body = read_body(request.headers, request.rfile, limit=self._max_body_bytes)
        target = _target(request.path)
        path = target.partition("?")[0]
        if path == HEALTH:
            return _text(200, "OK")
        match = best_match(self._application.routes, path)
        if match is None:
            return _text(404, f"refllm: no route of the application matches {path}")
        return self._answer_of_component(request, match, target, body)

    def _answer_of_component(
        self, request: BaseHTTPRequestHandler, match: Match, target: str, body: bytes
    ) -> Response:
        id_ = match.route.component
        authority = request.headers.get("host") or self.url.removeprefix("http://")
        client = _address(*request.client_address[:2])
        asked = Request(
            method=request.command,
            target=target,
            headers=(
                *_headers_for_guest(request),
                *match.headers(full_url=f"http://{authority}{target}", client=client),
            ),
            body=body,
            authority=authority,
        )
        output = Output()
        begin = time.monotonic()
        try:
            response = self._host.respond(self._programs[id_], asked, self._services[id_], output)
        except GuestFailed as error:
            response = _text(500, f"refllm: component {id_} failed: {error}")
            logger.error("%s: failed: %s", id_, error)
        milliseconds = (time.monotonic() - begin) * 1000
        if output.text():
            logger.info("%s", _prefixed(id_, output.text()))
        line = f"{id_}: {asked.method} {_printable(target)} {response.status}"
        logger.info("%s, %.0f ms", line, milliseconds)
        return response


class _Server(ThreadingHTTPServer):
    """Connections in threads that can be waited for, for so long and no longer."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], port: Port) -> None:
        self.port = port
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        host, number = address
        try:
            self.address_family = socket.getaddrinfo(host, number)[0][0]
            super().__init__(address, _Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            raise InvalidInput(f"cannot listen on {host}:{number}: {error}") from error

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = map(str, self.server_address[:2])  # type: ignore[assignment]

    def wait_for_connections(self, seconds: float) -> bool:
        """End idle connections, wait for the others; whether none is left."""
        with self._changed:
            for connection in self._connections:
                _stop_reading(connection)
            return self._changed.wait_for(lambda: not self._connections, seconds)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        with self._changed:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """One line, and none for a client that has gone."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            logger.error("a connection ended: %s: %s", type(error).__name__, error)


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, has the port answer them, writes the responses."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Answer a request of any method that WASI knows."""
        try:
            response = self.server.port.answer(self)
        except BadRequest as error:
            self.close_connection = True  # what is left of the body is not read
            response = _text(error.status, f"refllm: {error}")
        self._send(response)

    def _send(self, response: Response) -> None:
        has_body = response.status not in NO_BODY
        is_head = self.command == "HEAD"
        said = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        self.send_response_only(response.status)
        if "date" not in said:
            self.send_header("date", self.date_time_string())
        for name, value in response.headers:
            if name.lower() != "content-length":
                self.send_header(name, value.decode("latin-1"))
        if is_head and "content-length" in said:  # of the body that a GET would get
            self.send_header("content-length", said["content-length"])
        elif has_body:
            self.send_header("content-length", str(len(response.body)))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        if has_body and not is_head:
            self.wfile.write(response.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """What http.server refuses by itself; everything else is logged elsewhere."""
        logger.info(format, *args)

    def log_request(self, *_: object) -> None:
        """Nothing: the port says more about a request."""


for _method in METHODS:
    setattr(_Handler, f"do_{_method}", _Handler.do_GET)


def _headers_for_guest(request: BaseHTTPRequestHandler) -> list[tuple[str, bytes]]:
    """The client's headers, but those of the connection and those that only the host may set."""
    return [
        (name.lower(), FOLD.sub(" ", value).encode("latin-1", "replace"))
        for name, value in request.headers.items()
        if name.lower() not in OF_THE_CONNECTION and not name.lower().startswith("spin-")
    ]


def _target(target: str) -> str:
    """The path with the query, of a target that may be a whole URL or, for OPTIONS, an asterisk."""
    path = ORIGIN.sub("", target)
    return path if path.startswith("/") else f"/{path.removeprefix('*')}"


def _address(host: object, port: int) -> str:
    """Host and port as a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _text(status: int, text: str) -> Response:
    headers = (("content-type", b"text/plain; charset=utf-8"),)
    return Response(status, headers, f"{text}\n".encode("utf-8", "replace"))


def _printable(text: str) -> str:
    """The text with what could move a terminal's cursor escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _prefixed(id_: str, text: str) -> str:
    return "\n".join(f"{id_}| {_printable(line)}" for line in text.splitlines())


def _stop_reading(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RD)
    except OSError:  # it has ended meanwhile
        return
