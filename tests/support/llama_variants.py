"""Tiny random llamas of every kind that is computed, by name; `tools.peer_values` asks them, too.

Letters: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.models.load import LlamaModel, load_path
from tests.support.model_files import (
    spm_vocabulary,
    tiny_llama_folder,
    tiny_llama_gguf,
    tiny_llama_tensors,
)

__all__ = ["FOLDERS", "GGUFS", "PROMPT", "SAMPLED", "logits_of"]

PROMPT = [1, *(3 + (37 * place) % 300 for place in range(59))]  # [T], positions up to 59
SAMPLED = (0, 7, 31, 59)
"""The positions after which a few logits are recorded."""

N_LAYERS = 2
N_VOCAB = len(spm_vocabulary()["tokenizer.ggml.tokens"])  # type: ignore[arg-type]


def logits_of(path: Path) -> NDArray[np.float32]:
    """Return the logits [T, V] of the llama at `path` after PROMPT."""
    model = load_path(path)
    assert isinstance(model, LlamaModel)
    return model.forward(PROMPT)


def _folder(**options: object) -> Callable[[Path], Path]:
    return lambda folder: tiny_llama_folder(folder, **options)  # type: ignore[arg-type]


def _scaled(**scaling: object) -> Callable[[Path], Path]:
    return _folder(config={"rope_scaling": scaling})


FOLDERS: Mapping[str, Callable[[Path], Path]] = {
    "plain": _folder(),
    "attention biases": _folder(biases=True),
    "feed-forward biases": _folder(mlp_biases=True),
    "all biases": _folder(biases=True, mlp_biases=True),
    "tied": _folder(tied=True),
    "tied, with an output matrix all the same": _folder(config={"tie_word_embeddings": True}),
    "SiLU under its other name": _folder(config={"hidden_act": "swish"}),
    "a window as long as the context": _folder(config={"sliding_window": 128}),
    "linear": _scaled(rope_type="linear", factor=4.0),
    "linear under its old name": _scaled(type="linear", factor=4.0),
    "dynamic": _scaled(rope_type="dynamic", factor=4.0),
    "llama3": _scaled(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
    "llama3 of the context": _scaled(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0
    ),
    "yarn": _scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "yarn of the context": _scaled(rope_type="yarn", factor=4.0),
    "yarn with its ramp moved": _scaled(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=32,
        beta_fast=2.0,
        beta_slow=0.5,
    ),
    "yarn with a ramp of parts of pairs": _scaled(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=32,
        beta_fast=2.0,
        beta_slow=0.5,
        truncate=False,
    ),
    "yarn with a magnitude": _scaled(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.5
    ),
    "yarn with two scales": _scaled(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=32,
        mscale=0.7,
        mscale_all_dim=0.3,
    ),
    "yarn beside the context it was trained with": _folder(
        config={
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
            "original_max_position_embeddings": 32,
        }
    ),
    "yarn where transformers 5 keeps it": _folder(
        config={
            "rope_theta": None,
            "rope_parameters": {
                "rope_theta": 5000.0,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        }
    ),
}
"""Folders, whose right values transformers computes."""


def _gguf(**options: object) -> Callable[[Path], Path]:
    return lambda folder: tiny_llama_gguf(folder / "tiny.gguf", **options)  # type: ignore[arg-type]


def _fused(folder: Path) -> Path:
    """Queries, keys and values in one matrix, and their biases in one vector."""
    arrays = tiny_llama_tensors(n_vocab=N_VOCAB, biases=True)
    tensors: dict[str, np.ndarray | None] = {}
    for layer in range(N_LAYERS):
        for kind in ("weight", "bias"):
            names = [f"blk.{layer}.attn_{part}.{kind}" for part in "qkv"]
            tensors[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate([arrays[n] for n in names])
            tensors |= dict.fromkeys(names)
    return tiny_llama_gguf(folder / "tiny.gguf", biases=True, tensors=tensors)


GGUFS: Mapping[str, Callable[[Path], Path]] = {
    "plain": _gguf(),
    "attention biases": _gguf(biases=True),
    "feed-forward biases": _gguf(mlp_biases=True),
    "all biases": _gguf(biases=True, mlp_biases=True),
    "fused queries, keys and values": _fused,
    "a number for each layer": _gguf(
        metadata={
            "llama.attention.head_count": [4] * N_LAYERS,
            "llama.attention.head_count_kv": [2] * N_LAYERS,
            "llama.feed_forward_length": [64] * N_LAYERS,
        }
    ),
    "linear": _gguf(
        metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    ),
    "a factor without a type": _gguf(metadata={"llama.rope.scaling.factor": 4.0}),
    "the factor's old name": _gguf(metadata={"llama.rope.scale_linear": 4.0}),
    "both names of the factor": _gguf(
        metadata={"llama.rope.scaling.factor": 2.0, "llama.rope.scale_linear": 4.0}
    ),
    "a factor of 0": _gguf(
        metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}
    ),
    "a factor of 0 beside its old name": _gguf(
        metadata={"llama.rope.scaling.factor": 0.0, "llama.rope.scale_linear": 4.0}
    ),
    "a factor for no stretch": _gguf(
        metadata={"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    ),
    "a magnitude": _gguf(metadata={"llama.rope.scaling.attn_factor": 1.25}),
    "yarn": _gguf(
        metadata={
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 32,
        }
    ),
    "yarn of the context": _gguf(
        metadata={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    ),
    "yarn with a magnitude": _gguf(
        metadata={
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 32,
            "llama.rope.scaling.attn_factor": 1.25,
        }
    ),
    "yarn and divisors of frequencies": _gguf(
        metadata={
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 32,
        },
        tensors={"rope_freqs.weight": np.array([1.0, 1.5, 2.0, 4.0], np.float32)},
    ),
}
"""GGUF files, whose right values llama.cpp computes."""
