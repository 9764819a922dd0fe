"""Safetensors folders: what contradicts itself is refused by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from refllm.api import LlmError, LlmRuntimeError, ModelNotSupported
from refllm.checkpoints.open import Weights, open_safetensors
from tests.support.damage import damaged
from tests.support.model_files import (
    safetensors_tensor,
    tiny_bert_folder,
    tiny_llama_folder,
    write_safetensors,
)

NORM = "embeddings.LayerNorm.weight"  # a vector that every BERT has
ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def content(header: object, data: bytes = bytes(16), *, length: int | None = None) -> bytes:
    """A safetensors file with any header: a value to write as JSON, or the text itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def folder_with(folder: Path, model: bytes) -> Path:
    """A BERT's folder with this model.safetensors."""
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(model)
    return folder


def one(**changes: object) -> bytes:
    """A file with one tensor, its header's entry changed."""
    return content({NORM: ENTRY | changes})


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    data = np.arange(4, dtype=np.float32)
    tensors = open_safetensors(
        folder_with(tmp_path, content({NORM: ENTRY}, data.tobytes()))
    ).tensors
    assert tensors["token_embd_norm.weight"].array().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("padding", range(4))
def test_a_file_that_does_not_align_its_numbers_is_read(tmp_path: Path, padding: int) -> None:
    header = json.dumps({NORM: ENTRY}).encode() + b" " * padding
    data = np.arange(4, dtype=np.float32)
    tensors = open_safetensors(folder_with(tmp_path, content(header, data.tobytes()))).tensors
    assert tensors["token_embd_norm.weight"].array().tolist() == [0, 1, 2, 3]


DAMAGED = {
    "empty": (b"", "the file is empty"),
    "seven bytes": (bytes(7), "not a whole safetensors file"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "GGUF": (b"GGUF" + bytes(100), "not a whole safetensors file"),
    "header of 2^60 bytes": (content({NORM: ENTRY}, length=2**60), "header too large"),
    "header longer than the file": (content({NORM: ENTRY}, length=10**6), "header length"),
    "header not JSON": (content(b"{..."), "not a whole safetensors file"),
    "header not UTF-8": (content(b'{"\xff": 1}'), "not a whole safetensors file"),
    "header not an object": (content([1]), "not a whole safetensors file"),
    "header nested 100,000 deep": (content(b"[" * 100_000), "not a whole safetensors file"),
    "truncated": (one()[:-1], "not fully covered"),
    "longer than its tensors": (one() + b"\0", "not fully covered"),
    "range outside the file": (one(data_offsets=[16, 32]), "offset"),
    "range that ends before it starts": (one(data_offsets=[16, 0]), "offset"),
    "negative range": (one(data_offsets=[-16, 0]), "not a whole safetensors file"),
    "range of 2^60 bytes": (one(data_offsets=[0, 2**60]), "not a whole safetensors file"),
    "shape larger than the range": (one(shape=[5]), "not a whole safetensors file"),
    "shape that overflows": (one(shape=[2**40, 2**40]), "overflow"),
    "negative shape": (one(shape=[-2, -2]), "not a whole safetensors file"),
    "shape a text": (one(shape="4"), "not a whole safetensors file"),
    "unknown dtype": (one(dtype="Q4"), "not a whole safetensors file"),
    "a number alone": (
        content({NORM: ENTRY | {"shape": [], "data_offsets": [0, 4]}}, bytes(4)),
        f"tensor '{NORM}' has 0 dimensions",
    ),
    "5 dimensions": (one(shape=[4, 1, 1, 1, 1]), f"tensor '{NORM}' has 5 dimensions"),
    "a dimension of 0": (
        content({NORM: ENTRY | {"shape": [0, 4], "data_offsets": [0, 0]}}, b""),
        rf"tensor '{NORM}' has shape \[0, 4\]",
    ),
    "tensors that overlap": (content({NORM: ENTRY, "b": ENTRY}), "invalid offset"),
    "tensors with a gap": (
        content({NORM: ENTRY, "b": ENTRY | {"data_offsets": [32, 48]}}, bytes(48)),
        "invalid offset",
    ),
    "tensor twice": (
        content(b'{"b": %s, "b": %s}' % ((json.dumps(ENTRY).encode(),) * 2)),
        "the key 'b' appears twice",
    ),
    "metadata not text": (content({"__metadata__": {"a": 1}, NORM: ENTRY}), "invalid type"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, case: str) -> None:
    model, complaint = DAMAGED[case]
    folder = folder_with(tmp_path, model)
    with pytest.raises(LlmRuntimeError, match=rf"model\.safetensors: .*({complaint})"):
        open_safetensors(folder)


@pytest.mark.parametrize(
    ("dtype", "size"), [("I32", 1), ("F64", 2), ("I8", 0.25), ("F8_E4M3", 0.25), ("F8_E5M2", 0.25)]
)
def test_a_tensor_of_another_dtype_is_refused_with_what_to_do(
    dtype: str, size: float, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, one(dtype=dtype, shape=[int(4 / size)]))
    with pytest.raises(
        ModelNotSupported, match=rf"tensor '{NORM}' has dtype {dtype}; .* take the unquantized"
    ):
        open_safetensors(folder)


def test_a_tensor_that_is_not_used_may_have_any_dtype(tmp_path: Path) -> None:
    position_ids = ("I64", (1, 2), bytes(16))
    norm = safetensors_tensor(np.ones(4, np.float32))
    tensors = {"embeddings.position_ids": position_ids, NORM: norm}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert set(open_safetensors(folder_with_config(tmp_path)).tensors) == {"token_embd_norm.weight"}


def folder_with_config(folder: Path, text: str = '{"model_type": "bert"}') -> Path:
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the file is empty"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "JSON nested deeper than 32 levels"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"model_type": "bert", "model_type": "llama"}', "'model_type' appears twice"),
        ("[]", "must be a JSON object, and is a list"),
        ('"bert"', "must be a JSON object, and is a str"),
        (" " * (2**24 + 1), f"{2**24 + 1} bytes, and no such file needs more"),
    ],
    ids=["empty", "cut", "deep", "huge number", "twice", "list", "text", "16 MiB"],
)
def test_a_damaged_config_json_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    folder = folder_with_config(tiny_bert_folder(tmp_path), text)
    with pytest.raises(LlmRuntimeError, match=rf"config\.json: .*{complaint}"):
        open_safetensors(folder)


