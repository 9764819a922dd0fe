"""The connections of a port: how many there may be, how slow one may be, and HTTP over them.

Each connection has its thread; http.server reads requests from it, and what it does not do is done
here: limits on how many connections there are and on how long a request may take to arrive, and
errors that reach the log in one line.

Source: RFC 9112; RFC 9110, 15.5.9 (408) and 15.6.4 (503).
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import socket
import socketserver
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import TYPE_CHECKING, Any, NoReturn, cast

from refllm.errors import InvalidInput
from refllm.wasm.http.body import LENGTH, BadRequest
from refllm.wasm.wasi.http import METHODS, Response

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Server", "text_response"]

IDLE_SECONDS = 30  # until a request begins, or a response is taken
NO_BODY = (204, 304)
HEAD_LINE = re.compile(
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:|[ \t])[^\x00-\x08\x0a-\x1f\x7f]*\r?\n|\r?\n"
)
BLANKS = (b" ", b"\t")  # which begin a line that belongs to the one before
CONTROLS = re.compile(rb"[\x00-\x1f\x7f]")
UNREAD_BYTES = 1024 * 1024  # of a request that is refused, which are read so that it sees why
DROPPED_AT_ONCE = 64 * 1024

REFUSALS = {
    400: "the first line of a request must be METHOD TARGET HTTP/1.1",
    414: "the first line of the request is too long",
    431: "the head of the request has a line that is too long, or too many lines",
    501: "no such method is answered",
    505: "HTTP/1.0 and HTTP/1.1 are spoken here",
}
"""What http.server refuses by itself, by the status that it does so with."""

# Who is sent away has so long to read why. A connection that is closed at once is reset where the
# client has sent anything, and what it was told is lost.
SECONDS_TO_READ = 2.0
MOST_READING = 64

logger = logging.getLogger(__name__)


class Server(ThreadingHTTPServer):
    """Connections in threads that can be waited for, for so long and no longer."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        answer: Callable[[BaseHTTPRequestHandler], Response],
        *,
        max_connections: int,
        arrival_seconds: float,
    ) -> None:
        """Listen; `answer` may raise `BadRequest`. Errors: `InvalidInput` if it cannot listen."""
        self.answer = answer
        self.arrival_seconds = arrival_seconds
        self._max_connections = max_connections
        self._connections: set[socket.socket] = set()
        self._sent_away: deque[tuple[float, socket.socket]] = deque()  # with when to close it
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

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, if there is room for it."""
        with self._changed:
            has_room = len(self._connections) < self._max_connections
            if has_room:
                self._connections.add(request)
        if has_room:
            super().process_request(request, client_address)
        else:
            self._send_away(request)

    def _send_away(self, connection: socket.socket) -> None:
        logger.info("a connection is sent away: %d are open", self._max_connections)
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # the client has gone
            connection.send(_no_room(self._max_connections))
            connection.shutdown(socket.SHUT_WR)
        self._sent_away.append((time.monotonic() + SECONDS_TO_READ, connection))

    def service_actions(self) -> None:
        """Close the connections of those that had time to read why they were sent away."""
        now = time.monotonic()
        while self._sent_away and (
            self._sent_away[0][0] < now or len(self._sent_away) > MOST_READING
        ):
            self._sent_away.popleft()[1].close()

    def server_close(self) -> None:
        """Listen no more."""
        super().server_close()
        while self._sent_away:
            self._sent_away.popleft()[1].close()

    def shutdown_request(self, request: Any) -> None:
        """End a connection, and make room for another."""
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line, and none for a client that has gone."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            logger.error("a connection ended: %s: %s", type(error).__name__, error)


class _Arriving(io.RawIOBase):
    """What a client sends. From its first byte on, a request has so many seconds to arrive."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._deadline: float | None = None

    def next_request(self) -> None:
        """What comes now is another request."""
        self._deadline = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """As of any raw stream. Errors: `BadRequest` if the time is up."""
        if self._deadline is None:
            n_bytes = self._connection.recv_into(buffer)
            self._deadline = time.monotonic() + self._seconds
            return n_bytes
        seconds_left = self._deadline - time.monotonic()
        if seconds_left <= 0:
            raise self._late()
        self._connection.settimeout(seconds_left)
        try:
            return self._connection.recv_into(buffer)
        except TimeoutError:
            raise self._late() from None
        finally:
            self._connection.settimeout(IDLE_SECONDS)

    def _late(self) -> BadRequest:
        message = f"the request did not arrive within the limit of {self._seconds:g} s"
        return BadRequest(408, message)


