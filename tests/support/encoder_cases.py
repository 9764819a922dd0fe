"""Models of BERT's family and texts, of which transformers computed the right values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.support.model_formats import GgufTensor
from tests.support.tiny_bert import tiny_bert_gguf, tiny_bert_tensors, wordpiece_vocabulary
from tests.support.tiny_encoders import ENCODERS, tiny_encoder_folder

__all__ = [
    "ACTIVATION_INPUTS",
    "CASES",
    "GGUF_CASES",
    "GGUF_TEXTS",
    "TEXTS",
    "EncoderCase",
    "GgufCase",
]

# The padding tokens of all kinds (0, 1 and 3) stand within a text and at its end, too; the longest
# text has two tokens in every bucket of MPNet's distances.
TEXTS = (
    [2, 17, 5, 33, 6],
    [2, 9, 1, 0, 3, 11, 1, 1, 44, 6, 0, 3],
    [2, *(4 + (7 * i) % 50 for i in range(140)), 6],
)
ACTIVATION_INPUTS = (
    -20.0,
    -4.25,
    -1.75,
    -0.75,
    -0.125,
    0.0,
    0.0625,
    0.5,
    1.0,
    2.5,
    6.5,
    9.75,
    30.0,
)
OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@dataclass(frozen=True, slots=True)
class EncoderCase:
    """A kind of `ENCODERS`, and in what its files differ from it."""

    kind: str
    with_prefix: bool = False
    old_names: bool = False
    config: Mapping[str, object] | None = None

    def write(self, folder: Path) -> Path:
        """Write the model into `folder` and return it."""
        return tiny_encoder_folder(
            folder,
            self.kind,
            prefix=ENCODERS[self.kind].prefix if self.with_prefix else "",
            suffixes=OLD_NAMES if self.old_names else None,
            config=self.config,
        )


CASES = {
    **{kind: EncoderCase(kind) for kind in ENCODERS},
    **{f"{kind} saved with a head": EncoderCase(kind, with_prefix=True) for kind in ENCODERS},
    **{
        f"{kind} with gamma and beta": EncoderCase(kind, with_prefix=True, old_names=True)
        for kind in ("bert", "roberta")
    },
    "roberta whose padding is 0": EncoderCase("roberta", config={"pad_token_id": 0}),
    "mpnet whose padding is 3": EncoderCase("mpnet", config={"pad_token_id": 3}),
    "bert with gelu_new": EncoderCase("bert", config={"hidden_act": "gelu_new"}),
    "roberta with relu": EncoderCase("roberta", config={"hidden_act": "relu"}),
    "distilbert with silu": EncoderCase("distilbert", config={"activation": "silu"}),
    "mpnet with quick_gelu": EncoderCase("mpnet", config={"hidden_act": "quick_gelu"}),
    "distilbert with other epsilon": EncoderCase("distilbert", config={"layer_norm_eps": 0.5}),
    "distilbert by BERT's keys": EncoderCase(
        "distilbert",
        config={
            **{"dim": None, "n_layers": None, "n_heads": None},
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        },
    ),
}

GGUF_TEXTS = ("the cat sat on the mat", "hello world")
# Without them llama-cpp-python ends the process, or puts another token in front.
NEEDED_BY_LLAMA_CPP = {
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.ggml.pre": "jina-v2-en",
}


@dataclass(frozen=True, slots=True)
class GgufCase:
    """In what a file of architecture "bert" differs from that of `tiny_bert_gguf`."""

    metadata: Mapping[str, object] = field(default_factory=dict)
    tensors: Mapping[str, GgufTensor | None] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        return tiny_bert_gguf(
            path, metadata={**NEEDED_BY_LLAMA_CPP, **self.metadata}, tensors=self.tensors
        )


def _fused() -> dict[str, GgufTensor | None]:
    """The queries', keys' and values' tensors of each layer as one."""
    tensors = tiny_bert_tensors(n_vocab=len(wordpiece_vocabulary()))
    fused: dict[str, GgufTensor | None] = {}
    for i in range(2):
        for suffix in ("weight", "bias"):
            parts = [f"blk.{i}.attn_{part}.{suffix}" for part in "qkv"]
            fused[f"blk.{i}.attn_qkv.{suffix}"] = np.concatenate([tensors[part] for part in parts])
            fused |= dict.fromkeys(parts)
    return fused


GGUF_CASES = {
    "plain": GgufCase(),
    "no token types": GgufCase(
        metadata={"tokenizer.ggml.token_type_count": 1}, tensors={"token_types.weight": None}
    ),
    "one token type": GgufCase(
        metadata={"tokenizer.ggml.token_type_count": 1},
        tensors={
            "token_types.weight": tiny_bert_tensors(n_vocab=len(wordpiece_vocabulary()))[
                "token_types.weight"
            ][:1]
        },
    ),
    "one tensor for queries, keys and values": GgufCase(tensors=_fused()),
    "a number for each layer": GgufCase(
        metadata={"bert.feed_forward_length": [64, 64], "bert.attention.head_count": [4, 4]}
    ),
    "RoPE, which it has not": GgufCase(metadata={"bert.rope.freq_base": 123.0}),
    "no causal key": GgufCase(metadata={"bert.attention.causal": None}),
}
