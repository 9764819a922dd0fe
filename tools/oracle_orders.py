"""The oracle's llama with other orders of summation: how far apart honest backends may lie.

Each `Variant` is the oracle with a few of its functions replaced by ones that mean the same and
round differently. Where the order of a product is another, its terms are rounded before they are
added, as on a machine without a fused multiply-add; "rounded twice" differs from the rule in that
alone. Nothing here depends on the machine: every operation is an IEEE operation of
NumPy on whole arrays, and the elementary functions are the oracle's own or polynomials. (The
float64 network has NumPy's, whose last bits are far below what is measured.)

T tokens, D width, N outputs of a matrix, H heads, E head width, R rotated part, S tokens seen,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import gguf
import numpy as np
from numpy.typing import DTypeLike, NDArray

from refllm import oracle, oracle_int8
from refllm.checkpoints.config import llama_config
from refllm.checkpoints.open import open_weights
from refllm.kernels.int8.product import INT8_FORMATS
from refllm.llama import LlamaConfig
from refllm.quant import Tensor

__all__ = ["VARIANTS", "Model", "Variant", "logits", "open_model"]

Array: TypeAlias = NDArray[Any]
Term: TypeAlias = Callable[[int], Array]
Sum: TypeAlias = Callable[[int, Term], Array]  # of n ≥ 1 terms, each asked for once

LANES = 16
# Factors that strew 0, 1, 2, … over the remainders of 17, each in its own way.
NUDGES = (40503, 30011, 52127, 61283)


# Models


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A llama: its tensors as float32, decoded by the gguf package, and as the file has them."""

    config: LlamaConfig
    arrays: Mapping[str, Array]
    tensors: Mapping[str, Tensor]


def open_model(path: Path) -> Model:
    """The llama in a GGUF file."""
    weights = open_weights(path)
    arrays = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }
    return Model(llama_config(weights), arrays, weights.tensors)


# Orders of summation


def left_to_right(n: int, term: Term) -> Array:
    """((t0 + t1) + t2) + …"""
    total = term(0)
    for i in range(1, n):
        total = total + term(i)
    return total


def backwards(n: int, term: Term) -> Array:
    """((t9 + t8) + t7) + …"""
    return left_to_right(n, lambda i: term(n - 1 - i))


def halves(n: int, term: Term) -> Array:
    """(t0 + t1) + (t2 + t3), and so on: the sum of the two halves' sums."""
    if n == 1:
        return term(0)
    half = n // 2
    return halves(half, term) + halves(n - half, lambda i: term(half + i))


def lanes(n: int, term: Term) -> Array:
    """Sixteen sums, of every sixteenth term each, added in halves."""
    n_lanes = min(n, LANES)
    return halves(
        n_lanes,
        lambda lane: left_to_right(
            len(range(lane, n, n_lanes)), lambda i: term(lane + i * n_lanes)
        ),
    )


# Products


def product_by(add: Sum) -> Callable[[Array, Array], Array]:
    """x [T, D] times the rows of w [N, D], each term rounded, and added in that order."""
    return lambda x, w: add(x.shape[1], lambda d: x[:, d, None] * w[None, :, d])


