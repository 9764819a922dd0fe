"""Hyperparameters: GGUF metadata or config.json → `LlamaConfig`, `BertConfig`.

Each value is asked for by the key that the file uses, so an error names what to mend: the same
number is `llama.attention.head_count` in one file and `num_attention_heads` in another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refllm.api import LlmRuntimeError, ModelNotSupported
from refllm.bert import BertConfig
from refllm.llama import LlamaConfig
from refllm.parameters import Parameters
from refllm.rope import Llama3Scaling
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


def llama_config(weights: Weights) -> LlamaConfig:
    """The hyperparameters of a llama.

    Errors: `LlmRuntimeError` naming a missing or impossible key, `ModelNotSupported` naming one
    that asks for what is not implemented (experts, sliding windows, other kinds of RoPE).
    """
    readers: dict[str, Callable[[Reader, Weights], LlamaConfig]] = {
        "gguf": _llama_from_gguf,
        "hf": _llama_from_hf,
    }
    config = readers[weights.source](Reader(weights.path, weights.hparams), weights)
    if config.n_heads % config.n_kv_heads:
        raise LlmRuntimeError(
            f"{weights.path}: {config.n_heads} heads cannot share {config.n_kv_heads} "
            "key/value heads evenly"
        )
    _check_factors(config.rope_factors, config.rope_dim // 2, weights.path)
    if config.rope_dim % 2 or config.rope_dim > config.head_dim:
        raise LlmRuntimeError(
            f"{weights.path}: RoPE turns {config.rope_dim} of a head's {config.head_dim} elements; "
            "it must be an even number of them"
        )
    return config


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


def _llama_from_gguf(reader: Reader, weights: Weights) -> LlamaConfig:
    n_embd = reader.integer("llama.embedding_length", most=MOST_WIDTH)
    n_heads = reader.integer("llama.attention.head_count", most=MOST_HEADS)
    head_dim = reader.integer(
        "llama.attention.key_length", most=MOST_WIDTH, default=n_embd // n_heads or 1
    )
    reader.expect("llama.attention.value_length", head_dim)
    reader.expect("llama.expert_count", 0)
    reader.expect("llama.attention.sliding_window", 0)
    reader.expect("llama.rope.scaling.type", "linear", default="none")
    linear_scale = reader.number("llama.rope.scale_linear", default=1.0)
    if reader.values.get("llama.rope.scaling.type") == "linear":
        linear_scale = reader.number("llama.rope.scaling.factor")
    rope_dim = reader.integer("llama.rope.dimension_count", most=MOST_WIDTH, default=head_dim)
    factors = weights.tensors.get("rope_freqs.weight")
    return LlamaConfig(
        n_vocab=Parameters(weights.path, weights.tensors).n_rows("token_embd.weight"),
        n_ctx=reader.integer("llama.context_length", most=MOST_CONTEXT),
        n_embd=n_embd,
        n_layers=reader.integer("llama.block_count", most=MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=reader.integer(
            "llama.attention.head_count_kv", most=MOST_HEADS, default=n_heads
        ),
        head_dim=head_dim,
        n_ff=reader.integer("llama.feed_forward_length", most=MOST_WIDTH),
        rms_norm_eps=reader.number("llama.attention.layer_norm_rms_epsilon"),
        rope_dim=rope_dim,
        rope_theta=reader.number("llama.rope.freq_base", default=10000.0),
        rope_linear_scale=linear_scale,
        rope_factors=None if factors is None else tuple(factors.array().ravel().tolist()),
    )


def _llama_from_hf(reader: Reader, weights: Weights) -> LlamaConfig:
    n_embd = reader.integer("hidden_size", most=MOST_WIDTH)
    n_heads = reader.integer("num_attention_heads", most=MOST_HEADS)
    head_dim = reader.integer("head_dim", most=MOST_WIDTH, default=n_embd // n_heads or 1)
    reader.expect("hidden_act", "silu")
    # transformers 5 gathers theta and the scaling in `rope_parameters`.
    gathered = reader.table("rope_parameters")
    rope = Reader(reader.path, gathered or reader.table("rope_scaling"))
    theta = Reader(reader.path, gathered if "rope_theta" in gathered else reader.values).number(
        "rope_theta", default=10000.0
    )
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    linear_scale, factors = 1.0, None
    if kind == "linear":
        linear_scale = rope.number("factor")
    elif kind == "llama3":
        scaling = Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_context=rope.integer("original_max_position_embeddings", most=MOST_CONTEXT),
        )
        if scaling.low_freq_factor >= scaling.high_freq_factor:
            raise rope.error("high_freq_factor", "must be greater than low_freq_factor")
        factors = scaling.factors(base=theta, rope_dim=head_dim)
    elif kind != "default":
        raise ModelNotSupported(
            f"{reader.path}: rope_scaling of type {kind!r:.80} is not supported, "
            "only 'default', 'linear' and 'llama3'"
        )
    return LlamaConfig(
        n_vocab=Parameters(weights.path, weights.tensors).n_rows("token_embd.weight"),
        n_ctx=reader.integer("max_position_embeddings", most=MOST_CONTEXT, default=2048),
        n_embd=n_embd,
        n_layers=reader.integer("num_hidden_layers", most=MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=reader.integer("num_key_value_heads", most=MOST_HEADS, default=n_heads),
        head_dim=head_dim,
        n_ff=reader.integer("intermediate_size", most=MOST_WIDTH),
        rms_norm_eps=reader.number("rms_norm_eps", default=1e-6),
        rope_dim=head_dim,
        rope_theta=theta,
        rope_linear_scale=linear_scale,
        rope_factors=factors,
    )


def _bert_from_gguf(reader: Reader) -> BertConfig:
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


def _check_factors(factors: tuple[float, ...] | None, n_pairs: int, path: Path) -> None:
    """Refuse frequency factors that are not one positive number for each pair."""
    if factors is None:
        return
    if len(factors) != n_pairs or not all(0 < factor < math.inf for factor in factors):
        raise LlmRuntimeError(
            f"{path}: rope_freqs.weight must hold {n_pairs} positive numbers, one for each pair "
            "of a head's rotated elements"
        )
