"""Named tensors → the parameters a network expects, each one's presence and shape checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.api import LlmRuntimeError
from refllm.kernels.linear import Matrix
from refllm.kernels.panels import Consumed, pack
from refllm.quant import Tensor

__all__ = ["Parameters"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parameters:
    """The tensors of one model, asked for by canonical name and shape.

    `numerics` is what the matrices are for. `consumed` is told which rows of a tensor's data are
    not needed any more, as they are packed.
    Errors: `LlmRuntimeError` naming the file and the tensor that is missing or misshapen.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    numerics: str = "exact"
    consumed: Consumed | None = None

    def matrix(self, name: str, n_rows: int, n_columns: int) -> Matrix:
        """A weight matrix [N, D] to multiply with, in the file's own encoding.

        For the numerics "int8", a format that llama.cpp multiplies as integers is packed for that.
        """
        tensor = self._get(name, (n_rows, n_columns))
        if self.numerics == "int8":
            # Whoever computes exactly shall not wait for the other kernels.
            from refllm.kernels.int8 import INT8_FORMATS, pack_int8

            if tensor.format.name in INT8_FORMATS:
                return pack_int8(tensor, consumed=self.consumed)
        return pack(tensor, consumed=self.consumed)

    def table(self, name: str, n_rows: int, n_columns: int) -> Tensor:
        """A matrix [N, D] to look rows up in, left in the file."""
        return self._get(name, (n_rows, n_columns))

    def vector(self, name: str, length: int) -> Floats:
        """A vector, decoded to float32."""
        return self._get(name, (length,)).array()

    def vector_or_none(self, name: str, length: int) -> Floats | None:
        """A vector that not every model has."""
        return self.vector(name, length) if name in self.tensors else None

    def n_rows(self, name: str) -> int:
        """How many rows a matrix has, where only its own shape can tell."""
        if name not in self.tensors or len(self.tensors[name].shape) != 2:
            raise LlmRuntimeError(f"{self.path}: the matrix {name} is missing")
        return self.tensors[name].shape[0]

    def _get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise LlmRuntimeError(f"{self.path}: the tensor {name} is missing")
        if tensor.shape != shape:
            raise LlmRuntimeError(
                f"{self.path}: the tensor {name} has the shape {list(tensor.shape)}, "
                f"the hyperparameters ask for {list(shape)}"
            )
        return tensor
