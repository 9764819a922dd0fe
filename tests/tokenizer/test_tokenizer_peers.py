"""Ids, special tokens and ends of a generation against transformers and llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

from refllm.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from tests.support.peer_values import peer_values
from tests.support.token_cases import (
    FOLDERS,
    GGUFS,
    TEXTS,
    WORD_RULES,
    WORD_TEXTS,
    words_metadata,
    write_folder,
)

PEERS = peer_values("tokens")
PATH = Path("vocabulary.gguf")
# A BERT generates nothing; llama.cpp counts its [PAD] as an end all the same.
GENERATING = [case for case in GGUFS if not case.startswith("bert")]


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_gives_the_ids_of_transformers(tmp_path: Path, case: str) -> None:
    tokenizer = tokenizer_from_folder(write_folder(tmp_path, FOLDERS[case]))
    assert [tokenizer.encode(text) for text in TEXTS] == PEERS[case]["ids"]


@pytest.mark.parametrize("case", GGUFS)
def test_a_gguf_vocabulary_gives_the_ids_of_llama_cpp(case: str) -> None:
    tokenizer = tokenizer_from_gguf(GGUFS[case](), path=PATH)
    assert [tokenizer.encode(text) for text in TEXTS] == PEERS[case]["ids"]


@pytest.mark.parametrize("pre", WORD_RULES)
def test_a_gguf_vocabulary_cuts_words_as_llama_cpp_does(pre: str) -> None:
    tokenizer = tokenizer_from_gguf(words_metadata(pre), path=PATH)
    assert [tokenizer.encode(text) for text in WORD_TEXTS] == PEERS[f"words: {pre}"]["ids"]


@pytest.mark.parametrize("case", GENERATING)
def test_the_end_tokens_equal_llama_cpp_s(case: str) -> None:
    tokenizer = tokenizer_from_gguf(GGUFS[case](), path=PATH)
    assert sorted(tokenizer.eos_ids) == PEERS[case]["ends"]


@pytest.mark.parametrize("case", GENERATING)
def test_a_token_writes_what_it_writes_in_llama_cpp(case: str) -> None:
    tokenizer = tokenizer_from_gguf(GGUFS[case](), path=PATH)
    writes = {int(token_id): text for token_id, text in PEERS[case]["writes"].items()}
    ours = {token_id: tokenizer.token_bytes(token_id).decode("latin-1") for token_id in writes}
    assert ours == writes
