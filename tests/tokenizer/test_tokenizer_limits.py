"""Files that ask a library for more than any tokenizer needs are refused before it reads them.

Each of them is small. What a library would do with them is not tried: the library that stands
in for it fails the test when it is called.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers.models import WordLevel

import refllm.tokenizer
from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.tokenizer import document as vocab_document
from refllm.tokenizer import hf_json as vocab_json
from refllm.tokenizer import older_files as vocab_files
from refllm.tokenizer import sentencepiece as vocab_spm
from refllm.tokenizer import tokenizer_from_file, tokenizer_from_folder, tokenizer_from_gguf
from refllm.tokenizer.document import check_charsmap, check_pipeline, growth_of
from refllm.tokenizer.hf_json import JsonTokenizer
from tests.support.model_files import write_tokenizer_model
from tests.support.vocabularies import NORMAL, bert_like_json, llama_like_json, spm_toy, wire

PATH = Path("tokenizer.json")
Document = dict[str, Any]


class NoLibrary:
    """A library that no file gets to."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            pytest.fail(f"the library is called: {name}")

        return fail

    def __call__(self, *_: object, **__: object) -> None:
        pytest.fail("the library is called")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocab_json, "LibraryTokenizer", NoLibrary())
    monkeypatch.setattr(vocab_files, "models", NoLibrary())
    monkeypatch.setattr(sentencepiece, "SentencePieceProcessor", NoLibrary())


def unigram(*pieces: object, **more: object) -> Document:
    return {"type": "Unigram", "vocab": list(pieces), **more}


def merging(prefix: str, merge: object) -> Document:
    vocabulary = {"a": 0, "b": 1, "##b": 2, "ab": 3}
    return {"vocab": vocabulary, "continuing_subword_prefix": prefix, "merges": [merge]}


def added(token: object) -> list[object]:
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    return [flags | token if isinstance(token, dict) else token]


def table_of(units: list[int], strings: bytes = b"x\0") -> bytes:
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + strings


def precompiled(table: bytes) -> Document:
    text = base64.b64encode(table).decode()
    return {"type": "Precompiled", "precompiled_charsmap": text}


NESTED: Document = {"type": "Strip", "strip_left": True, "strip_right": True}
for _ in range(40):
    NESTED = {"type": "Sequence", "normalizers": [NESTED]}
MANY = {"type": "Sequence", "decoders": [{"type": "Fuse"}] * 1001}
VOCABULARY = "model.vocab gives 'z' the id"

BAD_DOCUMENTS: list[tuple[str, object, str]] = [
    ("model", None, "model must be an object, is None"),
    ("model", [], "model must be an object, is []"),
    ("model", {"type": "BPE"}, "model.vocab must have the tokens, is None"),
    ("model", {"vocab": "abc"}, "model.vocab must have the tokens, is 'abc'"),
    ("model", {"vocab": {}}, "the vocabulary is empty"),
    ("model", unigram(), "the vocabulary is empty"),
    ("model", {"vocab": {"a": 0, "z": 10**7}}, "there are 2 tokens, but one has the id 10000000"),
    ("model", {"vocab": {"a": 0, "z": 2**32}}, f"{VOCABULARY} 4294967296"),
    ("model", {"vocab": {"a": 0, "z": -1}}, f"{VOCABULARY} -1"),
    ("model", {"vocab": {"a": 0, "z": 1e7}}, f"{VOCABULARY} 10000000.0"),
    ("model", {"vocab": {"a": 0, "z": "1"}}, f"{VOCABULARY} '1'"),
    ("model", {"vocab": {"a": 0, "z": True}}, f"{VOCABULARY} True"),
    ("model", unigram("a"), "model.vocab has 'a' at index 0"),
    ("model", unigram(["a", 0.0], ["b"]), "model.vocab has ['b'] at index 1"),
    ("model", unigram(["a", float("nan")]), "model.vocab has ['a', nan] at index 0"),
    ("model", unigram(["a", 10**400]), "at index 0, and must have a token of"),
    ("model", unigram(["a" * 257, 0.0]), "of at most 256 characters and its score"),
    ("model", unigram(["a", 0.0], unk_id=1), "model.unk_id is 1, but there are 1 tokens"),
    ("model", unigram(["a", 0.0], unk_id=-1), "model.unk_id is -1"),
    ("model", merging("##", ["a", "b"]), "model.merges has ['a', 'b'], whose second token does"),
    ("model", merging("##", "a b"), "model.merges has 'a b', whose second token does not begin"),
    ("model", merging("é", ["a", "éb"]), "model.merges has ['a', 'éb'], whose second token"),
    ("model", merging("##", ["a"]), "model.merges has ['a'], whose second token does not begin"),
    ("added_tokens", {}, "added_tokens must be an array, is {}"),
    ("added_tokens", ["z"], "added_tokens has 'z' at index 0"),
    ("added_tokens", added({"id": 1.0, "content": "z"}), "at index 0, and must have an object"),
    ("added_tokens", added({"id": [1], "content": "z"}), "at index 0, and must have an object"),
    ("added_tokens", added({"id": 1}), "at index 0, and must have an object"),
    ("added_tokens", added({"id": 10**7, "content": "z"}), "but one has the id 10000000"),
    ("added_tokens", added({"id": 0, "content": "z" * 1001}), "has 1001 bytes, and may have 1000"),
    ("normalizer", [], "normalizer must be an object, is []"),
    ("normalizer", {"type": []}, "normalizer.type must be a string, is []"),
    ("normalizer", {"type": "Sequence", "normalizers": 1}, "normalizer.normalizers must be an"),
    ("normalizer", {"type": "Sequence", "normalizers": [0]}, "normalizers must be an object"),
    ("normalizer", {"type": "Sequence", "normalizers": [None]}, "has null at index 0"),
    ("normalizer", NESTED, "JSON nested deeper than 32 levels"),
    ("decoder", MANY, "decoder has 1002 steps, and may have 1000"),
    ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "has FixedLength with length 0"),
    (
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "a" * 2**17}, "behavior": "Isolated"},
        "pre_tokenizer: pattern.Regex has 131072 characters, and may have 8192",
    ),
    (
        "normalizer",
        {"type": "Precompiled", "precompiled_charsmap": "x"},
        "precompiled_charsmap is not base64",
    ),
    ("normalizer", precompiled(b"\0\0\0\0"), "precompiled_charsmap is damaged"),
]  # fmt: skip


