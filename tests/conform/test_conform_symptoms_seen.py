from __future__ import annotations

import math
from typing import Any

import pytest

from refllm.conform.case import Case, Group
from refllm.conform.faults.causes import likely_cause
from refllm.conform.faults.of_tokenizer import tiny_chat_tokenizer
from refllm.conform.reply import Answer
from refllm.conform.runner import verdict_of


def cause(case: Case, result: dict[str, Any]) -> str | None:
    verdict = verdict_of(case, Answer(result))
    assert verdict.status == "failed"
    return likely_cause([verdict]).get(case.id)


def case_of(
    group: Group, asked: dict[str, Any], expected: dict[str, Any], *, clause: str = ""
) -> Case:
    return Case(
        id=f"{group}/one",
        group=group,
        proves="",
        clause=clause,
        input=asked,
        expected=expected,
        tolerance={"absolute": 1e-6, "first_components": 1e-6},
    )


# --- Tokenizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "text", "said"),
    [
        ([9, 8], " a é", "begins a text (BOS, [CLS]) is missing"),
        ([1, 1, 9, 8], " a é", "added twice"),
        ([1, 9, 8, 2], " a é", "added at the end"),
        ([1, 9], " a é", "ends a text ([SEP]) is missing"),
        ([9], " a é", "tokens around a text"),
        ([1, 0, 8], " a é", "becomes the unknown token"),
        ([1, 9, 8], "<s> a é</s>", "Special tokens are shown"),
        ([1, 9, 8], " a \ufffd\ufffd", "join the bytes"),
        ([1, 9, 8], " a <0xC3><0xA9>", "join the bytes"),
        ([1, 9, 8], "  a é", "put before its first word"),
        ([1, 9, 8], "a é", "Spaces at the beginning or the end"),
        ([1, 9, 8], " a  é", "Spaces inside"),
        ([1, 9, 8], " a e\u0301", "Unicode normalization"),
        ([1, 7, 8], " a é", None),
    ],
)
def test_ids_and_texts_show_what_a_tokenizer_does_wrong(
    ids: list[int], text: str, said: str | None
) -> None:
    asked = {"model": "stories260K", "text": " a é"}
    case = case_of("tokenizer", asked, {"ids": [1, 9, 8], "text": " a é"})
    found = cause(case, {"ids": ids, "text": text})
    assert found is None if said is None else said in str(found)


def test_the_space_before_the_first_word_is_missed_in_the_ids() -> None:
    asked = {"model": "tiny-chat", "text": "a"}

    right = tiny_chat_tokenizer().encode("a")
    without = tiny_chat_tokenizer(add_space_prefix=False).encode("a")
    case = case_of("tokenizer", asked, {"ids": right, "text": "a"})
    assert "before a text's first word is missing" in str(
        cause(case, {"ids": without, "text": "a"})
    )


# --- Embeddings ----------------------------------------------------------------------------------

TEXTS = ["a", "the cat sat"]
VECTORS = [[1.0, 0.0], [0.0, 1.0]]


def embeddings_case(count: int, *, texts: list[str] | None = None) -> Case:
    vectors = VECTORS if texts is None else [[1.0, 0.0]] * len(texts)
    return case_of(
        "embeddings",
        {"model": "tiny-embed", "texts": TEXTS if texts is None else texts},
        {"embeddings": vectors, "usage": {"prompt_token_count": count}},
    )


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (4, "without [CLS] and [SEP]"),
        (5, "counted with their padding"),  # the longest of the two
        (10, "counted with their padding"),  # twice the longest
        (9, None),
    ],
)
def test_the_count_of_embeddings_shows_what_is_counted(count: int, said: str | None) -> None:
    result = {"embeddings": VECTORS, "usage": {"prompt_token_count": count}}
    found = cause(embeddings_case(8), result)
    assert found is None if said is None else said in str(found)


@pytest.mark.parametrize(("texts", "said"), [([], "empty list"), ([""], "empty text")])
def test_a_refusal_of_nothing_is_named(texts: list[str], said: str) -> None:
    refusal = {"error": {"kind": "invalid-input", "message": "nothing to embed"}}
    assert said in str(cause(embeddings_case(0, texts=texts), refusal))


# --- Requests ------------------------------------------------------------------------------------


