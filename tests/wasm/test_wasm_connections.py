"""The connections of `refllm run`: how slow a client may be, and how many there may be."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from refllm.engine import LocalEngine
from refllm.wasm.guest import Allowance, Guest, GuestFailed, Output, Turn
from refllm.wasm.host import Host, Program
from refllm.wasm.http.application import Application, ApplicationComponent
from refllm.wasm.http.asgi import SpinApp, connection_with
from refllm.wasm.http.routes import Route
from refllm.wasm.wasi.http import HttpTypes, Request, Response, ResponseOutparam
from tests.conftest import HUNG_SECONDS
from tests.support.client import (
    BODY_WITHOUT_END,
    HEAD_WITHOUT_END,
    answer_to_drops,
    connected,
    eventually,
)
from tests.support.servers import serving

ARRIVAL_SECONDS = 0.5
POST = b"POST / HTTP/1.1\r\nhost: x\r\n"
CLOSING = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
ONE_COMPONENT = Application(
    {"ok": ApplicationComponent(id="ok", source=Path("ok.wasm"), ai_models=None)},
    (Route("/...", "ok"),),
)


class FakeHost(Host):
    """Answers as a component would, with no component."""

    def __init__(self, answer: Callable[[Request], Response]) -> None:
        super().__init__()
        self._answer = answer

    def load_handler(self, path: Path) -> Program:
        return None  # type: ignore[return-value]

    def respond(self, program: Program, request: Request, *_: Any, **__: Any) -> Response:
        return self._answer(request)


def ok(_: Request) -> Response:
    return Response(200, (), b"OK\n")


def serving_answers(
    answer: Callable[[Request], Response] = ok,
    *,
    host: Host | None = None,
    max_connections: int = 10,
    arrival_seconds: float = 60.0,
) -> AbstractContextManager[str]:
    """The address of a server that says OK to everything."""
    limits: dict[str, Any] = {
        "max_connections": max_connections,
        "arrival_seconds": arrival_seconds,
    }
    engines = {"ok": LocalEngine(allowed_models=[])}
    app = SpinApp(ONE_COMPONENT, host or FakeHost(answer), engines, max_body_bytes=10**6, **limits)
    return serving(app, connection_with(**limits))


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
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n",
        b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n" + HEAD_WITHOUT_END,
    ],
    ids=["method", "head", "body", "chunks", "second head"],
)
def test_a_client_that_sends_too_slowly_gets_408_and_is_disconnected(begin: bytes) -> None:
    with serving_answers(arrival_seconds=ARRIVAL_SECONDS) as url:
        *_, last = answer_to_drops(url, begin).split(b"HTTP/1.1 ")
    assert last.startswith(b"408 Request Timeout\r\n")
    assert b"connection: close\r\n" in last
    assert last.endswith(b"\r\n\r\nrefllm: the request did not arrive within the limit of 0.5 s\n")


def test_between_two_requests_a_connection_may_rest_longer() -> None:
    # As much as a client may be kept from sending by what else the machine does.
    seconds = 3.0
    with serving_answers(arrival_seconds=seconds) as url, client(url) as connection:
        assert asked(connection).status == 200
        assert select.select([connection.sock], [], [], 1.1 * seconds) == ([], [], [])
        assert asked(connection).status == 200


def test_a_connection_beyond_max_connections_gets_503_and_retry_after() -> None:
    with serving_answers(max_connections=1) as url:
        with client(url) as first, client(url) as second:
            assert asked(first).status == 200
            refused = asked(second)
        eventually(lambda: is_answered(url))
    assert refused.status == 503
    assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")


def is_answered(url: str) -> bool:
    with client(url) as connection:
        return asked(connection).status == 200


# --- What is no HTTP -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving_answers() as url:
        yield url


def raw(url: str, request: bytes, *, is_end: bool = False) -> bytes:
    """Everything that comes back for these bytes until the server hangs up.

    With `is_end` the client sends no more, which for a whole request means that it has gone.
    """
    with connected(url) as connection:
        connection.sendall(request)
        if is_end:
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
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n", 501),
        (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", 501),
        (b"get / HTTP/1.1\r\nhost: x\r\n\r\n", 501),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\n: no name\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nblank : before\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: first\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: a\rcontent-length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: a\0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\n(x): y\r\n\r\n", 400),
    ],
)
def test_a_malformed_request_is_refused_in_plain_text(
    request_: bytes, status: int, url: str
) -> None:
    assert_refused(raw(url, request_), status)


@pytest.mark.parametrize(
    "request_",
    [b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nhost: x\r\n", b"GET / HTTP/1.1\r\nhost: x"],
)
def test_a_head_that_ends_early_is_refused_in_text(request_: bytes, url: str) -> None:
    assert_refused(raw(url, request_, is_end=True), 400)


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"content-length: -1", b"", 400),
        (b"content-length: +1", b"a", 400),
        (b"content-length: 0x1", b"a", 400),
        (b"content-length: five", b"", 400),
        (b"content-length:", b"", 400),
        (b"content-length: 1\r\ncontent-length: 2", b"ab", 400),
        (b"content-length: 1000001", b"", 413),
        (b"content-length: 3\r\ntransfer-encoding: chunked", b"0\r\n\r\n", 400),
        (b"transfer-encoding: gzip, chunked", b"0\r\n\r\n", 501),
        (b"transfer-encoding: chunked", b"-1\r\n", 400),
        (b"expect: 100-continue\r\ntransfer-encoding: chunked", b"-1\r\n", 400),
        (b"transfer-encoding: chunked", b"0x3\r\nabc\r\n0\r\n\r\n", 400),
        (b"transfer-encoding: chunked", b"g\r\n", 400),
        (b"transfer-encoding: chunked", b"\r\n", 400),
        (b"transfer-encoding: chunked", b"x\r\nabc\r\n0\r\n\r\n", 400),
        (b"transfer-encoding: chunked", b"2\r\nabc\r\n0\r\n\r\n", 400),
        (b"transfer-encoding: chunked", b"f" * 21 + b"\r\n", 400),
        (b"transfer-encoding: chunked", b"fffff\r\n" + bytes(0xFFFFF), 413),
        (b"transfer-encoding: chunked", b"3\r\nabcd\r\n0\r\n\r\n", 400),
        (b"transfer-encoding: chunked", b"0\r\n" + b"x: y\r\n" * 100_000, 400),
        (b"transfer-encoding: chunked", b"1;" + b"x" * 2**20, 400),
    ],
)
def test_a_body_without_a_clear_end_is_refused_in_text(
    head: bytes, body: bytes, status: int, url: str
) -> None:
    assert_refused(raw(url, POST + head + b"\r\n\r\n" + body), status)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"content-length: 5", b"abc"),
        (b"transfer-encoding: chunked", b""),
        (b"transfer-encoding: chunked", b"f" * 20 + b"\r\n"),
        (b"transfer-encoding: chunked", b"3\r\nab"),
        (b"transfer-encoding: chunked", b"3\r\nabc"),
        (b"transfer-encoding: chunked", b"3\r\nabc\r\n"),
        (b"transfer-encoding: chunked", b"0\r\n"),
        (b"transfer-encoding: chunked", b"0\r\nx: y"),
    ],
)
def test_a_body_that_ends_early_is_refused_in_text(head: bytes, body: bytes, url: str) -> None:
    assert_refused(raw(url, POST + head + b"\r\n\r\n" + body, is_end=True), 400)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"content-length: 1000001", b"longer than the limit of 1000000 bytes"),
        (b"content-length: " + b"9" * 23, b"bad Content-Length"),
        (b"content-length: -1", b"bad Content-Length"),
        (b"content-length: 1\r\ncontent-length: 2", b"conflicting Content-Length"),
        (b"content-length: 3\r\ntransfer-encoding: chunked", b"both"),
        (b"transfer-encoding: gzip", b"Only Transfer-Encoding: chunked is supported"),
    ],
)
def test_a_refusal_has_its_reason(head: bytes, reason: bytes, url: str) -> None:
    assert reason in raw(url, POST + head + b"\r\n\r\nabc")


def assert_refused(answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"content-type: text/plain; charset=utf-8\r\n" in head
    assert b"connection: close" in head.lower()
    assert body.startswith(b"refllm: ")
    assert body.count(b"\n") == 1


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\nhost: x\nconnection: close\n\n",
        CLOSING + b"x: a\r\n b\r\n\r\n",
        CLOSING + b"x:\r\n\r\n",
        CLOSING + b"x: \xff\t\r\n\r\n",
        CLOSING + b"content-type: multipart/form-data; boundary=x\r\ncontent-length: 3\r\n\r\nabc",
        CLOSING + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        CLOSING + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        CLOSING + b"transfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nTrailer: x\r\n\r\n",
        CLOSING + b"content-length: 3, 3\r\n\r\nabc",  # RFC 9110, 8.6
    ],
)
def test_an_unusual_but_valid_request_is_answered(request_: bytes, url: str) -> None:
    assert raw(url, request_).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_refused_before_the_end_of_its_body_gets_the_reason(url: str) -> None:
    request = POST + b"content-length: 1000001\r\n\r\n" + bytes(500_000)
    assert_refused(raw(url, request), 413)


def test_after_a_bad_request_the_next_one_is_answered(url: str) -> None:
    raw(url, b"NONSENSE\r\n\r\n")
    assert is_answered(url)


def test_an_error_in_the_host_is_500_and_keeps_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Request) -> Response:
        raise RuntimeError("a bug")

    with serving_answers(fail) as url, client(url) as connection:
        for _ in range(2):
            connection.request("GET", "/")
            response = connection.getresponse()
            assert response.status == 500
            assert b"unexpected RuntimeError: a bug" in response.read()
    assert "unexpected RuntimeError: a bug" in caplog.text


# --- Responses -----------------------------------------------------------------------------------


def test_a_client_that_does_not_read_its_response_is_disconnected() -> None:
    large = Response(200, (), bytes(64 * 2**20))
    limits: dict[str, Any] = {"max_connections": 1, "arrival_seconds": ARRIVAL_SECONDS}
    with (
        serving_answers(lambda request: large if request.body else ok(request), **limits) as url,
        connected(url) as slow,
    ):
        slow.sendall(POST + b"content-length: 1\r\n\r\na")
        eventually(lambda: is_answered(url))
        assert slow.recv(12) == b"HTTP/1.1 200"


class WritingHost(FakeHost):
    """Answers in two parts; `go_on` lets it write the second, or fail with `failure`."""

    def __init__(self, failure: GuestFailed | None = None) -> None:
        super().__init__(ok)
        self.go_on = threading.Event()
        self.end: threading.Event | None = None
        self._failure = failure

    def respond(
        self,
        program: Program,
        request: Request,
        *_: Any,
        outparam: ResponseOutparam | None = None,
        end: threading.Event | None = None,
    ) -> Response:
        turn = Turn(threading.Lock(), threading.Event(), seconds=60, set_deadline=lambda _: None)
        types = HttpTypes(Guest(turn=turn, allowance=Allowance(10**6), output=Output()))
        response = types.new_outgoing_response(types.new_fields())
        body = response.body()
        stream = body.write() if body else None
        assert outparam
        assert stream
        outparam.give(response)
        stream.write(b"one")
        self.end = end
        self.go_on.wait()
        if self._failure is not None:
            raise self._failure
        stream.write(b"two")
        return outparam.response()


def test_a_response_is_seen_while_its_component_still_writes() -> None:
    host = WritingHost()
    with serving_answers(host=host) as url, client(url) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.headers["transfer-encoding"] == "chunked"
        assert response.read(3) == b"one"
        host.go_on.set()
        assert response.read() == b"two"
        assert asked(connection).status == 200


def test_a_response_of_which_the_component_fails_in_the_middle_is_cut_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = WritingHost(GuestFailed("it trapped"))
    with serving_answers(host=host) as url, client(url) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.read(3) == b"one"
        host.go_on.set()
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    assert "ok: failed: it trapped" in caplog.text


def test_a_component_whose_client_has_gone_is_ended() -> None:
    host = WritingHost()
    with serving_answers(host=host) as url:
        with client(url) as connection:
            connection.request("GET", "/")
            connection.getresponse().read(3)
        assert host.end
        assert host.end.wait(HUNG_SECONDS)
        host.go_on.set()


class FullHost(FakeHost):
    """Has as many guests whose clients have gone as there may be connections."""

    n_guests = 10


def test_components_whose_clients_have_gone_count() -> None:
    with serving_answers(host=FullHost(ok), max_connections=10) as url, client(url) as connection:
        refused = asked(connection)
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize(
    ("status", "headers", "sent"),
    [
        (200, (("content-length", b"7"),), b"content-length: 3"),
        (200, (("x", b" spaces "),), b"x: spaces"),
        (200, (("Date", b"today"),), b"date: today"),
        (204, (), b"date: "),
        (299, (), b"HTTP/1.1 299 "),
    ],
)
def test_a_component_s_response_is_made_one_of_http(
    status: int, headers: tuple[tuple[str, bytes], ...], sent: bytes
) -> None:
    response = Response(status, headers, b"abc")
    with serving_answers(lambda _: response) as url:
        head, _, body = raw(url, CLOSING + b"\r\n").partition(b"\r\n\r\n")
    assert sent in head
    assert head.lower().count(b"date:") == 1
    assert body == (b"" if status == 204 else b"abc")