@pytest.mark.usefixtures("no_library")
def test_a_tokenizer_that_cuts_a_text_at_random_is_refused() -> None:
    # tokenizers 0.23.3 draws at each encoding: findings/tokenizers-stored-dropout-is-drawn.sh
    document = json.loads(llama_like_json().to_str())
    document["model"]["dropout"] = 0.1
    with pytest.raises(ModelNotSupported, match=r"model\.dropout = 0\.1 .* set it to null"):
        JsonTokenizer(json.dumps(document), PATH)


@pytest.mark.parametrize("dropout", [None, 0.0])
def test_a_dropout_of_nothing_is_no_dropout(dropout: float | None) -> None:
    document = json.loads(llama_like_json().to_str())
    document["model"]["dropout"] = dropout
    assert JsonTokenizer(json.dumps(document), PATH).encode("abc")


@pytest.mark.parametrize(
    ("vocabulary", "added"),
    [({"[UNK]": 0, "cat": 1, "dog": 1}, []), ({"[UNK]": 0, "cat": 1, "dog": 3}, ["cow"])],
)
def test_two_tokens_with_one_id_are_refused(vocabulary: dict[str, int], added: list[str]) -> None:
    # tokenizers 0.23.3 gives "cow" the id 3: findings/tokenizers-added-token-takes-taken-id.sh
    library = LibraryTokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    library.add_tokens(added)
    document = json.loads(library.to_str())
    document["model"]["vocab"] = vocabulary
    with pytest.raises(LlmRuntimeError, match=r"the tokens 'c.*' and 'dog' have the same id"):
        JsonTokenizer(json.dumps(document), PATH)


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(("key", "value", "problem"), BAD_DOCUMENTS)
def test_a_tokenizer_json_that_no_library_should_read_is_refused_first(
    tmp_path: Path, key: str, value: object, problem: str
) -> None:
    document = json.loads(llama_like_json().to_str())
    document["added_tokens"] = []
    document[key] = value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    for load in (tokenizer_from_file, lambda path: tokenizer_from_folder(path.parent)):
        with pytest.raises(LlmRuntimeError, match=re.escape(problem)) as caught:
            load(path)
        assert str(path) in str(caught.value)


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"model": 1, "model": {"vocab": {"a": 0}}}', "the key 'model' appears twice"),
        ('{"model": {"vocab": {"a": 0, "a": 10000000}}}', "the key 'a' appears twice"),
        ('{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}", "not valid JSON"),
        ("[" * 100_000, "JSON nested deeper than 32 levels"),
        ('{"a": [' + "0," * 100 + "0]}", "has up to 103 JSON values"),
    ],
)
def test_a_text_that_two_readers_might_read_differently_is_refused(
    text: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "up to" in problem:
        monkeypatch.setattr(vocab_document, "MAX_TOKENIZER_VALUES", 100)
    with pytest.raises(LlmRuntimeError, match=re.escape(problem)):
        JsonTokenizer(text, PATH)


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer.model", "vocab.txt", "sentencepiece.bpe.model"]
)
def test_a_file_larger_than_any_tokenizer_is_not_read_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (refllm.tokenizer, vocab_files):
        monkeypatch.setattr(module, "MAX_TOKENIZER_BYTES", 1000)
    monkeypatch.setattr(vocab_spm, "MAX_MODEL_BYTES", 1000)
    (tmp_path / name).write_bytes(b"a" * 1001)
    with pytest.raises(LlmRuntimeError, match=rf"{name}: has 1001 bytes, and no such file needs"):
        tokenizer_from_folder(tmp_path)