def int8_product_by(add: Sum) -> Callable[[Array, Tensor], Array]:
    """x, quantized, times a quantized matrix; scaled blocks are rounded and added in that order."""

    def product(x: Array, weight: Tensor) -> Array:
        size, n_bytes = weight.format.block_size, weight.format.block_bytes
        values = x.astype(np.float32)

        def block(b: int) -> Array:
            data = np.ascontiguousarray(weight.data[:, b * n_bytes : (b + 1) * n_bytes])
            part = Tensor(weight.name, weight.format, (len(data), size), data)
            columns = np.ascontiguousarray(values[:, b * size : (b + 1) * size])
            return oracle_int8.matmul(columns, part).astype(x.dtype)

        return add(x.shape[1] // size, block)

    return product


# Float32 where the rule has float64, or functions of its own


def float32_exp(x: Array) -> Array:
    """e^x within 2 ulp by float32 operations: 2^n times a polynomial of degree 6."""
    x = np.clip(x, np.float32(-87), np.float32(88))
    n = np.rint(x * np.float32(1.44269504))
    r = (x - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    series = np.full_like(x, 1 / 720)
    for inverse in (120, 24, 6, 2, 1, 1):
        series = series * r + np.float32(1 / inverse)
    return np.ldexp(series, n.astype(np.int32)).astype(np.float32)


def float32_softmax(scores: Array, scale: float) -> Array:
    """Scaled scores, exponentials and their sum in float32."""
    scaled = scores * np.float32(scale)
    e = float32_exp(scaled - scaled.max(axis=-1, keepdims=True))
    total = np.add.accumulate(e, axis=-1)[..., -1:]
    result: Array = e / total
    return result


def float32_silu(x: Array) -> Array:
    """x / (1 + e^−x) in float32."""
    result: Array = x / (np.float32(1) + float32_exp(-x))
    return result


def float32_rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """The sum of the squares in float32."""
    mean = lanes(x.shape[1], lambda d: (x[:, d] * x[:, d])[:, None]) / np.float32(x.shape[1])
    result: Array = x / np.sqrt(mean + np.float32(eps)) * weight
    return result


def float32_rope(x: Array, positions: Array, frequencies: Array, magnitude: float = 1.0) -> Array:
    """Angles are float32 products of float32 frequencies."""
    angles = positions.astype(np.float32)[:, None] * frequencies.astype(np.float32)  # [T, R/2]
    turns = oracle._cos_sin(angles)
    cosine, sine = ((part * magnitude).astype(np.float32)[:, None] for part in turns)
    out, n = x.copy(), 2 * angles.shape[1]
    a, b = x[..., 0:n:2], x[..., 1:n:2]
    out[..., 0:n:2], out[..., 1:n:2] = a * cosine - b * sine, a * sine + b * cosine
    return out


FLOAT32_FUNCTIONS: Mapping[str, Callable[..., Array]] = {
    "softmax": float32_softmax,
    "silu": float32_silu,
    "rms_norm": float32_rms_norm,
    "rope": float32_rope,
}


def quantize_as_on_x86(x: Array) -> oracle_int8.Activations:
    """Q8_0 and Q8_1 as ggml's code for AVX2 has them: 127 / amax, and ties to even."""
    blocks = x.reshape(len(x), -1, 32)  # [T, B, 32]
    amax = np.abs(blocks).max(axis=2)  # [T, B]
    inverse = np.float32(127) / np.where(amax == 0, np.float32(np.inf), amax)
    a = np.rint(blocks * inverse[..., None]).astype(np.int64)
    d = amax / np.float32(127)
    as_halves = (each.astype(np.float16).astype(np.float32) for each in (d, a.sum(axis=2) * d))
    return oracle_int8.Activations(a, *as_halves)


def nudged_int8_product(pattern: int) -> Callable[[Array, Tensor], Array]:
    """Of activations that are off by up to 2^-19 of themselves, so that some round otherwise."""

    def product(x: Array, weight: Tensor) -> Array:
        steps = (np.arange(x.size).reshape(x.shape) + pattern) * NUDGES[pattern] % 17 - 8
        return oracle_int8.matmul(x * (1 + steps * 2.0**-22).astype(np.float32), weight)

    return product


# Variants


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A network that computes the same with other roundings.

    `product` is of two matrices of floats, also in attention, `int8_product` of activations with a
    quantized matrix; `functions` and `int8_functions` replace those of the two oracles.
    """

    numerics: frozenset[str] = frozenset({"exact", "int8"})
    dtype: DTypeLike = np.float32
    product: Callable[[Array, Array], Array] = oracle.matmul
    int8_product: Callable[[Array, Tensor], Array] = oracle_int8.matmul
    functions: Mapping[str, Callable[..., Array]] = field(default_factory=dict)
    int8_functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


RULE = Variant()
INT8 = frozenset({"int8"})
VARIANTS: Mapping[str, tuple[Variant, ...]] = {
    "float64": (Variant(dtype=np.float64, int8_product=int8_product_by(left_to_right)),),
    "backwards": (Variant(product=product_by(backwards), int8_product=int8_product_by(backwards)),),
    "halves": (Variant(product=product_by(halves), int8_product=int8_product_by(halves)),),
    "lanes": (Variant(product=product_by(lanes), int8_product=int8_product_by(lanes)),),
    "rounded twice": (
        Variant(product=product_by(left_to_right), int8_product=int8_product_by(left_to_right)),
    ),
    "float32 functions": (Variant(functions=FLOAT32_FUNCTIONS),),
    "x86": (Variant(numerics=INT8, int8_functions={"quantize_q8_0": quantize_as_on_x86}),),
    "nudged": tuple(
        Variant(numerics=INT8, int8_product=nudged_int8_product(i)) for i in range(len(NUDGES))
    ),
}
"""By the names under which golden/logits has what they differ by."""


def logits(model: Model, token_ids: Sequence[int], numerics: str, variant: Variant = RULE) -> Array:
    """The logits after each token, [T, V]."""
    # Columns lie together, because products walk along them.
    arrays = {
        name: np.asarray(array, variant.dtype, order="F") for name, array in model.arrays.items()
    }
    integer = {
        id(arrays[name]): tensor
        for name, tensor in model.tensors.items()
        if numerics == "int8" and tensor.format.name in INT8_FORMATS
    }

    def product(x: Array, w: Array) -> Array:
        if id(w) in integer:
            return variant.int8_product(x, integer[id(w)])
        return variant.product(x, w)

    with ExitStack() as replaced:
        for name, function in {"matmul": product, **variant.functions}.items():
            replaced.enter_context(mock.patch.object(oracle, name, function))
        for name, function in variant.int8_functions.items():
            replaced.enter_context(mock.patch.object(oracle_int8, name, function))
        return oracle.llama(model.config, arrays, token_ids)
