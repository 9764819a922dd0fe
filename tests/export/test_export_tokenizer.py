"""Exported tokenizers give the ids that the source's own gives, on any text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models

from refllm.api import ModelNotSupported
from refllm.checkpoints.open import Weights
from refllm.export.gguf_vocabulary import gguf_spelling, vocabulary_keys
from refllm.export.model import TokenizerDescription, describe_tokenizer, special_ids_of
from refllm.export.sentencepiece import (
    pieces_of_gguf,
    pieces_of_json,
    pieces_of_model,
    tokenizer_model,
)
from refllm.export.tokenizer_files import tokenizer_files
from refllm.tokenizer import tokenizer_from_file, tokenizer_from_folder, tokenizer_from_gguf
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.gguf_keys import GgufKeys
from refllm.tokenizer.wordpiece import bert_spelling
from tests.conftest import DATA
from tests.support.model_files import spm_vocabulary, write_tokenizer_model
from tests.support.token_cases import FOLDERS, write_folder
from tests.support.vocabularies import (
    SENTENCES,
    TEXTS,
    bert_toy,
    bpe_metadata,
    gguf_metadata,
    llama_like_json,
    published_cases,
    spm_toy,
    trained_bpe,
    wire,
)

HERE = Path("test.gguf")
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}

LLAMA_2 = ("ggml-vocab", "ggml-vocab-llama-spm.gguf")
STORIES = ("stories260K", "stories260K.gguf")
BERT = ("ggml-vocab", "ggml-vocab-bert-bge.gguf")


def weights_of(metadata: Mapping[str, object], path: Path = HERE) -> Weights:
    """A GGUF file with a vocabulary alone."""
    kind = "bert" if metadata["tokenizer.ggml.model"] == "bert" else "llama"
    return Weights(path, kind, metadata, "gguf", {})


def folder_words(folder: Path, architecture: str = "llama") -> TokenizerDescription:
    """A folder with a tokenizer alone."""
    return describe_tokenizer(Weights(folder, architecture, {}, "hf", {}))


def write_files(weights: Weights, folder: Path) -> Path:
    """The exported tokenizer in `folder`."""
    for name, content in tokenizer_files(describe_tokenizer(weights), n_ctx=64).items():
        (folder / name).write_bytes(content)
    return folder


def both(metadata: Mapping[str, object]) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer of a GGUF file, and the one exported from it."""
    with TemporaryDirectory() as folder:
        exported = tokenizer_from_folder(write_files(weights_of(metadata), Path(folder)))
    return tokenizer_from_gguf(metadata, path=HERE), exported


@cache
def both_published(*path: str) -> tuple[Tokenizer, Tokenizer]:
    return both(gguf_metadata(DATA.joinpath(*path)))


@cache
def both_toys() -> Sequence[tuple[Tokenizer, Tokenizer]]:
    """Every kind and setting of a vocabulary, small."""
    pieces = [("▁a", NORMAL), ("bc", NORMAL), ("▁abc", NORMAL), ("abc", NORMAL), ("aa", NORMAL)]
    toy = spm_toy(*pieces, ("<|end|>", CONTROL))
    return [
        both(toy),
        both(toy | wire({"add_space_prefix": False})),
        both(toy | wire({"add_bos_token": False})),
        both(toy | wire({"add_eos_token": True})),
        both(spm_vocabulary()),
        both(bert_toy()),
        both(bert_toy(**{"normalizer.lowercase": False})),
        both(bpe_metadata()),
        both(bpe_metadata(("<|end|>", CONTROL), pre="llama-bpe", bos_token_id=400)),
        both(bpe_metadata(("<tool>", USER_DEFINED), pre="starcoder")),
    ]


def assert_same(text: str, own: Tokenizer, exported: Tokenizer) -> None:
    for add, parse in product((True, False), repeat=2):
        ids = own.encode(text, add_special=add, parse_special=parse)
        assert exported.encode(text, add_special=add, parse_special=parse) == ids


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize("path", [LLAMA_2, STORIES, BERT], ids="-".join)
@pytest.mark.parametrize("text", [*SENTENCES, "", " ", "  two  ", "\n\n\t", "▁", "<s>a</s> b<unk>"])
def test_a_published_vocabulary_gives_the_same_ids(path: tuple[str, ...], text: str) -> None:
    assert_same(text, *both_published(*path))


