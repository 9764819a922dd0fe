"""Tokenizers in exports: the ids, the ends of a generation and the templates of the source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, given, settings
from safetensors.numpy import load_file
from tokenizers import normalizers

from refllm.api import LlmError, ModelNotSupported
from refllm.checkpoints.chat_template import chat_template_of, chat_templates_of
from refllm.checkpoints.gguf import read_gguf
from refllm.checkpoints.gguf_writer import packed, write_gguf_file
from refllm.checkpoints.open import Weights, open_weights
from refllm.export.gguf_vocabulary import vocabulary_keys
from refllm.export.model import TokenizerDescription, describe_tokenizer
from refllm.export.tokenizer_files import tokenizer_files
from refllm.models.load import LlamaModel, load_path
from refllm.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from refllm.tokenizer.base import Tokenizer
from tests.support.exported_models import MODELS
from tests.support.exports import exported, keys_of, names_in, read
from tests.support.model_files import tiny_bert_gguf, tiny_llama_folder, tiny_llama_gguf
from tests.support.token_cases import (
    FOLDERS,
    GGUFS,
    charsmap,
    unigram_metadata,
    write_folder,
)
from tests.support.token_cases import TEXTS as ALL_TEXTS
from tests.support.vocabularies import CONTROL, SENTENCES, TEXTS, bpe_metadata, spm_toy, trained_bpe


def words_of_folder(folder: Path, name: str) -> TokenizerDescription:
    files = FOLDERS[name]
    config = files["config.json"]
    assert isinstance(config, Mapping)
    is_llama = config["model_type"] in ("llama", "gpt2")
    write_folder(folder, files)
    architecture = "llama" if is_llama else "bert"
    return describe_tokenizer(Weights(folder, architecture, config, "hf", {}))


def in_a_folder(words: TokenizerDescription, folder: Path) -> Tokenizer:
    folder.mkdir()
    for name, content in tokenizer_files(words, n_ctx=64).items():
        (folder / name).write_bytes(content)
    return tokenizer_from_folder(folder)


def in_a_gguf(words: TokenizerDescription, path: Path) -> Tokenizer:
    keys = vocabulary_keys(words, n_vocab=words.tokenizer.n_vocab)
    write_gguf_file(path, {key: packed(key, value) for key, value in keys.items()}, [])
    return tokenizer_from_gguf(read_gguf(path).metadata, path=path)


def ids(tokenizer: Tokenizer, text: str, *, parse_special: bool = True) -> list[int] | str:
    """The ids, or why there are none."""
    try:
        return tokenizer.encode(text, parse_special=parse_special)
    except LlmError as error:
        return str(error).rpartition(": ")[2]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_s_tokenizer_gives_the_same_ids_as_a_folder(name: str, tmp_path: Path) -> None:
    words = words_of_folder(tmp_path / "source", name)
    again = in_a_folder(words, tmp_path / "made")
    for text in ALL_TEXTS:
        for parse in (True, False):
            expected = ids(words.tokenizer, text, parse_special=parse)
            assert ids(again, text, parse_special=parse) == expected, text
    assert again.eos_ids == words.tokenizer.eos_ids
    assert again.special_tokens.items() >= words.tokenizer.special_tokens.items()


# llama.cpp begins each stretch of text with a space, even before a space, and so a GGUF file.
WITH_ANOTHER_SPACE = [name for name in FOLDERS if name.startswith(("model", "llama: legacy"))]
REFUSED = {
    "model: added_tokens_decoder": "'<|x|>' has rstrip",
    "model: legacy false": "'<|x|>' has rstrip",
    "llama: added_tokens_decoder": "'<|x|>' has rstrip",
    "llama: the decoder wins": "'<|x|>' has rstrip",
    "llama: legacy true": "'<|x|>' has rstrip",
    "llama: legacy false": "'<|x|>' has rstrip",
    "bert: tokenize_chinese_chars": "not those of BERT",
    "bert: all": "not those of BERT",
    "roberta: add_prefix_space": "a step that GGUF has not",
    "gpt2: add_prefix_space": "a step that GGUF has not",
    "qwen: NFC": "names no token that ends a text, and llama.cpp would take ',' for one",
    **dict.fromkeys(
        [
            *("xlm-roberta: no space first", "xlm-roberta: cut at white space"),
            "camembert: no space first",
        ],
        "not the steps of a SentencePiece unigram model",
    ),
    "codellama: add_prefix_space": "its merges are not those of a SentencePiece model",
    "codellama: no space first": "its merges are not those of a SentencePiece model",
    "llama: the map wins": "its merges are not those of a SentencePiece model",
    "llama: add_bos_token false": "its merges are not those of a SentencePiece model",
    **{
        name: "its merges are not those of a SentencePiece model"
        for name in FOLDERS
        if name.startswith("llama") and not name.endswith(("decoder", "wins", "true", " false"))
    },
}


@pytest.mark.parametrize("name", [n for n in FOLDERS if n not in {*REFUSED, *WITH_ANOTHER_SPACE}])
def test_a_folder_s_tokenizer_gives_the_same_ids_as_a_gguf(name: str, tmp_path: Path) -> None:
    words = words_of_folder(tmp_path / "source", name)
    again = in_a_gguf(words, tmp_path / "made.gguf")
    for text in ALL_TEXTS:
        assert ids(again, text) == ids(words.tokenizer, text), text


@pytest.mark.parametrize("name", ["model: no space first", "model: add_eos_token"])
def test_a_tokenizer_model_with_options_gives_the_same_ids_as_a_gguf(
    name: str, tmp_path: Path
) -> None:
    words = words_of_folder(tmp_path / "source", name)
    again = in_a_gguf(words, tmp_path / "made.gguf")
    for text in ("", "abc", "ab a  c", "The Café"):
        assert ids(again, text) == ids(words.tokenizer, text), text


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_gguf_keys_cannot_describe_is_refused(name: str, tmp_path: Path) -> None:
    words = words_of_folder(tmp_path / "source", name)
    with pytest.raises(ModelNotSupported, match=REFUSED[name].replace("|", r"\|")):
        in_a_gguf(words, tmp_path / "made.gguf")


@cache
def unigrams() -> list[tuple[Tokenizer, Tokenizer, Tokenizer]]:
    """Of every setting: the tokenizer of a GGUF, of a folder made of it, of a GGUF made of that."""
    made = []
    for changes in (
        {"precompiled_charsmap": charsmap()},
        {"precompiled_charsmap": charsmap(), "add_space_prefix": False},
        {"remove_extra_whitespaces": False},
    ):
        metadata = unigram_metadata(**changes)
        words = describe_tokenizer(Weights(Path("a.gguf"), "bert", metadata, "gguf", {}))
        with TemporaryDirectory() as name:
            folder = Path(name)
            in_json = in_a_folder(words, folder / "made")
            again = describe_tokenizer(Weights(folder / "made", "bert", {}, "hf", {}))
            made.append((words.tokenizer, in_json, in_a_gguf(again, folder / "again.gguf")))
    return made


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_unigram_vocabulary_gives_the_same_ids_there_and_back(text: str) -> None:
    # The tokenizers library maps a grapheme as the first of its characters that has a map, and
    # drops the others; sentencepiece and llama.cpp map each character.
    by_sentencepiece = sentencepiece.SentencePieceNormalizer(
        rule_name="nmt_nfkc",
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )
    by_tokenizers = normalizers.Precompiled(bytes(charsmap()))
    assume(by_tokenizers.normalize_str(text) == by_sentencepiece.normalize(text))
    for own, in_json, again in unigrams():
        expected = ids(own, text)
        assert ids(in_json, text) == expected
        assert ids(again, text) == expected


@pytest.mark.parametrize("name", [*GGUFS])
def test_a_gguf_s_tokenizer_gives_the_same_ids_as_a_folder(name: str, tmp_path: Path) -> None:
    metadata = GGUFS[name]()
    kind = "llama" if metadata["tokenizer.ggml.model"] in ("llama", "gpt2") else "bert"
    words = describe_tokenizer(Weights(Path("a.gguf"), kind, metadata, "gguf", {}))
    try:
        made = in_a_folder(words, tmp_path / "made")
    except ModelNotSupported as error:
        assert "is no token itself" in str(error)  # noqa: PT017 - some are refused
        return
    for text in [*SENTENCES, "abc", " abc", "", "play a b"]:
        assert ids(made, text) == ids(words.tokenizer, text), text


# --- Ends of a generation ------------------------------------------------------------------------


def keys_with_ends(folder: Path, eos_ids: list[int], *tokens: str) -> dict[str, object]:
    """The keys of a byte-level vocabulary with added tokens, of which some end a generation."""
    folder.mkdir(exist_ok=True)
    trained_bpe().save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_ids}))
    added = {token: 400 + i for i, token in enumerate(tokens)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    words = describe_tokenizer(Weights(folder, "llama", {}, "hf", {}))
    assert words.ends.eos_ids >= {*eos_ids}
    return vocabulary_keys(words, n_vocab=400 + len(tokens))


def test_ends_that_llama_cpp_does_not_find_by_spelling_are_named(tmp_path: Path) -> None:
    tokens = ["<|im_end|>", "<|eot_id|>", "<x>", "<y>"]
    keys = keys_with_ends(tmp_path, [400, 401, 402, 403], *tokens)
    named = [keys[f"tokenizer.ggml.{end}_token_id"] for end in ("eos", "eot", "eom")]
    assert named == [400, 402, 403]
    again = tokenizer_from_gguf(keys, path=Path("a.gguf"))
    assert again.eos_ids == {400, 401, 402, 403}


def test_more_ends_than_a_gguf_can_name_are_refused(tmp_path: Path) -> None:
    tokens = ["<w>", "<x>", "<y>", "<z>"]
    with pytest.raises(ModelNotSupported, match="does not find '<z>' by its spelling"):
        keys_with_ends(tmp_path, [400, 401, 402, 403], *tokens)


def test_a_llama_without_an_end_is_refused(tmp_path: Path) -> None:
    trained_bpe().save(str(tmp_path / "tokenizer.json"))
    words = describe_tokenizer(Weights(tmp_path, "llama", {}, "hf", {}))
    with pytest.raises(ModelNotSupported, match="names no token that ends a text"):
        vocabulary_keys(words, n_vocab=400)


def test_eos_is_the_token_that_is_put_behind_a_text(tmp_path: Path) -> None:
    write_folder(tmp_path, FOLDERS["model: add_eos_token"])
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    words = describe_tokenizer(Weights(tmp_path, "llama", {}, "hf", {}))
    assert words.tokenizer.encode("a")[-1] == 2
    keys = vocabulary_keys(words, n_vocab=words.tokenizer.n_vocab)
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]) == (2, 0)


# --- Rows ----------------------------------------------------------------------------------------


def test_added_tokens_without_a_row_are_not_in_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = MODELS["more tokens than rows"].make(tmp_path / "source")
    n_rows = len(load_file(source / "model.safetensors")["model.embed_tokens.weight"])
    made = load_path(exported(source, tmp_path, "gguf"))
    assert isinstance(made, LlamaModel)
    assert made.tokenizer.n_vocab == n_rows
    folder = load_path(exported(source, tmp_path / "hf", "hf"))
    assert folder.tokenizer.n_vocab == n_rows + 2


def test_two_tokens_of_one_spelling_are_refused(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##▁a"]
    write_folder(tmp_path, {"vocab.txt": "\n".join(words) + "\n"})
    described = describe_tokenizer(Weights(tmp_path, "bert", {}, "hf", {}))
    with pytest.raises(ModelNotSupported, match="two tokens have the same spelling"):
        vocabulary_keys(described, n_vocab=7)


# --- Chat templates ------------------------------------------------------------------------------

TEMPLATES = {"default": "{{ messages }}", "rag": "{{ documents }}", "tool_use": "{{ tools }}"}


@pytest.mark.parametrize("layout", ["hf", "gguf", "spin"])
@pytest.mark.parametrize("place", ["a list", "files"])
def test_every_chat_template_of_a_folder_is_kept(layout: str, place: str, tmp_path: Path) -> None:
    source = tiny_llama_folder(tmp_path / "source")
    if place == "a list":
        named = [{"name": name, "template": text} for name, text in TEMPLATES.items()]
        (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    else:
        (source / "chat_template.jinja").write_text(TEMPLATES["default"])
        (source / "additional_chat_templates").mkdir()
        for name in ("rag", "tool_use"):
            path = source / "additional_chat_templates" / f"{name}.jinja"
            path.write_text(TEMPLATES[name])
    made = open_weights(exported(source, tmp_path, layout))  # type: ignore[arg-type]
    assert chat_templates_of(made) == TEMPLATES
    assert chat_template_of(made) == TEMPLATES["default"]


def test_the_template_that_a_gguf_s_chats_use_is_the_default_of_a_folder(tmp_path: Path) -> None:
    metadata = {
        "tokenizer.chat_template": "",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
    }
    source = tiny_llama_gguf(tmp_path / "source.gguf", metadata=metadata)
    made = open_weights(exported(source, tmp_path, "hf"))
    assert chat_template_of(made) == chat_template_of(open_weights(source)) == "{{ tools }}"


# --- Files and keys that are not copied ----------------------------------------------------------


def test_files_that_tokenizer_json_makes_needless_are_not_copied(tmp_path: Path) -> None:
    source = tiny_llama_folder(tmp_path / "source")
    (source / "special_tokens_map.json").write_text('{"unk_token": "<unk>"}')
    (source / "tokenizer_config.json").write_text('{"legacy": false, "name_or_path": "x"}')
    (source / "README.md").write_text("Hello!")
    made = exported(source, tmp_path, "hf")
    assert {"README.md", "added_tokens.json"} & {*names_in(made)} == set()
    config = read(made / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"legacy", "name_or_path"} & config.keys()


def test_a_tokenizer_model_of_another_vocabulary_is_not_copied(tmp_path: Path) -> None:
    source = exported(tiny_llama_gguf(tmp_path / "source.gguf"), tmp_path, "hf")
    assert "tokenizer.model" in names_in(exported(source, tmp_path / "same", "hf"))
    write_folder(source, {"tokenizer.model": "spm"})
    assert "tokenizer.model" not in names_in(exported(source, tmp_path / "other", "hf"))


def test_a_gguf_of_an_encoder_that_counts_no_token_types_gets_the_key(tmp_path: Path) -> None:
    key = "tokenizer.ggml.token_type_count"
    source = tiny_bert_gguf(tmp_path / "source.gguf", metadata={key: None})
    assert keys_of(exported(source, tmp_path, "gguf"))[key] == ([4], 2)


def test_vectors_of_a_gguf_become_f32(tmp_path: Path) -> None:
    norm = np.ones(32, np.float16)
    source = tiny_llama_gguf(tmp_path / "source.gguf", tensors={"output_norm.weight": norm})
    assert open_weights(source).tensors["output_norm.weight"].format.name == "F16"
    made = open_weights(exported(source, tmp_path, "gguf"))
    assert made.tensors["output_norm.weight"].format.name == "F32"


def test_a_name_of_a_token_that_only_some_models_have_is_kept(tmp_path: Path) -> None:
    metadata = bpe_metadata(("<|eot|>", CONTROL), ("<|end|>", CONTROL), eot_token_id=400)
    words = describe_tokenizer(Weights(Path("a.gguf"), "llama", metadata, "gguf", {}))
    assert in_a_folder(words, tmp_path / "made").special_tokens["eot_token"] == "<|eot|>"


def test_a_control_token_of_a_gguf_is_parsed_in_the_exported_folder(tmp_path: Path) -> None:
    metadata = spm_toy(("<|end|>", CONTROL))
    words = describe_tokenizer(Weights(Path("a.gguf"), "llama", metadata, "gguf", {}))
    assert in_a_folder(words, tmp_path / "made").encode("<|end|>") == [1, 286]


@pytest.mark.parametrize(("limit", "kept"), [(48, 48), (1000000000000000019884624838656, 128)])
def test_a_shorter_limit_of_a_text_is_kept(limit: int, kept: int, tmp_path: Path) -> None:
    source = tiny_llama_folder(tmp_path / "source")
    (source / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    made = exported(source, tmp_path, "hf")
    assert read(made / "tokenizer_config.json")["model_max_length"] == kept


# --- What a GGUF file says a little differently --------------------------------------------------


def unigram_words(folder: Path, normalizer: list[dict[str, object]]) -> TokenizerDescription:
    """A unigram tokenizer.json that merges spaces by these steps."""
    metadata = unigram_metadata(precompiled_charsmap=charsmap())
    source = describe_tokenizer(Weights(Path("a.gguf"), "bert", metadata, "gguf", {}))
    in_a_folder(source, folder)
    path = folder / "tokenizer.json"
    document = read(path)
    precompiled = document["normalizer"]["normalizers"][0]
    document["normalizer"]["normalizers"] = [precompiled, *normalizer]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    document["pre_tokenizer"] = {**metaspace, "split": True}
    path.write_text(json.dumps(document), "utf-8")
    return describe_tokenizer(Weights(folder, "bert", {}, "hf", {}))


MERGES: dict[str, object] = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}


def test_a_space_that_only_a_folder_keeps_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = unigram_words(tmp_path / "source", [MERGES])
    again = in_a_gguf(words, tmp_path / "made.gguf")
    assert "it drops a space at the end of a text" in caplog.text
    for text in ("the  ab", " the", "a"):
        assert ids(again, text) == ids(words.tokenizer, text)
    assert ids(again, "the ") != ids(words.tokenizer, "the ")


def test_steps_that_keep_every_space_are_refused(tmp_path: Path) -> None:
    words = unigram_words(tmp_path / "source", [])
    with pytest.raises(ModelNotSupported, match="not the steps of a SentencePiece unigram"):
        in_a_gguf(words, tmp_path / "made.gguf")


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("model: add_eos_token", "begins each stretch of text with a space"),
        ("model: added_tokens.json", "ends a generation at '</s>', too"),
        ("model: no space first", None),
    ],
)
def test_a_tokenizer_that_llama_cpp_reads_differently_gives_a_warning(
    name: str, warning: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_a_gguf(words_of_folder(tmp_path / "source", name), tmp_path / "made.gguf")
    if warning is None:
        assert caplog.text == ""
    else:
        assert warning in caplog.text
