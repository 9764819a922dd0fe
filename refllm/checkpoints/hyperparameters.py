"""The hyperparameters of each family: one row for a field, its key in each kind of file, its limit.

`refllm.checkpoints.config` reads both kinds of file by these rows, and `refllm.export` writes them.
What is no number of its own, such as RoPE's scaling, is code there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

__all__ = [
    "HYPERPARAMETERS",
    "MAX_CONTEXT",
    "MAX_ENCODER_CONTEXT",
    "MAX_HEADS",
    "MAX_HEAD_DIM",
    "MAX_WIDTH",
    "Row",
]

# Upper limits of plausible models. A larger number means a damaged file, and allocating for it
# could exhaust memory.
MAX_LAYERS = 1024  # Llama 3.1 405B has 126; naming the tensors that so many lack takes a moment
MAX_HEADS = 1 << 16
MAX_WIDTH = 1 << 20
MAX_HEAD_DIM = 4096  # 576 is the largest known; each pair of elements costs decimal arithmetic
MAX_CONTEXT = 1 << 31
MAX_ENCODER_CONTEXT = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One number of a `LlamaConfig` or `BertConfig`.

    Attributes:
        field: The field of the dataclass.
        gguf: The key of GGUF metadata behind "llama." or "bert.".
        json: The key of config.json, and other names that transformers' `attribute_map` turns into
            the first.
        maximum: The largest whole number allowed, or None for a float.
        default: The value that a config.json without the key has, or None where it must be there.
        derived: The value of a file of either kind without the key, from the rows before.
    """

    field: str
    gguf: str
    json: tuple[str, ...]
    maximum: int | None
    default: float | None = None
    derived: Callable[[Mapping[str, int]], int] | None = None


LLAMA = (
    Row("n_ctx", "context_length", ("max_position_embeddings",), MAX_CONTEXT, default=2048),
    Row("n_embd", "embedding_length", ("hidden_size",), MAX_WIDTH),
    Row("n_ff", "feed_forward_length", ("intermediate_size",), MAX_WIDTH),
    Row("n_layers", "block_count", ("num_hidden_layers",), MAX_LAYERS),
    Row("n_heads", "attention.head_count", ("num_attention_heads",), MAX_HEADS),
    Row(
        "n_kv_heads",
        "attention.head_count_kv",
        ("num_key_value_heads",),
        MAX_HEADS,
        derived=lambda read: read["n_heads"],
    ),
    Row(
        "head_dim",
        "attention.key_length",
        ("head_dim",),
        MAX_HEAD_DIM,
        derived=lambda read: read["n_embd"] // read["n_heads"] or 1,
    ),
    Row("rms_norm_eps", "attention.layer_norm_rms_epsilon", ("rms_norm_eps",), None, default=1e-6),
)
BERT = (
    Row("n_ctx", "context_length", ("max_position_embeddings",), MAX_ENCODER_CONTEXT),
    *(row for row in LLAMA if row.field in ("n_embd", "n_layers", "n_ff", "n_heads")),
    Row("layer_norm_eps", "attention.layer_norm_epsilon", ("layer_norm_eps",), None, default=1e-12),
)
DISTILBERT_KEYS = {
    "n_ctx": ("max_position_embeddings",),
    "n_embd": ("dim", "hidden_size"),
    "n_layers": ("n_layers", "num_hidden_layers"),
    "n_ff": ("hidden_dim",),
    "n_heads": ("n_heads", "num_attention_heads"),
}

HYPERPARAMETERS: Mapping[str, tuple[Row, ...]] = {
    "llama": LLAMA,
    "bert": BERT,
    "roberta": BERT,
    "distilbert": tuple(
        replace(row, json=DISTILBERT_KEYS[row.field])
        for row in BERT
        if row.field in DISTILBERT_KEYS
    ),
    "mpnet": BERT,
}
"""The rows of each family of `refllm.checkpoints.names.HUGGING_FACE_NAMES`."""
