"""golden/tokenizer: its schema, its bytes again, what refllm answers, and what the cases claim."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings

from refllm.tokenizer import tokenizer_from_gguf
from refllm.tokenizer.base import NO_LIMIT, Tokenizer
from tests.conftest import PROJECT
from tests.support.vocabularies import TEXTS, gguf_metadata, spm_toy
from tools.golden_tokenizer import (
    TINY,
    DisagreementError,
    agreed,
    document,
    expected_of,
    readers_of,
)
from tools.golden_tokenizer_readers import readers_of_metadata

Case: TypeAlias = Mapping[str, Any]

FOLDER = PROJECT / "golden" / "tokenizer"
TEXT = (FOLDER / "cases.json").read_text("ascii")
GOLDEN = json.loads(TEXT)
CASES = GOLDEN["cases"]
BY_ID: Mapping[str, Case] = {case["id"]: case for case in CASES}
STORIES = Path("stories260K", "stories260K.gguf")

BYTE = re.compile("<0x[0-9A-F]{2}>")
# What does not come back as it went in: special tokens, and the character that stands for a space.
CHANGED = re.compile("<s>|</s>|<unk>|▁")


def asked_of(*models: str, clause: str | None = None) -> list[Case]:
    return [
        case
        for case in CASES
        if case["input"]["model"] in models and clause in (None, case["clause"])
    ]


@cache
def tokenizer_at(path: Path) -> Tokenizer:
    return tokenizer_from_gguf(gguf_metadata(path), path=path)


def tokenizer_of(case: Case, request: pytest.FixtureRequest) -> Tokenizer:
    """The model's tokenizer; skips where it is one that does not ship and is not there."""
    model = case["input"]["model"]
    if model in TINY:
        return tokenizer_at(TINY[model])
    return tokenizer_at(request.getfixturevalue("data_dir") / STORIES)


# The file


def test_the_tool_writes_the_same_bytes_again() -> None:
    assert document() == TEXT


def test_the_tool_writes_the_same_bytes_again_with_stories260k(data_dir: Path) -> None:
    assert document(data_dir / STORIES) == TEXT


def test_every_rule_of_the_readme_has_a_case_and_every_case_a_rule() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    table = readme.split("| clause | SentencePiece | WordPiece |\n|---|---|---|\n")[1]
    rules = {line.split("|")[1].strip() for line in table.split("\n\n")[0].splitlines()}
    assert rules == {case["clause"] for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=itemgetter("id"))
def test_a_case_names_the_model_that_it_asks(case: Case) -> None:
    assert case["models"] == [case["input"]["model"]]


# What refllm answers


@pytest.mark.parametrize("case", CASES, ids=itemgetter("id"))
def test_refllm_gives_the_golden_ids(case: Case, request: pytest.FixtureRequest) -> None:
    tokenizer = tokenizer_of(case, request)
    assert tokenizer.encode(case["input"]["text"], max_tokens=NO_LIMIT) == case["expected"]["ids"]


@pytest.mark.parametrize("case", CASES, ids=itemgetter("id"))
def test_refllm_gives_the_golden_text_back(case: Case, request: pytest.FixtureRequest) -> None:
    tokenizer = tokenizer_of(case, request)
    assert tokenizer.decode(case["expected"]["ids"]) == case["expected"]["text"]


# What the cases claim, whatever the vocabulary is


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in asked_of("tiny-chat", "stories260K")
        if not CHANGED.search(case["input"]["text"])
    ],
    ids=itemgetter("id"),
)
def test_a_llama_gives_any_text_back(case: Case) -> None:
    assert case["expected"]["text"] == case["input"]["text"]


@pytest.mark.parametrize(
    "case",
    [case for case in asked_of("tiny-chat", clause="byte fallback") if "spelled" not in case["id"]],
    ids=itemgetter("id"),
)
def test_byte_fallback_uses_bytes(case: Case, request: pytest.FixtureRequest) -> None:
    tokenizer = tokenizer_of(case, request)
    assert any(BYTE.fullmatch(tokenizer.piece(i)) for i in case["expected"]["ids"])


