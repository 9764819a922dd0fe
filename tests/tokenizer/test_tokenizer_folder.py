"""The files beside a vocabulary: added and special tokens, ends of a generation, refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import decoders

from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.ledger import Ledger
from refllm.models.load import LlamaModel, load_path
from refllm.tokenizer import tokenizer_from_folder
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.hf_json import JsonTokenizer
from tests.conftest import handed_cases
from tests.support.model_files import tiny_llama_folder
from tests.support.peer_values import peer_values
from tests.support.token_cases import (
    BERT,
    FAST,
    FOLDERS,
    VOCAB_TXT,
    Files,
    llama_case,
    llama_json,
    model_case,
    roberta_files,
    write_folder,
)
from tests.support.vocabularies import bert_like_json, llama_like_json, trained_bpe

PEERS = peer_values("tokens")


def load(folder: Path, files: Files) -> Tokenizer:
    return tokenizer_from_folder(write_folder(folder, files))


def handed_case() -> dict[str, Any]:
    cases = handed_cases("tokens")["cases"]
    case: dict[str, Any] = next(c for c in cases if c["id"] == "added-beside-a-tokenizer-model")
    return case


def test_tokens_added_beside_llama_2s_model_are_found_in_a_text(
    tmp_path: Path, data_dir: Path
) -> None:
    case = handed_case()
    shutil.copy(data_dir / "llama2-tokenizer/tokenizer.model", tmp_path)
    files = {name: content for name, content in case["files"].items() if name.endswith(".json")}
    tokenizer = load(tmp_path, files)
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert sorted(tokenizer.eos_ids) == case["end_tokens"]
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    # Only the token that a file names as special is one; the other is text, as in transformers.
    assert tokenizer.decode(case["ids"]) == "<|im_start|> user\nHi \n<|im_start|> assistant\n"


@pytest.mark.parametrize("case", FOLDERS)
def test_special_tokens_have_the_names_that_transformers_gives_them(
    tmp_path: Path, case: str
) -> None:
    theirs = PEERS[case]["special_tokens"]
    config = FOLDERS[case].get("tokenizer_config.json", {})
    assert isinstance(config, Mapping)
    placeholders = {"fill_token", "prefix_token"}  # transformers makes tokens of them
    named = {name for name in config if name.endswith("_token") and name in theirs} - placeholders
    ours = load(tmp_path, FOLDERS[case]).special_tokens
    assert {name: ours[name] for name in named} == {name: theirs[name] for name in named}


def test_a_token_that_is_added_and_not_special_writes_text(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, FOLDERS["model: added_tokens_decoder"])
    ids = tokenizer.encode("a <tool> <|x|>b")
    assert tokenizer.decode(ids) == "a <tool>  b"
    assert {289, 291} <= set(ids)
    assert 289 not in tokenizer.encode("a <tool> <|x|>b", parse_special=False)
    assert 291 in tokenizer.encode("a <tool> <|x|>b", parse_special=False)


def test_an_added_token_takes_the_place_of_a_piece_that_is_kept_free(tmp_path: Path) -> None:
    token = {"content": "<|x|>", "special": True, "normalized": False}
    tokenizer = load(tmp_path, model_case({"added_tokens_decoder": {"285": token}}))
    assert (tokenizer.n_vocab, tokenizer.piece(285)) == (289, "<|x|>")
    assert tokenizer.encode("<|x|>", add_special=False) == [285]


@pytest.mark.parametrize("make", [llama_case, model_case])
@pytest.mark.parametrize(
    ("config", "more", "file", "key"),
    [
        ({"eos_token": "<|gone|>"}, {}, "tokenizer_config.json", "eos_token"),
        ({"cls_token": {"content": "<|gone|>"}}, {}, "tokenizer_config.json", "cls_token"),
        (
            {},
            {"special_tokens_map.json": {"unk_token": "<|gone|>"}},
            "special_tokens_map.json",
            "unk_token",
        ),
    ],
)
def test_a_special_token_that_the_vocabulary_lacks_is_an_error(
    tmp_path: Path, make: Any, config: Any, more: Any, file: str, key: str
) -> None:
    expected = f"{file}: {key} names the token '<|gone|>', which is not in the vocabulary"
    files = dict(make(config, **more))
    with pytest.raises(LlmRuntimeError, match=re.escape(expected)):
        load(tmp_path, files)


@pytest.mark.parametrize("make", [llama_case, model_case])
@pytest.mark.parametrize(
    ("config", "key", "reason"),
    [
        ({"pad_token": {"content": "<|gone|>"}}, "pad_token", "nothing is padded"),
        ({"image_token": "<|gone|>"}, "image_token", "the vocabulary lacks"),
        ({"fill_token": "<FILL_ME>"}, "fill_token", "the vocabulary lacks"),
        (
            {"extra_special_tokens": {"image_token": "<|gone|>"}},
            "extra_special_tokens.image_token",
            "the vocabulary lacks",
        ),
        ({"bos_token": ""}, "bos_token", "counts as absent"),
    ],
)
def test_a_placeholder_need_not_be_in_the_vocabulary(
    tmp_path: Path, make: Any, config: Any, key: str, reason: str
) -> None:
    ledger = Ledger(strict=True)
    tokenizer = tokenizer_from_folder(write_folder(tmp_path, make({**FAST, **config})), ledger)
    assert tokenizer.encode("abc")[0] == 1
    assert "<|gone|>" not in tokenizer.special_tokens.values()
    (entry,) = (entry for entry in ledger.entries if entry.name == key)
    assert entry.verdict == "irrelevant"
    assert reason in entry.reason


def test_a_map_beside_added_tokens_decoder_names_no_tokens(tmp_path: Path) -> None:
    beside = {"special_tokens_map.json": {"bos_token": "<|gone|>", "eos_token": 3}}
    tokenizer = load(tmp_path, llama_case({"added_tokens_decoder": {}}, **beside))
    assert tokenizer.encode("abc")[0] == 1


@pytest.mark.parametrize("make", [llama_case, model_case])
@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"cls_token": "\ud800"}, "cls_token"),
        ({"eos_token": {"content": "\udfff"}}, "eos_token"),
        ({"added_tokens_decoder": {"267": {"content": "a\ud800"}}}, "added_tokens_decoder.267"),
        ({"additional_special_tokens": ["\ud800"]}, "additional_special_tokens"),
    ],
)
def test_a_token_that_is_not_unicode_is_an_error(
    tmp_path: Path, make: Any, config: Any, key: str
) -> None:
    folder = write_folder(tmp_path, {k: v for k, v in make({}).items() if k[-5:] != "g.json"})
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(LlmRuntimeError, match=f"{key} has the token .*, which is not Unicode"):
        tokenizer_from_folder(folder)


def test_an_added_token_that_is_not_unicode_is_an_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, llama_case({}))
    (folder / "added_tokens.json").write_text(json.dumps({"\ud800": 267}), "utf-8")
    with pytest.raises(LlmRuntimeError, match=r"added_tokens.json: has the token .*, which is not"):
        tokenizer_from_folder(folder)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (model_case({"added_tokens_decoder": {"300": {"content": "<|x|>"}}}), "the id 300, but in"),
        (model_case({"added_tokens_decoder": {"2": {"content": "ab"}}}), "'ab' the id 2, but in"),
        (llama_case({"added_tokens_decoder": {"300": {"content": "<|x|>"}}}), "the id 300, but in"),
        (llama_case({}, **{"added_tokens.json": {"<|x|>": 300}}), "'<|x|>' the id 300, but in"),
        (llama_case({}, **{"added_tokens.json": {"<|x|>": "1"}}), "must be an id, is '1'"),
        (llama_case({"added_tokens_decoder": []}), "added_tokens_decoder must be an object"),
        (llama_case({"added_tokens_decoder": {"x": {}}}), "has the id 'x', which is not a number"),
        (
            llama_case({"added_tokens_decoder": {"9" * 5000: {}}}),
            "which is not a number",
        ),
        (llama_case({"added_tokens_decoder": {"9": 1}}), "added_tokens_decoder.9 must be a token"),
        (llama_case({"eos_token": 7}), "eos_token must be a token, is 7"),
        (llama_case({"additional_special_tokens": "x"}), "must be an array of tokens, is 'x'"),
        (llama_case({"tokenizer_class": 7}), "tokenizer_class must be a string, is 7"),
    ],
)
def test_files_that_contradict_each_other_or_are_damaged_are_named(
    tmp_path: Path, files: Files, problem: str
) -> None:
    with pytest.raises(LlmRuntimeError, match=re.escape(problem)) as caught:
        load(tmp_path, files)
    assert str(tmp_path) in str(caught.value)


def test_every_end_that_the_files_name_or_that_is_spelled_as_one_ends_a_text(
    tmp_path: Path,
) -> None:
    ends = {"<|im_end|>": 267, "<turn>": 268}
    files = llama_case(
        {**FAST, "eos_token": "<turn>"},
        **{
            "added_tokens.json": ends,
            "generation_config.json": {"eos_token_id": [260, 261]},
            "config.json": {"model_type": "llama", "eos_token_id": 2},
        },
    )
    tokenizer = load(tmp_path, files)
    assert tokenizer.eos_ids == {260, 261, 267, 268}
    assert tokenizer.special_tokens["eos_token"] == "<turn>"
    assert tokenizer.decode([260, 267]) == "a"


def test_eos_by_its_id_alone_has_a_name_too(tmp_path: Path) -> None:
    files = llama_case(FAST, **{"config.json": {"model_type": "llama", "eos_token_id": [261, 2]}})
    assert load(tmp_path, files).special_tokens == {
        "bos_token": "<s>",
        "eos_token": "b",
        "unk_token": "<unk>",
    }


def test_a_text_with_a_token_that_the_model_has_no_row_of_is_refused_by_name(
    tmp_path: Path,
) -> None:
    tokenizer = load(tmp_path, FOLDERS["llama: added_tokens_decoder"])
    tokenizer.n_rows = 268
    assert tokenizer.encode("<|x|>")[-1] == 267
    with pytest.raises(InvalidInput, match=r"'<\|y\|>' with id 268, but the model has .* 268 tok"):
        tokenizer.encode("a<|y|>")


@pytest.mark.parametrize("place", ["vocab", "added_tokens"])
def test_an_id_far_beyond_the_number_of_tokens_is_refused(place: str) -> None:
    document = json.loads(bert_like_json().to_str())
    beyond = 10 * len(document["model"]["vocab"])
    if place == "vocab":
        document["model"]["vocab"]["far"] = beyond
    else:
        document["added_tokens"].append(document["added_tokens"][0] | {"id": beyond})
    with pytest.raises(LlmRuntimeError, match=f"one has the id {beyond}"):
        JsonTokenizer(json.dumps(document), Path("tokenizer.json"))


def test_an_added_token_that_the_library_would_count_otherwise_is_refused() -> None:
    document = llama_json()
    token = document["added_tokens"][0] | {"content": "<|x|>", "id": 300}
    document["added_tokens"].append(token)
    with pytest.raises(LlmRuntimeError, match=r"'<\|x\|>' with id 300.* as 267"):
        JsonTokenizer(json.dumps(document), Path("tokenizer.json"))


BYTE_LEVEL, METASPACE = decoders.ByteLevel(), decoders.Metaspace()


@pytest.mark.parametrize(
    ("make", "decoder"),
    [
        (trained_bpe, decoders.Sequence([BYTE_LEVEL])),
        (trained_bpe, decoders.Sequence([decoders.Sequence([BYTE_LEVEL])])),
        (trained_bpe, decoders.Sequence([BYTE_LEVEL, decoders.Fuse()])),
        (llama_like_json, decoders.Sequence([METASPACE])),
        (llama_like_json, decoders.Sequence([decoders.Sequence([METASPACE]), decoders.Fuse()])),
        (bert_like_json, decoders.Sequence([decoders.WordPiece()])),
        (
            llama_like_json,
            decoders.Sequence(
                [
                    decoders.Replace("▁", " "),
                    decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]),
                ]
            ),
        ),
    ],
)
def test_a_sequence_of_one_and_one_in_another_decode_as_the_library(
    make: Any, decoder: Any
) -> None:
    library = type(make()).from_str(make().to_str())
    library.decoder = decoder
    ours = JsonTokenizer(library.to_str(), Path("tokenizer.json"))
    for ids in ([5, 6, 7], [260, 261, 259, 262], [7, 264]):
        known = [token_id for token_id in ids if token_id < ours.n_vocab]
        assert ours.decode(known) == library.decode(known)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"vocab.txt": "a\nb\n"}, "'[UNK]'|there is no token [UNK]"),
        ({"vocab.txt": "[UNK]\na\na\n"}, "has the token 'a' twice"),
        ({"vocab.txt": b"\xff"}, "vocab.txt: not UTF-8"),
        ({"vocab.json": {"a": 0}}, "merges.txt: there is no such file beside vocab.json"),
        ({"vocab.json": {"a": 0}, "merges.txt": "a b c\n"}, "'a b c' is not two tokens"),
        ({"sentencepiece.bpe.model": b"\0\1"}, "sentencepiece.bpe.model: not a SentencePiece"),
    ],
)
def test_a_vocabulary_that_is_damaged_is_named(
    tmp_path: Path, files: Mapping[str, Any], problem: str
) -> None:
    for name, content in files.items():
        data = content if isinstance(content, bytes) else None
        if data is None:
            text = content if isinstance(content, str) else json.dumps(content)
            data = text.encode()
        (tmp_path / name).write_bytes(data)
    pattern = "|".join(map(re.escape, problem.split("|")))
    with pytest.raises(LlmRuntimeError, match=pattern) as caught:
        tokenizer_from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "files",
    [
        {"vocab.txt": VOCAB_TXT, "tokenizer_config.json": {"tokenizer_class": "XTokenizer"}},
        {**roberta_files(), "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"}},
    ],
)
def test_a_class_that_makes_another_pipeline_of_a_vocabulary_is_refused(
    tmp_path: Path, files: Files
) -> None:
    with pytest.raises(ModelNotSupported, match=r"tokenizer_class '.*' .* save_pretrained"):
        load(tmp_path, files)


def test_bert_without_tokenizer_json_has_special_tokens_and_decodes(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, {"vocab.txt": VOCAB_TXT, "config.json": BERT})
    ids = tokenizer.encode("The playing.")
    assert [tokenizer.piece(i) for i in ids] == ["[CLS]", "the", "play", "##ing", ".", "[SEP]"]
    assert tokenizer.decode(ids) == "the playing."


def folder_with_one_token_too_many(folder: Path, **config: object) -> int:
    """A whole model, and beside it a token that it has no embedding of; its id."""
    n_rows = load_path(tiny_llama_folder(folder)).tokenizer.n_vocab
    (folder / "added_tokens.json").write_text(json.dumps({"<|x|>": n_rows}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return n_rows


def test_a_model_with_fewer_rows_than_tokens_loads_and_refuses_the_rest(tmp_path: Path) -> None:
    n_rows = folder_with_one_token_too_many(tmp_path)
    model = load_path(tmp_path)
    assert isinstance(model, LlamaModel)
    assert model.tokenizer.n_vocab == n_rows + 1
    assert model.prompt_tokens("ab")
    with pytest.raises(InvalidInput, match=rf"the token '<\|x\|>' with id {n_rows}, but the model"):
        model.prompt_tokens("ab<|x|>")


def test_a_token_without_a_row_that_each_text_has_is_an_error(tmp_path: Path) -> None:
    n_rows = folder_with_one_token_too_many(tmp_path, eos_token="<|x|>", add_eos_token=True)
    with pytest.raises(LlmRuntimeError, match=rf"adds the token '<\|x\|>' with id {n_rows}"):
        load_path(tmp_path)
