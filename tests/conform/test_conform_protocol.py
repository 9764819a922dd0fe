"""The schema of the protocol and the checks in the code accept the same messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest

from refllm.conform.case import GROUPS
from refllm.conform.reply import Skipped
from refllm.conform.targets.protocol import ProtocolError, implementation_of, message_of, reply_of
from tests.support.conform_protocol import SCHEMA, follows

HELLO: Mapping[str, Any] = {"version": 1, "implementation": {"name": "n"}, "groups": ["quant"]}


def is_start_accepted(message: Mapping[str, Any]) -> bool:
    try:
        implementation_of(message)
    except ProtocolError as error:
        return str(error).startswith("cannot start: ")  # a refusal, as the schema has it
    return True


def is_reply_accepted(message: Mapping[str, Any]) -> bool:
    try:
        reply_of(message, "a")
    except ProtocolError:
        return False
    return True


def test_the_schema_is_valid_and_has_every_group() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$defs"]["group"]["enum"] == list(GROUPS)


@pytest.mark.parametrize(
    ("message", "is_right"),
    [
        (HELLO, True),
        ({**HELLO, "version": 1.0, "groups": [], "draws_as_refllm": True}, True),
        ({**HELLO, "implementation": {"name": "n", "version": "", "details": {"a": "b"}}}, True),
        ({"error": "no GPU"}, True),
        ({"error": ""}, False),
        ({**HELLO, "error": "no GPU"}, False),
        ({}, False),
        ({**HELLO, "version": True}, False),
        ({**HELLO, "version": "1"}, False),
        ({**HELLO, "groups": "quant"}, False),
        ({**HELLO, "groups": [["quant"]]}, False),
        ({**HELLO, "draws_as_refllm": 1}, False),
        ({**HELLO, "claims_revision": 2}, True),
        ({**HELLO, "claims_revision": 2.0}, True),
        ({**HELLO, "claims_revision": 0}, False),
        ({**HELLO, "claims_revision": 1.5}, False),
        ({**HELLO, "claims_revision": True}, False),
        ({**HELLO, "claims_revision": "2"}, False),
        ({**HELLO, "claims_revision": None}, False),
        ({**HELLO, "seed": 1}, False),
        ({**HELLO, "implementation": "n"}, False),
        ({**HELLO, "implementation": {"name": ""}}, False),
        ({**HELLO, "implementation": {"name": "n", "version": None}}, False),
        ({**HELLO, "implementation": {"name": "n", "details": {"a": 1}}}, False),
        ({**HELLO, "implementation": {"name": "n", "url": ""}}, False),
    ],
)
def test_schema_and_check_agree_on_answers_to_start(
    message: Mapping[str, Any], is_right: bool
) -> None:
    assert (follows("started", message) or follows("refused", message)) == is_right
    assert is_start_accepted(message) == is_right


@pytest.mark.parametrize(
    ("message", "is_right"),
    [
        ({"id": "a", "result": {}}, True),
        ({"id": "a", "skip": "-"}, True),
        ({"id": "a", "error": "-"}, True),
        ({"id": "a"}, False),
        ({"result": {}}, False),
        ({"id": "a", "result": None}, False),
        ({"id": "a", "skip": True}, False),
        ({"id": "a", "error": ""}, False),
        ({"id": "a", "error": "-", "result": {}}, False),
        ({"id": "a", "result": {}, "group": "quant"}, False),
    ],
)
def test_schema_and_check_agree_on_answers_to_run(
    message: Mapping[str, Any], is_right: bool
) -> None:
    assert follows("answered", message) == is_right
    assert is_reply_accepted(message) == is_right


def test_texts_of_a_harness_are_cut() -> None:
    reply = reply_of({"id": "a", "skip": "x" * 20_000}, "a")
    assert reply == Skipped("x" * 10_000)
    details = {str(n): "y" * 20_000 for n in range(200)}
    hello = {**HELLO, "implementation": {"name": "n", "details": details}}
    kept = implementation_of(hello).details
    assert {len(text) for text in kept.values()} == {10_000}
    assert len(kept) == 100


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("key", ["id", "result"])
def test_a_message_over_the_nesting_limit_is_refused(key: str) -> None:
    message = {"id": "a", "result": {}, key: nested(5000)}
    with pytest.raises(ProtocolError, match="more than 32 deep"):
        reply_of(message, "a")
    with pytest.raises(ProtocolError, match="more than 32 deep"):
        implementation_of({**HELLO, "groups": nested(5000)})


def test_of_a_long_line_only_its_beginning_is_shown() -> None:
    with pytest.raises(ProtocolError) as caught:
        message_of(b"x" * 1_000_000)
    assert len(str(caught.value)) < 400
