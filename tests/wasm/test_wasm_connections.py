"""The connections of `refllm run`: how slow a client may be, and how many there may be."""

from __future__ import annotations

import http.client
import select
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import pytest

from refllm.wasm.http.body import read_body
from refllm.wasm.http.connections import Server, text_response
from refllm.wasm.wasi.http import Response
from tests.conftest import HUNG_SECONDS
from tests.support.listening import listening
from tests.support.server import eventually
from tests.support.slow_client import BODY_WITHOUT_END, HEAD_WITHOUT_END, answer_to_drops

ARRIVAL_SECONDS = 0.5


def answer(request: BaseHTTPRequestHandler) -> Response:
    """As a port reads a request, with no component behind it."""
    read_body(request.headers, request.rfile, limit=10**6)
    return text_response(200, "OK")


@contextmanager
def serving(*, max_connections: int = 10, arrival_seconds: float = 60.0) -> Iterator[str]:
    """The address of a server that says OK to everything."""
    server = Server(
        ("127.0.0.1", 0),
        answer,
        max_connections=max_connections,
        arrival_seconds=arrival_seconds,
    )
    with listening(server) as port:
        yield f"http://127.0.0.1:{port}"
        assert server.wait_for_connections(HUNG_SECONDS)


@contextmanager
def client(url: str) -> Iterator[http.client.HTTPConnection]:
    with closing(
        http.client.HTTPConnection(url.removeprefix("http://"), timeout=HUNG_SECONDS)
    ) as connection:
        yield connection


