"""An HTTP/1.1 client with what libraries lack: one deadline for all, and a limit on the answer.

    response = exchange("POST", "http://127.0.0.1:3000/infer", headers={}, body=b"{}",
                        limits=Limits(timeout=600, connect_timeout=10, body_bytes=1 << 27))

A request is sent once, on a connection of its own, so threads share nothing. No proxy is used, and
a redirect is an answer like any other. `http.client` parses the answer. The socket below it is
ours: the timeout of a Python socket is one between two reads, which a server that sends a byte now
and then never exceeds.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "KINDS",
    "MAX_SHOWN",
    "PORTS",
    "AnswerTooLong",
    "ConnectionRefused",
    "ErrorBody",
    "HttpError",
    "Limits",
    "Response",
    "TimedOut",
    "as_one_line",
    "check_server_url",
    "exchange",
    "parse_error_body",
]

CHUNK_BYTES = 1 << 16
PORTS = {"http": 80, "https": 443}
"""By the scheme of a URL that names no port."""

MAX_SHOWN = 200
"""Characters of a server's text in a message."""

KINDS: Mapping[str, type[LlmError]] = {
    error.kind: error for error in (InvalidInput, ModelNotSupported, LlmRuntimeError)
}
"""The interface's errors by the kind that a server names them with."""


class HttpError(LlmRuntimeError):
    """No whole answer arrived.

    The first argument is "METHOD url: problem", the second what to do. Neither quotes the server,
    whose text may repeat a secret of the request.
    """


class ConnectionRefused(HttpError):
    """No process listens at the address."""


class TimedOut(HttpError):
    """The deadline passed before the whole answer was there."""


class AnswerTooLong(HttpError):
    """The answer's body is longer than the limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one exchange may cost.

    Attributes:
        timeout: Seconds for the whole exchange.
        connect_timeout: Seconds to connect to each address of the host, and for the TLS handshake.
        body_bytes: The longest body of an answer.
    """

    timeout: float
    connect_timeout: float
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Response:
    """A server's whole answer.

    Attributes:
        status: The HTTP status.
        media_type: In lower case, without parameters; "text/plain" where the server names none.
        body: The body, without its chunks' framing.
        location: The header Location, None where it is absent.
        retry_after: The header Retry-After, None where it is absent.
    """

    status: int
    media_type: str
    body: bytes
    location: str | None = None
    retry_after: str | None = None


def check_server_url(url: object, *, option: str) -> urllib.parse.SplitResult:
    """Return the parts of a server's URL; its path does not count, as in Spin.

    Args:
        url: Of http or https.
        option: Where a token belongs, for the error about a password in the URL.

    Raises:
        ValueError: With what a URL must or must not be. The URL is not quoted.
    """
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be printable ASCII without spaces; write a host as xn--…")
    try:
        parts = urllib.parse.urlsplit(url)
        is_host = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket without its other half
        is_host = False
    else:
        if "@" in parts.netloc:
            raise ValueError(f"must not hold a name or password; the token is {option}")
    if not is_host:
        raise ValueError(
            "must be http://HOST or https://HOST, with a :PORT from 1 to 65535 if need be"
        )
    return parts


def exchange(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None,
    limits: Limits,
    tls: ssl.SSLContext | None = None,
) -> Response:
    """Send one request and return the server's answer, whatever its status.

    Args:
        method: Such as "GET".
        url: One that `check_server_url` accepts, with the path and query of the request.
        headers: Sent after those without which HTTP/1.1 does not work.
        body: None for a request that has none.
        limits: The deadline, and the limit on the answer.
        tls: What to trust, for https; None sends in the clear.

    Raises:
        HttpError: Where no whole answer arrives.
    """
    deadline = _Deadline(time.monotonic() + limits.timeout)
    target = urllib.parse.urlsplit(url)
    head = _head(method, url, target, headers, body)
    try:
        with _connect(target, limits, deadline, tls) as connection:
            # A server may refuse what it has not read to its end. Its answer is a better
            # explanation than the broken connection.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                unsent = memoryview(head + (body or b""))
                while unsent:
                    connection.settimeout(deadline.seconds_left())
                    unsent = unsent[connection.send(unsent[:CHUNK_BYTES]) :]
            return _receive(connection, deadline, method, limits.body_bytes)
    # ValueError: http.client reads a chunk of a negative size; or, as UnicodeError, no name for the
    # DNS can be made of this host.
    except (OSError, ValueError, http.client.HTTPException, AnswerTooLong) as error:
        kind, problem, advice = _explain(error, limits)
    # Outside the handler: the text of such an error quotes the server, and a traceback shows it.
    raise kind(f"{method} {url}: {problem}", advice)


@dataclass(frozen=True, slots=True)
class _Deadline:
    at: float  # on the monotonic clock

    def seconds_left(self, *, at_most: float = float("inf")) -> float:
        """Return the seconds until the deadline; raise `TimeoutError` if there are none."""
        seconds = self.at - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return min(seconds, at_most)


# --- The request ---------------------------------------------------------------------------------


