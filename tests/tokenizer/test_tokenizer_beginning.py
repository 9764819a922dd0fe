"""Of a long text that is cut, a tokenizer reads as much as is needed, and gives the same tokens."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from refllm.api import InvalidInput
from refllm.models.load import BertModel, load, load_tokenizer
from refllm.tokenizer import base as tokenizer_base
from refllm.tokenizer import tokenizer_from_file
from refllm.tokenizer.base import LONG_TEXT, NO_LIMIT, Tokenizer
from tests.support.tiny_bert import tiny_bert_folder, tiny_bert_gguf
from tests.support.vocabularies import llama_like_json

LIMIT = 16
WORDS = (
    *("the", "cat", "CATS", "hello", "worlding", "x" * 99, "x" * 101, "naïve", "e\u0301a", "ΣΑΣ"),
    *("日本語", "a日b", "don't", "...", "[MASK]", "[MASK]the", "[SEP]", "[CLS", "\u200b", "\u00a0"),
    *("\u0301", "🙂", "\u0130", "ﬁ", "\ufffd", "\x01", "²"),
)
BETWEEN = (" ", " ", "\n", "  ", "\t", " \n ", "", "\u3000", "\u2028", "\r")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same encoder as both kinds of file, one of which cuts texts."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "gguf": tiny_bert_gguf(folder / "tiny.gguf"),
        "json": tiny_bert_folder(folder / "tiny", max_length=LIMIT),
    }


def random_text(seed: int, n_words: int) -> str:
    choose = random.Random(seed)
    parts = (
        part for _ in range(n_words) for part in (choose.choice(WORDS), choose.choice(BETWEEN))
    )
    return "".join(parts)


@pytest.mark.parametrize("kind", ["gguf", "json"])
def test_the_beginning_of_a_text_has_the_first_tokens_of_the_text(
    kind: str, models: dict[str, Path]
) -> None:
    tokenizer = load_tokenizer(models[kind])
    n_shorter = 0
    for seed in range(60):
        text = random_text(seed, n_words=60)
        for n_tokens in (1, 2, 3, 7, LIMIT):
            begin = tokenizer.beginning(text, n_tokens)
            n_shorter += len(begin) < len(text)
            assert text.startswith(begin)
            for max_tokens in (2 + n_tokens - 1, 2 + n_tokens):
                whole = tokenizer.encode(text, max_tokens=max_tokens)
                assert tokenizer.encode(begin, max_tokens=max_tokens) == whole, (begin, text)
    assert n_shorter > 200


@pytest.mark.parametrize("kind", ["gguf", "json"])
def test_every_place_at_which_a_text_may_be_parted_parts_its_tokens(
    kind: str, models: dict[str, Path]
) -> None:
    tokenizer = load_tokenizer(models[kind])
    assert tokenizer.separators == " \n"
    for seed in range(10):
        text = random_text(seed, n_words=25)
        whole = ids_of(tokenizer, text)
        for place in (i for i, character in enumerate(text) if character in " \n"):
            begin = ids_of(tokenizer, text[:place])
            assert whole[: len(begin)] == begin, (text[:place], text)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False, max_tokens=NO_LIMIT)


@pytest.mark.parametrize("text", ["word" * 50_000, " " * 200_000, "cat " * 50_000, "cat " * 14])
def test_a_long_text_is_cut_as_if_all_of_it_were_read(
    text: str, models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    bert = load(models["json"])
    assert isinstance(bert, BertModel)
    with caplog.at_level(logging.ERROR, "refllm"):
        tokenized = bert.tokenize([text])
    assert tokenized.token_ids == [bert.tokenizer.encode(text)]
    assert tokenized.is_cut == (len(ids_of(bert.tokenizer, text)) + 2 > LIMIT,)


def test_a_tokenizer_reads_little_of_a_long_text(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bert = load(models["json"])
    assert isinstance(bert, BertModel)
    read: list[int] = []
    encode: Callable[..., list[int]] = type(bert.tokenizer).encode

    def counting(tokenizer: Tokenizer, text: str, **options: object) -> list[int]:
        read.append(len(text))
        return encode(tokenizer, text, **options)

    monkeypatch.setattr(type(bert.tokenizer), "encode", counting)
    bert.tokenize(["the cat sat on the mat " * 10_000])
    assert 0 < sum(read) < 2000


def test_half_a_surrogate_pair_is_refused_in_any_position(models: dict[str, Path]) -> None:
    bert = load(models["json"])
    assert isinstance(bert, BertModel)
    with pytest.raises(InvalidInput, match="at character index 40000"):
        bert.tokenize(["cat " * 10_000 + "\ud800"])


def test_a_text_without_a_known_split_point_is_read_whole(tmp_path: Path) -> None:
    llama_like_json().save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizer_from_file(tmp_path / "tokenizer.json")
    text = "ab " * 1000
    assert tokenizer.beginning(text, 3) == text


@pytest.mark.parametrize("kind", ["gguf", "json"])
def test_a_long_text_is_read_as_a_short_one_is_but_lets_other_threads_run(
    kind: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(models[kind])
    text = random_text(0, n_words=5000)
    assert len(text) > LONG_TEXT
    expected: dict[bool, list[int]] = {}
    for is_long in (True, False):
        monkeypatch.setattr(tokenizer_base, "LONG_TEXT", 0 if is_long else len(text) + 1)
        expected[is_long] = ids_of(tokenizer, text)
    assert expected[True] == expected[False]
