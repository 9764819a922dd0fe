"""Parameters: tensors by name and shape, and several of them together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.api import LlmRuntimeError
from refllm.kernels.linear import linear
from refllm.parameters import Parameters
from refllm.quant import Tensor, quantized

Floats = NDArray[np.float32]
FILE = Path("file")


def numbers(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensors(**types: str) -> dict[str, Tensor]:
    """A matrix [48, 64] in each of the types, by name."""
    return {
        name: quantized(name, numbers(48, 64, seed=seed), type_name)
        for seed, (name, type_name) in enumerate(types.items())
    }


@pytest.mark.parametrize(
    ("types", "n_matrices"),
    [
        ({"q": "F32", "k": "F32", "v": "F32"}, 1),
        ({"q": "Q8_0", "k": "Q8_0", "v": "F16"}, 2),
        ({"q": "Q8_0", "k": "F16", "v": "Q8_0"}, 3),
    ],
)
def test_neighbours_of_one_format_become_one_matrix(types: dict[str, str], n_matrices: int) -> None:
    stored = tensors(**types)
    matrices = Parameters(FILE, stored).matrices(dict.fromkeys("qkv", 48), 64)
    assert len(matrices) == n_matrices
    x = numbers(3, 64, seed=9)
    parameters = Parameters(FILE, stored)
    each = [linear(x, parameters.matrix(name, 48, 64)) for name in "qkv"]
    assert linear(x, *matrices).tobytes() == np.concatenate(each, axis=1).tobytes()


def test_the_parts_of_a_fused_matrix_are_reported_as_consumed() -> None:
    stored = tensors(q="Q8_0", k="Q8_0")
    seen: list[NDArray[np.uint8]] = []
    Parameters(FILE, stored, "exact", seen.append).matrices({"q": 48, "k": 48}, 64)
    assert np.array_equal(
        np.concatenate(seen), np.concatenate([stored["q"].data, stored["k"].data])
    )


def test_a_missing_bias_is_zeros_beside_others_and_none_alone() -> None:
    parameters = Parameters(FILE, {"k": quantized("k", numbers(4), "F32")})
    together = parameters.vectors_or_none({"q": 2, "k": 4})
    assert together is not None
    assert together.tolist() == [0.0, 0.0, *numbers(4).tolist()]
    assert parameters.vectors_or_none({"q": 2, "v": 4}) is None


def test_the_tensor_that_is_missing_or_misshapen_is_named() -> None:
    parameters = Parameters(FILE, tensors(q="F32"))
    with pytest.raises(LlmRuntimeError, match="file: the tensor k is missing"):
        parameters.matrices({"q": 48, "k": 48}, 64)
    with pytest.raises(LlmRuntimeError, match=r"tensor q has the shape \[48, 64\]"):
        parameters.matrices({"q": 40}, 64)