def _head(
    method: str,
    url: str,
    target: urllib.parse.SplitResult,
    headers: Mapping[str, str],
    body: bytes | None,
) -> bytes:
    """Return the request line and the headers, up to the empty line."""
    path = urllib.parse.urlunsplit(("", "", target.path or "/", target.query, ""))
    length = {} if body is None else {"content-length": str(len(body))}
    host = target.netloc.removesuffix(f":{PORTS[target.scheme]}")
    sent = {"host": host, **length, "connection": "close", **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    # A line feed would begin another header.
    if not all(line.isprintable() and max(line) <= "\xff" for line in lines):
        raise HttpError(
            f"{method} {url}: a header has a character that HTTP does not allow",
            "check the token: it must be printable ASCII on one line; it is not shown here",
        )
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@contextlib.contextmanager
def _connect(
    target: urllib.parse.SplitResult,
    limits: Limits,
    deadline: _Deadline,
    tls: ssl.SSLContext | None,
) -> Iterator[socket.socket]:
    """Connect to the host of `target` for as long as the context lasts."""
    host = target.hostname or ""
    address = (host, target.port or PORTS[target.scheme])
    seconds = deadline.seconds_left(at_most=limits.connect_timeout)
    with socket.create_connection(address, timeout=seconds) as plain:
        if tls is None:
            yield plain
            return
        plain.settimeout(deadline.seconds_left(at_most=limits.connect_timeout))
        with tls.wrap_socket(plain, server_hostname=host) as secure:
            yield secure


# --- The answer ----------------------------------------------------------------------------------


class _Inbound(io.RawIOBase):
    """The bytes that arrive before the deadline; as much of a socket as HTTPResponse needs.

    Reading raises `TimeoutError` once the deadline has passed.
    """

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._connection.settimeout(self._deadline.seconds_left())
        return self._connection.recv_into(buffer)


def _receive(
    connection: socket.socket, deadline: _Deadline, method: str, max_bytes: int
) -> Response:
    inbound = cast("socket.socket", _Inbound(connection, deadline))
    with contextlib.closing(http.client.HTTPResponse(inbound, method=method)) as response:
        response.begin()
        body = bytearray()
        while chunk := response.read(CHUNK_BYTES):
            body += chunk
            if len(body) > max_bytes:
                raise AnswerTooLong
        if response.length:  # some versions of Python return what there is and raise nothing
            raise http.client.IncompleteRead(bytes(body), response.length)
        return Response(
            status=response.status,
            media_type=response.headers.get_content_type(),
            body=bytes(body),
            location=response.headers["Location"],
            retry_after=response.headers["Retry-After"],
        )


def _explain(error: Exception, limits: Limits) -> tuple[type[HttpError], str, str]:
    """Return the error to raise, the problem in words that are not the server's, and the advice."""
    match error:
        case AnswerTooLong():
            return (
                AnswerTooLong,
                f"query result exceeds limit of {limits.body_bytes} bytes",
                "ask for less: fewer texts, or a smaller max_tokens",
            )
        case socket.gaierror() | UnicodeError():
            return (
                HttpError,
                "the host is unknown",
                "check the URL, and that this machine's DNS works",
            )
        case ssl.SSLCertVerificationError():
            return (
                HttpError,
                f"the server's certificate is not trusted ({error.verify_message})",
                "check the URL, or name the file of the authority that signed it in SSL_CERT_FILE",
            )
        case ssl.SSLError():
            return (
                HttpError,
                f"TLS fails ({error.reason or error.strerror})",
                "check whether the URL has to begin with http:// in place of https://",
            )
        case TimeoutError():
            return (
                TimedOut,
                f"no whole answer came in time ({limits.connect_timeout:g} s to connect, "
                f"{limits.timeout:g} s in all)",
                "ask for less (a smaller max_tokens, fewer texts), or set a longer timeout",
            )
        case ConnectionRefusedError():
            return (
                ConnectionRefused,
                "the connection is refused",
                "start the server, or check the host and the port",
            )
        case http.client.IncompleteRead() | ConnectionError():
            return (
                HttpError,
                "the connection ended before the answer did",
                "look at the server's log before you ask again: it may have done its work",
            )
        case OSError():
            return (
                HttpError,
                f"the network fails ({error.strerror or error})",
                "check the URL and the network",
            )
        case _:
            return (
                HttpError,
                "the answer is not HTTP/1.1",
                "check the URL, its scheme too: another kind of server listens there",
            )


# --- Errors that servers report ------------------------------------------------------------------

Form: TypeAlias = Literal["error object", "object", "string", "text"]


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What the body of an answer reports of a failure.

    Attributes:
        kind: The interface's kind of error, a key of `KINDS`; None where the body names none.
        message: The server's words, "" where a kind stands alone.
        form: How the body is written, see `parse_error_body`.
    """

    kind: str | None
    message: str
    form: Form


def parse_error_body(body: bytes) -> ErrorBody:
    """Return the error that the body of an answer reports.

    The forms, and which servers write them:

        {"error": {"message": …, "kind" or "type" or "code": …}}   "error object"   OpenAI, refllm
        {"error": …}, {"detail": …}, any other JSON                "object"         others, FastAPI
        "kind: message", a JSON string                             "string"         refllm for Spin
        anything else                                              "text"

    Example:
        >>> parse_error_body(b'"invalid-input: top_p is 2"')
        ErrorBody(kind='invalid-input', message='top_p is 2', form='string')
    """
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text)
        match value:
            case {"error": {"message": str(message)} as error}:
                named = [error.get(key) for key in ("kind", "type", "code")]
                kind = next((kind for kind in KINDS if kind in named), None)
                return ErrorBody(kind, message, "error object")
            case {"error": str(message)} | {"detail": str(message)}:
                return ErrorBody(None, message, "object")
            case {"detail": detail}:
                return ErrorBody(None, json.dumps(detail), "object")
            case str():
                kind, _, message = value.partition(": ")
                if kind in KINDS:
                    return ErrorBody(kind, message, "string")
                return ErrorBody(None, value, "string")
            case _:
                return ErrorBody(None, text, "object")
    except (ValueError, RecursionError):
        return ErrorBody(None, text, "text")


def as_one_line(text: str) -> str:
    r"""Return as much of a server's text as fits in a message: one line, printable, or "nothing".

    Example:
        >>> as_one_line("busy\n\x07"), as_one_line("")
        ('busy ?', 'nothing')
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line[:MAX_SHOWN]) or "nothing"