def test_a_path_that_is_no_file_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(LlmRuntimeError, match=r"tokenizer\.json: cannot be read: it is no file"):
        tokenizer_from_file(tmp_path / "tokenizer.json")


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(
    ("vocabulary", "problem"),
    [
        ({"a": 10**7}, "there are 1 tokens, but one has the id 10000000"),
        ({"a": 1.5}, "gives 'a' the id 1.5"),
        ({}, "the vocabulary is empty"),
    ],
)
def test_the_ids_of_a_vocab_json_are_checked_too(
    vocabulary: object, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(LlmRuntimeError, match=rf"vocab\.json.*{re.escape(problem)}"):
        tokenizer_from_folder(tmp_path)


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("name", ["vocab.txt", "merges.txt"])
def test_lines_without_end_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocab_files, "MAX_TOKENIZER_VALUES", 10)
    if name == "merges.txt":
        (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / name).write_text("\n" * 12)
    with pytest.raises(LlmRuntimeError, match=f"{name}: has more than 10 lines"):
        tokenizer_from_folder(tmp_path)


@pytest.mark.usefixtures("no_library")
def test_a_line_that_comes_twice_in_a_long_vocabulary_is_found_in_one_pass(tmp_path: Path) -> None:
    lines = [*map(str, range(200_000)), "199999"]
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(LlmRuntimeError, match=r"vocab\.txt: has the token '199999' twice"):
        tokenizer_from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: "z"}}, "not a number"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"٣": "z"}}, "not a number"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"10000000": "z"}}, "id 10000000, but"),
        ("tokenizer_config.json", {"bos_token": "z" * 1001}, "a token of more than 1000 bytes"),
        ("added_tokens.json", {"z": 10**7}, "id 10000000, but"),
        ("added_tokens.json", {"z" * 1001: 0}, "a token of more than 1000 bytes"),
    ],
)
@pytest.mark.parametrize("vocabulary", ["tokenizer.json", "tokenizer.model"])
def test_the_files_beside_add_no_token_that_cannot_be(
    vocabulary: str, name: str, content: object, problem: str, tmp_path: Path
) -> None:
    if vocabulary == "tokenizer.json":
        (tmp_path / vocabulary).write_text(llama_like_json().to_str())
    else:
        write_tokenizer_model(tmp_path / vocabulary, spm_toy())
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(LlmRuntimeError, match=problem) as caught:
        tokenizer_from_folder(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def replace(pattern: Document, content: str) -> Document:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: Document) -> Document:
    return {"type": "Sequence", "normalizers": list(steps)}


@pytest.mark.parametrize(
    ("normalizer", "growth"),
    [
        (None, 1),
        (json.loads(llama_like_json().to_str())["normalizer"], 12),
        (replace({"String": "aa"}, "b"), 1),
        (replace({"String": "a"}, "bbb"), 3),
        (replace({"String": ""}, "bbb"), 4),
        (replace({"Regex": "a|"}, "é"), 3),
        (sequence(*[replace({"String": "a"}, "aa")] * 10), 1024),
        (sequence(sequence({"type": "ByteLevel"}), {"type": "ByteLevel"}), 4),
        (sequence({"type": "NFD"}, {"type": "Lowercase"}, {"type": "NFKC"}), 11),
    ],
)
def test_how_much_longer_a_text_may_become_is_bounded(
    normalizer: Document | None, growth: float
) -> None:
    assert growth_of(normalizer) == growth


