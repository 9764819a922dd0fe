"""The llama in NumPy with a KV cache: the bits of the kernels, before there are kernels.

A process that finds no compiled kernels would compile for seconds before its first token. A small
llama answers at once here. The functions of one row are the oracle's (`refllm.oracle`). The sums of
products are the oracle's too, but faster: the weights are transposed, so that a step along the
contracted axis is one NumPy operation on all outputs.

The caches are those of `refllm.llama.KVCache`, so a later token can be computed by the kernels.

T tokens of one sequence, S context so far, D columns and N rows of a matrix, H heads, Hkv key/value
heads, G = H/Hkv heads that share one, E head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gguf
import numpy as np
from gguf import quants as gguf_quants
from numpy.typing import NDArray

from refllm import oracle
from refllm.errors import LlmRuntimeError
from refllm.kernels import math64
from refllm.llama import Llama, LlamaLayer, Segment
from refllm.parameters import Parameters
from refllm.quant import Tensor

__all__ = [
    "Columns",
    "DecodedParameters",
    "decoded",
    "hidden",
    "linear",
    "softmax",
    "sums_of_products",
    "topk",
]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# Steps along the contracted axis whose sums are checked together.
STEPS = 64
# The last 29 bits of a float64 are those that a float32 has no room for. Halfway between two
# float32 they are 1 and zeros.
LOST_BITS = (1 << 29) - 1
HALFWAY = 1 << 28
# Below, a float32 has fewer bits, and another part of a float64 is lost.
SMALLEST_NORMAL = 2.0**-126


# Weights


@dataclass(frozen=True, eq=False)
class Columns:
    """Matrices of one width, one below the other, that are decoded at their first use."""

    tensors: tuple[Tensor, ...]

    @cached_property
    def data(self) -> Doubles:
        """The rows as columns, [D, N], contiguous: float32 numbers as float64."""
        rows = np.concatenate([decoded(tensor) for tensor in self.tensors])  # [N, D]
        return np.ascontiguousarray(rows.T, np.float64)


@dataclass(frozen=True, slots=True)
class DecodedParameters(Parameters):
    """Parameters whose matrices are `Columns`; no kernel decodes them."""

    def matrices(self, n_rows: Mapping[str, int], n_columns: int) -> Any:
        """Return the matrices with these names and numbers of rows, as one of `Columns`."""
        return (Columns(tuple(self._get(name, (n, n_columns)) for name, n in n_rows.items())),)

    def vector(self, name: str, length: int) -> Floats:
        """Return a vector [N] as float32."""
        return decoded(self._get(name, (length,)))

    def _packed(self, *tensors: Tensor) -> Any:
        return Columns(tensors)


def decoded(tensor: Tensor) -> Floats:
    """Return the tensor's values, float32 in its shape, without a kernel.

    Raises:
        LlmRuntimeError: The `gguf` package cannot decode the format.
    """
    if tensor.format.name == "F32":
        return tensor.array()
    try:
        with np.errstate(all="ignore"):  # the file may have an infinite scale
            values = gguf_quants.dequantize(
                tensor.data, gguf.GGMLQuantizationType[tensor.format.name]
            )
    except NotImplementedError as error:
        raise LlmRuntimeError(
            f"tensor {tensor.name}: the installed gguf package cannot decode {tensor.format.name}"
        ) from error
    return np.ascontiguousarray(values, np.float32).reshape(tensor.shape)


# Sums of products


def sums_of_products(x: Floats, columns: Floats | Doubles) -> Floats:
    """Return Σ x[b, d] · columns[b, d, n] over d from left to right, as the oracle's `matmul`.

    Args:
        x: [B, D].
        columns: [B, D, N], or [1, D, N] for all B; float32 numbers, of either type.

    Returns:
        [B, N].
    """
    n_batch, n_steps = x.shape
    total = np.zeros((n_batch, columns.shape[2]), np.float32)  # [B, N]
    addend = np.zeros(total.shape, np.float64)  # the same, [B, N]
    wide = np.empty((STEPS, *total.shape), np.float64)  # [steps, B, N]
    for start in range(0, n_steps, STEPS):
        part = slice(start, min(start + STEPS, n_steps))
        sums = wide[: part.stop - start]
        np.multiply(
            x.T[part, :, None], columns[:, part].transpose(1, 0, 2), out=sums, dtype=np.float64
        )  # exact: 24 + 24 bits
        before = total.copy()
        for step in sums:
            np.add(step, addend, out=step)
            total[...] = step
            addend[...] = total
        _correct_rounding(sums, before, x.T[part], columns[:, part], total)
        addend[...] = total
    return total


def _correct_rounding(
    sums: Doubles, before: Floats, x: Floats, columns: Floats | Doubles, total: Floats
) -> None:
    """Repeat the sums that were rounded twice to another float32 than once.

    A sum rounded to float64 and then to float32 differs from one rounded once only where the
    float64 is halfway between two float32 (or where float32 are denormal), which is rare.

    Args:
        sums: [steps, B, N], rounded to float64.
        before: [B, N], the sums before the first step.
        x: [steps, B].
        columns: [B or 1, steps, N].
        total: [B, N], the sums after the last step; corrected in place.
    """
    is_near = (sums.view(np.int64) & LOST_BITS) == HALFWAY
    is_near |= (np.abs(sums) < SMALLEST_NORMAL) & (sums != 0)
    near = np.flatnonzero(is_near)
    if len(near) == 0:
        return
    steps, rows, outputs = np.unravel_index(near, sums.shape)
    # Most of these sums are exact, and then the second rounding is the only one.
    addends = np.where(steps == 0, before[rows, outputs], sums[steps - 1, rows, outputs])
    addends = addends.astype(np.float32).astype(np.float64)  # as they were added
    factors = columns[rows % len(columns), steps, outputs].astype(np.float64)
    products = x[steps, rows].astype(np.float64) * factors
    is_inexact = _error(products, addends, products + addends) != 0
    for b, n in {*zip(rows[is_inexact], outputs[is_inexact], strict=True)}:
        sum_ = before[b, n, None]  # [1]
        weights = columns[b % len(columns), :, n].astype(np.float32)
        for weight, value in zip(weights, x[:, b], strict=True):
            sum_ = oracle.fma(weight[None], value[None], sum_)
        total[b, n] = sum_[0]


def _error(a: Doubles, b: Doubles, total: Doubles) -> Doubles:
    """Return (a + b) − total, exactly, where total is the rounded a + b (Knuth's TwoSum)."""
    rest = total - a
    return (a - (total - rest)) + (b - rest)


def linear(x: Floats, *weights: Any, bias: Floats | None = None) -> Floats:
    """Return x [T, D] times the rows of the weights [n, D], plus the bias: [T, N]."""
    parts = [sums_of_products(x, weight.data[None]) for weight in weights]
    product = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    return product if bias is None else product + bias


# The network


def hidden(network: Llama, segment: Segment) -> Floats:
    """Return `result_norm` [T, D] of one sequence's new tokens, and store their keys and values.

    The cache has room for them; its length is not changed.

    Args:
        network: A llama of `DecodedParameters`.
        segment: The tokens and their cache.
    """
    c, cache = network.config, segment.cache
    n_tokens, start = len(segment.token_ids), cache.length
    stop = start + n_tokens
    positions = np.arange(start, stop)
    x = _embedding(segment.token_ids, network.token_embd)  # [T, D]
    for i, layer in enumerate(network.layers):
        h = oracle.rms_norm(x, layer.attn_norm, c.rms_norm_eps)  # [T, D]
        qkv = linear(h, *layer.attn_qkv, bias=layer.attn_qkv_bias)
        qkv = qkv.reshape(n_tokens, -1, c.head_dim)  # [T, H + 2·Hkv, E]
        n_turned = c.n_heads + c.n_kv_heads
        turned = oracle.rope(
            qkv[:, :n_turned], positions, network.frequencies, c.rope_attention_factor
        )  # [T, H + Hkv, E]
        cache.keys[i, ..., start:stop] = turned[:, c.n_heads :].transpose(1, 2, 0)
        cache.values[i, :, start:stop] = qkv[:, n_turned:].transpose(1, 0, 2)
        attended = [
            _attention(turned[t, : c.n_heads], cache.keys[i], cache.values[i], start + t + 1)
            for t in range(n_tokens)
        ]
        merged = np.stack(attended)  # [T, H·E]
        x = x + linear(merged, layer.attn_output, bias=layer.attn_output_bias)
        h = oracle.rms_norm(x, layer.ffn_norm, c.rms_norm_eps)
        x = x + _feed_forward(layer, h)
    return oracle.rms_norm(x, network.output_norm, c.rms_norm_eps)


def _embedding(token_ids: Sequence[int], table: Tensor) -> Floats:
    rows = table.data[np.asarray(token_ids, np.int64)]
    return decoded(Tensor(table.name, table.format, (len(rows), table.shape[1]), rows))


def _attention(query: Floats, keys: Floats, values: Floats, n_visible: int) -> Floats:
    """Return softmax(q·k/√E)·v of one token, [H·E].

    Args:
        query: [H, E].
        keys: [Hkv, E, C].
        values: [Hkv, C, E].
        n_visible: The tokens that this one attends to, itself included.
    """
    n_heads, head_dim = query.shape
    group = n_heads // len(keys)
    keys = np.repeat(keys[..., :n_visible], group, axis=0)  # [H, E, S]
    values = np.repeat(values[:, :n_visible], group, axis=0)  # [H, S, E]
    scores = sums_of_products(query, keys)  # [H, S]
    weights = oracle.softmax(scores, 1 / math.sqrt(head_dim))  # [H, S]
    return sums_of_products(weights, values).reshape(-1)


def _feed_forward(layer: LlamaLayer, h: Floats) -> Floats:
    """Return what a layer's feed-forward network (SwiGLU) adds to each token, [T, D]."""
    gate_up = linear(h, *layer.ffn_gate_up, bias=layer.ffn_gate_up_bias)  # [T, 2·F]
    n_ff = gate_up.shape[1] // 2
    gated = oracle.silu(gate_up[:, :n_ff]) * gate_up[:, n_ff:]  # [T, F]
    return linear(gated, layer.ffn_down, bias=layer.ffn_down_bias)


# Sampling


def softmax(logits: Doubles) -> Doubles:
    """Return what `refllm.kernels.math64.softmax` returns, [V]."""
    powers = _exp(logits - logits.max())
    result: Doubles = powers / np.add.accumulate(powers)[-1]
    return result


def topk(scores: Doubles, k: int) -> NDArray[np.int64]:
    """Return what `refllm.kernels.topk.topk` returns: by descending score, then ascending id."""
    return np.argsort(-scores, kind="stable")[:k]


def _exp(x: Doubles) -> Doubles:
    """Return what `refllm.kernels.math64.exp` returns for x <= 0."""
    x = np.maximum(x, math64.UNDERFLOW)
    n = np.rint(x * math64.INVERSE_LN2)
    r = (x - n * math64.LN2_HIGH) - n * math64.LN2_LOW
    series = np.full_like(x, math64.COEFFICIENTS[0])
    for coefficient in math64.COEFFICIENTS[1:]:
        series = series * r + coefficient
    half = n.astype(np.int64) >> 1
    result: Doubles = (series * np.ldexp(1.0, half)) * np.ldexp(1.0, n.astype(np.int64) - half)
    return result
