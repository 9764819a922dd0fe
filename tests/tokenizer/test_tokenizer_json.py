"""tokenizer.json against the tokenizers library, and what the files beside it say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.tokenizer import tokenizer_from_file, tokenizer_from_folder
from refllm.tokenizer.hf_json import JsonTokenizer
from tests.support.model_files import write_tokenizer_model
from tests.support.vocabularies import (
    TEXTS,
    bert_like_json,
    llama_like_json,
    spm_toy,
    trained_bpe,
)

PATH = Path("tokenizer.json")


def metaspace_json() -> LibraryTokenizer:
    library = llama_like_json()
    library.decoder = decoders.Metaspace()
    return library


def bare_json() -> LibraryTokenizer:
    return LibraryTokenizer(models.WordLevel({"a": 0, "b": 1, "c": 5}, unk_token="a"))


PIPELINES: dict[str, Callable[[], LibraryTokenizer]] = {
    "Llama 2": llama_like_json,
    "GPT-2": trained_bpe,
    "BERT": bert_like_json,
    "Metaspace": metaspace_json,
    "no decoder": bare_json,
}
EVERY_PIPELINE = pytest.mark.parametrize("make", PIPELINES.values(), ids=PIPELINES.keys())


def ours(library: LibraryTokenizer) -> JsonTokenizer:
    return JsonTokenizer(library.to_str(), PATH)


@EVERY_PIPELINE
@given(text=TEXTS, add_special=st.booleans())
@settings(deadline=None)
def test_encoding_is_the_librarys(
    make: Callable[[], LibraryTokenizer], text: str, add_special: bool
) -> None:
    library = make()
    ids = ours(library).encode(text, add_special=add_special)
    assert ids == library.encode(text, add_special_tokens=add_special).ids


@EVERY_PIPELINE
@given(data=st.data())
@settings(deadline=None)
def test_decoding_is_the_librarys(
    make: Callable[[], LibraryTokenizer], data: st.DataObject
) -> None:
    library = make()
    tokenizer = ours(library)
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=10))
    # ByteFallback gives one U+FFFD for each byte of a run that is not UTF-8 as a whole, so where
    # there is one, only what is outside of such runs can be the same.
    theirs = library.decode(ids, skip_special_tokens=True)
    if "\ufffd" not in theirs or make is trained_bpe:
        assert tokenizer.decode(ids) == theirs


@pytest.mark.parametrize("direction", ["left", "right"])
@pytest.mark.parametrize("max_length", [2, 3, 5, 100])
@pytest.mark.parametrize("add_special", [True, False])
def test_the_files_own_truncation_is_kept(
    direction: str, max_length: int, add_special: bool
) -> None:
    library = bert_like_json()
    library.enable_truncation(max_length=max_length, direction=direction)
    text = "the play the playing the."
    ids = ours(library).encode(text, add_special=add_special)
    assert ids == library.encode(text, add_special_tokens=add_special).ids


def test_max_tokens_takes_the_place_of_the_files_truncation() -> None:
    library = bert_like_json()
    library.enable_truncation(max_length=4)
    tokenizer = ours(library)
    assert tokenizer.encode("the the the the") == [2, 7, 7, 3]
    assert tokenizer.encode("the the the the", max_tokens=5) == [2, 7, 7, 7, 3]
    assert tokenizer.encode("the the the the", max_tokens=3) == [2, 7, 3]
    assert tokenizer.encode("the", max_tokens=2) == [2, 3]


def test_max_tokens_that_hold_no_special_tokens_are_refused() -> None:
    with pytest.raises(InvalidInput, match="max_tokens is 1, the special tokens alone are 2"):
        ours(bert_like_json()).encode("the", max_tokens=1)


def test_padding_is_switched_off() -> None:
    library = bert_like_json()
    library.enable_padding(length=16)
    assert ours(library).encode("the") == [2, 7, 3]


def test_special_tokens_in_a_text_are_plain_text_where_they_are_not_parsed() -> None:
    tokenizer = ours(llama_like_json())
    assert tokenizer.encode("<s>", add_special=False) == [1]
    ids = tokenizer.encode("<s>", add_special=False, parse_special=False)
    assert 1 not in ids
    assert tokenizer.decode(ids) == "<s>"


def test_bos_is_what_the_post_processor_puts_first() -> None:
    assert ours(llama_like_json()).bos_id == 1
    assert ours(bert_like_json()).bos_id == 2
    assert ours(trained_bpe()).bos_id is None


def test_a_special_token_spelled_like_an_end_ends_the_generation() -> None:
    assert ours(llama_like_json()).eos_ids == {2}
    assert ours(bert_like_json()).eos_ids == frozenset()


def test_a_hole_in_the_ids_writes_nothing() -> None:
    tokenizer = ours(bare_json())
    assert tokenizer.n_vocab == 6
    assert (tokenizer.piece(3), tokenizer.decode([0, 3, 5])) == ("", "a c")


def test_a_decoder_that_needs_all_tokens_at_once_is_refused_by_name() -> None:
    library = llama_like_json()
    library.decoder = decoders.CTC()
    tokenizer = ours(library)
    assert tokenizer.encode("ab") == library.encode("ab").ids
    with pytest.raises(LlmRuntimeError, match=r"tokenizer\.json: .*CTC"):
        tokenizer.decode([260])


@pytest.mark.parametrize("steps", [["Fuse"], ["ByteFallback", "Fuse"], []])
def test_a_sequence_without_some_of_llama_2s_steps_decodes_too(steps: list[str]) -> None:
    library = llama_like_json()
    makers = {"Fuse": decoders.Fuse, "ByteFallback": decoders.ByteFallback}
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), *(makers[step]() for step in steps)]
    )
    ids = [259, 260, 68, 261]
    assert ours(library).decode(ids) == library.decode(ids)


@pytest.mark.parametrize(
    ("files", "bos_id", "eos_ids"),
    [
        ({}, 1, {2}),
        ({"config.json": {"eos_token_id": 5, "bos_token_id": 4}}, 4, {5}),
        ({"config.json": {"eos_token_id": [5, 6]}}, 1, {5, 6}),
        (
            {"generation_config.json": {"eos_token_id": 7}, "config.json": {"eos_token_id": 5}},
            1,
            {7},
        ),
        ({"generation_config.json": {"bos_token_id": None, "eos_token_id": -1}}, 1, {2}),
        ({"tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"content": "b"}}}, 1, {261}),
        (
            {"tokenizer_config.json": {"eos_token": "b"}, "config.json": {"eos_token_id": 5}},
            1,
            {5, 261},
        ),
    ],
)
def test_the_files_beside_name_bos_and_eos(
    tmp_path: Path, files: dict[str, object], bos_id: int, eos_ids: set[int]
) -> None:
    (tmp_path / "tokenizer.json").write_text(llama_like_json().to_str())
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.bos_id == bos_id
    assert tokenizer.eos_ids == eos_ids
    assert tokenizer.encode("a")[0] == 1  # what is added is up to the post-processor


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        ({}, [1, 259, 260]),
        ({"add_bos_token": False}, [259, 260]),
        ({"add_eos_token": True}, [1, 259, 260, 2]),
        ({"add_eos_token": True, "eos_token": "z"}, [1, 259, 260, 285]),
    ],
)
def test_tokenizer_config_decides_which_tokens_a_tokenizer_model_adds(
    tmp_path: Path, config: dict[str, object], ids: list[int]
) -> None:
    write_tokenizer_model(tmp_path / "tokenizer.model", spm_toy())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizer_from_folder(tmp_path).encode("a") == ids


def test_a_folder_prefers_tokenizer_json(tmp_path: Path) -> None:
    write_tokenizer_model(tmp_path / "tokenizer.model", spm_toy())
    (tmp_path / "tokenizer.json").write_text(bert_like_json().to_str())
    assert isinstance(tokenizer_from_folder(tmp_path), JsonTokenizer)


def test_a_file_speaks_for_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(llama_like_json().to_str())
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    assert tokenizer_from_file(tmp_path / "tokenizer.json").eos_ids == {2}