def test_no_text_becomes_longer_than_the_bound() -> None:
    texts = ("aé ﷺ\n", "  aa ", "ﷺ" * 5)
    steps: list[Document] = [
        replace({"String": " "}, "▁▁"),
        {"type": "NFKC"},
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Lowercase"},
    ]
    for step in steps:
        document = json.loads(llama_like_json().to_str()) | {"normalizer": step}
        library = LibraryTokenizer.from_str(json.dumps(document))
        for text in texts:
            written = library.normalizer.normalize_str(text).encode()
            assert len(written) <= len(text.encode()) * growth_of(step)


def one_that_doubles(times: int) -> str:
    document = json.loads(llama_like_json().to_str())
    document["normalizer"] = sequence(*[replace({"String": "a"}, "aa")] * times)
    return json.dumps(document)


def test_a_normalizer_that_doubles_a_text_again_and_again_is_refused() -> None:
    with pytest.raises(LlmRuntimeError, match=r"normalizer may make a text 3\.28e\+04 times"):
        JsonTokenizer(one_that_doubles(15), PATH)


def test_a_text_that_becomes_too_long_is_refused_and_another_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = JsonTokenizer(one_that_doubles(6), PATH)
    monkeypatch.setattr(vocab_json, "MAX_NORMALIZED", 2000)
    assert tokenizer.encode("b" * 3000, add_special=False) == [261] * 3000
    with pytest.raises(InvalidInput, match="makes more than 48000 bytes of the text, which has"):
        tokenizer.encode("a" * 3000)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        (
            "pre_tokenizer",
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
                ]
                * 4,
            },
            "pre_tokenizer has 4 steps that write characters",
        ),
        (
            "post_processor",
            {"type": "BertProcessing", "sep": ["[SEP]", 10**6], "cls": ["[CLS]", 2]},
            "post_processor has the id 1000000, which no token has",
        ),
    ],
)
def test_a_pipeline_that_makes_too_much_of_a_text_is_refused(
    key: str, value: object, problem: str
) -> None:
    document = json.loads(bert_like_json().to_str()) | {key: value}
    with pytest.raises(LlmRuntimeError, match=re.escape(problem)):
        JsonTokenizer(json.dumps(document), PATH)


