"""Named tensors → the parameters of a network, each checked for presence and shape.

N rows of a matrix (outputs), D columns (inputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from refllm.errors import LlmRuntimeError
from refllm.kernels.linear import Matrix
from refllm.kernels.packed.panels import Consumed, Panels, name_of, pack
from refllm.quant import FORMATS, Tensor

__all__ = ["Kept", "Parameters", "Survey"]

Floats = NDArray[np.float32]


class Kept(Protocol):
    """Matrices that were packed before, such as `refllm.models.kept_panels.KeptPanels`."""

    def get(self, name: str) -> Matrix | None:
        """Return the matrix of this name, None if it is to be packed."""

    def add(self, matrix: Matrix) -> None:
        """Receive a matrix that was not there and has been packed."""

    def write(self) -> None:
        """Keep the matrices that were received."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The tensors of one model, by canonical name and shape.

    Every method raises `LlmRuntimeError`, with the file and the tensor, for a tensor that is
    missing or has another shape.

    Attributes:
        path: The model's path, for messages.
        tensors: The tensors by canonical name.
        numerics: "exact" or "int8": how the matrices will be multiplied.
        consumed: Called with the rows of a tensor's data that are packed and no longer needed.
        asked: The names that the network asked for; the caller accounts for the remaining tensors.
        others: Tensors that no network can use, by name, with a description.
        spelling: Returns the name of a missing tensor as the model's files spell it.
        kept: Matrices that need not be packed.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    numerics: str = "exact"
    consumed: Consumed | None = None
    asked: set[str] = field(default_factory=set)
    others: Mapping[str, str] = field(default_factory=dict)
    spelling: Callable[[str], str] = str
    kept: Kept | None = None

    def matrix(self, name: str, n_rows: int, n_columns: int) -> Matrix:
        """Return a weight matrix [N, D] for products, packed in the file's own encoding.

        For the numerics "int8", a format that llama.cpp multiplies as integers is packed so.
        """
        return self._packed(self._get(name, (n_rows, n_columns)))

    def matrices(self, n_rows: Mapping[str, int], n_columns: int) -> tuple[Matrix, ...]:
        """Return the matrices with these names and numbers of rows, for one product with all rows.

        Adjacent matrices of one format become one matrix, which is one call of a kernel.
        """
        tensors = [self._get(name, (n, n_columns)) for name, n in n_rows.items()]
        alike = [list(group) for _, group in groupby(tensors, lambda tensor: tensor.format.name)]
        return tuple(self._packed(*group) for group in alike)

    def _packed(self, *tensors: Tensor) -> Matrix:
        if self.kept is None:
            return self._pack(*tensors)
        matrix = self.kept.get(name_of(tensors))
        if matrix is None:
            matrix = self._pack(*tensors)
            self.kept.add(matrix)
        return matrix

    def _pack(self, *tensors: Tensor) -> Matrix:
        if self.numerics == "int8":
            # Imported here so that exact numerics do not compile the int8 kernels.
            from refllm.kernels.int8.product import INT8_FORMATS, pack_int8

            if tensors[0].format.name in INT8_FORMATS:
                return pack_int8(*tensors, consumed=self.consumed)
        return pack(*tensors, consumed=self.consumed)

    def table(self, name: str, n_rows: int, n_columns: int) -> Tensor:
        """Return a matrix [N, D] for row lookups; its bytes stay in the file."""
        return self._get(name, (n_rows, n_columns))

    def vector(self, name: str, length: int) -> Floats:
        """Return a vector [N] as float32."""
        return self._get(name, (length,)).array()

    def vector_or_none(self, name: str, length: int) -> Floats | None:
        """Return a vector [N], or None for a model without it."""
        return self.vector(name, length) if name in self.tensors else None

    def vectors(self, lengths: Mapping[str, int]) -> Floats:
        """Return several vectors, concatenated."""
        return np.concatenate([self.vector(name, length) for name, length in lengths.items()])

    def vectors_or_none(self, lengths: Mapping[str, int]) -> Floats | None:
        """Return vectors concatenated, with zeros for a missing one; None if all are missing.

        Adding a zero changes no finished sum, not even its sign: a sum that began with +0 is never
        -0.
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
        """Return the number of rows of a matrix that no hyperparameter has."""
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
    """Parameters without numbers, which record the tensors that a network asks for.

    A network is built of them to find out which tensors it needs; it computes nothing. The names
    of absent tensors are collected in `missing`. One repeated zero replaces each tensor, because
    hyperparameters of a damaged file can ask for more than memory holds.
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
            # super() without arguments fails in a dataclass with slots: Python makes a new class
            return Parameters._get(self, name, shape)
        self.asked.add(name)
        self.missing.append(name)
        zeros = np.broadcast_to(np.uint8(0), (math.prod(shape[:-1]), 4 * shape[-1]))
        return Tensor(name, FORMATS["F32"], shape, zeros)
