"""What a tokenizer says of bad vocabularies, bad files, bad text and bad ids."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refllm.api import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.tokenizer import tokenizer_from_file, tokenizer_from_folder, tokenizer_from_gguf
from refllm.tokenizer.base import Tokenizer, library_errors
from refllm.tokenizer.hf_json import JsonTokenizer
from tests.support.model_files import write_tokenizer_model
from tests.support.vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    bert_like_json,
    bert_toy,
    bpe_metadata,
    llama_like_json,
    spm_toy,
)

PATH = Path("models/broken.gguf")
MISSING = object()
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n"
NOT_A_TOKENIZER = [b"", b"\0" * 64, bytes(range(256)), LFS_POINTER.encode(), b"{}", b"[]", b"null"]


def changed(metadata: dict[str, object], key: str, value: object) -> dict[str, object]:
    changed = {**metadata, f"tokenizer.ggml.{key}": value}
    return {name: value for name, value in changed.items() if value is not MISSING}


def tokens_of(metadata: dict[str, object]) -> list[str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    return tokens


SPM_TOKENS = tokens_of(spm_toy())
BERT_TOKENS = tokens_of(bert_toy())


@pytest.mark.parametrize(
    ("make", "key", "value", "problem"),
    [
        (spm_toy, "model", MISSING, "model is missing"),
        (spm_toy, "model", 7, "model must be a string, is 7"),
        (spm_toy, "tokens", MISSING, "tokens is missing"),
        (spm_toy, "tokens", [], "tokens is empty"),
        (spm_toy, "tokens", "abc", "tokens must be an array, is 'abc'"),
        (spm_toy, "tokens", [1, 2], "tokens has 1 at index 0, of a wrong type"),
        (spm_toy, "tokens", SPM_TOKENS[:-1], "token_type has 286 entries for 285 tokens"),
        (spm_toy, "tokens", [*SPM_TOKENS[:-1], "a"], "has the token 'a' twice, at 260 and 285"),
        (spm_toy, "scores", [0.0], "scores has 1 entries for 286 tokens"),
        (spm_toy, "scores", ["x"] * 286, "scores has 'x' at index 0"),
        (spm_toy, "token_type", [NORMAL], "token_type has 1 entries for 286 tokens"),
        (spm_toy, "bos_token_id", 286, "bos_token_id is 286, but there are 286 tokens"),
        (spm_toy, "eos_token_id", -2, "eos_token_id is -2, but there are 286 tokens"),
        (spm_toy, "eot_token_id", "</s>", "eot_token_id must be a token id, is '</s>'"),
        (spm_toy, "add_bos_token", 1, "add_bos_token must be true or false, is 1"),
        (bpe_metadata, "merges", MISSING, "merges is missing"),
        (bpe_metadata, "merges", ["ab"], "merges has 'ab' at index 0, not two tokens"),
        (bpe_metadata, "merges", [""], "merges has '' at index 0, not two tokens"),
        (bpe_metadata, "merges", ["a €"], "merges do not fit tokenizer.ggml.tokens"),
        (bpe_metadata, "tokens", ["a", "b"], "tokens has no token for the byte 0x00"),
        (bpe_metadata, "add_bos_token", True, "bos_token_id names no token, but"),
        (bpe_metadata, "pre", "llama-bpe", "bos_token_id names no token, but"),
        (bert_toy, "cls_token_id", 99, "cls_token_id is 99, but there are 9 tokens"),
        (bert_toy, "tokens", ["[X]", "[UNK]", "[Y]", *BERT_TOKENS[3:]], "bos_token_id is"),
        (bert_toy, "tokens", [*BERT_TOKENS[:-2], "▁##ing", "x"], "the same in BERT's spelling"),
    ],
)  # fmt: skip
def test_a_bad_key_is_named(
    make: Callable[[], dict[str, object]], key: str, value: object, problem: str
) -> None:
    metadata = changed(make(), key, value)
    if make is bpe_metadata and key == "tokens":
        metadata.pop("tokenizer.ggml.token_type")
    with pytest.raises(LlmRuntimeError, match=re.escape(problem)) as caught:
        tokenizer_from_gguf(metadata, path=PATH)
    assert str(caught.value).startswith("models/broken.gguf: tokenizer.ggml.")


def test_an_unknown_rule_for_words_is_not_supported_and_the_way_out_is_named() -> None:
    problem = r"tokenizer.ggml.pre = 'klingon' is not supported: .* take the model's folder instead"
    with pytest.raises(ModelNotSupported, match=problem):
        tokenizer_from_gguf(bpe_metadata(pre="klingon"), path=PATH)


@pytest.mark.parametrize(
    ("make", "key", "value", "problem"),
    [
        (spm_toy, "scores", [float("nan")] * 286, "score of token 0, '<unk>', is nan"),
        (spm_toy, "scores", [float("inf")] * 286, "score of token 0, '<unk>', is inf"),
        (spm_toy, "token_type", [UNKNOWN, BYTE, *[NORMAL] * 284], "'<s>', has the type of a byte"),
        (spm_toy, "token_type", [UNKNOWN, CONTROL, CONTROL, BYTE, *[NORMAL] * 282], "256 byte"),
        (spm_toy, "tokens", ["\ud800", *SPM_TOKENS[1:]], "surrogates not allowed"),
        (bert_toy, "tokens", ["\ud800", *BERT_TOKENS[1:]], "surrogates not allowed"),
    ],
)
def test_a_vocabulary_that_the_library_refuses_is_an_error_that_names_the_file(
    make: Callable[[], dict[str, object]], key: str, value: object, problem: str
) -> None:
    with pytest.raises(LlmRuntimeError, match=re.escape(problem)) as caught:
        tokenizer_from_gguf(changed(make(), key, value), path=PATH)
    assert str(caught.value).startswith("models/broken.gguf: ")


def test_an_empty_token_is_given_a_name_as_by_llama_cpp() -> None:
    tokenizer = tokenizer_from_gguf(spm_toy(("", NORMAL)), path=PATH)
    assert tokenizer.piece(286) == "[EMPTY_286]"
    assert tokenizer.encode("a") == [1, 259, 260]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("data", NOT_A_TOKENIZER)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for load in (tokenizer_from_file, lambda path: tokenizer_from_folder(path.parent)):
        with pytest.raises(LlmRuntimeError, match=re.escape(str(path))):
            load(path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_git_lfs_pointer_is_recognized(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LFS_POINTER)
    with pytest.raises(LlmRuntimeError, match="git lfs pull"):
        tokenizer_from_file(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match=r"tokenizer\.model: no such file"):
        tokenizer_from_file(tmp_path / "tokenizer.model")


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match=re.escape(f"{tmp_path}: there is neither")):
        tokenizer_from_folder(tmp_path)


@given(damage=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_tokenizer_model_gives_an_error_or_a_tokenizer(
    tmp_path: Path, damage: st.DataObject
) -> None:
    path = write_tokenizer_model(tmp_path / "tokenizer.model", spm_toy())
    damage_file(path, damage)
    load_and_use(path)


@given(damage=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("source", [llama_like_json().to_str(), bert_like_json().to_str()])
def test_a_damaged_tokenizer_json_gives_an_error_or_a_tokenizer(
    tmp_path: Path, source: str, damage: st.DataObject
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(source)
    damage_file(path, damage)
    load_and_use(path)


def damage_file(path: Path, damage: st.DataObject) -> None:
    data = bytearray(path.read_bytes())
    place = damage.draw(st.integers(0, len(data) - 1))
    if damage.draw(st.booleans()):
        del data[place:]
    else:
        data[place] = damage.draw(st.integers(0, 255))
    path.write_bytes(data)


def load_and_use(path: Path) -> None:
    """Anything but `LlmError` fails the test."""
    try:
        tokenizer = tokenizer_from_file(path)
        tokenizer.decode(tokenizer.encode("the <s> cab"))
    except LlmError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", "{", "config.json: not valid JSON"),
        ("config.json", "[]", "config.json: must be a JSON object, and is a list"),
        ("config.json", "[" * 100_000, "config.json: JSON nested deeper than 32 levels"),
        ("config.json", "", "config.json: the file is empty"),
        ("generation_config.json", '{"eos_token_id": [2, 999]}', "eos_token_id has 999"),
        ("generation_config.json", '{"bos_token_id": "<s>"}', "bos_token_id has '<s>'"),
        ("config.json", '{"eos_token_id": true}', "eos_token_id has True"),
    ],
)
def test_a_damaged_configuration_is_named(
    tmp_path: Path, name: str, content: str, problem: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(llama_like_json().to_str())
    (tmp_path / name).write_text(content)
    with pytest.raises(LlmRuntimeError, match=re.escape(problem)) as caught:
        tokenizer_from_folder(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_a_truncation_that_holds_no_special_tokens_is_an_error() -> None:
    document = json.loads(bert_like_json().to_str())
    document["truncation"] = {
        **{"max_length": 1, "stride": 0},
        **{"strategy": "LongestFirst", "direction": "Right"},
    }
    with pytest.raises(LlmRuntimeError, match=r"truncation\.max_length is 1"):
        JsonTokenizer(json.dumps(document), PATH)


class Panic(BaseException):
    """As pyo3 raises when Rust panics: no subclass of Exception."""


def test_a_panic_in_a_library_is_an_error_that_names_the_file() -> None:
    expected = pytest.raises(LlmRuntimeError, match=r"models/broken\.gguf: cannot read: overflow")
    with expected, library_errors(PATH, "cannot read"):
        raise Panic("overflow")


def test_an_interrupt_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt), library_errors(PATH, "cannot read"):
        raise KeyboardInterrupt


TOKENIZERS = [
    tokenizer_from_gguf(spm_toy(), path=PATH),
    tokenizer_from_gguf(bpe_metadata(), path=PATH),
    tokenizer_from_gguf(bert_toy(), path=PATH),
    JsonTokenizer(llama_like_json().to_str(), PATH),
]
EVERY_KIND = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["spm", "bpe", "bert", "json"])


@EVERY_KIND
@pytest.mark.parametrize("surrogate", ["\ud800", "\udfff"], ids=["high", "low"])  # noqa: PT014
def test_a_lone_surrogate_is_refused_with_its_index(tokenizer: Tokenizer, surrogate: str) -> None:
    with pytest.raises(InvalidInput, match=f"U\\+{ord(surrogate):04X}, at character index 2"):
        tokenizer.encode(f"a🦙{surrogate}b{surrogate}")


@EVERY_KIND
@pytest.mark.parametrize("beyond", [-1, 10**6, 2**64])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, beyond: int) -> None:
    for use in (
        lambda: tokenizer.decode([beyond]),
        lambda: tokenizer.piece(beyond),
        lambda: tokenizer.stream().push(beyond),
        lambda: tokenizer.stream(previous=[beyond]),
    ):
        with pytest.raises(InvalidInput, match=f"token id {beyond} is outside"):
            use()


@pytest.mark.parametrize("tokenizer", [TOKENIZERS[0], TOKENIZERS[1], TOKENIZERS[3]])
def test_nul_characters_survive(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\0b\0")) == "a\0b\0"
