"""What the attacks on servers take for a fault, and what they take for an answer."""

from __future__ import annotations

import tomllib

import pytest
from wasmtime import wat2wasm

from refllm.api import InvalidInput
from tools.attack.http_answers import FaultError, answers_in, check, expected_methods
from tools.attack.target import NotFinite
from tools.attack.toml_text import toml_text
from tools.attack.wat import PROGRAMS

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n"


def answer(status: int, body: bytes, *, kind: str = "text/plain", sent: bool = True) -> bytes:
    head = f"HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + (body if sent else b"")


def test_answers_to_head_among_others_are_found() -> None:
    received = answer(200, b"a") + answer(200, b"abc", sent=False) + answer(200, b"b")
    assert [each.body for each in answers_in(received)] == [b"a", b"", b"b"]
    assert [each.body for each in answers_in(received, ["GET", "HEAD", "GET"])] == [b"a", b"", b"b"]


@pytest.mark.parametrize("received", [answer(200, b"abc")[:-1], b"abc", answer(200, b"") + b"a"])
def test_a_response_that_is_not_http_is_a_fault(received: bytes) -> None:
    with pytest.raises(FaultError):
        answers_in(received)


@pytest.mark.parametrize(
    ("raw", "methods"),
    [
        (GET + HEAD, ["GET", "HEAD"]),
        (GET + HEAD[:-1], ["GET"]),
        (GET + b"\x00\r\n\r\n", ["GET", "GET"]),
        (GET.replace(b"1.1", b"1.0") + GET, ["GET"]),
    ],
)
def test_as_many_answers_are_expected_as_a_server_gives(raw: bytes, methods: list[str]) -> None:
    assert expected_methods(raw) == methods


@pytest.mark.parametrize(
    ("received", "error"),
    [
        (answer(500, b"broken"), FaultError),
        (answer(200, b"Traceback (most recent call last):"), FaultError),
        (answer(200, b"{", kind="application/json"), FaultError),
        (answer(200, b'{"a": NaN}', kind="application/json"), NotFinite),
        (answer(400, b"no"), InvalidInput),
    ],
)
def test_the_body_of_an_answer_is_checked(received: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        check(answers_in(received))


def test_ids_and_times_in_an_answer_are_not_compared() -> None:
    first, second = (
        answer(200, b'{"id": "cmpl-%d", "created": %d}' % (n, n), kind="application/json")
        for n in (11, 22)
    )
    assert check(answers_in(first)) == check(answers_in(second))


def test_generated_toml_parses_to_the_intended_values() -> None:
    document = {"a": {"b c": [1, {"d": "é\n\"'"}]}, "e": [True, -0.5], "f": 10**30}
    assert tomllib.loads(toml_text(document)) == document


def test_the_components_that_are_damaged_are_valid() -> None:
    assert all(wat2wasm(text) for text in PROGRAMS)