def asked(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    connection.request("GET", "/")
    response = connection.getresponse()
    response.read()
    return response


@pytest.mark.parametrize(
    "begin",
    [
        b"GET",
        HEAD_WITHOUT_END,
        BODY_WITHOUT_END,
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n",
        b"HEAD / HTTP/1.1\r\n\r\n" + HEAD_WITHOUT_END,
    ],
    ids=["method", "head", "body", "chunks", "second head"],
)
def test_a_client_that_sends_too_slowly_is_not_heard_to_its_end(begin: bytes) -> None:
    with serving(arrival_seconds=ARRIVAL_SECONDS) as url:
        *_, last = answer_to_drops(url, begin).split(b"HTTP/1.1 ")
    assert last.startswith(b"408 Request Timeout\r\n")
    assert b"connection: close\r\n" in last
    assert last.endswith(b"\r\n\r\nrefllm: the request did not arrive within the limit of 0.5 s\n")


def test_between_two_requests_a_connection_may_rest_longer() -> None:
    # As much as a client may be kept from sending by what else the machine does.
    seconds = 3.0
    with serving(arrival_seconds=seconds) as url, client(url) as connection:
        assert asked(connection).status == 200
        assert select.select([connection.sock], [], [], 1.1 * seconds) == ([], [], [])
        assert asked(connection).status == 200


def test_a_connection_too_many_is_told_to_come_again() -> None:
    with serving(max_connections=1) as url:
        with client(url) as first, client(url) as second:
            assert asked(first).status == 200
            refused = asked(second)
        assert eventually(lambda: is_answered(url))
    assert refused.status == 503
    assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")


def is_answered(url: str) -> bool:
    with client(url) as connection:
        return asked(connection).status == 200


# --- What is no HTTP -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


def raw(url: str, request: bytes) -> bytes:
    """Everything that comes back for these bytes, after which the client sends no more."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), HUNG_SECONDS) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/0.9\r\n\r\n", 400),
        (b"POST /\r\n\r\n", 400),
        (b"GET / and more HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/one\r\n\r\n", 400),
        (b"GET / FTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1.1\r\n\r\n", 400),
        (b"GET /\0 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"BREW / HTTP/1.1\r\n\r\n", 501),
        (b"get / HTTP/1.1\r\n\r\n", 501),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n: no name\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nblank : before\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: first\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: a\rcontent-length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: a\0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n(x): y\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_is_refused_in_text(request_: bytes, status: int, url: str) -> None:
    assert_refused(raw(url, request_), status)


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"content-length: -1", b"", 400),
        (b"content-length: +1", b"a", 400),
        (b"content-length: 0x1", b"a", 400),
        (b"content-length: five", b"", 400),
        (b"content-length:", b"", 400),
        (b"content-length: 1, 1", b"a", 400),
        (b"content-length: 1\r\ncontent-length: 2", b"ab", 400),
        (b"content-length: 5", b"abc", 400),
        (b"content-length: 1000001", b"", 413),
        (b"content-length: 3\r\ntransfer-encoding: chunked", b"0\r\n\r\n", 400),
        (b"transfer-encoding: gzip, chunked", b"0\r\n\r\n", 501),
        (b"transfer-encoding: chunked", b"", 400),
        (b"transfer-encoding: chunked", b"-1\r\n", 400),
        (b"transfer-encoding: chunked", b"0x3\r\nabc\r\n0\r\n\r\n", 400),
        (b"transfer-encoding: chunked", b"g\r\n", 400),
        (b"transfer-encoding: chunked", b"\r\n", 400),
        (b"transfer-encoding: chunked", b"f" * 20 + b"\r\n", 400),
        (b"transfer-encoding: chunked", b"fffff\r\n", 413),
        (b"transfer-encoding: chunked", b"3\r\nab", 400),
        (b"transfer-encoding: chunked", b"3\r\nabc", 400),
        (b"transfer-encoding: chunked", b"3\r\nabcd\r\n0\r\n\r\n", 400),
        (b"transfer-encoding: chunked", b"3\r\nabc\r\n", 400),
        (b"transfer-encoding: chunked", b"0\r\n", 400),
        (b"transfer-encoding: chunked", b"0\r\nx: y", 400),
        (b"transfer-encoding: chunked", b"0\r\n" + b"x: y\r\n" * 200 + b"\r\n", 400),
        (b"transfer-encoding: chunked", b"1;" + b"x" * 9000 + b"\r\na\r\n0\r\n\r\n", 400),
    ],
)
def test_a_body_without_a_clear_end_is_refused_in_text(
    head: bytes, body: bytes, status: int, url: str
) -> None:
    assert_refused(raw(url, b"POST / HTTP/1.1\r\n" + head + b"\r\n\r\n" + body), status)


def assert_refused(answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"content-type: text/plain; charset=utf-8\r\n" in head
    assert b"connection: close" in head
    assert body.startswith(b"refllm: ")
    assert body.count(b"\n") == 1


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\nhost: x\n\n",
        b"GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nx:\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: \xff\t\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-type: multipart/form-data; boundary=x\r\n"
        b"content-length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    ],
)
def test_what_is_only_unusual_is_answered(request_: bytes, url: str) -> None:
    assert raw(url, request_).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_is_refused_before_it_has_sent_all_is_told_why(url: str) -> None:
    request = b"POST / HTTP/1.1\r\ncontent-length: 1000001\r\n\r\n" + bytes(500_000)
    assert_refused(raw(url, request), 413)


def test_after_a_bad_request_others_are_answered(url: str) -> None:
    raw(url, b"NONSENSE\r\n\r\n")
    assert is_answered(url)


def test_what_fails_in_the_host_is_a_500_and_no_end_of_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: BaseHTTPRequestHandler) -> Response:
        raise RuntimeError("a bug")

    server = Server(("127.0.0.1", 0), fail, max_connections=10, arrival_seconds=60.0)
    with listening(server) as port:
        answer = raw(f"http://127.0.0.1:{port}", b"GET / HTTP/1.1\r\n\r\n")
        assert server.wait_for_connections(HUNG_SECONDS)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"unexpected RuntimeError: a bug" in answer
    assert "unexpected RuntimeError: a bug" in caplog.text
