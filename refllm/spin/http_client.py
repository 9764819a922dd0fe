"""One POST over HTTP/1.1: sent once, answered before a deadline, and cut when it is too long.

`http.client` parses the answer; the socket below is ours, because a timeout of Python's sockets is
one between two pieces, and a server that sends a byte now and then would never run into it. Each
request has its own connection, so requests of several threads have nothing in common. No proxy is
asked.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from refllm.errors import LlmRuntimeError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Answer", "Limits", "post"]

CHUNK = 1 << 16  # bytes asked of the connection at once
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds for the whole exchange, seconds to connect to an address, and bytes of an answer."""

    timeout: float
    connect_timeout: float
    answer_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer, whole; a header that it does not have is None."""

    status: int
    location: str | None
    retry_after: str | None
    body: bytes


def post(
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes,
    limits: Limits,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """What the server at `url` answers to `body`, whatever the status; a redirect is an answer.

    Sent are `headers`, and those without which HTTP/1.1 does not work; `tls` None means in the
    clear. Errors: `LlmRuntimeError` that names `url`, and quotes nothing that the server sent.
    """
    deadline = _Deadline(time.monotonic() + limits.timeout)
    target = urllib.parse.urlsplit(url)
    necessary = {"host": target.netloc, "content-length": str(len(body)), "connection": "close"}
    try:
        with _connection(target, limits, deadline, tls) as connection:
            # A server may refuse what it has not read to its end; its answer says more than that.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                _send(connection, deadline, _head(target.path, {**necessary, **headers}) + body)
            return _receive(connection, deadline, limits.answer_bytes, url)
    # ValueError: http.client reads a chunk of a negative size; or, as UnicodeError, no name for the
    # DNS can be made of this host.
    except (OSError, ValueError, http.client.HTTPException) as error:
        problem, mend = _explained(error, limits)
    # Outside the handler, because such an error's own text quotes the server, which may quote us.
    raise LlmRuntimeError(f"POST {url}: {problem}", mend)


@dataclass(frozen=True, slots=True)
class _Deadline:
    at: float  # on the monotonic clock

    def left(self, *, at_most: float = float("inf")) -> float:
        """The seconds that are left. Errors: `TimeoutError` if there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, at_most)


# Out


@contextlib.contextmanager
def _connection(
    target: urllib.parse.SplitResult,
    limits: Limits,
    deadline: _Deadline,
    tls: ssl.SSLContext | None,
) -> Iterator[socket.socket]:
    """A connection to the host of `target`, for as long as the context lasts."""
    host = target.hostname or ""
    address = (host, target.port or PORTS[target.scheme])
    seconds = deadline.left(at_most=limits.connect_timeout)
    with socket.create_connection(address, timeout=seconds) as plain:
        if tls is None:
            yield plain
            return
        plain.settimeout(deadline.left(at_most=limits.connect_timeout))
        with tls.wrap_socket(plain, server_hostname=host) as secure:
            yield secure


def _head(path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _send(connection: socket.socket, deadline: _Deadline, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        connection.settimeout(deadline.left())
        rest = rest[connection.send(rest[:CHUNK]) :]


# In


class _Inbound(io.RawIOBase):
    """What comes from a connection before the deadline; as much of a socket as HTTPResponse needs.

    Errors: `TimeoutError` while it is read.
    """

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._connection.settimeout(self._deadline.left())
        return self._connection.recv_into(buffer)


def _receive(connection: socket.socket, deadline: _Deadline, limit: int, url: str) -> Answer:
    inbound = cast("socket.socket", _Inbound(connection, deadline))
    with contextlib.closing(http.client.HTTPResponse(inbound, method="POST")) as response:
        response.begin()
        return Answer(
            status=response.status,
            location=response.headers["Location"],
            retry_after=response.headers["Retry-After"],
            body=_body(response, limit, url),
        )


def _body(response: http.client.HTTPResponse, limit: int, url: str) -> bytes:
    body = bytearray()
    while piece := response.read(CHUNK):
        body += piece
        if len(body) > limit:
            raise LlmRuntimeError(
                f"POST {url}: query result exceeds limit of {limit} bytes",
                "ask for less: fewer texts, or a smaller max_tokens",
            )
    if response.length:  # some Pythons give what there is and say nothing
        raise http.client.IncompleteRead(bytes(body), response.length)
    return bytes(body)


# What is said of what went wrong


def _explained(error: Exception, limits: Limits) -> tuple[str, str]:
    """What went wrong, in words that are not the server's, and what to do."""
    match error:
        case socket.gaierror() | UnicodeError():
            return "the host is unknown", "check url, and that this machine's DNS works"
        case ssl.SSLCertVerificationError():
            return (
                f"the server's certificate is not trusted ({error.verify_message})",
                "check url, or name the file of the authority that signed it in SSL_CERT_FILE",
            )
        case ssl.SSLError():
            return (
                f"TLS fails ({error.reason or error.strerror})",
                "check whether url has to begin with http:// in place of https://",
            )
        case TimeoutError():
            return (
                f"no whole answer came in time ({limits.connect_timeout:g} s to connect, "
                f"{limits.timeout:g} s in all)",
                "ask for less (a smaller max_tokens, fewer texts), or set a longer timeout",
            )
        case ConnectionRefusedError():
            return "the connection is refused", "start the server, or check url's host and port"
        case http.client.IncompleteRead() | ConnectionError():
            return (
                "the connection ended before the answer did",
                "look at the server's log before you ask again: it may have done its work",
            )
        case OSError():
            return f"the network fails ({error.strerror or error})", "check url and the network"
        case _:
            return (
                "the answer is not HTTP/1.1",
                "check url, its scheme too: another kind of server listens there",
            )
