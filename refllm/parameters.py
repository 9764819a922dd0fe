"""Named tensors → the parameters a network expects, each one's presence and shape checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.errors import LlmRuntimeError
from refllm.kernels.linear import Matrix
from refllm.kernels.packed.panels import Consumed, Panels, pack
from refllm.quant import FORMATS, Tensor

__all__ = ["Parameters", "Survey"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parameters:
    """The tensors of one model, asked for by canonical name and shape.

    `numerics` is what the matrices are for. `consumed` is told which rows of a tensor's data are
    not needed any more, as they are packed. `asked` collects the names of the tensors that the
    network asked for; what is left over is the caller's to account for. `others` says what the
    tensors are that no network can ask for. `spelling` gives the name of a missing tensor as the
    model's files would have it.
    Errors: `LlmRuntimeError` naming the file and the tensor that is missing or misshapen.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    numerics: str = "exact"
    consumed: Consumed | None = None
    asked: set[str] = field(default_factory=set)
    others: Mapping[str, str] = field(default_factory=dict)
    spelling: Callable[[str], str] = str

    def matrix(self, name: str, n_rows: int, n_columns: int) -> Matrix:
        """A weight matrix [N, D] to multiply with, in the file's own encoding.

        For the numerics "int8", a format that llama.cpp multiplies as integers is packed for that.
        """
        return self._packed(self._get(name, (n_rows, n_columns)))

    def matrices(self, n_rows: Mapping[str, int], n_columns: int) -> tuple[Matrix, ...]:
        """The weight matrices of those names and numbers of rows, for one product with all rows.

        Neighbours of one format become one matrix, which is one call of a kernel.
        """
        tensors = [self._get(name, (n, n_columns)) for name, n in n_rows.items()]
        alike = [list(group) for _, group in groupby(tensors, lambda tensor: tensor.format.name)]
        return tuple(self._packed(*group) for group in alike)

    def _packed(self, *tensors: Tensor) -> Matrix:
        if self.numerics == "int8":
            # Whoever computes exactly shall not wait for the other kernels.
            from refllm.kernels.int8.product import INT8_FORMATS, pack_int8

            if tensors[0].format.name in INT8_FORMATS:
                return pack_int8(*tensors, consumed=self.consumed)
        return pack(*tensors, consumed=self.consumed)

    def table(self, name: str, n_rows: int, n_columns: int) -> Tensor:
        """A matrix [N, D] to look rows up in, left in the file."""
        return self._get(name, (n_rows, n_columns))

    def vector(self, name: str, length: int) -> Floats:
        """A vector, decoded to float32."""
        return self._get(name, (length,)).array()

    def vector_or_none(self, name: str, length: int) -> Floats | None:
        """A vector that not every model has."""
        return self.vector(name, length) if name in self.tensors else None

    def vectors(self, lengths: Mapping[str, int]) -> Floats:
        """Vectors end to end."""
        return np.concatenate([self.vector(name, length) for name, length in lengths.items()])

    def vectors_or_none(self, lengths: Mapping[str, int]) -> Floats | None:
        """Vectors that not every model has, end to end; zeros for one that is missing.

        None if all are. A zero changes no finished sum, not even its sign: a sum that began with
        +0 is never -0.
        """
        found = {name: self.vector_or_none(name, length) for name, length in lengths.items()}
        if all(vector is None for vector in found.values()):
            return None
        return np.concatenate(
            [
                np.zeros(length, np.float32) if (vector := found[name]) is None else vector
                for name, length in lengths.items()
            ]
        )

    def n_rows(self, name: str) -> int:
        """How many rows a matrix has, where only its own shape can tell."""
        self.asked.add(name)
        if name not in self.tensors or len(self.tensors[name].shape) != 2:
            raise LlmRuntimeError(f"{self.path}: the matrix {self.spelling(name)} is missing")
        return self.tensors[name].shape[0]

    def _get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self.asked.add(name)
        tensor = self.tensors.get(name)
        if tensor is None and name in self.others:
            raise LlmRuntimeError(
                f"{self.path}: the tensor {name} is {self.others[name]}, the hyperparameters ask "
                f"for {list(shape)}"
            )
        if tensor is None:
            raise LlmRuntimeError(f"{self.path}: the tensor {self.spelling(name)} is missing")
        if tensor.shape != shape:
            raise LlmRuntimeError(
                f"{self.path}: the tensor {name} has the shape {list(tensor.shape)}, "
                f"the hyperparameters ask for {list(shape)}"
            )
        return tensor


@dataclass(frozen=True, slots=True)
class Survey(Parameters):
    """Parameters that record what a network asks for, and hold no numbers.

    A network built of them computes nothing; it is built to learn which tensors it needs. A tensor
    that is not there is recorded in `missing`. What takes its place is one zero that is repeated,
    since hyperparameters can ask for tensors that no memory holds.
    """

    missing: list[str] = field(default_factory=list)

    def vector(self, name: str, length: int) -> Floats:
        """Record that a vector is asked for."""
        self._get(name, (length,))
        return np.broadcast_to(np.float32(0), (length,))

    def vectors(self, lengths: Mapping[str, int]) -> Floats:
        """Record that vectors are asked for."""
        for name, length in lengths.items():
            self._get(name, (length,))
        return np.broadcast_to(np.float32(0), (sum(lengths.values()),))

    def vectors_or_none(self, lengths: Mapping[str, int]) -> Floats | None:
        """Record that the vectors that the model has are asked for."""
        present = {name: length for name, length in lengths.items() if name in self.tensors}
        return self.vectors(present) if present else None

    def _packed(self, *tensors: Tensor) -> Matrix:
        return Panels(tensors[0].name, tensors[0].format, 0, 0, np.empty((0, 0), np.uint8))

    def _get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name in self.tensors or name in self.others:
            # super() without arguments does not find a class that slots made anew
            return Parameters._get(self, name, shape)
        self.asked.add(name)
        self.missing.append(name)
        zeros = np.broadcast_to(np.uint8(0), (math.prod(shape[:-1]), 4 * shape[-1]))
        return Tensor(name, FORMATS["F32"], shape, zeros)