def test_llama_2_gives_the_ids_that_llama_cpp_publishes(data_dir: Path) -> None:
    _, exported = both_published(*LLAMA_2)
    cases = published_cases(data_dir.joinpath(*LLAMA_2))
    assert len(cases) > 40
    for text, ids in cases:
        assert exported.encode(text, add_special=False, parse_special=False) == ids


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize("path", [LLAMA_2, STORIES], ids="-".join)
def test_runs_of_a_character_are_merged_alike(path: tuple[str, ...]) -> None:
    # Their pieces overlap with themselves, the one case where SentencePiece looks at places.
    own, exported = both_published(*path)
    for character, n in product(" -=*ae0.#_", range(1, 40)):
        assert_same(character * n, own, exported)


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize("path", [LLAMA_2, STORIES, BERT], ids="-".join)
@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_published_vocabulary_gives_the_same_ids_for_any_text(
    path: tuple[str, ...], text: str
) -> None:
    assert_same(text, *both_published(*path))


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_every_kind_of_vocabulary_gives_the_same_ids_for_any_text(text: str) -> None:
    for own, exported in both_toys():
        assert_same(text, own, exported)


@pytest.mark.parametrize("text", ["abc aab", " b", "<s>abc", *SENTENCES])
def test_ids_become_the_same_text_again(text: str) -> None:
    for own, exported in both_toys():
        ids = own.encode(text)
        assert exported.decode(ids) == own.decode(ids)


def test_bos_and_eos_are_named_in_the_files(tmp_path: Path) -> None:
    weights = weights_of(spm_vocabulary() | {"tokenizer.chat_template": "{{ x }}"})
    config = json.loads((write_files(weights, tmp_path) / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")
    assert (config["unk_token"], config["model_max_length"]) == ("<unk>", 64)
    assert config["chat_template"] == "{{ x }}"


def test_behind_a_user_defined_token_a_text_begins_as_llama_cpp_begins_it() -> None:
    _, exported = both(spm_toy(("<tool>", USER_DEFINED)))
    assert exported.encode("a<tool>a") == [1, 259, 260, 286, 259, 260]


class TestTokenizerModel:
    @given(text=TEXTS)
    @settings(max_examples=100, deadline=None)
    def test_an_exported_tokenizer_gives_the_same_ids(self, text: str) -> None:
        own, exported = stories_and_its_model()
        assert_same(text, own, exported)

    def test_an_exported_tokenizer_model_has_the_pieces_of_the_gguf_file(
        self, tmp_path: Path
    ) -> None:
        metadata = spm_vocabulary()
        pieces = pieces_of_gguf(GgufKeys(metadata, HERE))
        write_files(weights_of(metadata), tmp_path)
        written = pieces_of_model(tmp_path / "tokenizer.model")
        assert list(written.vocabulary.tokens) == list(pieces.vocabulary.tokens)
        assert list(written.vocabulary.types) == list(pieces.vocabulary.types)
        assert list(written.scores) == list(pieces.scores)
        assert written.adds_space

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda model: setattr(model.trainer_spec, "model_type", 1), "only a BPE model"),
            (lambda model: setattr(model.normalizer_spec, "precompiled_charsmap", b"x"), "normal"),
            (lambda model: setattr(model.normalizer_spec, "remove_extra_whitespaces", True), "nor"),
        ],
    )
    def test_one_that_does_more_than_llamas_is_refused(
        self, change: Callable[[Any], None], message: str, tmp_path: Path
    ) -> None:
        path = write_tokenizer_model(tmp_path / "tokenizer.model", spm_vocabulary())
        model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        model.ParseFromString(path.read_bytes())
        change(model)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelNotSupported, match=message):
            pieces_of_model(path)


@cache
def stories_and_its_model() -> tuple[Tokenizer, Tokenizer]:
    metadata = spm_vocabulary()
    own = tokenizer_from_gguf(metadata, path=HERE)
    pieces = pieces_of_gguf(GgufKeys(metadata, HERE))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(tokenizer_model(pieces, special_ids_of(own)))
        return own, tokenizer_from_file(path)