# Shards

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny_llama_folder(tmp_path, shards=2)


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    with pytest.raises(LlmRuntimeError, match=f"{SECOND}: no such file"):
        open_safetensors(sharded)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    whole = (sharded / SECOND).read_bytes()
    (sharded / SECOND).write_bytes(whole[:-1])
    with pytest.raises(LlmRuntimeError, match=f"{SECOND}: not a whole safetensors file"):
        open_safetensors(sharded)


def test_a_git_lfs_pointer_in_place_of_a_shard_is_named(sharded: Path) -> None:
    (sharded / FIRST).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(LlmRuntimeError, match=f"{FIRST}: this is a Git LFS pointer"):
        open_safetensors(sharded)


def test_a_tensor_that_is_not_in_its_shard_is_named(sharded: Path) -> None:
    change_index(sharded, lambda weight_map: weight_map.update({"model.more.weight": SECOND}))
    with pytest.raises(LlmRuntimeError, match=rf"{SECOND}: has no tensor 'model\.more\.weight'"):
        open_safetensors(sharded)


@pytest.mark.parametrize(
    "file",
    [
        *("../other.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", ""),
        *("sub\\model.safetensors", "C:model.safetensors", "a\0b", "\ud800", 7, None, ["a"]),
    ],
)
def test_a_shard_can_only_be_in_the_same_folder(sharded: Path, file: str) -> None:
    change_index(sharded, lambda weight_map: weight_map.update({"model.norm.weight": file}))
    with pytest.raises(LlmRuntimeError, match=r"index\.json: weight_map says 'model\.norm"):
        open_safetensors(sharded)


def test_a_shard_name_no_file_system_takes_is_named(sharded: Path) -> None:
    change_index(sharded, lambda weight_map: weight_map.update({"model.norm.weight": "a" * 5000}))
    with pytest.raises(LlmRuntimeError, match="aaa: cannot be read"):
        open_safetensors(sharded)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "weight_map must be an object"),
        ('{"weight_map": ["a"]}', "weight_map must be an object"),
    ],
)
def test_a_damaged_index_is_named(sharded: Path, text: str, complaint: str) -> None:
    (sharded / INDEX).write_text(text)
    with pytest.raises(LlmRuntimeError, match=rf"index\.json: {complaint}"):
        open_safetensors(sharded)


def test_an_alias_may_be_declared_in_any_shard(sharded: Path) -> None:
    tied = safetensors_tensor(np.ones((4, 32), np.float32))
    write_safetensors(
        sharded / SECOND,
        {"lm_head.weight": tied},
        {"model.embed_tokens.weight": "lm_head.weight"},
    )
    norm = safetensors_tensor(np.ones(32, np.float32))
    write_safetensors(sharded / FIRST, {"model.norm.weight": norm}, {"format": "pt"})
    weight_map = {"lm_head.weight": SECOND, "model.norm.weight": FIRST}
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    names = {"token_embd.weight", "output.weight", "output_norm.weight"}
    assert set(open_safetensors(sharded).tensors) == names


def opened_or_refused(folder: Path) -> Weights | LlmError:
    try:
        return open_safetensors(folder)
    except LlmError as error:
        return error


SOUND = content(
    {
        "__metadata__": {"b": NORM},
        NORM: ENTRY,
        "encoder.layer.0.output.dense.bias": ENTRY | {"dtype": "F16", "data_offsets": [16, 24]},
    },
    bytes(24),
)


@given(content=damaged(SOUND))
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
def test_any_damage_gives_weights_or_an_error_of_the_interface(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = folder_with(tmp_path_factory.getbasetemp(), content)
    outcome = opened_or_refused(folder)
    assert isinstance(outcome, Weights) or str(folder) in str(outcome)
