"""A model's tensors in float64, for networks that compute a mistake on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from refllm.checkpoints import open as weights
from refllm.conform.compare.numbers import Doubles

__all__ = ["Weights", "open_float64"]

C = TypeVar("C")


@dataclass(frozen=True, slots=True, eq=False)
class Weights(Generic[C]):
    """A model's hyperparameters, and its tensors in float64 by GGUF's names."""

    config: C
    tensors: Mapping[str, Doubles]


def open_float64(path: Path, config_of: Callable[[weights.Weights], C]) -> Weights[C]:
    """The model in the file. Errors: as `open_weights`, and those of `config_of`."""
    stored = weights.open_weights(path)
    tensors = {name: each.array().astype(np.float64) for name, each in stored.tensors.items()}
    return Weights(config_of(stored), tensors)