def template(single: list[Document], ids: list[int]) -> Document:
    tokens = {"<s>": {"id": "<s>", "ids": ids, "tokens": ["<s>"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": single, "special_tokens": tokens}


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
BOS = {"SpecialToken": {"id": "<s>", "type_id": 0}}
OTHER = {"SpecialToken": {"id": "x", "type_id": 0}}


@pytest.mark.parametrize(
    ("post_processor", "problem"),
    [
        (template([TEXT, TEXT], [1]), "must have the text once, and has it 2 times"),
        (template([BOS], [1]), "must have the text once, and has it 0 times"),
        (template([BOS, TEXT], [1] * 1001), "has 1001 tokens around a text"),
        (
            template([{"SpecialToken": {"id": "x", "type_id": 0}}, TEXT], [1]),
            "single has 'x', which",
        ),
        (template([BOS, TEXT], [999]), "has the id 999, which no token has"),
        (
            {"type": "Sequence", "processors": [template([TEXT], [1]), template([TEXT] * 2, [1])]},
            "must have the text once",
        ),
    ],
)
def test_a_template_that_multiplies_a_text_is_refused(
    post_processor: Document, problem: str
) -> None:
    document = {"model": {}, "post_processor": post_processor}
    with pytest.raises(LlmRuntimeError, match=re.escape(problem)):
        check_pipeline(document, {1: "<s>"}, PATH)


def test_words_longer_than_wordpiece_can_cut_are_not_asked_for() -> None:
    document = {"model": {"max_input_chars_per_word": 10**6}}
    with pytest.raises(LlmRuntimeError, match="max_input_chars_per_word is 1000000"):
        check_pipeline(document, {}, PATH)


def test_a_decoder_that_doubles_again_and_again_is_refused() -> None:
    document = json.loads(llama_like_json().to_str())
    steps = [replace({"String": "a"}, "aa")] * 30
    document["decoder"] = {"type": "Sequence", "decoders": steps}
    with pytest.raises(LlmRuntimeError, match="decoder may write more than"):
        JsonTokenizer(json.dumps(document), PATH).decode([260])


# --- SentencePiece -------------------------------------------------------------------------------


def change(**pieces: object) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        for name, value in pieces.items():
            setattr(model.pieces[5], name, value)

    return apply


def damage_charsmap(model: Any) -> None:
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.normalizer_spec.precompiled_charsmap = table_of([0] * 100)


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (change(score=float("nan")), "the score of token 5, '<0x02>', is nan"),
        (change(score=float("-inf")), "the score of token 5, '<0x02>', is -inf"),
        (change(piece=""), "token 5, '', has 0 bytes, and must have 1 to 1000"),
        (change(piece="z" * 1001), "has 1001 bytes, and must have 1 to 1000"),
        (change(piece="a", type=NORMAL), "has the token 'a' twice, at 5 and 260"),
        (change(piece="zz"), "token 5, 'zz', has the type of a byte"),
        (damage_charsmap, "normalizer_spec.precompiled_charsmap is damaged"),
        (lambda model: model.ClearField("pieces"), "it has no pieces"),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.model", "sentencepiece.bpe.model"])
def test_a_sentencepiece_model_that_cannot_be_is_refused_first(
    name: str, damage: Callable[[Any], object], problem: str, tmp_path: Path
) -> None:
    path = write_tokenizer_model(tmp_path / name, spm_toy())
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(path.read_bytes())
    damage(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LlmRuntimeError, match=re.escape(problem)) as caught:
        tokenizer_from_folder(tmp_path)
    assert str(path) in str(caught.value)


def test_texts_that_the_library_would_try_when_it_loads_are_left_out(tmp_path: Path) -> None:
    path = write_tokenizer_model(tmp_path / "tokenizer.model", spm_toy())
    plain = path.read_bytes()
    path.write_bytes(plain + b"\x22\x08\x0a\x06\x0a\x01a\x12\x01b")  # self_test_data
    assert vocab_spm.read_model(path).SerializeToString() == plain


# A tree for "a": the root leads to the index 0x61, whose leaf is at 0x60 and names a string.
TREE = [0] * 256
TREE[0] = 0 << 10
TREE[0x61] = 1 << 10 | 1 << 8 | 0x61
TREE[0x60] = 1 << 31 | 0


def test_a_table_of_characters_that_is_whole_is_taken() -> None:
    check_charsmap(table_of(TREE), "x")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (b"", "it has 0 bytes"),
        (b"\xff\xff\xff\xff", "says that 4294967295 of them are a tree"),
        (table_of(TREE, b""), "says that 1024 of them are a tree"),
        (table_of(TREE[:200]), "a node of its tree leads out of it"),
        (table_of([5 << 10, *TREE[1:-1], 1 << 30]), "a node of its tree leads out of it"),
        (table_of([*TREE[:0x60], 1 << 31 | 2, *TREE[0x61:]]), "a string lies beyond its end"),
        (table_of(TREE, b"x"), "a string lies beyond its end"),
        (table_of(TREE, b"\xff\0"), "its strings are not UTF-8"),
        (
            table_of([*TREE[:0x60], 1 << 31 | 1, *TREE[0x61:]], "é\0".encode()),
            "a string begins inside of a character",
        ),
        (table_of(TREE, b"x" * 65 + b"\0"), "writes 65 bytes for one character"),
    ],
)
def test_a_table_of_characters_that_leads_out_of_itself_is_refused(
    table: bytes, problem: str
) -> None:
    with pytest.raises(LlmRuntimeError, match=re.escape(problem)):
        check_charsmap(table, "tokenizer.model: precompiled_charsmap")


@pytest.mark.usefixtures("no_library")
def test_the_table_of_a_gguf_file_is_checked_too() -> None:
    toy = {key.removeprefix("tokenizer.ggml."): value for key, value in spm_toy().items()}
    table = list(table_of(TREE[:200]))
    metadata = wire({**toy, "model": "t5", "precompiled_charsmap": table})
    with pytest.raises(LlmRuntimeError, match="precompiled_charsmap is damaged: a node"):
        tokenizer_from_gguf(metadata, path=Path("x.gguf"))


@pytest.mark.parametrize("direction", ["Left", "Right"])
@pytest.mark.parametrize("max_length", [2, 3, 4, 9, 2000, 3002, 4000])
def test_a_long_text_that_is_cut_keeps_the_same_tokens(max_length: int, direction: str) -> None:
    document = json.loads(bert_like_json().to_str())
    document["truncation"] = {"max_length": max_length, "stride": 0, "strategy": "LongestFirst"}
    document["truncation"]["direction"] = direction
    ids = [7, 5, 8] * 1000
    room = max_length - 2
    kept = ids[:room] if direction == "Right" else ids[max(3000 - room, 0) :]
    text = "the play ." * 1000
    assert JsonTokenizer(json.dumps(document), PATH).encode(text) == [2, *kept, 3]