@pytest.mark.parametrize(
    "case", asked_of("tiny-embed", clause="unknown words"), ids=itemgetter("id")
)
def test_unknown_words_are_unk(case: Case, request: pytest.FixtureRequest) -> None:
    tokenizer = tokenizer_of(case, request)
    assert "[UNK]" in [tokenizer.piece(i) for i in case["expected"]["ids"]]


def test_the_longest_word_is_not_unknown(request: pytest.FixtureRequest) -> None:
    case = BY_ID["tokenizer/tiny-embed-longest-word"]
    tokenizer = tokenizer_of(case, request)
    assert len(case["input"]["text"]) == 100
    assert "[UNK]" not in [tokenizer.piece(i) for i in case["expected"]["ids"]]


@pytest.mark.parametrize(("model", "are_equal"), [("tiny-chat", False), ("tiny-embed", True)])
def test_only_bert_reads_decomposed_accents_as_composed_ones(model: str, are_equal: bool) -> None:
    composed, decomposed = (
        BY_ID[f"tokenizer/{model}-accents-{how}"]["expected"]["ids"]
        for how in ("composed", "decomposed")
    )
    assert (composed == decomposed) is are_equal


# The tool


class Answering:
    """A tokenizer that gives the same answer to everything."""

    def __init__(self, ids: list[int], text: str) -> None:
        self._ids, self._text = ids, text

    def ids(self, text: str) -> list[int]:
        return self._ids

    def text(self, ids: Sequence[int]) -> str:
        return self._text


@pytest.mark.parametrize(
    "other", [Answering([1, 5], "a"), Answering([1, 4], "b")], ids=["ids", "text"]
)
def test_the_tool_refuses_where_two_tokenizers_differ(other: Answering) -> None:
    readers = {"one": Answering([1, 4], "a"), "another": other}
    with pytest.raises(DisagreementError, match=r"^tokenizer/x: .* by one, .* by another$"):
        agreed(readers, "tokenizer/x", "a")


def test_the_tool_keeps_what_it_cannot_ask() -> None:
    kept = {"tokenizer/x": {"input": {"text": "a"}, "expected": {"ids": [1], "text": "a"}}}
    assert expected_of("tokenizer/x", "a", None, kept) == {"ids": [1], "text": "a"}


@pytest.mark.parametrize(("case_id", "text"), [("tokenizer/y", "a"), ("tokenizer/x", "b")])
def test_the_tool_refuses_a_new_case_of_a_model_that_is_not_there(case_id: str, text: str) -> None:
    kept = {"tokenizer/x": {"input": {"text": "a"}, "expected": {"ids": [1], "text": "a"}}}
    with pytest.raises(DisagreementError, match="is new: give --stories"):
        expected_of(case_id, text, None, kept)


@given(text=TEXTS)
@settings(deadline=None, max_examples=50)
def test_library_book_and_refllm_agree_on_any_text(text: str) -> None:
    readers = readers_at(TINY["tiny-chat"]).values()
    first, *others = [(reader.ids(text), reader.text(reader.ids(text))) for reader in readers]
    assert others == [first, first]


@cache
def readers_at(path: Path) -> Any:
    return readers_of(path)


def test_merges_by_the_book_go_by_score_and_then_from_the_left() -> None:
    # The scores fall with the id: "bc" 286 is better than "ab" 287, and "aa" 288 is the worst.
    metadata = spm_toy(("bc", 1), ("ab", 1), ("aa", 1))
    book = readers_of_metadata({**metadata, "tokenizer.ggml.bos_token_id": 1})["the book"]
    letters = {letter: 260 + at for at, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    space = 259
    assert book.ids("abc") == [1, space, letters["a"], 286]
    assert book.ids("ab") == [1, space, 287]
    assert book.ids("aaa") == [1, space, 288, letters["a"]]
