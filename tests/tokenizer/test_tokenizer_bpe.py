"""BPE from a GGUF vocabulary: against the tokenizers library, and words cut by hand."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from tokenizers import Regex, Tokenizer, pre_tokenizers

from refllm.tokenizer import tokenizer_from_gguf
from refllm.tokenizer.bpe import BYTE_OF, PRE_TOKENIZERS, byte_level_bytes
from tests.support.vocabularies import (
    CONTROL,
    NORMAL,
    SENTENCES,
    TEXTS,
    USER_DEFINED,
    bpe_metadata,
    trained_bpe,
)

PATH = Path("toy.gguf")


def library_with(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """`trained_bpe` with other words."""
    library = Tokenizer.from_str(trained_bpe().to_str())
    library.pre_tokenizer = pre_tokenizer
    return library


def words(name: str, text: str) -> list[str]:
    """`text` cut by the rule of this name, by the library's Split alone."""
    parts = [text]
    for expression in PRE_TOKENIZERS[name].expressions:
        split = pre_tokenizers.Split(Regex(expression), "isolated")
        parts = [word for part in parts for word, _ in split.pre_tokenize_str(part)]
    return parts


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# How the models' own tokenizer.json cut words, without a regular expression of ours.
ORIGINALS = {
    "gpt-2": library_with(BYTE_LEVEL),
    "starcoder": library_with(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL])
    ),
}


@pytest.mark.parametrize("pre", ORIGINALS)
@pytest.mark.parametrize("text", SENTENCES)
def test_sentences_are_tokenized_as_by_the_original(pre: str, text: str) -> None:
    tokenizer = tokenizer_from_gguf(bpe_metadata(pre=pre), path=PATH)
    assert tokenizer.encode(text) == ORIGINALS[pre].encode(text).ids


@pytest.mark.parametrize("pre", ORIGINALS)
@given(text=TEXTS)
@settings(deadline=None)
def test_any_text_is_tokenized_as_by_the_original(pre: str, text: str) -> None:
    tokenizer = tokenizer_from_gguf(bpe_metadata(pre=pre), path=PATH)
    ids = tokenizer.encode(text)
    assert ids == ORIGINALS[pre].encode(text).ids
    assert tokenizer.decode(ids) == ORIGINALS[pre].decode(ids)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        # Llama 3: at most three digits a word, from the left, never with the space before them.
        ("llama-bpe", "12345 678", ["123", "45", " ", "678"]),
        ("llama-bpe", "I'LL we'Ve", ["I", "'LL", " we", "'Ve"]),
        ("llama-bpe", "Hello world!", ["Hello", " world", "!"]),
        # One character that is no letter may begin a word; line ends stay with punctuation.
        ("llama-bpe", "(foo) bar.\n\nbaz", ["(foo", ")", " bar", ".\n\n", "baz"]),
        # Spaces before a word: all but the last, which belongs to the word.
        ("llama-bpe", "a   b  ", ["a", "  ", " b", "  "]),
        ("llama-bpe", "x \n \ny", ["x", " \n \n", "y"]),
        ("llama-bpe", "猫が $5", ["猫が", " $", "5"]),
        # Qwen 2: the same, with each digit alone.
        ("qwen2", "12345 it's", ["1", "2", "3", "4", "5", " it", "'s"]),
        # GPT-2: digits together, with the space before them.
        ("gpt-2", "in 12345 I'LL I'll", ["in", " 12345", " I", "'", "LL", " I", "'ll"]),
        ("smollm", "in 12", ["in", " ", "1", "2"]),
        # o200k: a word ends between a small letter and a capital, and keeps its contraction.
        ("gpt-4o", "HelloWorld don't", ["Hello", "World", " don't"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
        ("tekken", "XMLHttp", ["XMLHttp"]),
        # DeepSeek: Chinese apart from the rest, punctuation with the letters after it.
        ("deepseek-v3", "1234猫cat.md", ["123", "4", "猫", "cat", ".md"]),
        ("deepseek-coder", "x1 y.\n", ["x", "1", " y", ".", "\n"]),
        ("falcon", "a 1234+`b`", ["a", " ", "123", "4", "+`", "b", "`"]),
        ("default", "a 1234+b", ["a", " ", "123", "4", "+", "b"]),
        ("viking", "ab 12,c", ["ab", " ", "1", "2", ",", "c"]),
        ("bloom", "ab 12,c", ["ab", " 12", ",", "c"]),
        ("qwen35", "e\u0301e1", ["e\u0301e", "1"]),
    ],
)
def test_words_are_cut_as_worked_out_by_hand(name: str, text: str, expected: list[str]) -> None:
    assert words(name, text) == expected


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
@given(text=TEXTS)
@settings(deadline=None, max_examples=20)
def test_every_rule_keeps_every_character(name: str, text: str) -> None:
    tokenizer = tokenizer_from_gguf(bpe_metadata(pre=name, add_bos_token=False), path=PATH)
    expected = unicodedata.normalize("NFC", text) if PRE_TOKENIZERS[name].nfc else text
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@pytest.mark.parametrize(
    ("pre", "pieces"), [("llama-bpe", ["xyz"]), ("tekken", ["xyz"]), ("dbrx", ["x", "y", "z"])]
)
def test_with_ignore_merges_a_whole_word_token_needs_no_merges(pre: str, pieces: list[str]) -> None:
    metadata = bpe_metadata(("xyz", NORMAL), pre=pre, add_bos_token=False)  # no merge makes "xyz"
    tokenizer = tokenizer_from_gguf(metadata, path=PATH)
    assert [tokenizer.piece(token_id) for token_id in tokenizer.encode("xyz")] == pieces


def test_llama_3_begins_with_bos_by_default() -> None:
    metadata = bpe_metadata(("<|begin|>", CONTROL), pre="llama-bpe", bos_token_id=400)
    assert tokenizer_from_gguf(metadata, path=PATH).encode("") == [400]


def test_gpt_2_has_neither_bos_nor_eos_by_default() -> None:
    tokenizer = tokenizer_from_gguf(bpe_metadata(), path=PATH)
    assert (tokenizer.encode(""), tokenizer.bos_id, tokenizer.eos_ids) == ([], None, frozenset())


def test_control_tokens_are_found_only_when_parsed_and_user_defined_always() -> None:
    metadata = bpe_metadata(("<|end|>", CONTROL), ("<tool>", USER_DEFINED))
    tokenizer = tokenizer_from_gguf(metadata, path=PATH)
    both = "a<|end|><tool>b"
    assert {400, 401} <= set(tokenizer.encode(both))
    assert set(tokenizer.encode(both, parse_special=False)) & {400, 401} == {401}
    assert tokenizer.decode(tokenizer.encode(both)) == "a<tool>b"


def test_the_256_characters_for_bytes_are_the_librarys() -> None:
    assert BYTE_OF.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF.values()) == list(range(256))
    for byte in range(0x80):
        [(spelled, _)] = BYTE_LEVEL.pre_tokenize_str(chr(byte))
        assert byte_level_bytes(spelled) == bytes([byte])


def test_a_token_with_another_character_is_plain_text() -> None:
    assert byte_level_bytes("Ġa") == b" a"
    assert byte_level_bytes("a b") == b"a b"
