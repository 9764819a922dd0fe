"""Requests that a server answers, to be damaged: bodies for its routes, and bytes around a body."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from tools.attack.mutate import ODD_INTEGERS, ODD_TEXTS

__all__ = ["BODIES", "GETS", "SCHEMA_BODIES", "post", "raw_request"]

OPTIONS = {
    "maxTokens": 2,
    "repeatPenalty": 1.1,
    "repeatPenaltyLastNTokenCount": 64,
    "temperature": 0.8,
    "topK": 40,
    "topP": 0.9,
}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 7, "repeat_penalty": 1.2}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TEXT = {"model": "tiny-chat", "prompt": "Once upon", "max_tokens": 2}
CHAT = {
    "model": "tiny-chat",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi."}]},
    ],
    "max_tokens": 2,
}
SPIN_CHAT = {
    "messages": [{"role": "user", "content": "Hello"}],
    "model": "llama2-chat",
    "max_completion_tokens": 2,
    "frequency_penalty": 1.1,
}
INFER = {"model": "tiny-chat", "prompt": "Once upon a time", "options": OPTIONS}
EMBEDDINGS = {"model": "tiny-embed", "input": ["A cat.", "Two dogs"]}

BODIES: Sequence[tuple[str, Any, int]] = (
    ("/infer", INFER, 8),
    ("/embed", {"model": "tiny-embed", "input": ["A cat.", "é"]}, 6),
    ("/embed", {"model": "all-minilm-l6-v2", "input": ["x"], "maxTokens": 5}, 3),
    ("/v1/completions", {**TEXT, **SAMPLING}, 5),
    ("/v1/completions", {**TEXT, "prompt": [1, 300, 301], "echo": True, "n": 2}, 4),
    ("/v1/completions", {**TEXT, "prompt": ["a", "b"], "logprobs": 2, "stop": [" ", "."]}, 4),
    ("/v1/completions", {**TEXT, "logit_bias": {"5": 10, "7": -100}, "min_tokens": 1}, 3),
    ("/v1/completions", {**TEXT, "stream": True, "stream_options": {"include_usage": True}}, 4),
    ("/v1/completions", {**TEXT, "stop_token_ids": [2], "ignore_eos": True, "suffix": ""}, 2),
    ("/v1/chat/completions", {**CHAT, "presence_penalty": 0.5, "frequency_penalty": 0.1}, 4),
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3}, 4),
    ("/v1/chat/completions", {**CHAT, "stream": True, "n": 2, "stop": "a"}, 3),
    ("/v1/chat/completions", SPIN_CHAT, 3),
    ("/v1/embeddings", {**EMBEDDINGS, "encoding_format": "base64", "dimensions": 64}, 4),
    ("/v1/embeddings", {**EMBEDDINGS, "input": [[2, 30, 3]], "add_special_tokens": False}, 4),
    ("/v1/embeddings", {**EMBEDDINGS, "max_tokens": 3, "user": "me"}, 2),
)
"""Of each route's bodies the path, the JSON, and how often it is sent beside the others."""

SCHEMA_BODIES: Sequence[tuple[str, Any]] = (
    ("/v1/completions", {**TEXT, "json_schema": SCHEMA}),
    ("/v1/completions", {**TEXT, "response_format": {"type": "json_object"}}),
    (
        "/v1/chat/completions",
        {
            **CHAT,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
            },
        },
    ),
)
"""Each schema is tried in a process of its own, so these are sent seldom."""

