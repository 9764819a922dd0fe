"""SentencePiece: against published ids and against the sentencepiece library; special tokens."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refllm.api import InvalidInput
from refllm.tokenizer import tokenizer_from_file, tokenizer_from_gguf
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.vocabulary import split_at_tokens
from tests.support.vocabularies import (
    CONTROL,
    NORMAL,
    TEXTS,
    USER_DEFINED,
    bert_toy,
    gguf_metadata,
    published_cases,
    spm_toy,
)

TOY = Path("toy.gguf")
SPM = "ggml-vocab/ggml-vocab-llama-spm.gguf"
BERT = "ggml-vocab/ggml-vocab-bert-bge.gguf"
N_PUBLISHED = 47


EOS = 2  # of Llama 2, behind <unk> and <s>, and before the 256 bytes
BYTES = range(3, 259)


@pytest.fixture(scope="module")
def llama2(data_dir: Path) -> Tokenizer:
    """Llama 2's tokenizer.model."""
    return tokenizer_from_file(data_dir / "llama2-tokenizer/tokenizer.model")


@pytest.fixture(scope="module")
def llama2_gguf(data_dir: Path) -> Tokenizer:
    """The same vocabulary out of a GGUF file."""
    return tokenizer_from_gguf(gguf_metadata(data_dir / SPM), path=data_dir / SPM)


@pytest.fixture(scope="module")
def bert_gguf(data_dir: Path) -> Tokenizer:
    """BAAI/bge's uncased BERT vocabulary."""
    return tokenizer_from_gguf(gguf_metadata(data_dir / BERT), path=data_dir / BERT)


@pytest.fixture(scope="module")
def tok512(data_dir: Path) -> Tokenizer:
    """The vocabulary of 512 tokens in stories260K.gguf."""
    path = data_dir / "stories260K/stories260K.gguf"
    return tokenizer_from_gguf(gguf_metadata(path), path=path)


@pytest.fixture(scope="module")
def processor(data_dir: Path) -> sentencepiece.SentencePieceProcessor:
    """The sentencepiece library on Llama 2's own file."""
    return sentencepiece.SentencePieceProcessor(
        model_file=str(data_dir / "llama2-tokenizer/tokenizer.model")
    )


# llama.cpp publishes 47 texts and their ids for each vocabulary. No case is left out: the
# sentencepiece and tokenizers libraries answer every one of them as llama.cpp does.


@pytest.mark.parametrize("case", range(N_PUBLISHED))
def test_llama_2_gives_the_published_ids(llama2: Tokenizer, data_dir: Path, case: int) -> None:
    text, ids = published_cases(data_dir / SPM)[case]
    assert llama2.encode(text, add_special=False) == ids


@pytest.mark.parametrize("case", range(N_PUBLISHED))
def test_the_gguf_vocabulary_gives_the_published_ids(
    llama2_gguf: Tokenizer, data_dir: Path, case: int
) -> None:
    text, ids = published_cases(data_dir / SPM)[case]
    assert llama2_gguf.encode(text, add_special=False) == ids


@pytest.mark.parametrize("case", range(N_PUBLISHED))
def test_the_bert_vocabulary_gives_the_published_ids(
    bert_gguf: Tokenizer, data_dir: Path, case: int
) -> None:
    text, ids = published_cases(data_dir / BERT)[case]
    assert bert_gguf.encode(text, add_special=False) == ids


def test_each_vocabulary_has_47_published_cases(data_dir: Path) -> None:
    assert len(published_cases(data_dir / SPM)) == N_PUBLISHED
    assert len(published_cases(data_dir / BERT)) == N_PUBLISHED


@given(text=TEXTS)
@settings(deadline=None)
def test_a_vocabulary_tokenizes_alike_from_gguf_and_from_tokenizer_model(
    llama2: Tokenizer, llama2_gguf: Tokenizer, text: str
) -> None:
    assert llama2_gguf.encode(text) == llama2.encode(text)