class TestFromTokenizerJson:
    @pytest.mark.usefixtures("data_dir")
    @pytest.mark.parametrize("path", [LLAMA_2, STORIES], ids="-".join)
    def test_ranks_of_merges_become_scores_that_give_the_same_ids(
        self, path: tuple[str, ...], tmp_path: Path
    ) -> None:
        own, _ = both_published(*path)
        again = tokenizer_from_gguf(self.there_and_back(path, tmp_path), path=HERE)
        for text in SENTENCES:
            assert_same(text, own, again)

    def there_and_back(self, path: tuple[str, ...], folder: Path) -> dict[str, object]:
        metadata = gguf_metadata(DATA.joinpath(*path))
        weights = weights_of(metadata)
        write_files(weights, folder)
        (folder / "tokenizer.model").unlink()
        n_vocab = describe_tokenizer(weights).tokenizer.n_vocab
        return vocabulary_keys(folder_words(folder), n_vocab=n_vocab)

    def test_the_scores_of_a_tokenizer_model_beside_it_are_kept(self, tmp_path: Path) -> None:
        metadata = spm_vocabulary()
        write_files(weights_of(metadata), tmp_path)
        n_vocab = len(metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
        keys = vocabulary_keys(folder_words(tmp_path), n_vocab=n_vocab)
        for key, value in metadata.items():
            assert keys[key] == value, key

    def test_ids_follow_tokenizer_json_where_tokenizer_model_merges_in_another_order(
        self, tmp_path: Path
    ) -> None:
        metadata = spm_toy(("ab", NORMAL), ("bc", NORMAL))
        own, _ = both(metadata)
        write_files(weights_of(metadata), tmp_path)
        scores: Any = metadata["tokenizer.ggml.scores"]
        other = metadata | wire({"scores": [*scores[:-2], scores[-1], scores[-2]]})
        write_tokenizer_model(tmp_path / "tokenizer.model", other)
        keys = vocabulary_keys(folder_words(tmp_path), n_vocab=own.n_vocab)
        assert_same("abc", own, tokenizer_from_gguf(keys, path=HERE))

    def test_an_unknown_token_that_the_file_does_not_name_is_found_by_its_spelling(self) -> None:
        document = json.loads(
            tokenizer_files(describe_tokenizer(weights_of(spm_toy())), n_ctx=64)["tokenizer.json"]
        )
        document["model"]["unk_token"] = None
        assert pieces_of_json(document, HERE).unknown == "<unk>"

    def test_embeddings_without_a_token_get_unused_ones(self, tmp_path: Path) -> None:
        write_files(weights_of(spm_toy()), tmp_path)
        keys = vocabulary_keys(folder_words(tmp_path), n_vocab=288)
        tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
        assert isinstance(tokens, list)
        assert isinstance(types, list)
        assert (len(tokens), tokens[286:], types[286:]) == (288, ["[PAD286]", "[PAD287]"], [5, 5])

    def test_merges_that_sentencepiece_would_not_do_are_refused(self) -> None:
        # "▁ab" is ▁ + ab here, and SentencePiece would also make it from ▁a + b.
        document = json.loads(llama_like_json().to_str())
        with pytest.raises(ModelNotSupported, match="not those of a SentencePiece model"):
            pieces_of_json(document, HERE)

    def test_steps_that_are_not_llamas_are_refused(self) -> None:
        document = json.loads(llama_like_json().to_str()) | {"normalizer": {"type": "NFC"}}
        with pytest.raises(ModelNotSupported, match="normalizer"):
            pieces_of_json(document, HERE)

    @pytest.mark.parametrize(
        ("scheme", "adds_space"), [("first", True), ("always", True), ("never", False)]
    )
    def test_metaspace_decides_the_leading_space_like_a_normalizer(
        self, scheme: str, adds_space: bool
    ) -> None:
        _, exported = both(spm_toy())
        assert exported.encode("a", add_special=False) == [259, 260]
        files = tokenizer_files(describe_tokenizer(weights_of(spm_toy())), n_ctx=64)
        metaspace = {"type": "Metaspace", "replacement": "▁", "split": False}
        document = json.loads(files["tokenizer.json"]) | {
            "normalizer": None,
            "pre_tokenizer": {**metaspace, "prepend_scheme": scheme},
        }
        assert pieces_of_json(document, HERE).adds_space is adds_space

    @given(text=TEXTS)
    @settings(max_examples=100, deadline=None)
    def test_byte_level_bpe_there_and_back_gives_the_same_ids(self, text: str) -> None:
        for own, again in byte_level_there_and_back():
            assert_same(text, own, again)

    def test_a_library_s_own_byte_level_bpe_is_that_of_gpt_2(self, tmp_path: Path) -> None:
        trained_bpe().save(str(tmp_path / "tokenizer.json"))
        keys = vocabulary_keys(folder_words(tmp_path, "bert"), n_vocab=400)
        assert {key: keys[key] for key in bpe_metadata()} == bpe_metadata()

    @pytest.mark.parametrize(
        "change",
        [
            {"normalizer": {"type": "NFKC"}},
            {"pre_tokenizer": {"type": "WhitespaceSplit"}},
            {"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}},
            {"pre_tokenizer": {**BYTE_LEVEL, "use_regex": False}},
        ],
    )
    def test_byte_level_bpe_with_steps_of_its_own_is_refused(
        self, change: Mapping[str, object], tmp_path: Path
    ) -> None:
        document = json.loads(trained_bpe().to_str()) | change
        (tmp_path / "tokenizer.json").write_text(json.dumps(document))
        with pytest.raises(ModelNotSupported, match=r"tokenizer\.json"):
            vocabulary_keys(folder_words(tmp_path), n_vocab=400)

    def test_a_vocabulary_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        library = LibraryTokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        library.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ModelNotSupported, match="WordLevel"):
            vocabulary_keys(folder_words(tmp_path), n_vocab=1)


@cache
def byte_level_there_and_back() -> Sequence[tuple[Tokenizer, Tokenizer]]:
    made = []
    for metadata in (
        bpe_metadata(("<|im_end|>", CONTROL)),
        bpe_metadata(("<|end|>", CONTROL), pre="llama-bpe", bos_token_id=400),
        bpe_metadata(("<tool>", USER_DEFINED), ("</s>", CONTROL), pre="starcoder"),
    ):
        own = tokenizer_from_gguf(metadata, path=HERE)
        with TemporaryDirectory() as folder:
            weights = Weights(
                write_files(weights_of(metadata), Path(folder)), "llama", {}, "hf", {}
            )
            again = tokenizer_from_gguf(
                vocabulary_keys(describe_tokenizer(weights), n_vocab=own.n_vocab), path=HERE
            )
        made.append((own, again))
    return made


def test_a_token_of_letters_that_are_no_tokens_is_refused() -> None:
    with pytest.raises(ModelNotSupported, match="'é', which is no token itself"):
        tokenizer_files(describe_tokenizer(weights_of(spm_toy(("né", NORMAL)))), n_ctx=64)


@pytest.mark.parametrize("token", ["play", "##ing", "[CLS]", "#", "."])
def test_a_wordpiece_is_spelled_as_in_gguf_and_back(token: str) -> None:
    assert bert_spelling(gguf_spelling(token), NORMAL) == token


class TestTokensOfTheFilesBeside:
    @pytest.mark.parametrize(
        "case",
        [
            "model: added_tokens.json",
            *("bert: do_lower_case", "bert: strip_accents", "bert: vocab.txt", "qwen: NFC"),
        ],
    )
    def test_a_gguf_of_the_folder_gives_the_same_ids(self, case: str, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, FOLDERS[case])
        before = tokenizer_from_folder(folder)
        keys = vocabulary_keys(folder_words(folder, "bert"), n_vocab=before.n_vocab)
        after = tokenizer_from_gguf(keys, path=tmp_path / "a.gguf")
        for text in ("abc", "a <|y|>b", "The Café e\u0301."):
            assert after.encode(text) == before.encode(text)
