"""Requests that no route takes: which one is meant, and what is wrong with a body."""

from __future__ import annotations

import json

import pytest
from fastapi.exceptions import RequestValidationError

from refllm.server.pages import ROUTES
from refllm.server.wrong_requests import ELSEWHERE, METHODS, what_is_wrong, wrong_path


def test_every_proposed_route_exists() -> None:
    assert {*ELSEWHERE.values()} <= METHODS.keys()
    assert not ELSEWHERE.keys() & METHODS.keys()
    assert {f"{method} {path}" for path, method in METHODS.items()} == ROUTES.keys()


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/V1/Chat/Completions/", "POST /v1/chat/completions"),
        ("//v1//completions", "POST /v1/completions"),
        ("/v1/v1/v1/models", "GET /v1/models"),
        ("/v1/chat/completion", "POST /v1/chat/completions"),
        ("/embeddings", "POST /v1/embeddings"),
        ("/v1/infer", "POST /infer"),
        ("/v1/api/generate", "POST /v1/completions"),
        ("/metric", "GET /metrics"),
    ],
)
def test_a_misspelled_path_gets_the_route_that_is_meant(path: str, meant: str) -> None:
    assert wrong_path(path) == (
        f"there is no route {path} here; did you mean {meant}? GET / lists the routes"
    )


@pytest.mark.parametrize("path", ["/favicon.ico", "/wp-login.php", "/x" * 5000, "/\x00\n"])
def test_another_path_is_shown_short_and_printable(path: str) -> None:
    message = wrong_path(path)
    assert message.endswith(" here; GET / lists the routes")
    assert message.isprintable()
    assert len(message) < 300


def error_of(text: str) -> RequestValidationError:
    """The error of a body that is no JSON, as FastAPI makes it."""
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    position, reason = caught.value.pos, caught.value.msg
    found = {"type": "json_invalid", "loc": ("body", position), "ctx": {"error": reason}}
    return RequestValidationError([found], body=text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2, ]", "remove the comma before the end of an object or list"),
        ('{"a": [1,\n]}', "remove the comma before the end of an object or list"),
        ('{"a": "b", }', "remove the comma before the end of an object or list"),
        ("{'a': 1}", "write texts and keys in double quotes, at character 1"),
        ("{\"a\": 'b'}", "write texts and keys in double quotes, at character 6"),
        ('{"a": ', "it ends too early, after '{\"a\": '"),
        ("a=b", "it begins with 'a=b'; send a JSON object"),
        ("  ", "it begins with '  '; send a JSON object"),
        ('{"a" 1}', "Expecting ':' delimiter, at character 5: '1}'"),
        ('{"a": 1} {', "Extra data, at character 9: '{'"),
    ],
)
def test_a_body_that_is_not_json_gets_the_usual_mistake(text: str, expected: str) -> None:
    key, message = what_is_wrong(error_of(text), "/infer")
    assert key is None
    assert message.startswith(f"the body is not JSON: {expected}")
