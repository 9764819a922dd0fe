"""Hyperparameters: GGUF metadata or config.json → `LlamaConfig`, `BertConfig`.

Each value is asked for by the key that the file uses, so an error names what to mend: the same
number is `llama.attention.head_count` in one file and `num_attention_heads` in another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refllm.api import LlmRuntimeError, ModelNotSupported
from refllm.bert import BertConfig
from refllm.config_llama import llama_config
from refllm.weights import Weights

__all__ = ["bert_config", "llama_config"]

# No model comes near these; a number beyond is a damaged file, and would cost memory to believe.
MOST_LAYERS = 4096
MOST_HEADS = 65536
MOST_WIDTH = 1 << 20
# Beyond 2^20 positions `sin_cos` is not exact any more.
MOST_CONTEXT = 1 << 20

ABSENT = object()


@dataclass(frozen=True, slots=True)
class Reader:
    """Values by key from one file's hyperparameters, each checked."""

    path: Path
    values: Mapping[str, Any]

    def integer(self, key: str, *, most: int, default: int | None = None, least: int = 1) -> int:
        """The whole number under `key`, from `least` to `most`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(
                key, f"must be a whole number from {least} to {most}, is {value!r:.80}"
            )
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        """The finite, positive number under `key`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"must be a number, is {value!r:.80}")
        if not math.isfinite(value) or value <= 0:
            raise self.error(key, f"must be finite and greater than 0, is {value!r:.80}")
        return float(value)

    def table(self, key: str) -> Mapping[str, Any]:
        """The object under `key`; empty where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(key, f"must be an object, is {value!r:.80}")
        return value

    def expect(self, key: str, supported: object, *, default: object = None) -> None:
        """Raise `ModelNotSupported` unless the value under `key` is the one that is supported."""
        value = self.values.get(key, default)
        if value not in (supported, default):
            raise ModelNotSupported(
                f"{self.path}: {key} = {value!r:.80} is not supported, only {supported!r}"
            )

    def error(self, key: str, what: str) -> LlmRuntimeError:
        """The error that names the file and the key."""
        return LlmRuntimeError(f"{self.path}: {key} {what}")

    def _get(self, key: str, default: float | None) -> object:
        value = self.values.get(key, ABSENT)
        if value is ABSENT or (value is None and default is not None):
            if default is None:
                raise self.error(key, "is missing")
            return default
        return value


def bert_config(weights: Weights) -> BertConfig:
    """The hyperparameters of a BERT encoder.

    Errors: `LlmRuntimeError` naming a missing or impossible key, `ModelNotSupported` naming one
    that asks for what is not implemented.
    """
    reader = Reader(weights.path, weights.hparams)
    config = _bert_from_gguf(reader) if weights.source == "gguf" else _bert_from_hf(reader)
    if config.n_embd % config.n_heads:
        raise LlmRuntimeError(
            f"{weights.path}: a width of {config.n_embd} cannot be shared by {config.n_heads} heads"
        )
    return config


def _bert_from_gguf(reader: Reader) -> BertConfig:
    # 1 is mean pooling in llama.cpp's enumeration; sentence models are converted with it.
    reader.expect("bert.pooling_type", 1)
    return BertConfig(
        n_ctx=reader.integer("bert.context_length", most=MOST_CONTEXT),
        n_embd=reader.integer("bert.embedding_length", most=MOST_WIDTH),
        n_layers=reader.integer("bert.block_count", most=MOST_LAYERS),
        n_heads=reader.integer("bert.attention.head_count", most=MOST_HEADS),
        n_ff=reader.integer("bert.feed_forward_length", most=MOST_WIDTH),
        layer_norm_eps=reader.number("bert.attention.layer_norm_epsilon"),
    )


def _bert_from_hf(reader: Reader) -> BertConfig:
    """BERT from config.json; without one, the shape of all-MiniLM-L6-v2 as Spin assumes it."""
    if not reader.values:
        return BertConfig(
            n_ctx=512, n_embd=384, n_layers=6, n_heads=12, n_ff=1536, layer_norm_eps=1e-12
        )
    reader.expect("hidden_act", "gelu")
    reader.expect("position_embedding_type", "absolute")
    return BertConfig(
        n_ctx=reader.integer("max_position_embeddings", most=MOST_CONTEXT),
        n_embd=reader.integer("hidden_size", most=MOST_WIDTH),
        n_layers=reader.integer("num_hidden_layers", most=MOST_LAYERS),
        n_heads=reader.integer("num_attention_heads", most=MOST_HEADS),
        n_ff=reader.integer("intermediate_size", most=MOST_WIDTH),
        layer_norm_eps=reader.number("layer_norm_eps", default=1e-12),
    )
