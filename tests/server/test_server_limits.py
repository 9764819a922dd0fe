"""What slow clients and many connections come to at `refllm serve`, and what is counted."""

from __future__ import annotations

import json
import re
import select
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import pytest

from refllm.testing.server_process import running_server
from tests.support.client import (
    BODY_WITHOUT_END,
    HEAD_WITHOUT_END,
    Answer,
    answer_to_drops,
    ask,
    connected,
    eventually,
    http_connection,
    is_idle,
)

ONE_AND_A_HALF = (
    b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nx-slow: "
)
CHUNKS_WITHOUT_END = (
    b"POST /infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n"
)
GENERATED = re.compile(rb"refllm_generated_tokens_total ([0-9.]+)")
STORY: Mapping[str, object] = {"model": "tiny-chat", "prompt": "Once upon a time", "seed": 1}


@pytest.fixture(scope="module")
def hasty_url() -> Iterator[str]:
    with running_server(["--max-arrival-seconds", "0.5", "--max-body-bytes", "90000"]) as server:
        yield server.url


# Slow clients


@pytest.mark.parametrize(
    ("begin", "status"),
    [
        (HEAD_WITHOUT_END, b"408"),
        (CHUNKS_WITHOUT_END, b"408"),
        (ONE_AND_A_HALF, b"408"),
        (BODY_WITHOUT_END, b"413"),  # refused at once, without reading the body
    ],
    ids=["head", "body", "second head", "refused body"],
)
def test_a_client_that_sends_too_slowly_gets_408_and_is_disconnected(
    begin: bytes, status: bytes, hasty_url: str
) -> None:
    *_, answer = answer_to_drops(hasty_url, begin).split(b"HTTP/1.1 ")
    assert answer.startswith(status)
    if status == b"408":
        assert b"connection: close" in answer.lower()
        assert b"did not arrive within this server's limit of 0.5 s" in answer


def test_head_and_body_share_one_time_limit(hasty_url: str) -> None:
    answer = answer_to_drops(hasty_url, CHUNKS_WITHOUT_END.replace(b"\r\n\r\n", b"\r\nx: "))
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_silent_client_is_disconnected(hasty_url: str) -> None:
    with connected(hasty_url) as connection:
        assert connection.recv(1) == b""


def test_the_time_limit_restarts_with_each_request_of_a_connection() -> None:
    # As much as a client may be kept from sending by what else the machine does.
    seconds = 3.0
    with running_server(["--max-arrival-seconds", str(seconds)]) as server:
        assert asked_twice_with_a_rest_between(server.url, 1.1 * seconds) == [200, 200]


def asked_twice_with_a_rest_between(url: str, seconds: float) -> list[int]:
    """The statuses of two requests on one connection, which rests between them and stays open."""
    statuses = []
    connection = http_connection(url)
    with closing(connection):
        for rests in (True, False):
            connection.request("POST", "/v1/completions", json.dumps({**STORY, "max_tokens": 400}))
            response = connection.getresponse()
            assert response.read()[:1] == b"{"
            statuses.append(response.status)
            if rests:
                assert select.select([connection.sock], [], [], seconds) == ([], [], [])
    return statuses


# Many connections


@contextmanager
def held(url: str) -> Iterator[None]:
    """A connection whose request does not come."""
    with connected(url) as connection:
        connection.sendall(b"GET ")
        yield


def test_a_connection_beyond_the_limit_gets_503_and_retry_after() -> None:
    with running_server(["--max-connections", "1"]) as server:
        with held(server.url):
            spin, openai = ask(server.url, "/healthz"), ask(server.url, "/v1/models")
        eventually(lambda: ask(server.url, "/healthz").status == 200)
    for answer in (spin, openai):
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["connection"] == "close"
    assert "too many connections; retry after 1 second" in spin.json
    assert "too many connections; retry after 1 second" in openai.json["error"]["message"]


# What is counted


def n_generated(url: str) -> float:
    """What is counted when nothing goes on: a step may end later than the answer it was for."""
    eventually(lambda: is_idle(url))
    found = GENERATED.search(ask(url, "/metrics").body)
    return float(found[1]) if found else 0.0


def completion(url: str, **options: object) -> Answer:
    return ask(url, "/v1/completions", {**STORY, "max_tokens": 40, **options})


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_counted_where_a_stop_ends_the_text(stream: bool, url: str) -> None:
    text = completion(url).json["choices"][0]["text"]
    before = n_generated(url)
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = completion(url, stop=text[20:24], stream=stream, **options)
    last = answer.body.split(b"data: ")[-2] if stream else answer.body
    n_tokens = json.loads(last)["usage"]["completion_tokens"]
    assert 0 < n_tokens < 40
    assert n_generated(url) - before >= n_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_counted_once(stream: bool, url: str) -> None:
    before = n_generated(url)
    completion(url, stream=stream, max_tokens=7)
    assert n_generated(url) - before == 7


def test_tokens_are_counted_for_a_client_that_disconnects(url: str) -> None:
    before = n_generated(url)
    body = json.dumps({**STORY, "max_tokens": 4000, "temperature": 5, "top_k": 0, "stream": True})
    connection = http_connection(url)
    with closing(connection):
        connection.request("POST", "/v1/completions", body)
        assert connection.getresponse().readline().startswith(b"data: ")
    assert n_generated(url) > before


# Long texts

LONG = "é" * 51  # 102 bytes


@pytest.fixture(scope="module")
def curt_url() -> Iterator[str]:
    with running_server(["--max-text-bytes", "100"]) as server:
        yield server.url


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("/infer", {"model": "tiny-chat", "prompt": LONG}, "the prompt"),
        ("/embed", {"model": "tiny-embed", "input": ["a", LONG]}, "text 2 of 2"),
        ("/v1/completions", {"model": "tiny-chat", "prompt": ["a", LONG]}, "the prompt"),
        ("/v1/embeddings", {"model": "tiny-embed", "input": LONG}, "text 1 of 1"),
        (
            "/v1/chat/completions",
            {"model": "tiny-chat", "messages": [{"role": "user", "content": "é" * 50}] * 2},
            "the chat",
        ),
    ],
)
def test_a_text_over_the_byte_limit_is_refused(
    path: str, body: object, what: str, curt_url: str
) -> None:
    answer = ask(curt_url, path, body)
    assert answer.status == 400
    assert f"{what} has " in answer.body.decode()
    assert "this server's limit is 100 (--max-text-bytes)" in answer.body.decode()


def test_a_text_of_exactly_the_byte_limit_is_answered(curt_url: str) -> None:
    body = {"model": "tiny-embed", "input": ["é" * 50, "a" * 100]}
    assert ask(curt_url, "/embed", body).status == 200
