"""One request over HTTP, and its answer, whole and in time; through no proxy, after no redirect."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refllm.conform.reply import MOST_ANSWER_BYTES

__all__ = [
    "Address",
    "ConnectionRefused",
    "ExchangeError",
    "Request",
    "Response",
    "exchange",
    "is_listening",
]

CHUNK = 1 << 16
PROBES = 5
PROBE_SECONDS = 0.1
PORTS = {"http": 80, "https": 443}


class ExchangeError(Exception):
    """No whole answer came; the message says what happened, and what to do."""


class ConnectionRefused(ExchangeError):
    """Nothing listens at the address."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server: "http" or "https", a host, and a port."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Address:
        """The server of a URL, of which, as in Spin, the path does not count.

        Errors: `ValueError` saying what is wrong.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError("it must begin with http:// or https:// and a host")
        if "@" in parts.netloc:
            raise ValueError("it must hold no name and no password; the token is an option")
        return cls(parts.scheme, parts.hostname, parts.port or PORTS[parts.scheme])

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Request:
    """A method, a path, headers, and a body, None where nothing is sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Response:
    """A status, the media type in lower case without its parameters, and a body."""

    status: int
    media_type: str
    body: bytes


def exchange(address: Address, request: Request, *, seconds: float) -> Response:
    """The server's answer, whatever its status. Errors: `ExchangeError`."""
    deadline = time.monotonic() + seconds
    connection = _connection(address, seconds)
    # Each wait for the server has a limit of its own, and headers may come drop by drop.
    opened: list[socket.socket] = []
    end = threading.Timer(seconds, _cut, (connection, opened))
    end.daemon = True
    end.start()
    try:
        connection.connect()
        sock = connection.sock
        opened.append(sock)  # the connection forgets it once an answer has begun
        sock.settimeout(_left(deadline))
        headers = {"connection": "close", **request.headers}
        connection.request(request.method, request.path, request.body, headers)
        with connection.getresponse() as response:
            body = _body(response, sock, deadline)
        return Response(response.status, response.headers.get_content_type(), body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        asked = f"{request.method} {address}{request.path}"
        refused = isinstance(error, ConnectionRefusedError)
        kind = ConnectionRefused if refused else ExchangeError
        reason = TimeoutError() if time.monotonic() >= deadline else error
        raise kind(f"{asked}: {_explained(reason, seconds)}") from error
    finally:
        end.cancel()
        connection.close()


def is_listening(address: Address, *, seconds: float) -> bool:
    """Return whether a connection is taken there, now and for half a second."""
    for _ in range(PROBES):
        try:
            socket.create_connection((address.host, address.port), timeout=seconds).close()
        except ConnectionRefusedError:
            return False
        except OSError:  # it is slow, or the way to it is broken: nothing is known
            return True
        time.sleep(PROBE_SECONDS)  # a process that ends closes its connections one by one
    return True


def _connection(address: Address, seconds: float) -> http.client.HTTPConnection:
    if address.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(
            address.host, address.port, timeout=seconds, context=context
        )
    return http.client.HTTPConnection(address.host, address.port, timeout=seconds)


def _body(response: http.client.HTTPResponse, sock: socket.socket, deadline: float) -> bytes:
    body = bytearray()
    while piece := response.read1(CHUNK):
        body += piece
        if len(body) > MOST_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {MOST_ANSWER_BYTES} bytes")
        sock.settimeout(_left(deadline))
    _left(deadline)  # a connection that was cut ends like any other
    if response.length:  # read1 says nothing where the connection ends too early
        raise http.client.IncompleteRead(bytes(body), response.length)
    return bytes(body)


def _cut(connection: http.client.HTTPConnection, opened: Sequence[socket.socket]) -> None:
    """End a connection that another thread waits for."""
    sock = opened[0] if opened else connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # an SSLSocket has another


def _left(deadline: float) -> float:
    """The seconds that are left. Errors: `TimeoutError` if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _explained(error: Exception, seconds: float) -> str:
    match error:
        case TimeoutError():
            return (
                f"no whole answer came within {seconds:g} s; allow more with --seconds, or look at "
                "the server"
            )
        case ConnectionRefusedError():
            return "the connection is refused; start the server, or check the host and the port"
        case socket.gaierror():
            return "the host is unknown; check the URL"
        case ssl.SSLCertVerificationError():
            return (
                f"the certificate is not trusted ({error.verify_message}); name its authority's "
                "file in SSL_CERT_FILE"
            )
        case ssl.SSLError():
            return "TLS fails; check whether the URL has to begin with http://"
        case ConnectionError() | http.client.IncompleteRead():
            return "the connection ended before the answer did; look at the server's log"
        case http.client.HTTPException():
            return "the answer is not HTTP/1.1; another kind of server listens there"
        case _:
            return f"{error}"
