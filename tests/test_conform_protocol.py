"""The schema of the protocol and the checks in the code accept the same messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest

from refllm.conform.case import GROUPS
from refllm.conform.protocol import ProtocolError, implementation_of, reply_of
from tests.conform_protocol import SCHEMA, follows

HELLO: Mapping[str, Any] = {"version": 1, "implementation": {"name": "n"}, "groups": ["quant"]}


def is_start_accepted(message: Mapping[str, Any]) -> bool:
    try:
        implementation_of(message)
    except ProtocolError as error:
        return str(error).startswith("cannot start: ")  # a refusal, rightly said
    return True


def is_reply_accepted(message: Mapping[str, Any]) -> bool:
    try:
        reply_of(message, "a")
    except ProtocolError:
        return False
    return True


def test_the_schema_is_one_and_names_every_group() -> None:
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