class _Head:
    """The lines of a request's head; http.server passes over those that RFC 9112 forbids."""

    def __init__(self, source: BufferedIOBase) -> None:
        self._source = source
        self._is_first = True

    def readline(self, limit: int) -> bytes:
        """As of a file. Errors: `BadRequest` for a line that two servers may read in two ways."""
        line = self._source.readline(limit)
        if len(line) == limit:  # it is too long, as http.server will say
            return line
        if not line.endswith(b"\n"):
            raise BadRequest(400, "the head of the request ends early")
        if not HEAD_LINE.fullmatch(line) or (self._is_first and line.startswith(BLANKS)):
            raise BadRequest(400, "each line of a request's head must be NAME: VALUE")
        self._is_first = False
        return line


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, has them answered, writes the responses."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: Server
    raw_requestline: bytes

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._arriving = _Arriving(self.connection, self.server.arrival_seconds)
        self.rfile = io.BufferedReader(self._arriving)

    def handle_one_request(self) -> None:
        """Read a request and answer it; one that is bad is refused, and the last one."""
        self._arriving.next_request()
        self.command, self.request_version = "", self.protocol_version  # until they are read
        try:
            super().handle_one_request()
        except BadRequest as error:
            self.close_connection = True
            logger.info("a request is refused: %d, %s", error.status, error)
            self.request_version = self.protocol_version  # with a head, whatever was asked
            self._send(text_response(error.status, f"refllm: {error}"))
            self._read_away()

    def parse_request(self) -> bool:
        """Read the head. Errors: `BadRequest` if servers may differ about what it says."""
        if CONTROLS.search(self.raw_requestline.removesuffix(b"\n").removesuffix(b"\r")):
            raise BadRequest(400, REFUSALS[400])
        whole = self.rfile
        self.rfile = cast("BufferedIOBase", _Head(whole))
        try:
            is_request = super().parse_request()
        finally:
            self.rfile = whole
        if is_request and self.request_version == self.default_request_version:
            raise BadRequest(400, REFUSALS[400])
        if is_request and len(self.headers.get_all("host", [])) > 1:
            raise BadRequest(400, "the request has more than one host")
        return is_request

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> NoReturn:
        """Refuse what http.server refuses, in text as everything else."""
        raise BadRequest(code, REFUSALS.get(code) or message or explain or "it cannot be answered")

    def _read_away(self) -> None:
        """Take what the client still sends, for a while, or its system drops what it is told."""
        with contextlib.suppress(OSError):  # the client has gone
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            deadline, n_bytes = time.monotonic() + SECONDS_TO_READ, 0
            while n_bytes < UNREAD_BYTES and (left := deadline - time.monotonic()) > 0:
                self.connection.settimeout(left)
                data = self.connection.recv(DROPPED_AT_ONCE)
                if not data:
                    return
                n_bytes += len(data)

    def do_GET(self) -> None:
        """Answer a request of any method that WASI knows."""
        try:
            response = self.server.answer(self)
        except (BadRequest, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
            said = f"unexpected {type(error).__name__}: {error}; this is a bug in refllm"
            logger.error("a request failed: %s", said)
            response = text_response(500, f"refllm: {said}")
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
        if is_head and LENGTH.fullmatch(said.get("content-length", "")):  # of what a GET would get
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


def text_response(status: int, text: str) -> Response:
    """A response of the host's own."""
    headers = (("content-type", b"text/plain; charset=utf-8"),)
    return Response(status, headers, f"{text}\n".encode("utf-8", "replace"))


def _no_room(max_connections: int) -> bytes:
    """The whole response to a connection that is one too many."""
    text = f"refllm: there are as many connections as may be, {max_connections}; come again soon\n"
    return (
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(text)}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{text}"
    ).encode()


def _stop_reading(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RD)
    except OSError:  # it has ended meanwhile
        return
