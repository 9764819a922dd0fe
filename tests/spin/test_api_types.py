"""Each dialect's answers: one of another shape than the interface's is refused, saying where."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from refllm.spin.dialects import API_TYPES, WrongShapeError, parse_json
from tests.support.servers import CHAT, EMBEDDINGS, INFERENCE, VECTORS

ABSENT = object()
CONTENT = ("choices", 0, "message", "content")

Read = Callable[[object], object]


def infer_result(api_type: str) -> Read:
    return API_TYPES[api_type].infer_result


def embed_result(api_type: str) -> Read:
    return lambda answer: API_TYPES[api_type].embed_result(answer, 2)


DEFAULT_INFER, OPEN_AI_INFER = infer_result("default"), infer_result("open_ai")
DEFAULT_EMBED, OPEN_AI_EMBED = embed_result("default"), embed_result("open_ai")


def changed(answer: object, path: Sequence[str | int], value: object) -> object:
    """`answer` with another value at `path`, or without what is there if the value is ABSENT."""
    copy: Any = json.loads(json.dumps(answer))
    inner = copy
    for step in path[:-1]:
        inner = inner[step]
    if value is ABSENT:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


@pytest.mark.parametrize("value", [ABSENT, None, "3", 3.0, True, -1, 2**32, [3]])
@pytest.mark.parametrize(
    ("read", "answer", "key"),
    [
        (DEFAULT_INFER, INFERENCE, "promptTokenCount"),
        (DEFAULT_INFER, INFERENCE, "generatedTokenCount"),
        (DEFAULT_EMBED, EMBEDDINGS, "promptTokenCount"),
        (OPEN_AI_INFER, CHAT, "prompt_tokens"),
        (OPEN_AI_INFER, CHAT, "completion_tokens"),
        (OPEN_AI_EMBED, VECTORS, "prompt_tokens"),
    ],
)
def test_a_count_that_is_missing_or_no_u32_is_named(
    read: Read, answer: object, key: str, value: object
) -> None:
    with pytest.raises(WrongShapeError) as raised:
        read(changed(answer, ["usage", key], value))
    expected = "is missing" if value is ABSENT else "is not a whole number from 0 to 4294967295"
    assert str(raised.value) == f"usage.{key} {expected}"


@pytest.mark.parametrize(("read", "answer"), [(DEFAULT_INFER, INFERENCE), (OPEN_AI_INFER, CHAT)])
@pytest.mark.parametrize("wrong", [None, 3, "usage", [], {}, {"usage": 3}, {"usage": None}])
def test_an_answer_without_a_usage_is_refused(read: Read, answer: object, wrong: object) -> None:
    read(answer)
    with pytest.raises(WrongShapeError, match=r"usage.* is missing"):
        read(wrong)


@pytest.mark.parametrize(
    ("read", "answer", "expected"),
    [
        (DEFAULT_INFER, changed(INFERENCE, ["text"], ABSENT), "text is missing"),
        (DEFAULT_INFER, changed(INFERENCE, ["text"], None), "text is not text"),
        (
            DEFAULT_INFER,
            changed(INFERENCE, ["text"], "\ud800"),
            "text has half of a surrogate pair",
        ),
        (OPEN_AI_INFER, changed(CHAT, ["choices"], []), "choices[0] is missing"),
        (OPEN_AI_INFER, changed(CHAT, ["choices"], {}), "choices[0] is missing"),
        (OPEN_AI_INFER, changed(CHAT, CONTENT, None), "choices[0].message.content is not text"),
        (OPEN_AI_INFER, changed(CHAT, CONTENT, ABSENT), "choices[0].message.content is missing"),
    ],
)
def test_a_text_that_is_missing_or_none_is_named(read: Read, answer: object, expected: str) -> None:
    with pytest.raises(WrongShapeError) as raised:
        read(answer)
    assert str(raised.value) == expected


@pytest.mark.parametrize("vector", [None, 3, "[0, 1]", {}, []])
@pytest.mark.parametrize(
    ("read", "answer", "path"),
    [
        (DEFAULT_EMBED, EMBEDDINGS, ["embeddings", 1]),
        (OPEN_AI_EMBED, VECTORS, ["data", 1, "embedding"]),
    ],
)
def test_a_vector_that_is_no_list_of_numbers_is_named(
    read: Read, answer: object, path: list[str | int], vector: object
) -> None:
    with pytest.raises(WrongShapeError, match="vector 1 is not a list of float32 numbers"):
        read(changed(answer, path, vector))


@pytest.mark.parametrize("value", [None, "0", True, [0], 3.5e38, -1e39, 10**400])
def test_a_value_that_is_no_float32_is_refused(value: object) -> None:
    with pytest.raises(WrongShapeError, match="vector 1 is not a list of float32 numbers"):
        DEFAULT_EMBED(changed(EMBEDDINGS, ["embeddings", 1, 0], value))


def test_the_largest_float32_is_accepted() -> None:
    largest = float.fromhex("0x1.fffffep127")
    answer = changed(EMBEDDINGS, ["embeddings", 1, 0], -largest)
    assert API_TYPES["default"].embed_result(answer, 2).embeddings[1][0] == -largest


@pytest.mark.parametrize(
    ("read", "answer", "expected"),
    [
        (DEFAULT_EMBED, changed(EMBEDDINGS, ["embeddings"], {}), "embeddings is not a list"),
        (DEFAULT_EMBED, changed(EMBEDDINGS, ["embeddings"], ABSENT), "embeddings is missing"),
        (
            DEFAULT_EMBED,
            changed(EMBEDDINGS, ["embeddings", 1], ABSENT),
            "it has 1 vectors for 2 texts",
        ),
        (
            DEFAULT_EMBED,
            changed(EMBEDDINGS, ["embeddings", 1], [1.0]),
            "vector 1 has 1 numbers, and vector 0 has 2",
        ),
        (OPEN_AI_EMBED, changed(VECTORS, ["data"], ABSENT), "data is missing"),
        (OPEN_AI_EMBED, changed(VECTORS, ["data"], "x"), "data is not a list"),
        (OPEN_AI_EMBED, changed(VECTORS, ["data", 1], {}), "embedding is missing"),
        (OPEN_AI_EMBED, changed(VECTORS, ["data", 1], ABSENT), "it has 1 vectors for 2 texts"),
    ],
)
def test_vectors_that_are_missing_too_few_or_ragged_are_named(
    read: Read, answer: object, expected: str
) -> None:
    with pytest.raises(WrongShapeError) as raised:
        read(answer)
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>", b"{} {}", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 100_000, b"1" * 5000),
        *(b"[NaN]", b"[Infinity]", b"[-Infinity]"),
    ],
)
def test_an_answer_that_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(WrongShapeError, match="it is not JSON"):
        parse_json(body)