@given(text=TEXTS)
@settings(deadline=None)
def test_plain_text_is_tokenized_as_by_sentencepiece(
    llama2_gguf: Tokenizer, processor: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    ids = llama2_gguf.encode(text, add_special=False, parse_special=False)
    assert ids == processor.encode(text)


@given(ids=st.lists(st.integers(1, 31999) | st.integers(1, 400) | st.just(29871), max_size=12))
@settings(deadline=None)
def test_decoding_is_sentencepieces(
    llama2: Tokenizer, processor: sentencepiece.SentencePieceProcessor, ids: list[int]
) -> None:
    # <unk>, id 0, is left out: the library writes " ⁇ " for it. And the library gives one U+FFFD
    # for each byte that is not UTF-8, so runs of U+FFFD count as one here. It lets <s> and </s> end
    # a run of bytes, which here and in llama.cpp goes on behind them.
    in_bytes = (before in BYTES and token_id <= EOS for before, token_id in pairwise(ids))
    assume(not any(in_bytes))
    ours, theirs = (
        "\ufffd".join(part for part in text.split("\ufffd") if part)
        for text in (llama2.decode(ids), processor.decode(ids))
    )
    assert ours == theirs


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
@settings(deadline=None)
def test_tok512_gives_any_text_back(tok512: Tokenizer, text: str) -> None:
    assert tok512.decode(tok512.encode(text, parse_special=False)) == text


def test_tok512_tokenizes_a_sentence_by_its_scores(tok512: Tokenizer) -> None:
    ids = tok512.encode("the hen")
    # By hand, best score first: "he" (-1) twice, then "▁the" (-6), "▁he" (-22), and "▁hen" is none.
    assert [tok512.piece(token_id) for token_id in ids] == ["<s>", "▁the", "▁he", "n"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("<s>ab</s>", ["<s>", "▁", "a", "b", "</s>"]),
        ("a<s>b", ["▁", "a", "<s>", "▁", "b"]),
        ("<unk>", ["<unk>"]),
        ("<s><s>", ["<s>", "<s>"]),
        ("", []),
    ],
)
def test_special_tokens_are_found_in_text_and_a_space_begins_what_follows(
    text: str, pieces: list[str]
) -> None:
    tokenizer = tokenizer_from_gguf(spm_toy(), path=TOY)
    ids = tokenizer.encode(text, add_special=False)
    assert [tokenizer.piece(token_id) for token_id in ids] == pieces


def test_special_tokens_are_plain_text_where_they_are_not_parsed() -> None:
    tokenizer = tokenizer_from_gguf(spm_toy(), path=TOY)
    ids = tokenizer.encode("<s>a", add_special=False, parse_special=False)
    assert tokenizer.decode(ids) == "<s>a"
    assert 1 not in ids


def test_the_longest_special_token_wins() -> None:
    assert split_at_tokens("<|a|><|a|>b", {"<|a|>b": 1, "<|a|>": 2}) == [2, 1]
    tokenizer = tokenizer_from_gguf(spm_toy(("<s>a", CONTROL)), path=TOY)
    assert tokenizer.encode("<s>a", add_special=False) == [286]


def test_a_user_defined_piece_is_never_split_and_has_text() -> None:
    tokenizer = tokenizer_from_gguf(spm_toy(("<tool>", USER_DEFINED)), path=TOY)
    ids = tokenizer.encode("a<tool>b", parse_special=False)
    assert [tokenizer.piece(token_id) for token_id in ids] == ["<s>", "▁", "a", "<tool>", "▁", "b"]
    assert tokenizer.decode(ids) == "a<tool> b"


def test_a_user_defined_token_of_a_sentencepiece_gguf_is_cut_out_as_by_llama_cpp() -> None:
    turns = (("<|im_start|>", USER_DEFINED), ("<|im_end|>", USER_DEFINED))
    metadata = spm_toy(*turns) | {"tokenizer.ggml.bos_token_id": 1}
    tokenizer = tokenizer_from_gguf(metadata, path=Path("chatml.gguf"))
    assert tokenizer.encode("<|im_start|>hi<|im_end|>") == [1, 286, 259, 267, 268, 287]


