"""Any layout gives the same tensors: names, rows, ties."""

from __future__ import annotations

import json
import mmap
import weakref
from pathlib import Path

import gguf
import numpy as np
import pytest

from refllm.api import LlmRuntimeError, ModelNotSupported
from refllm.checkpoints.names import canonical_name
from refllm.checkpoints.open import Weights, open_gguf, open_safetensors, open_weights
from refllm.checkpoints.rope_layout import interleaved
from tests.support.model_files import (
    hf_bert_name,
    hf_llama_name,
    read_llama2c,
    safetensors_tensor,
    tiny_bert_folder,
    tiny_bert_gguf,
    tiny_bert_tensors,
    tiny_llama_folder,
    tiny_llama_gguf,
    tiny_llama_tensors,
    write_hf_llama_from_bin,
    write_safetensors,
)

LLAMA = tiny_llama_tensors(n_vocab=10, biases=True)
BERT = tiny_bert_tensors(n_vocab=10)


def contents(weights: Weights) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shape and bytes of every tensor."""
    return {name: (t.shape, t.data.tobytes()) for name, t in weights.tensors.items()}


def map_under(weights: Weights) -> mmap.mmap:
    """The memory map that the tensors are views of."""
    owner: object = next(iter(weights.tensors.values())).data
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    return owner


# The same model from every kind of file


def test_every_tensor_of_the_real_gguf_is_llama2c_s(data_dir: Path) -> None:
    weights = open_gguf(data_dir / "stories260K" / "stories260K.gguf")
    original = read_llama2c(data_dir / "stories260K" / "stories260K.bin")
    assert contents(weights) == {
        name: (array.shape, array.tobytes()) for name, array in original.tensors.items()
    }


@pytest.mark.parametrize("shards", [1, 3])
def test_llama2c_weights_as_safetensors_open_to_the_real_gguf_s_tensors(
    data_dir: Path, tmp_path: Path, shards: int
) -> None:
    stories = data_dir / "stories260K"
    write_hf_llama_from_bin(stories / "stories260K.bin", tmp_path, shards=shards)
    from_gguf = open_weights(stories / "stories260K.gguf")
    assert contents(open_weights(tmp_path)) == contents(from_gguf)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_llama_is_the_same_from_gguf_and_from_safetensors(tmp_path: Path, dtype: str) -> None:
    from_gguf = open_weights(tiny_llama_gguf(tmp_path / "tiny.gguf", type=dtype))
    from_folder = open_weights(tiny_llama_folder(tmp_path / "tiny", dtype=dtype))
    matrices = [name for name, tensor in from_gguf.tensors.items() if len(tensor.shape) == 2]
    assert len(matrices) == 2 * 7 + 2
    for name in matrices:
        assert from_folder.tensors[name].format.name == dtype
        assert contents(from_folder)[name] == contents(from_gguf)[name]


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_bert_is_the_same_from_gguf_and_from_safetensors(tmp_path: Path, prefix: str) -> None:
    from_gguf = open_weights(tiny_bert_gguf(tmp_path / "tiny.gguf"))
    from_folder = open_weights(tiny_bert_folder(tmp_path / "tiny", prefix=prefix))
    assert contents(from_folder) == contents(from_gguf)


def test_weights_have_their_source_architecture_and_hyperparameters(tmp_path: Path) -> None:
    from_gguf = open_weights(tiny_llama_gguf(tmp_path / "tiny.gguf"))
    from_folder = open_weights(tiny_bert_folder(tmp_path / "tiny"))
    assert (from_gguf.source, from_gguf.architecture) == ("gguf", "llama")
    assert (from_folder.source, from_folder.architecture) == ("hf", "bert")
    assert from_gguf.hparams["llama.block_count"] == 2
    assert from_folder.hparams == json.loads((tmp_path / "tiny" / "config.json").read_text())


def test_the_memory_map_is_closed_with_the_weights(tmp_path: Path) -> None:
    for path in (tiny_llama_gguf(tmp_path / "tiny.gguf"), tiny_bert_folder(tmp_path / "tiny")):
        weights = open_weights(path)
        still_mapped = weakref.ref(map_under(weights))
        assert still_mapped() is not None
        del weights
        assert still_mapped() is None


def test_tensors_are_views_of_the_map_and_read_only(tmp_path: Path) -> None:
    weights = open_weights(tiny_llama_gguf(tmp_path / "tiny.gguf", type="Q8_0"))
    assert all(tensor.data.base is not None for tensor in weights.tensors.values())
    assert not any(tensor.data.flags.writeable for tensor in weights.tensors.values())


# Which file


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "tiny.gguf")
    assert open_weights(tmp_path).path == path


def test_two_gguf_files_in_a_folder_are_an_error_that_names_both(tmp_path: Path) -> None:
    tiny_llama_gguf(tmp_path / "a.gguf")
    tiny_llama_gguf(tmp_path / "b.gguf")
    with pytest.raises(LlmRuntimeError, match=r"2 \.gguf files: name one"):
        open_weights(tmp_path)


def test_a_folder_without_a_model_is_an_error_with_the_expected_files(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match=r"model\.safetensors.*no \.gguf file"):
        open_weights(tmp_path)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match=r"nothing\.gguf: no such file"):
        open_weights(tmp_path / "nothing.gguf")


def test_a_path_no_file_system_takes_is_refused() -> None:
    with pytest.raises(LlmRuntimeError, match="aaa: cannot be read"):
        open_weights(Path("a" * 5000))


# Names. The independent word is gguf-py's own table, which llama.cpp's converter uses.


@pytest.mark.parametrize("name", LLAMA)
def test_llama_tensors_have_the_names_of_llama_cpp_s_converter(name: str) -> None:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    stored_name = hf_llama_name(name)
    assert canonical_name("llama", stored_name) == name
    assert table.get_name(stored_name, try_suffixes=(".weight", ".bias")) == name


@pytest.mark.parametrize("name", BERT)
def test_bert_tensors_have_the_names_of_llama_cpp_s_converter(name: str) -> None:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 2)
    stored_name = hf_bert_name(name)
    assert canonical_name("bert", stored_name) == name
    assert canonical_name("bert", f"bert.{stored_name}") == name
    assert table.get_name(stored_name, try_suffixes=(".weight", ".bias")) == name


@pytest.mark.parametrize(
    ("stored_name", "name"),
    [
        ("embeddings.LayerNorm.gamma", "token_embd_norm.weight"),
        ("bert.encoder.layer.11.output.LayerNorm.beta", "blk.11.layer_output_norm.bias"),
    ],
)
def test_old_names_of_bert_tensors_are_read(stored_name: str, name: str) -> None:
    assert canonical_name("bert", stored_name) == name


@pytest.mark.parametrize(
    ("architecture", "stored_name"),
    [
        ("bert", "pooler.dense.weight"),
        ("bert", "embeddings.position_ids"),
        ("bert", "cls.predictions.bias"),
        ("bert", "bert.encoder.layer.x.output.dense.weight"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("llama", "model.layers.0.self_attn.q_proj.qweight"),
        ("llama", ""),
    ],
)
def test_tensors_that_the_network_does_not_use_have_no_name(
    architecture: str, stored_name: str
) -> None:
    assert canonical_name(architecture, stored_name) is None


def test_two_stored_names_for_one_tensor_are_refused(tmp_path: Path) -> None:
    ones = safetensors_tensor(np.ones(4, np.float32))
    names = ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma")
    write_safetensors(tmp_path / "model.safetensors", dict.fromkeys(names, ones))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(LlmRuntimeError, match=r"LayerNorm\.gamma' and .* are both token_embd_norm"):
        open_safetensors(tmp_path)


# Architectures


def test_a_gguf_of_another_architecture_is_not_supported(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata={"general.architecture": "gpt2"})
    with pytest.raises(ModelNotSupported, match=r"general\.architecture is 'gpt2'"):
        open_gguf(path)


@pytest.mark.parametrize("value", [None, 7])
def test_a_gguf_must_name_its_architecture(tmp_path: Path, value: int | None) -> None:
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata={"general.architecture": value})
    with pytest.raises(LlmRuntimeError, match=r"general\.architecture must be a string"):
        open_gguf(path)


def test_a_single_part_of_a_split_gguf_is_an_error_with_the_command_to_join(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata={"split.count": np.uint16(3)})
    with pytest.raises(LlmRuntimeError, match="one of 3 parts"):
        open_gguf(path)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mistral"},
        {"model_type": None, "architectures": ["GPT2LMHeadModel"]},
        {"model_type": None, "architectures": []},
        {"model_type": None, "architectures": None},
    ],
)
def test_a_folder_of_another_architecture_is_not_supported(
    tmp_path: Path, config: dict[str, object]
) -> None:
    tiny_llama_folder(tmp_path, config=config)
    with pytest.raises(ModelNotSupported, match=r"config\.json: "):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", 7), ("model_type", ["llama"]), ("architectures", "L"), ("architectures", [1])],
)
def test_an_architecture_of_the_wrong_type_is_named(
    tmp_path: Path, key: str, value: object
) -> None:
    tiny_llama_folder(tmp_path, config={"model_type": None, "architectures": None, key: value})
    with pytest.raises(LlmRuntimeError, match=rf"config\.json: {key} must be"):
        open_safetensors(tmp_path)


def test_architectures_speak_where_model_type_is_absent(tmp_path: Path) -> None:
    weights = open_safetensors(tiny_llama_folder(tmp_path, config={"model_type": None}))
    assert weights.architecture == "llama"


def test_a_bert_is_known_by_its_tensors_where_config_json_is_absent(tmp_path: Path) -> None:
    tiny_bert_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    weights = open_safetensors(tmp_path)
    assert (weights.architecture, weights.hparams) == ("bert", {})


def test_a_llama_without_config_json_misses_it(tmp_path: Path) -> None:
    tiny_llama_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(LlmRuntimeError, match=r"config\.json: missing"):
        open_safetensors(tmp_path)


# RoPE


def test_half_split_rows_become_interleaved_head_by_head() -> None:
    half_split = [*("a0", "a1", "a2", "b0", "b1", "b2"), *("c0", "c1", "c2", "d0", "d1", "d2")]
    pairs_together = [*("a0", "b0", "a1", "b1", "a2", "b2"), *("c0", "d0", "c1", "d1", "c2", "d2")]
    rows = np.array([list(row.encode()) for row in half_split], np.uint8)
    assert [bytes(row).decode() for row in interleaved(rows, n_heads=2)] == pairs_together


def test_query_and_key_biases_are_reordered_like_their_weights(tmp_path: Path) -> None:
    from_gguf = open_weights(tiny_llama_gguf(tmp_path / "tiny.gguf", biases=True))
    from_folder = open_weights(tiny_llama_folder(tmp_path / "tiny", biases=True))
    assert "blk.1.attn_k.bias" in from_folder.tensors
    assert contents(from_folder) == contents(from_gguf)


@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_size"])
def test_a_missing_hyperparameter_is_named(tmp_path: Path, key: str) -> None:
    tiny_llama_folder(tmp_path, config={"head_dim": None, key: None})
    with pytest.raises(LlmRuntimeError, match=rf"config\.json: {key} is missing"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize("key", ["num_attention_heads", "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("value", [0, -1, 2**60, 4.0, "4", True, [4]])
def test_an_impossible_hyperparameter_is_named(tmp_path: Path, key: str, value: object) -> None:
    tiny_llama_folder(tmp_path, config={key: value})
    with pytest.raises(
        LlmRuntimeError, match=rf"config\.json: {key} must be a whole number from 1 to"
    ):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"num_attention_heads": 2}, r"blk\.0\.attn_q\.weight has shape \[32, 32\]"),
        ({"num_key_value_heads": None}, r"blk\.0\.attn_k\.weight has shape \[16, 32\]"),
        ({"head_dim": 7}, "head_dim is 7, and must be even"),
        ({"head_dim": None, "num_attention_heads": 5}, "hidden_size 32 is not a multiple"),
    ],
)
def test_heads_that_do_not_fit_the_tensors_are_named(
    tmp_path: Path, config: dict[str, object], complaint: str
) -> None:
    tiny_llama_folder(tmp_path, config=config)
    with pytest.raises(LlmRuntimeError, match=complaint):
        open_safetensors(tmp_path)


def test_a_missing_head_dim_is_derived_from_the_width(tmp_path: Path) -> None:
    explicit = open_safetensors(tiny_llama_folder(tmp_path / "explicit"))
    derived = open_safetensors(tiny_llama_folder(tmp_path / "derived", config={"head_dim": None}))
    assert contents(derived) == contents(explicit)


# Tied embeddings

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def tied_folder(
    folder: Path, *, stored: str, metadata: dict[str, str] | None, tie: object = None
) -> Path:
    """A llama's folder with one tensor alone: the embedding or the output."""
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    write_safetensors(folder / "model.safetensors", {stored: safetensors_tensor(array)}, metadata)
    config = {"model_type": "llama", "num_attention_heads": 1, "head_dim": 2}
    if tie is not None:
        config["tie_word_embeddings"] = tie
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("stored", "dropped"), [(EMBEDDING, OUTPUT), (OUTPUT, EMBEDDING)])
def test_an_alias_in_the_metadata_gives_both_names_the_same_bytes(
    tmp_path: Path, stored: str, dropped: str
) -> None:
    folder = tied_folder(tmp_path, stored=stored, metadata={dropped: stored})
    tensors = open_safetensors(folder).tensors
    assert set(tensors) == {"token_embd.weight", "output.weight"}
    assert np.shares_memory(tensors["token_embd.weight"].data, tensors["output.weight"].data)
    assert tensors["output.weight"].name == "output.weight"


def test_tied_by_config_json_the_output_is_the_embedding(tmp_path: Path) -> None:
    tensors = open_safetensors(
        tied_folder(tmp_path, stored=OUTPUT, metadata=None, tie=True)
    ).tensors
    assert set(tensors) == {"token_embd.weight", "output.weight"}
    assert np.shares_memory(tensors["token_embd.weight"].data, tensors["output.weight"].data)


@pytest.mark.parametrize("tie", [None, False])
def test_an_embedding_that_is_not_declared_tied_stays_missing(tmp_path: Path, tie: object) -> None:
    folder = tied_folder(tmp_path, stored=OUTPUT, metadata={"format": "pt"}, tie=tie)
    assert set(open_safetensors(folder).tensors) == {"output.weight"}


def test_a_tie_that_is_neither_true_nor_false_is_named(tmp_path: Path) -> None:
    folder = tied_folder(tmp_path, stored=OUTPUT, metadata=None, tie="yes")
    with pytest.raises(LlmRuntimeError, match=r"config\.json: tie_word_embeddings must be"):
        open_safetensors(folder)
