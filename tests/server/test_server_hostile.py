"""Requests that no honest client sends: each gets an answer, or is hung up on, and leaves nothing.

Never a status of 500, never a traceback in the log, never a thread or a socket that stays.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from refllm.testing.server_process import RunningServer, running_server
from tests.support.client import ask, connected, eventually

CLOSE = b"host: localhost\r\nconnection: close\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\n"
POST = b"POST /infer HTTP/1.1\r\nhost: localhost\r\n"
BODY = b'{"model":"absent","prompt":""}'
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")

OK, WRONG, ABSENT, METHOD, LATE, LONG = 200, 400, 404, 405, 408, 413
HUNG_UP: list[int] = []


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(["--max-arrival-seconds", "0.5"]) as server:
        ask(server.url, "/v1/models")  # the threads of an idle server are there
        before = n_threads_and_files(server)
        yield server
        assert ask(server.url, "/readyz").status == 200
        eventually(lambda: n_threads_and_files(server) <= before)
        assert "Traceback" not in server.log()
        assert "Exception" not in server.log()


def n_threads_and_files(server: RunningServer) -> tuple[int, int]:
    process = Path("/proc") / str(server.process.pid)
    if not process.exists():
        pytest.skip("threads and open files are counted in /proc")
    return len([*(process / "task").iterdir()]), len([*(process / "fd").iterdir()])


def statuses(url: str, sent: bytes) -> list[int]:
    """The statuses of all that comes back until the server hangs up."""
    received = b""
    with connected(url) as connection:
        with suppress(ConnectionError):  # a server may refuse what it has not read to its end
            connection.sendall(sent)
        with suppress(ConnectionError):
            while data := connection.recv(2**16):
                received += data
    return [int(status) for status in STATUS.findall(received)]


def chunked(body: bytes) -> bytes:
    return POST + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + body


def with_header(line: bytes) -> bytes:
    return GET + line + b"\r\n" + CLOSE


def with_length(length: bytes, body: bytes = BODY) -> bytes:
    return POST + b"connection: close\r\ncontent-length: " + length + b"\r\n\r\n" + body


def path(target: bytes, method: bytes = b"GET") -> bytes:
    return method + b" " + target + b" HTTP/1.1\r\n" + CLOSE


# What is sent → the statuses that may come back, of all answers together.
REQUESTS: Mapping[str, tuple[bytes, list[list[int]]]] = {
    # The request line
    "nothing but line ends": (b"\r\n" * 1000, [[LATE], [WRONG], HUNG_UP]),
    "a word": (b"hello\r\n\r\n", [[WRONG]]),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", [[WRONG]]),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", [[OK]]),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [[ABSENT, WRONG]]),
    "HTTP/3.0": (b"GET /healthz HTTP/3.0\r\n" + CLOSE, [[WRONG], [OK]]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), [[WRONG], [LATE]]),
    "bytes above 127": (b"\xff" * 1000 + b"\r\n\r\n", [[WRONG]]),
    "an unknown method": (path(b"/healthz", b"BREW"), [[METHOD]]),
    "a method in lower case": (path(b"/healthz", b"get"), [[METHOD]]),
    "a method of 60 KB": (path(b"/healthz", b"A" * 60_000), [[METHOD]]),
    "a method that is none": (path(b"/healthz", b"G@T/"), [[WRONG]]),
    "CONNECT": (path(b"localhost:1", b"CONNECT"), [[ABSENT], [METHOD]]),
    "TRACE": (path(b"/healthz", b"TRACE"), [[METHOD]]),
    "OPTIONS *": (path(b"*", b"OPTIONS"), [[ABSENT]]),
    "HEAD with a chunk that is none": (
        b"HEAD /docs/x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        [[WRONG], [ABSENT]],
    ),
    # The path
    "an absolute URL": (path(b"http://localhost/healthz"), [[OK], [ABSENT]]),
    "an absolute URL of elsewhere": (path(b"http://[::1/healthz"), [[ABSENT]]),
    "a path of 60 KB": (path(b"/" + b"a" * 60_000), [[ABSENT]]),
    "a path of 1 MB": (path(b"/" + b"a" * 2**20), [[WRONG], HUNG_UP]),
    "a null byte": (path(b"/health\0z"), [[WRONG]]),
    "a null byte, encoded": (path(b"/health%00z"), [[ABSENT]]),
    "half an encoded byte": (path(b"/%"), [[ABSENT]]),
    "no hexadecimal digits": (path(b"/%zz%"), [[ABSENT]]),
    "encoded bytes that are no UTF-8": (path(b"/%ff%fe"), [[ABSENT]]),
    "an encoded line end": (path(b"/%0d%0aset-cookie:%20a=b"), [[ABSENT]]),
    "a folder above, encoded": (path(b"/v1/models/..%2f..%2fetc%2fpasswd"), [[ABSENT]]),
    "a model that is no name": (path(b"/v1/models/%00%ff"), [[ABSENT]]),
    "two slashes": (path(b"//healthz"), [[ABSENT]]),
    "a fragment": (path(b"/healthz#part"), [[ABSENT], [WRONG]]),
    "a query of nonsense": (path(b"/healthz?%&=&&a[]=1;b"), [[OK]]),
    # Headers
    "no host": (GET + b"connection: close\r\n\r\n", [[WRONG]]),
    "two hosts": (with_header(b"host: localhost"), [[WRONG]]),
    "a host that is none": (GET + b"host: [::1\r\nconnection: close\r\n\r\n", [[403]]),
    "a header of 1 MB": (with_header(b"x: " + b"a" * 2**20), [[WRONG], HUNG_UP]),
    "10,000 headers": (
        with_header(b"\r\n".join(b"x%d: 1" % i for i in range(10_000))),
        [[OK], [WRONG]],
    ),
    "a header without a colon": (with_header(b"word"), [[WRONG]]),
    "a header without a name": (with_header(b": word"), [[WRONG]]),
    "a space before the colon": (with_header(b"x : 1"), [[WRONG]]),
    "a null byte in a header": (with_header(b"x: \0"), [[WRONG], [OK]]),
    "a line end in a header": (with_header(b"x: a\rb"), [[WRONG], [OK]]),
    "a header on two lines": (with_header(b"x: a\r\n b"), [[WRONG], [OK]]),
    "headers with bytes above 127": (with_header(b"x: \xff\xfe"), [[OK]]),
    "an upgrade to WebSocket": (
        with_header(b"upgrade: websocket\r\nconnection: upgrade"),
        [[OK], [WRONG]],
    ),
    "an upgrade to HTTP/2": (
        with_header(b"upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\nconnection: upgrade"),
        [[OK]],
    ),
    "an expectation that is none": (with_header(b"expect: a miracle"), [[OK]]),
    # Lengths and chunks
    "a length below 0": (with_length(b"-1"), [[WRONG]]),
    "a length with a sign": (with_length(b"+30"), [[WRONG]]),
    "a length in hexadecimal": (with_length(b"0x1e"), [[WRONG]]),
    "a length of 31 digits": (with_length(b"1" + b"0" * 30), [[LONG], [WRONG]]),
    "a length of 5000 digits": (with_length(b"9" * 5000), [[LONG], [WRONG]]),
    "two lengths": (with_length(b"30\r\ncontent-length: 31"), [[WRONG]]),
    "a length that is too small": (with_length(b"10"), [[WRONG]]),
    "a length that is too large": (with_length(b"40"), [[LATE]]),
    "a length and chunks": (
        with_length(b"30\r\ntransfer-encoding: chunked", b"0\r\n\r\n"),
        [[WRONG]],
    ),
    "another encoding": (with_length(b"30\r\ntransfer-encoding: gzip"), [[WRONG], [501]]),
    "no chunks": (chunked(b"0\r\n\r\n"), [[WRONG]]),
    "a chunk of no length": (chunked(b"\r\nx\r\n"), [[WRONG]]),
    "a chunk of nonsense": (chunked(b"zz\r\nx\r\n"), [[WRONG]]),
    "a chunk below 0": (chunked(b"-1\r\nx\r\n"), [[WRONG]]),
    "a chunk of 30 digits": (chunked(b"f" * 30 + b"\r\nx"), [[WRONG], [LATE]]),
    "a chunk that is longer than it says": (chunked(b"1\r\nxxxx\r\n0\r\n\r\n"), [[WRONG]]),
    "chunks without an end": (chunked(b"1\r\nx\r\n"), [[LATE]]),
    "a chunk with an extension of 1 MB": (chunked(b"1;" + b"a" * 2**20), [[WRONG], HUNG_UP]),
    "a trailer of nonsense": (chunked(b"0\r\n: \r\n\r\n"), [[WRONG]]),
    "a refused body that goes on as nonsense": (
        POST + b"transfer-encoding: chunked\r\n\r\n400001\r\n" + b"x" * 0x400001 + b"\r\nzz\r\n",
        [[LONG], [WRONG]],
    ),
    # One after the other
    "three at once": (3 * (GET + b"host: localhost\r\n\r\n") + GET + CLOSE, [[OK] * 4]),
    "one and nonsense": (
        GET + b"host: localhost\r\n\r\n" + bytes(100) + b"\r\n\r\n",
        [[OK, WRONG]],
    ),
    "a body for a GET": (GET + b"content-length: 5\r\n" + CLOSE + b"hello", [[OK]]),
    "a head that ends in its middle": (POST, [[LATE]]),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_hostile_request_is_refused_and_leaves_nothing(name: str, server: RunningServer) -> None:
    sent, expected = REQUESTS[name]
    assert statuses(server.url, sent) in expected


# Bodies

ROUTES: Mapping[str, Mapping[str, object]] = {
    "/infer": {"model": "absent", "prompt": "Hi"},
    "/embed": {"model": "absent", "input": ["Hi"]},
    "/v1/chat/completions": {"model": "absent", "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"model": "absent", "prompt": "Hi"},
    "/v1/embeddings": {"model": "absent", "input": "Hi"},
}
KEYS: Mapping[str, tuple[str, ...]] = {
    "/infer": ("model", "prompt", "options"),
    "/embed": ("model", "input", "maxTokens"),
    "/v1/chat/completions": ("messages", "response_format", "logit_bias", "stop", "n", "stream"),
    "/v1/completions": ("prompt", "stop_token_ids", "temperature", "seed", "json_schema"),
    "/v1/embeddings": ("input", "dimensions", "encoding_format", "max_tokens"),
}
DEPTHS = (100, 900, *range(930, 1000, 10), 5000)
N_KEYS = 100_000

BODIES: Mapping[str, bytes] = {
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"a":' * 100_000,
    "a number of 100,000 digits": b"9" * 100_000,
    "a number in a key": b'{"model": ' + b"9" * 5000 + b"}",
    "a power of ten": b'{"model": "absent", "prompt": 1e999999999}',
    "NaN": b'{"model": NaN}',
    "minus infinity": b'{"model": -Infinity}',
    "a key twice": b'{"model": 1, "model": "absent", "prompt": 1, "prompt": "Hi", "prompt": 2}',
    "half a surrogate pair": b'{"model": "\\ud800", "prompt": "\\udfff", "input": ["\\ud800"]}',
    "half a surrogate pair as a key": b'{"\\ud800": 1}',
    "null bytes": b'{"mod\\u0000el": "\\u0000", "prompt": "\\u0000"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"model": "absent"}'.encode("utf-16"),
    "gzip": gzip.compress(b'{"model": "absent", "prompt": "Hi"}', mtime=0),
    "a form": b"model=absent&prompt=Hi",
    "many keys": b"{%s}" % b",".join(b'"%06d":0' % i for i in range(N_KEYS)),
    "many keys that are half surrogate pairs": b"{%s}"
    % b",".join(b'"\\ud800%d":0' % i for i in range(1000)),
    "two bodies": b"{}{}",
    "text": b'"absent"',
    "null": b"null",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_of_nonsense_is_refused_and_not_repeated_at_length(
    name: str, server: RunningServer
) -> None:
    for route in ROUTES:
        headers = {"content-encoding": "gzip"} if name == "gzip" else {}
        answer = ask(server.url, route, BODIES[name], headers=headers)
        assert answer.status in (WRONG, ABSENT), (route, answer)
        assert len(answer.body) < 10_000


@pytest.mark.parametrize("depth", DEPTHS)
def test_deeply_nested_json_is_refused(depth: int, server: RunningServer) -> None:
    deep = b"[" * depth + b"]" * depth
    text = json.dumps(deep.decode()).encode()
    for route, known in KEYS.items():
        for key in (known[0], "tools", "guided_json"):
            for value in (deep, text):
                rest = json.dumps({k: v for k, v in ROUTES[route].items() if k != key}).encode()
                body = rest[:-1] + b', "%s": %s}' % (key.encode(), value)
                answer = ask(server.url, route, body)
                assert answer.status in (WRONG, ABSENT), (route, key, answer)


VALUES: tuple[object, ...] = (
    None,
    True,
    0,
    -1,
    2**64,
    10**400,
    1.5,
    "",
    "a",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    ["a"] * 3,
)


@pytest.mark.parametrize("route", KEYS)
def test_a_value_of_any_type_is_refused_or_taken(route: str, server: RunningServer) -> None:
    for key in KEYS[route]:
        for value in VALUES:
            answer = ask(server.url, route, {**ROUTES[route], key: value})
            assert answer.status in (WRONG, ABSENT), (key, value, answer)


LONG_LISTS: Mapping[str, Mapping[str, object]] = {
    "/embed": {"input": [0] * N_KEYS},
    "/v1/embeddings": {"input": [{}] * N_KEYS},
    "/v1/completions": {"prompt": [-1] * N_KEYS, "stop_token_ids": [None] * N_KEYS},
    "/v1/chat/completions": {"messages": [0] * N_KEYS},
}


@pytest.mark.parametrize("route", LONG_LISTS)
def test_of_a_long_list_of_wrong_values_the_first_is_named(
    route: str, server: RunningServer
) -> None:
    answer = ask(server.url, route, {**ROUTES[route], **LONG_LISTS[route]})
    assert answer.status == WRONG
    assert len(answer.body) < 10_000


def test_an_invalid_host_header_is_no_500_where_any_host_is_allowed() -> None:
    sent = b"GET /absent HTTP/1.1\r\nhost: [::1\r\nauthorization: bearer a\r\n"
    sent += b"connection: close\r\n\r\n"
    with running_server(["--host", "0.0.0.0", "--token", "a"]) as server:
        assert statuses(server.url.replace("0.0.0.0", "127.0.0.1"), sent) == [ABSENT]
        assert "Traceback" not in server.log()
