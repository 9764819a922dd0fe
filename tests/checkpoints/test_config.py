"""Hyperparameters: what is missing or impossible is named by the key that the file uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from refllm.api import LlmError, LlmRuntimeError, ModelNotSupported
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.open import open_weights
from refllm.files.accounting.ledger import Ledger
from refllm.llama import LlamaConfig
from tests.support.model_files import (
    tiny_bert_folder,
    tiny_bert_gguf,
    tiny_llama_folder,
    tiny_llama_gguf,
)


def from_gguf(folder: Path, key: str, value: object) -> LlamaConfig:
    path = tiny_llama_gguf(folder / "tiny.gguf", metadata={key: value})
    return llama_config(open_weights(path))


def from_folder(folder: Path, key: str, value: object) -> LlamaConfig:
    return llama_config(open_weights(tiny_llama_folder(folder / "tiny", config={key: value})))


NECESSARY = [
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.layer_norm_rms_epsilon",
]


@pytest.mark.parametrize("key", NECESSARY)
def test_a_missing_key_of_a_gguf_is_named(key: str, tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match=rf"tiny\.gguf: {key} is missing"):
        from_gguf(tmp_path, key, None)


@pytest.mark.parametrize("key", NECESSARY)
@pytest.mark.parametrize("value", [0, -1, 2**60, "many"])
def test_an_impossible_value_of_a_gguf_is_named(key: str, value: object, tmp_path: Path) -> None:
    if key.endswith("epsilon") and value == 2**60:
        value = float("nan")
    with pytest.raises(LlmRuntimeError, match=rf"tiny\.gguf: {key} must be"):
        from_gguf(tmp_path, key, value)


@pytest.mark.parametrize(("value", "error"), [("all", LlmRuntimeError), ([64, 8], LlmError)])
def test_a_window_that_is_no_number_is_named(
    value: object, error: type[LlmError], tmp_path: Path
) -> None:
    with pytest.raises(error, match=r"llama\.attention\.sliding_window"):
        from_gguf(tmp_path, "llama.attention.sliding_window", value)


@pytest.mark.parametrize("key", ["num_hidden_layers", "intermediate_size", "num_attention_heads"])
def test_a_missing_key_of_config_json_is_named(key: str, tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match=f"{key} is missing"):
        from_folder(tmp_path, key, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 2**60),
        ("num_attention_heads", -4),
        ("num_key_value_heads", 0),
        ("intermediate_size", 1.5),
        ("max_position_embeddings", True),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", 0),
        ("rope_theta", -1.0),
        ("rope_scaling", "linear"),
    ],
)
def test_an_impossible_value_of_config_json_is_named(
    key: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(LlmRuntimeError, match=f"{key} must be"):
        from_folder(tmp_path, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.expert_count", 8),
        ("llama.attention.sliding_window", 64),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.attention.value_length", 4),
    ],
)
def test_a_gguf_that_asks_for_more_than_a_llama_is_not_supported(
    key: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotSupported, match=f"{key} = {value!r}"):
        from_gguf(tmp_path, key, value)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("hidden_act", "gelu", "hidden_act = 'gelu'"),
        ("rope_scaling", {"rope_type": "longrope"}, "rope_scaling.rope_type = 'longrope'"),
    ],
)
def test_a_config_json_that_asks_for_more_than_a_llama_is_not_supported(
    key: str, value: object, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotSupported, match=named):
        from_folder(tmp_path, key, value)


@pytest.mark.parametrize(
    "scaling", [{"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}]
)
def test_linear_scaling_is_read_under_both_of_its_names(
    scaling: dict[str, object], tmp_path: Path
) -> None:
    assert from_folder(tmp_path, "rope_scaling", scaling).rope_linear_scale == 4.0


def test_theta_and_scaling_are_read_where_transformers_5_keeps_them(tmp_path: Path) -> None:
    gathered = {"rope_theta": 500000.0, "rope_type": "linear", "factor": 2.0}
    config = from_folder(tmp_path, "rope_parameters", gathered)
    assert (config.rope_theta, config.rope_linear_scale) == (500000.0, 2.0)


def test_a_scaling_without_its_factor_names_it(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match="factor is missing"):
        from_folder(tmp_path, "rope_scaling", {"rope_type": "linear"})


def test_heads_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match="4 heads cannot share 3 key/value heads"):
        from_gguf(tmp_path, "llama.attention.head_count_kv", 3)


@pytest.mark.parametrize("rope_dim", [5, 10])
def test_rope_on_an_odd_number_or_more_than_a_head_is_refused(
    rope_dim: int, tmp_path: Path
) -> None:
    with pytest.raises(LlmRuntimeError, match=f"RoPE turns {rope_dim} of a head's 8"):
        from_gguf(tmp_path, "llama.rope.dimension_count", rope_dim)


def test_a_bert_reads_the_same_from_both_kinds_of_file(tmp_path: Path) -> None:
    file = bert_config(open_weights(tiny_bert_gguf(tmp_path / "tiny.gguf")))
    folder = bert_config(open_weights(tiny_bert_folder(tmp_path / "folder")))
    assert file.n_heads == folder.n_heads
    assert (file.n_ctx, file.n_embd, file.n_layers) == (
        folder.n_ctx,
        folder.n_embd,
        folder.n_layers,
    )
    assert file.layer_norm_eps == pytest.approx(folder.layer_norm_eps)


@pytest.mark.parametrize(
    ("key", "value"),
    [("bert.block_count", 0), ("bert.attention.head_count", -2), ("bert.context_length", 2**60)],
)
def test_an_impossible_value_of_a_bert_gguf_is_named(key: str, value: int, tmp_path: Path) -> None:
    path = tiny_bert_gguf(tmp_path / "tiny.gguf", metadata={key: value})
    with pytest.raises(LlmRuntimeError, match=f"{key} must be"):
        bert_config(open_weights(path))


def test_how_a_bert_pools_is_left_to_the_reader_of_the_pooling(tmp_path: Path) -> None:
    ledger = Ledger()
    path = tiny_bert_gguf(tmp_path / "tiny.gguf", metadata={"bert.pooling_type": 2})
    bert_config(open_weights(path), ledger=ledger)
    assert "bert.pooling_type" not in {entry.name for entry in ledger.entries}
