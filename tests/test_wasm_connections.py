"""The connections of `refllm run`: how slow a client may be, and how many there may be."""

from __future__ import annotations

import http.client
import select
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from refllm.spin.wasm.body import read_body
from refllm.spin.wasm.connections import Server, text_response
from refllm.spin.wasm.wasi_http import Response
from tests.conftest import HUNG_SECONDS
from tests.listening import listening
from tests.server import eventually
from tests.slow_client import BODY_WITHOUT_END, HEAD_WITHOUT_END, answer_to_drops

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
