"""A complete random BERT, as llama.cpp converts one to GGUF and as a Hugging Face folder.

Letters: D model width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.model_formats import (
    GgufTensor,
    matrices_stored_as,
    random_matrix,
    random_vector,
    safetensors_tensor,
    write_config,
    write_gguf,
    write_safetensors,
)

__all__ = [
    "hf_bert_name",
    "tiny_bert_folder",
    "tiny_bert_gguf",
    "tiny_bert_tensors",
    "wordpiece_vocabulary",
]

Array = NDArray[np.float32]
Metadata = Mapping[str, object]

NORMAL, CONTROL = 1, 3  # token types of a GGUF
WORDPIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDPIECE_WORDS = ("the", "cat", "sat", "on", "mat", "dog", "hello", "world", "##ing", "##ed")

HF_BERT = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}


def wordpiece_vocabulary() -> list[str]:
    """BERT's five specials, every lower-case letter alone and inside a word, digits, some words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    inner = [f"##{letter}" for letter in letters]
    return [*WORDPIECE_SPECIAL, *letters, *inner, *".,!?'-", *WORDPIECE_WORDS]


def tiny_bert_tensors(
    *,
    n_layers: int = 2,
    n_embd: int = 32,
    n_ff: int = 64,
    n_ctx: int = 64,
    n_vocab: int,
    seed: int = 0,
) -> dict[str, Array]:
    """A BERT's float32 tensors under GGUF's names."""
    D, F = n_embd, n_ff
    random = np.random.default_rng(seed)
    tensors = {
        "token_embd.weight": random_matrix(random, n_vocab, D),
        "token_types.weight": random_matrix(random, 2, D),
        "position_embd.weight": random_matrix(random, n_ctx, D),
        "token_embd_norm.weight": 1 + random_vector(random, D),
        "token_embd_norm.bias": random_vector(random, D),
    }
    matrices = {"attn_q": (D, D), "attn_k": (D, D), "attn_v": (D, D), "attn_output": (D, D)}
    matrices |= {"ffn_up": (F, D), "ffn_down": (D, F)}
    for i in range(n_layers):
        for name, (rows, columns) in matrices.items():
            tensors[f"blk.{i}.{name}.weight"] = random_matrix(random, rows, columns)
            tensors[f"blk.{i}.{name}.bias"] = random_vector(random, rows)
        for name in ("attn_output_norm", "layer_output_norm"):
            tensors[f"blk.{i}.{name}.weight"] = 1 + random_vector(random, D)
            tensors[f"blk.{i}.{name}.bias"] = random_vector(random, D)
    return tensors


def tiny_bert_gguf(
    path: Path,
    *,
    seed: int = 0,
    type: str = "F32",  # noqa: A002 - GGML's own word
    metadata: Metadata | None = None,
    tensors: Mapping[str, GgufTensor | None] | None = None,
) -> Path:
    """Write a random BERT with a WordPiece vocabulary, as llama.cpp converts one, return `path`."""
    vocabulary = wordpiece_vocabulary()
    message = {
        "general.architecture": "bert",
        "general.name": "tiny",
        "bert.block_count": 2,
        "bert.context_length": 64,
        "bert.embedding_length": 32,
        "bert.feed_forward_length": 64,
        "bert.attention.head_count": 4,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": 1,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "bert-bge",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": [_marked_at_word_start(token) for token in vocabulary],
        "tokenizer.ggml.token_type": [
            CONTROL if token in WORDPIECE_SPECIAL else NORMAL for token in vocabulary
        ],
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,  # the key's own spelling
        "tokenizer.ggml.mask_token_id": 4,
    }
    arrays = tiny_bert_tensors(n_vocab=len(vocabulary), seed=seed)
    return write_gguf(
        path, message | dict(metadata or {}), matrices_stored_as(arrays, type, tensors)
    )


def tiny_bert_folder(
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "F32",
    prefix: str = "",
    config: Metadata | None = None,
    max_length: int | None = None,
) -> Path:
    """Write `tiny_bert_gguf`'s model as config.json, model.safetensors and tokenizer.json.

    `prefix` is "bert." in files saved with a head; `max_length` is where tokenizer.json truncates.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = wordpiece_vocabulary()
    arrays = tiny_bert_tensors(n_vocab=len(vocabulary), seed=seed)
    stored = {
        prefix + hf_bert_name(name): safetensors_tensor(array, dtype)
        for name, array in arrays.items()
    }
    position_ids = np.arange(64, dtype=np.int64)[None]
    stored[f"{prefix}embeddings.position_ids"] = ("I64", (1, 64), position_ids.tobytes())
    write_safetensors(folder / "model.safetensors", stored, {"format": "pt"})
    message = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }
    write_config(folder, message | dict(config or {}))
    _write_wordpiece_tokenizer(folder / "tokenizer.json", vocabulary, max_length)
    return folder


def hf_bert_name(name: str) -> str:
    """Hugging Face's name, without prefix, for GGUF's."""
    module, _, suffix = name.rpartition(".")
    if module.startswith("blk."):
        _, layer, module = module.split(".")
        return f"encoder.layer.{layer}.{HF_BERT[module]}.{suffix}"
    return f"{HF_BERT[module]}.{suffix}"


def _write_wordpiece_tokenizer(path: Path, vocabulary: list[str], max_length: int | None) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {token: token_id for token_id, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(WORDPIECE_SPECIAL))
    if max_length is not None:
        tokenizer.enable_truncation(max_length)
    tokenizer.save(str(path))


def _marked_at_word_start(token: str) -> str:
    """A WordPiece token as llama.cpp writes it: word starts are marked, not continuations."""
    if token in WORDPIECE_SPECIAL:
        return token
    return token[2:] if token.startswith("##") else f"▁{token}"
