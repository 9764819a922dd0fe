"""The suite's own models for the faults: tensors in float64, and tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from refllm.bert import BertConfig
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.open import Weights as StoredWeights
from refllm.checkpoints.open import open_weights
from refllm.conform.compare.numbers import Doubles
from refllm.conform.models import suite_model
from refllm.llama import LlamaConfig
from refllm.models.load import load_tokenizer
from refllm.tokenizer import tokenizer_from_gguf
from refllm.tokenizer.base import Tokenizer

__all__ = [
    "Weights",
    "tiny_chat_tokenizer",
    "tiny_chat_weights",
    "tiny_embed_tokenizer",
    "tiny_embed_weights",
]

C = TypeVar("C")


@dataclass(frozen=True, slots=True, eq=False)
class Weights(Generic[C]):
    """A model's hyperparameters, and its tensors in float64 by GGUF's names."""

    config: C
    tensors: Mapping[str, Doubles]


def _path(name: str) -> Path:
    path = suite_model(name, Path())  # it is bundled: nothing is made
    assert path is not None
    return path


def _weights(name: str, config_of: Callable[[StoredWeights], C]) -> Weights[C]:
    stored = open_weights(_path(name))
    tensors = {name: each.array().astype(np.float64) for name, each in stored.tensors.items()}
    return Weights(config_of(stored), tensors)


@cache
def tiny_chat_weights() -> Weights[LlamaConfig]:
    """Return the weights of the suite's llama."""
    return _weights("tiny-chat", llama_config)


@cache
def tiny_embed_weights() -> Weights[BertConfig]:
    """Return the weights of the suite's BERT."""
    return _weights("tiny-embed", bert_config)


@cache
def tiny_chat_tokenizer(**changed: bool) -> Tokenizer:
    """Return tiny-chat's tokenizer, with other values of these `tokenizer.ggml.` keys."""
    path = _path("tiny-chat")
    keys = {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    return tokenizer_from_gguf({**open_weights(path).hparams, **keys}, path=path)


@cache
def tiny_embed_tokenizer() -> Tokenizer:
    """Return tiny-embed's tokenizer."""
    return load_tokenizer(_path("tiny-embed"))
