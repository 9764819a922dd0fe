"""What follows an encoder: a text's tokens in, one vector out.

    tokens [T, D] → pooling [M·D] → dense layers, normalization, in the model's order → vector [K]

T tokens of one text, D model width, M pooling modes, N texts, K width of a vector.

Source: Reimers and Gurevych 2019, arXiv:1908.10084; names and order of the modes are those of
sentence-transformers 6.2.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from refllm.errors import InvalidInput
from refllm.kernels.elementwise import gelu, l2_normalize, mean_rows, relu, silu
from refllm.kernels.linear import Matrix, linear
from refllm.kernels.pooling import (
    max_rows,
    mean_sqrt_rows,
    sigmoid,
    tanh,
    weighted_mean_rows,
)
from refllm.tap import Tap, at_layer, ignore

__all__ = [
    "ACTIVATIONS",
    "MEAN_NORMALIZED",
    "POOLING_MODES",
    "Dense",
    "Normalize",
    "Pooling",
    "PoolingMode",
    "SentenceHead",
]

Floats = NDArray[np.float32]

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
# A file with one switch for each mode concatenates their vectors in this order.
POOLING_MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)


# By the name of the class in torch.nn, with the arguments that it has by default.
ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = MappingProxyType(
    {
        "Identity": lambda x: x,
        "Tanh": tanh,
        "ReLU": relu,
        "GELU": gelu,
        "SiLU": silu,
        "Sigmoid": sigmoid,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How the vectors of a text's tokens become one.

    Attributes:
        modes: One or more; their vectors are concatenated in this order.
        include_prompt: Whether the tokens of the prompt before a text count.
    """

    modes: tuple[PoolingMode, ...] = ("mean",)
    include_prompt: bool = True

    def __call__(self, x: Floats, *, n_prompt: int = 0) -> Floats:
        """Return the vector of one text, [M·D], from its tokens x [T, D].

        Args:
            x: The encoder's last layer, special tokens included.
            n_prompt: How many of the first tokens are the prompt's.

        Raises:
            InvalidInput: If the prompt's tokens are left out and no token remains.
        """
        first = 0 if self.include_prompt else n_prompt
        if first >= len(x):
            raise InvalidInput(
                f"a text of {len(x)} tokens has none beside the {n_prompt} of the prompt, which "
                "the model leaves out of pooling (include_prompt is false); give a longer text"
            )
        rows = x[first:]  # [T', D]
        return np.concatenate([_pooled(mode, rows, first) for mode in self.modes])  # [M·D]


def _pooled(mode: PoolingMode, rows: Floats, n_left_out: int) -> Floats:
    """Return one mode's vector, [D]; a token that is left out still counts in positions."""
    match mode:
        case "cls":
            return np.asarray(rows[0])
        case "max":
            return max_rows(rows)
        case "mean":
            return mean_rows(rows)
        case "mean_sqrt_len_tokens":
            return mean_sqrt_rows(rows)
        case "weightedmean":
            return weighted_mean_rows(rows, n_left_out + 1)
        case "lasttoken":
            return np.asarray(rows[-1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dense:
    """activation(x·Wᵀ + b).

    Attributes:
        weight: W, [n_outputs, K].
        bias: b, [n_outputs], or None.
        activation: A name in `ACTIVATIONS`.
        n_outputs: The width of the result.
    """

    weight: Matrix
    bias: Floats | None
    activation: str
    n_outputs: int

    def __call__(self, x: Floats) -> Floats:
        """Return [N, n_outputs] from x [N, K]."""
        return ACTIVATIONS[self.activation](linear(x, self.weight, bias=self.bias))


@dataclass(frozen=True, slots=True)
class Normalize:
    """x / max(‖x‖, 1e-12): every vector gets the length 1."""

    def __call__(self, x: Floats) -> Floats:
        """Return [N, K] from x [N, K]."""
        return np.stack([l2_normalize(row) for row in x])  # [N, K]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceHead:
    """Everything between an encoder's last layer and a text's vector.

    Attributes:
        pooling: How a text's tokens become one vector.
        steps: What follows, in this order.
        truncate_dim: How many numbers of a vector are kept, or None for all. A vector that was
            normalized and then cut is shorter than 1.
    """

    pooling: Pooling = Pooling()
    steps: tuple[Dense | Normalize, ...] = (Normalize(),)
    truncate_dim: int | None = None

    def width(self, n_embd: int) -> int:
        """Return K, the width of a vector, for an encoder of width n_embd."""
        width = len(self.pooling.modes) * n_embd
        for step in self.steps:
            if isinstance(step, Dense):
                width = step.n_outputs
        return width if self.truncate_dim is None else min(width, self.truncate_dim)

    def __call__(
        self,
        x: Floats,
        starts: Sequence[int],
        *,
        n_prompt: int = 0,
        tap: Tap = ignore,
    ) -> Floats:
        """Return the texts' vectors, [N, K], from the tokens of all texts end to end, x [T, D].

        Args:
            x: The encoder's last layer.
            starts: Where each text begins in x, and where the last one ends: N + 1 numbers.
            n_prompt: How many tokens at the beginning of each text are the prompt's.
            tap: Called with `result_embd_pooled`, `result_embd_dense-0`, … and `result_embd`.

        Raises:
            InvalidInput: As `Pooling`.
        """
        vectors = np.stack(
            [self.pooling(x[first:last], n_prompt=n_prompt) for first, last in pairwise(starts)]
        )  # [N, M·D]
        tap("result_embd_pooled", vectors)
        n_dense = 0
        for step in self.steps:
            vectors = step(vectors)  # [N, K]
            if isinstance(step, Dense):
                at_layer(tap, n_dense)("result_embd_dense", vectors)
                n_dense += 1
        if self.truncate_dim is not None:
            vectors = np.ascontiguousarray(vectors[:, : self.truncate_dim])  # [N, K]
        tap("result_embd", vectors)
        return vectors


MEAN_NORMALIZED = SentenceHead()
"""The mean over a text's tokens, of length 1: what is computed where a model names nothing else."""
