"""Model files for tests: complete random models, a llama and a BERT, as GGUF and as folders.

Of one architecture and one seed, the GGUF and the folder hold the same numbers (as float32). Any
metadata or config value can be replaced, or left out with None, to see what a test wants. The BERT
is made in tests/support/tiny_bert.py and the files are written by tests/support/model_formats.py;
both modules' names can be imported from here.

Letters: V vocabulary, D model width, H heads, E head width, F feed-forward width, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.model_formats import (
    GgufTensor,
    Llama2c,
    hf_llama_name,
    matrices_stored_as,
    random_matrix,
    random_vector,
    read_llama2c,
    safetensors_tensor,
    write_config,
    write_gguf,
    write_hf_llama,
    write_hf_llama_from_bin,
    write_safetensors,
    write_tokenizer_model,
)
from tests.support.tiny_bert import (
    hf_bert_name,
    tiny_bert_folder,
    tiny_bert_gguf,
    tiny_bert_tensors,
    wordpiece_vocabulary,
)

__all__ = [
    "GgufTensor",
    "Llama2c",
    "hf_bert_name",
    "hf_llama_name",
    "read_llama2c",
    "safetensors_tensor",
    "spm_vocabulary",
    "tiny_bert_folder",
    "tiny_bert_gguf",
    "tiny_bert_tensors",
    "tiny_llama_folder",
    "tiny_llama_gguf",
    "tiny_llama_tensors",
    "wordpiece_vocabulary",
    "write_gguf",
    "write_hf_llama",
    "write_hf_llama_from_bin",
    "write_safetensors",
    "write_tokenizer_model",
]

Array = NDArray[np.float32]
Metadata = Mapping[str, object]

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types of a GGUF
SPM_CHARACTERS = "▁etaoinshrdlucmfwygpbvkxqjzETAOINSHRDLUCMFWYGPBVKXQJZ.,!?'\"-0123456789"
SPM_PAIRS = ("▁t", "he", "▁the", "▁a", "in", "er", "▁s", "on", "ed", "▁and", "▁w", "nd", "re")


def spm_vocabulary() -> dict[str, object]:
    """A SentencePiece vocabulary as GGUF metadata: specials, 256 bytes, characters, some pairs."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*SPM_PAIRS, *SPM_CHARACTERS]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *byte_tokens, *pieces],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(pieces))],
        "tokenizer.ggml.token_type": [
            *(UNKNOWN, CONTROL, CONTROL),
            *([BYTE] * 256),
            *([NORMAL] * len(pieces)),
        ],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def tiny_llama_tensors(
    *,
    n_layers: int = 2,
    n_embd: int = 32,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int = 8,
    n_ff: int = 64,
    n_vocab: int,
    seed: int = 0,
    tied: bool = False,
    biases: bool = False,
    mlp_biases: bool = False,
) -> dict[str, Array]:
    """A llama's float32 tensors under GGUF's names, interleaved.

    `biases` are those of q, k, v; `mlp_biases` those of gate, up, down.
    """
    D, Q, KV = n_embd, n_heads * head_dim, n_kv_heads * head_dim
    random = np.random.default_rng(seed)
    tensors = {"token_embd.weight": random_matrix(random, n_vocab, D)}
    for i in range(n_layers):
        blk = f"blk.{i}"
        tensors[f"{blk}.attn_norm.weight"] = 1 + random_vector(random, D)
        for name, rows in (("q", Q), ("k", KV), ("v", KV)):
            tensors[f"{blk}.attn_{name}.weight"] = random_matrix(random, rows, D)
            if biases:
                tensors[f"{blk}.attn_{name}.bias"] = random_vector(random, rows)
        tensors[f"{blk}.attn_output.weight"] = random_matrix(random, D, Q)
        tensors[f"{blk}.ffn_norm.weight"] = 1 + random_vector(random, D)
        tensors[f"{blk}.ffn_gate.weight"] = random_matrix(random, n_ff, D)
        tensors[f"{blk}.ffn_up.weight"] = random_matrix(random, n_ff, D)
        tensors[f"{blk}.ffn_down.weight"] = random_matrix(random, D, n_ff)
        if mlp_biases:
            for name, rows in (("gate", n_ff), ("up", n_ff), ("down", D)):
                tensors[f"{blk}.ffn_{name}.bias"] = random_vector(random, rows)
    tensors["output_norm.weight"] = 1 + random_vector(random, D)
    if not tied:
        tensors["output.weight"] = random_matrix(random, n_vocab, D)
    return tensors


def tiny_llama_gguf(
    path: Path,
    *,
    n_layers: int = 2,
    n_embd: int = 32,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int = 8,
    n_ff: int = 64,
    n_ctx: int = 128,
    seed: int = 0,
    type: str = "F32",  # noqa: A002 - GGML's own word
    tied: bool = False,
    biases: bool = False,
    mlp_biases: bool = False,
    tokenizer: Metadata | None = None,
    metadata: Metadata | None = None,
    tensors: Mapping[str, GgufTensor | None] | None = None,
) -> Path:
    """Write a random llama with an SPM vocabulary and return `path`.

    `type`: how matrices are stored, any GGML type that gguf-py can quantize to; rows must be whole
    blocks. `tokenizer` replaces the vocabulary, `metadata` and `tensors` single entries (None
    leaves one out).
    """
    vocabulary = dict(tokenizer or spm_vocabulary())
    tokens = vocabulary["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Sequence)
    arrays = tiny_llama_tensors(
        n_layers=n_layers,
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ff=n_ff,
        n_vocab=len(tokens),
        seed=seed,
        tied=tied,
        biases=biases,
        mlp_biases=mlp_biases,
    )
    message = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": n_layers,
        "llama.context_length": n_ctx,
        "llama.embedding_length": n_embd,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": n_heads,
        "llama.attention.head_count_kv": n_kv_heads,
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": head_dim,
        "llama.rope.freq_base": 10000.0,
    }
    return write_gguf(
        path, message | vocabulary | dict(metadata or {}), matrices_stored_as(arrays, type, tensors)
    )


def tiny_llama_folder(
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "F32",
    shards: int = 1,
    tied: bool = False,
    biases: bool = False,
    mlp_biases: bool = False,
    config: Metadata | None = None,
) -> Path:
    """Write `tiny_llama_gguf`'s default model as config.json, safetensors and tokenizer.model."""
    vocabulary = spm_vocabulary()
    tokens = vocabulary["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Sequence)
    message = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(tokens),
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "attention_bias": biases,
        "mlp_bias": mlp_biases,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    arrays = tiny_llama_tensors(
        n_vocab=len(tokens), seed=seed, tied=tied, biases=biases, mlp_biases=mlp_biases
    )
    write_hf_llama(folder, arrays, message, dtype=dtype, shards=shards)
    message |= dict(config or {})
    write_config(folder, message)
    write_tokenizer_model(folder / "tokenizer.model", vocabulary)
    return folder
