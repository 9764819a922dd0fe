"""Networks and their weights from a model's path, and when two arrays are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.bert import Bert
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.open import open_weights
from refllm.llama import Llama
from refllm.parameters import Parameters

__all__ = ["arrays_of", "open_bert", "open_llama", "random_floats", "same_bits"]

Floats = NDArray[np.float32]


def same_bits(a: Floats, b: Floats) -> bool:
    """Return whether dtype, shape and every bit are equal: -0.0 is not 0.0, one NaN not another."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def random_floats(*shape: int, seed: int = 0) -> Floats:
    """Return normally distributed numbers, the same for each seed."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def open_llama(path: Path) -> Llama:
    weights = open_weights(path)
    return Llama(llama_config(weights), Parameters(weights.path, weights.tensors))


def open_bert(path: Path) -> Bert:
    weights = open_weights(path)
    return Bert(bert_config(weights), Parameters(weights.path, weights.tensors))


def arrays_of(path: Path, dtype: type = np.float32) -> dict[str, NDArray[np.floating]]:
    """Return the decoded weights by their names."""
    return {
        name: tensor.array().astype(dtype) for name, tensor in open_weights(path).tensors.items()
    }