def test_add_space_prefix_false_adds_no_space() -> None:
    metadata = {**spm_toy(), "tokenizer.ggml.add_space_prefix": False}
    tokenizer = tokenizer_from_gguf(metadata, path=TOY)
    ids = tokenizer.encode(" a")
    assert [tokenizer.piece(token_id) for token_id in ids] == ["<s>", "▁", "a"]
    assert tokenizer.decode(ids) == " a"


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ({}, [1, 259, 260]),
        ({"add_bos_token": False}, [259, 260]),
        ({"add_eos_token": True}, [1, 259, 260, 2]),
        ({"bos_token_id": 2}, [2, 259, 260]),
        ({"bos_token_id": 0xFFFFFFFF}, [259, 260]),
    ],
)
def test_bos_and_eos_are_added_by_the_keys_of_the_file(
    keys: dict[str, object], ids: list[int]
) -> None:
    metadata = spm_toy() | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    assert tokenizer_from_gguf(metadata, path=TOY).encode("a") == ids


@pytest.mark.parametrize(
    ("keys", "eos_ids"),
    [
        ({}, {2, 288}),
        ({"eos_token_id": 286}, {2, 286, 288}),  # "</s>" is spelled as an end, too
        ({"eot_token_id": 287}, {2, 287, 288}),
        ({"eom_token_id": 286, "eot_token_id": 287}, {2, 286, 287, 288}),
        ({"eos_token_id": 0xFFFFFFFF}, {2, 288}),
    ],
)
def test_every_token_that_ends_a_generation_is_known(
    keys: dict[str, object], eos_ids: set[int]
) -> None:
    metadata = spm_toy(("<stop>", CONTROL), ("<turn>", CONTROL), ("<|im_end|>", NORMAL))
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    assert tokenizer_from_gguf(metadata, path=TOY).eos_ids == eos_ids


def test_a_control_token_spelled_like_an_end_ends_the_generation() -> None:
    tokenizer = tokenizer_from_gguf(spm_toy(("<|im_end|>", CONTROL)), path=TOY)
    assert tokenizer.eos_ids == {2, 286}


def test_llama_2_begins_with_bos_and_ends_with_eos(llama2: Tokenizer) -> None:
    assert (llama2.n_vocab, llama2.bos_id) == (32000, 1)
    assert llama2.eos_ids == {2}
    assert llama2.encode("") == [1]
    assert llama2.encode("Hello") == [1, 15043]


def test_bert_puts_cls_and_sep_around_a_text(bert_gguf: Tokenizer) -> None:
    assert bert_gguf.encode("Hello") == [101, 7592, 102]
    assert (bert_gguf.bos_id, bert_gguf.eos_ids) == (101, frozenset())


def test_bert_tokens_are_spelled_as_bert_spells_them() -> None:
    tokenizer = tokenizer_from_gguf(bert_toy(), path=TOY)
    ids = tokenizer.encode("Playing the [MASK].")
    pieces = ["[CLS]", "play", "##ing", "the", "[MASK]", ".", "[SEP]"]
    assert [tokenizer.piece(token_id) for token_id in ids] == pieces
    assert tokenizer.decode(ids) == "playing the ."


def test_a_cased_bert_vocabulary_keeps_capitals() -> None:
    tokenizer = tokenizer_from_gguf(bert_toy(**{"normalizer.lowercase": False}), path=TOY)
    assert tokenizer.encode("Play", add_special=False) == [1]


@pytest.mark.parametrize("metadata", [spm_toy(), bert_toy()])
def test_max_tokens_cuts_the_text_and_keeps_the_special_tokens(metadata: dict[str, object]) -> None:
    tokenizer = tokenizer_from_gguf(metadata, path=TOY)
    whole = tokenizer.encode("the the the the the")
    cut = tokenizer.encode("the the the the the", max_tokens=4)
    n_suffix = 1 if whole[-1] == 3 else 0
    assert cut == [*whole[: 4 - n_suffix], *whole[len(whole) - n_suffix :]]
    with pytest.raises(InvalidInput, match="max_tokens is 0"):
        tokenizer.encode("the", max_tokens=0)