GETS = ("/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/models")
METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "get", "")
VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.10", "http/1.1", "")
ODD_TARGETS = (
    *("*", "//", "/../..", "/v1", "/v1/", "/v1/models/", "/v1/models/tiny-chat"),
    *("/v1/models/%00", "/v1/models/..%2f..", "/v1/models/\xff", "/%", "/infer?a=b#c", "infer"),
    *("http://localhost/infer", "http://[::1", "/" + "a" * 9000, "/infer/", "/INFER", "/docs/x"),
)
HEADERS: Mapping[str, Sequence[str]] = {
    "host": ("localhost", "127.0.0.1:80", "[::1]", "evil.example", "", "localhost:x", "\xe9"),
    "content-type": ("application/json", "text/plain", "multipart/form-data; boundary=a", "x"),
    "transfer-encoding": ("chunked", "Chunked", "gzip, chunked", "identity", "chunked, chunked"),
    "connection": ("close", "keep-alive", "upgrade", "close, keep-alive"),
    "upgrade": ("websocket", "h2c"),
    "expect": ("100-continue", "x"),
    "origin": ("null", "http://evil.example", "http://localhost:1", "\x01"),
    "authorization": ("bearer x", "Basic YTpi", ""),
    "accept-encoding": ("gzip", "*;q=0"),
    "content-encoding": ("gzip", "identity"),
    "range": ("bytes=0-1",),
    "user-agent": ("", "OpenAI/Python 1"),
    "x-stainless-lang": ("python",),
    "cookie": ("a=b; a=c", "=" * 3000),
    "x-" + "a" * 200: ("b" * 5000,),
    "bad name": ("a",),
    "é": ("a",),
    " folded": ("a",),
}


def post(path: str, body: bytes, *, method: str = "POST", more: str = "") -> bytes:
    """A request after which the server closes the connection; `more` are lines of headers."""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def raw_request(random: Random, *, paths: Sequence[str] = (), is_last: bool = True) -> bytes:
    """A request as bytes: mostly one that is right but for a thing or two.

    `paths` are asked for besides those of refllm's own server.
    """
    path, value, _ = random.choice(BODIES)
    body = json.dumps(value).encode()
    method = "POST"
    if random.random() < 0.35:
        method, path, body = "GET", random.choice((*GETS, *paths)), b""
    if random.random() < 0.1:
        method = random.choice(METHODS)
    if random.random() < 0.15:
        path = random.choice(ODD_TARGETS)
    version = random.choice(VERSIONS) if random.random() < 0.05 else "HTTP/1.1"
    headers = [("host", "localhost")]
    if random.random() < 0.25:
        headers.append(("transfer-encoding", "chunked"))
        body = _in_chunks(random, body)
    elif body or random.random() < 0.2:
        headers.append(("content-length", _length(random, len(body))))
    while random.random() < 0.3:
        name = random.choice([*HEADERS])
        headers.append((name, random.choice(HEADERS[name])))
    if random.random() < 0.03:
        headers += [(f"x-{i}", "a") for i in range(random.choice((10, 99, 100, 101, 300)))]
    if random.random() < 0.05:
        del headers[random.randrange(len(headers))]
    if is_last and random.random() < 0.3:
        headers.append(("connection", "close"))
    end = "\n" if random.random() < 0.03 else "\r\n"
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in headers)]
    return (end.join(lines) + end + end).encode() + body


def _length(random: Random, n_bytes: int) -> str:
    if random.random() < 0.85:
        return str(n_bytes)
    odd = (str(n_bytes + 1), str(max(n_bytes - 1, 0)), f"+{n_bytes}", f"{n_bytes}, {n_bytes}")
    return random.choice((*odd, "²", *ODD_TEXTS[:13], *map(str, ODD_INTEGERS)))[:500]


def _in_chunks(random: Random, body: bytes) -> bytes:
    """The body in chunks, of which one is wrong now and then."""
    written = b""
    while body:
        n_bytes = random.randint(1, len(body))
        size = f"{n_bytes:x}"
        if random.random() < 0.05:
            size = random.choice(
                ("-1", "0x1", "+1", "1_0", "", "g", " 1", "1;a=b", "f" * 16, "f" * 17, "0" * 500)
            )
        end = b"\n" if random.random() < 0.03 else b"\r\n"
        written += size.encode() + end + body[:n_bytes] + end
        body = body[n_bytes:]
    trailer = random.choice((b"", b"", b"", b"a: b\r\n", b"content-length: 5\r\n", b"\xff\r\n"))
    return written + b"0\r\n" + trailer + b"\r\n"
