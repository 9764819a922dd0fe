"""Text out of tokens: streams, continuations, and the bound on how many tokens a text has."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refllm.tokenizer import tokenizer_from_file, tokenizer_from_gguf
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.hf_json import JsonTokenizer
from tests.support.vocabularies import (
    CONTROL,
    TEXTS,
    USER_DEFINED,
    bert_like_json,
    bert_toy,
    bpe_metadata,
    llama_like_json,
    spm_toy,
    trained_bpe,
)

PATH = Path("toy")
KINDS = {
    "SentencePiece": tokenizer_from_gguf(spm_toy(("<tool>", USER_DEFINED)), path=PATH),
    "BPE": tokenizer_from_gguf(
        bpe_metadata(("<|end|>", CONTROL), ("<tool>", USER_DEFINED)), path=PATH
    ),
    "WordPiece": tokenizer_from_gguf(bert_toy(), path=PATH),
    "JSON like Llama 2": JsonTokenizer(llama_like_json().to_str(), PATH),
    "JSON like GPT-2": JsonTokenizer(trained_bpe().to_str(), PATH),
    "JSON like BERT": JsonTokenizer(bert_like_json().to_str(), PATH),
}
EVERY_KIND = pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())


def some_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=10)


def token_writing(tokenizer: Tokenizer, byte: int) -> int:
    """The token that writes this one byte."""
    return next(
        token_id
        for token_id in range(tokenizer.n_vocab)
        if tokenizer.token_bytes(token_id) == bytes([byte])
    )


@EVERY_KIND
@given(data=st.data())
@settings(deadline=None)
def test_a_stream_gives_the_text_of_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(some_ids(tokenizer))
    stream = tokenizer.stream()
    pushed = [stream.push(token_id) for token_id in ids]
    assert "".join(pushed) + stream.finish() == tokenizer.decode(ids)


@EVERY_KIND
@given(data=st.data())
@settings(deadline=None)
def test_a_text_is_the_utf_8_reading_of_what_its_tokens_write(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(some_ids(tokenizer))
    written = [tokenizer.token_bytes(token_id) for token_id in ids]
    first = next((place for place, part in enumerate(written) if part), None)
    if first is not None:
        written[first] = tokenizer.opening_bytes(ids[first])
    assert tokenizer.decode(ids) == b"".join(written).decode("utf-8", errors="replace")


@EVERY_KIND
@given(data=st.data())
@settings(deadline=None)
def test_a_continuation_is_what_the_ids_add_to_the_text(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    previous, ids = data.draw(some_ids(tokenizer)), data.draw(some_ids(tokenizer))
    before, after = tokenizer.decode(previous), tokenizer.decode_continuation(previous, ids)
    stream = tokenizer.stream(previous=previous)
    assert "".join([*map(stream.push, ids), stream.finish()]) == after
    if not before.endswith("\ufffd"):
        assert before + after == tokenizer.decode([*previous, *ids])


@pytest.mark.parametrize("kind", ["SentencePiece", "BPE", "JSON like Llama 2", "JSON like GPT-2"])
@given(text=TEXTS)
@settings(deadline=None)
def test_no_piece_of_a_stream_is_half_a_character(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    text = text.replace("▁", "_").replace("\ufffd", "")
    if kind == "SentencePiece":
        text = text.replace("<tool>", "<x>")  # text after it begins with a space more
    ids = tokenizer.encode(text, parse_special=False)
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join(pieces) == text
    assert stream.finish() == ""


@pytest.mark.parametrize("kind", ["SentencePiece", "BPE", "JSON like Llama 2", "JSON like GPT-2"])
def test_a_character_comes_with_its_last_byte(kind: str) -> None:
    tokenizer = KINDS[kind]
    stream = tokenizer.stream()
    pushed = [stream.push(token_writing(tokenizer, byte)) for byte in "🦙é".encode()]
    assert pushed == ["", "", "", "🦙", "", "é"]
    assert stream.finish() == ""


@pytest.mark.parametrize("kind", ["SentencePiece", "BPE", "JSON like Llama 2", "JSON like GPT-2"])
def test_bytes_that_are_no_character_become_one_replacement(kind: str) -> None:
    tokenizer = KINDS[kind]
    stream = tokenizer.stream()
    # Unicode 16, table 3-8: F1 80 80 | E1 80 | C2 | 'b' | 80, a U+FFFD for each but the letter.
    broken = bytes.fromhex("F18080 E180 C2 62 80")
    pushed = "".join(stream.push(token_writing(tokenizer, byte)) for byte in broken)
    assert pushed + stream.finish() == "\ufffd\ufffd\ufffdb\ufffd"


@pytest.mark.parametrize("kind", ["SentencePiece", "BPE", "JSON like Llama 2", "JSON like GPT-2"])
def test_a_stream_that_ends_inside_a_character_ends_with_a_replacement(kind: str) -> None:
    tokenizer = KINDS[kind]
    stream = tokenizer.stream()
    assert [stream.push(token_writing(tokenizer, byte)) for byte in "é".encode()[:1]] == [""]
    assert stream.finish() == "\ufffd"


def test_a_generated_word_keeps_its_space_after_a_prompt() -> None:
    tokenizer = KINDS["SentencePiece"]
    prompt, generated = tokenizer.encode("she sang"), tokenizer.encode("once", add_special=False)
    assert tokenizer.decode_continuation(prompt, generated) == " once"
    assert tokenizer.decode([*prompt, *generated]) == "she sang once"


def test_a_generated_word_loses_its_space_after_bos_alone() -> None:
    tokenizer = KINDS["SentencePiece"]
    prompt, generated = tokenizer.encode(""), tokenizer.encode("once", add_special=False)
    assert prompt == [tokenizer.bos_id]
    assert tokenizer.decode_continuation(prompt, generated) == "once"


def test_only_one_space_is_dropped_from_the_beginning() -> None:
    tokenizer = KINDS["SentencePiece"]
    assert tokenizer.decode(tokenizer.encode("  a")) == "  a"


@EVERY_KIND
def test_special_tokens_write_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("play")
    without = tokenizer.encode("play", add_special=False)
    assert tokenizer.decode(ids) == tokenizer.decode(without)
    assert tokenizer.decode([i for i in (tokenizer.bos_id, *tokenizer.eos_ids) if i]) == ""


@EVERY_KIND
@given(text=TEXTS)
@settings(deadline=None)
def test_a_text_has_at_least_its_minimum_of_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.minimum_tokens(text) <= len(tokenizer.encode(text, add_special=False))


@pytest.mark.parametrize("kind", ["SentencePiece", "BPE", "JSON like Llama 2", "JSON like GPT-2"])
def test_a_million_characters_are_known_to_be_too_many_without_tokenizing(kind: str) -> None:
    assert KINDS[kind].minimum_tokens("a" * 1_000_000) > 50_000


@pytest.mark.parametrize("kind", ["WordPiece", "JSON like BERT"])
def test_minimum_tokens_is_0_where_a_long_word_is_one_unknown_token(kind: str) -> None:
    text = "x" * 1000
    assert len(KINDS[kind].encode(text, add_special=False)) == 1
    assert KINDS[kind].minimum_tokens(text) == 0


def test_a_million_characters_can_be_tokenized(data_dir: Path) -> None:
    tokenizer = tokenizer_from_file(data_dir / "llama2-tokenizer/tokenizer.model")
    text = "Once upon a time, there was a little girl. " * 23256
    ids = tokenizer.encode(text)
    assert len(text) > 1_000_000
    assert tokenizer.decode(ids) == text