def asked_text(**asked: Any) -> dict[str, Any]:
    return {"operation": "infer", "model": "tiny-chat", "prompt": "Once", **asked}


def usage(prompt: int, generated: int) -> dict[str, Any]:
    return {"usage": {"prompt_token_count": prompt, "generated_token_count": generated}}


def test_a_prompt_in_the_text_is_named() -> None:
    case = case_of("api", asked_text(), {"text_does_not_begin_with": "Once"})
    assert "begins with the prompt" in str(cause(case, {"text": "Once upon"}))


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        (usage(2, 3), "BOS belongs to the prompt"),
        (usage(4, 3), "BOS is counted twice"),
        (usage(6, 3), "has the generated tokens in it"),
        (usage(9, 3), None),
    ],
)
def test_a_wrong_count_of_the_prompt_is_named(counted: dict[str, Any], said: str | None) -> None:
    case = case_of("api", asked_text(), {"text": " upon", **usage(3, 3)})
    found = cause(case, {"text": " upon", **counted})
    assert found is None if said is None else said in str(found)


REFUSED = {"kind": "invalid-input", "says": ["top_p"], "status": {}}


@pytest.mark.parametrize(
    ("params", "says", "said"),
    [
        ({"top_p": math.nan}, ["top_p"], "NaN or infinite is accepted"),
        ({"top_p": 1e39}, ["top_p"], "NaN or infinite is accepted"),
        ({"repeat_penalty": -1.0}, ["repeat_penalty"], "of 0 or less is accepted"),
        ({}, ["513", "512"], "cut or overwritten in silence"),
        ({"max_tokens": -1}, ["max_tokens"], None),
    ],
)
def test_what_must_be_refused_and_is_not_is_named(
    params: dict[str, Any], says: list[str], said: str | None
) -> None:
    case = case_of("api", asked_text(params=params), {"error": {**REFUSED, "says": says}})
    found = cause(case, {"text": " upon", **usage(2, 1)})
    assert found is None if said is None else said in str(found)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"params": {"top_k": 0}}, "top_k of 0 is refused"),
        ({"prompt": ""}, "empty prompt is refused"),
        ({"texts": []}, "empty list of texts is refused"),
        ({"texts": ["a", ""]}, "empty text is refused"),
        ({}, None),
    ],
)
def test_what_must_not_be_refused_and_is_is_named(asked: dict[str, Any], said: str | None) -> None:
    case = case_of("api", asked_text(**asked), usage(1, 1))
    found = cause(case, {"error": {"kind": "invalid-input", "message": "no"}})
    assert found is None if said is None else said in str(found)


@pytest.mark.parametrize(
    ("kind", "message", "said"),
    [("runtime-error", "top_p", "another kind"), ("invalid-input", "no", "does not say what")],
)
def test_an_error_that_helps_nobody_is_named(kind: str, message: str, said: str) -> None:
    case = case_of("api", asked_text(), {"error": REFUSED})
    assert said in str(cause(case, {"error": {"kind": kind, "message": message}}))


def test_vectors_of_another_length_are_named() -> None:
    asked = {"operation": "generate_embeddings", "model": "tiny-embed", "texts": ["a"]}
    case = case_of("api", asked, {"unit_length": True})
    assert "scaled to length 1" in str(cause(case, {"embeddings": [[3.0, 4.0]]}))


@pytest.mark.parametrize(
    ("got", "said"),
    [
        ({"error": {"kind": "invalid-input", "message": "too long"}}, "is refused: cut it there"),
        (usage(129, 0), "is cut at another length"),
    ],
)
def test_a_long_text_that_is_not_cut_at_the_limit_is_named(got: dict[str, Any], said: str) -> None:
    asked = {"operation": "generate_embeddings", "model": "tiny-embed", "texts": ["a"]}
    case = case_of("api", asked, usage(128, 0), clause="truncation")
    assert said in str(cause(case, {"embeddings": [[0.6, 0.8]], **got}))


def test_a_vector_that_its_batch_changed_is_named() -> None:
    asked = {"operation": "generate_embeddings", "model": "tiny-embed", "texts": ["a", "b c"]}
    first = {"shape": [2], "values": [0.6, 0.8]}
    case = case_of("api", asked, {"first_components": first})
    assert "texts beside it" in str(cause(case, {"embeddings": [[0.8, 0.6], [1.0, 0.0]]}))
