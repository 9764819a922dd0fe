"""Hyperparameters that ask for more than a machine has are refused, or merely accounted for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from refllm.api import LlmRuntimeError
from refllm.files.accounting.ledger import Ledger
from refllm.models.load import account, load_path
from tests.support.model_files import (
    safetensors_tensor,
    tiny_bert_folder,
    tiny_llama_folder,
    tiny_llama_gguf,
    write_safetensors,
)

WIDEST = 2**20
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 1e300,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def with_config(folder: Path, changed: Mapping[str, object]) -> Path:
    """The folder, with other values in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(changed)))
    return folder


def missing(ledger: Ledger) -> int:
    """How many tensors an account has as missing."""
    return sum(entry.verdict == "refused" and "lacks" in entry.reason for entry in ledger.entries)


def with_embedding_alone(folder: Path, name: str) -> Path:
    """The folder, with the embeddings of four tokens as its only tensor, as wide as may be."""
    embedding = safetensors_tensor(np.zeros((4, WIDEST), np.float32), "F16")
    write_safetensors(folder / "model.safetensors", {name: embedding})
    return folder


def test_an_account_of_matrices_that_no_memory_holds_names_them(tmp_path: Path) -> None:
    folder = with_embedding_alone(tiny_llama_folder(tmp_path), "model.embed_tokens.weight")
    wide = {"hidden_size": WIDEST, "intermediate_size": WIDEST, "tie_word_embeddings": True}
    ledger = account(with_config(folder, {**wide, "num_hidden_layers": 3}))
    assert missing(ledger) == 3 * 9 + 1  # of each layer, and the last norm


def test_an_account_of_vectors_that_no_memory_holds_names_them(tmp_path: Path) -> None:
    folder = with_embedding_alone(tiny_bert_folder(tmp_path), "embeddings.word_embeddings.weight")
    wide = {"hidden_size": WIDEST, "intermediate_size": WIDEST, "num_hidden_layers": 200}
    ledger = account(with_config(folder, wide))
    assert missing(ledger) == 200 * 16 + 4  # of each layer; two tables, and a norm's two vectors


@pytest.mark.parametrize("key", ["llama.attention.key_length", "llama.rope.dimension_count"])
def test_a_head_that_no_model_has_is_refused_before_its_frequencies(
    key: str, tmp_path: Path
) -> None:
    metadata = {key: WIDEST, "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 8.0}
    path = tiny_llama_gguf(tmp_path / "a.gguf", metadata=metadata)
    with pytest.raises(LlmRuntimeError, match=f"{key} must be a whole number from 1 to 4096"):
        load_path(path)


def test_a_factor_beyond_float32_is_refused_without_a_warning(tmp_path: Path) -> None:
    folder = with_config(tiny_llama_folder(tmp_path), {"rope_scaling": LLAMA3})
    with pytest.raises(LlmRuntimeError, match=r"rope_freqs.weight must hold 4 positive numbers"):
        load_path(folder)


def test_more_layers_than_any_model_has_are_refused(tmp_path: Path) -> None:
    folder = with_config(tiny_llama_folder(tmp_path), {"num_hidden_layers": 1025})
    with pytest.raises(LlmRuntimeError, match=r"num_hidden_layers must be .* from 1 to 1024"):
        load_path(folder)
