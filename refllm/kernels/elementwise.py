"""Norms, rotary embedding, activations and pooling: functions of one row at a time.

T tokens, D model width, F feed-forward width, H heads, E head width, R rotated part of a head.
Every function takes and returns float32; statistics are float64 sums, rounded once (rule 3 of
SPEC.md).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refllm.jit.buffers import Floats, Ints, empty
from refllm.jit.compile import both, inner, jit, prange
from refllm.kernels.math import gelu_f32, logistic, silu_f32, sin_cos
from refllm.kernels.simd.doubles import SUMS, add_halves, load, load_some, no_sums

__all__ = [
    "apply_rope",
    "gelu",
    "gelu_clipped",
    "gelu_tanh",
    "l2_normalize",
    "layer_norm",
    "mean_rows",
    "quick_gelu",
    "relu",
    "rms_norm",
    "rope_table",
    "row_sum",
    "silu",
    "square_sum",
    "swiglu",
]


# Sums


@inner
def row_sum(x: Floats, first: int, n: int) -> float:
    """Return the sum of n numbers of x by rule 3 of SPEC.md, from place `first` on."""
    sums = no_sums()
    whole = first + n // SUMS * SUMS
    for place in range(first, whole, SUMS):
        sums = sums + load(x, place)
    if whole < first + n:
        sums = sums + load_some(x, whole, first + n - whole, 0.0)
    total: float = add_halves(sums)
    return total


@inner
def square_sum(x: Floats, first: int, n: int) -> float:
    """Return `row_sum` of the squares, which are exact in float64."""
    sums = no_sums()
    whole = first + n // SUMS * SUMS
    for place in range(first, whole, SUMS):
        numbers = load(x, place)
        sums = sums + numbers * numbers
    if whole < first + n:
        numbers = load_some(x, whole, first + n - whole, 0.0)
        sums = sums + numbers * numbers
    total: float = add_halves(sums)
    return total


# Norms


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Return x / √(mean(x²) + ε) · weight for each row of x.

    The mean is rounded to float32; everything after it is float32.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.

    Args:
        x: [T, D].
        weight: [D].
        eps: ε, rounded to float32.

    Returns:
        [T, D].
    """
    out = empty(*x.shape)  # [T, D]
    _rms_norm.choose(x.size)(x, weight, eps, out)
    return out


@both
def _rms_norm(x: Floats, weight: Floats, eps: float, out: Floats) -> None:
    width = x.shape[1]
    for t in prange(x.shape[0]):
        mean_square = np.float32(square_sum(x, t * width, width) / width)
        scale = np.float32(1.0) / np.sqrt(mean_square + np.float32(eps))
        for d in range(width):
            out[t, d] = (x[t, d] * scale) * weight[d]


def layer_norm(
    x: Floats, weight: Floats, bias: Floats, eps: float, *, residual: Floats | None = None
) -> Floats:
    """Return (x − mean) / √(mean((x − mean)²) + ε) · weight + bias for each row of x.

    Both means are rounded to float32; everything between and after them is float32.
    Source: Ba et al. 2016, arXiv:1607.06450.

    Args:
        x: [T, D].
        weight: [D].
        bias: [D].
        eps: ε, rounded to float32.
        residual: [T, D], added to x first.

    Returns:
        [T, D].
    """
    out = empty(*x.shape)  # [T, D]
    added = x[:0] if residual is None else residual  # [0 or T, D]
    _layer_norm.choose(x.size)(x, added, weight, bias, eps, out)
    return out


@both
def _layer_norm(
    x: Floats, added: Floats, weight: Floats, bias: Floats, eps: float, out: Floats
) -> None:
    width = x.shape[1]
    for t in prange(x.shape[0]):
        for d in range(width):
            out[t, d] = x[t, d] + added[t, d] if added.shape[0] > 0 else x[t, d]
        mean = np.float32(row_sum(out, t * width, width) / width)
        for d in range(width):
            out[t, d] -= mean
        variance = np.float32(square_sum(out, t * width, width) / width)
        scale = np.float32(1.0) / np.sqrt(variance + np.float32(eps))
        for d in range(width):
            out[t, d] = (out[t, d] * scale) * weight[d] + bias[d]


# Activations


def swiglu(gate_up: Floats) -> Floats:
    """Return silu(gate) · up, element by element, [T, F]; gate and up are halves of rows [T, 2·F].

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    out = empty(gate_up.shape[0], gate_up.shape[1] // 2)  # [T, F]
    _swiglu.choose(out.size)(gate_up, out)
    return out


@both
def _swiglu(gate_up: Floats, out: Floats) -> None:
    width = out.shape[1]
    for t in prange(out.shape[0]):
        for f in range(width):
            out[t, f] = silu_f32(gate_up[t, f]) * gate_up[t, width + f]


def gelu(x: Floats) -> Floats:
    """Return x·Φ(x), the exact GELU, element by element, [T, F]."""
    out = empty(*x.shape)  # [T, F]
    _gelu.choose(x.size)(x, out)
    return out


@both
def _gelu(x: Floats, out: Floats) -> None:
    for t in prange(x.shape[0]):
        for f in range(x.shape[1]):
            out[t, f] = gelu_f32(x[t, f])


@jit
def gelu_tanh(x: Floats) -> Floats:
    """Return the tanh approximation of GELU, element by element, [T, F].

    x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), written as x·sigmoid of twice the argument.
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    out = np.empty_like(x)  # [T, F]
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            wide = np.float64(x[t, f])
            argument = 1.5957691216057308 * (wide + 0.044715 * (wide * wide * wide))
            out[t, f] = np.float32(logistic(wide, argument))
    return out


@jit
def gelu_clipped(x: Floats) -> Floats:
    """Return the exact GELU, but 10 where it is greater, element by element, [T, F].

    The published function is also bounded by −10 from below, but GELU is never below −0.17.
    Source: Wu et al. 2020, arXiv:2004.09602.
    """
    out = np.empty_like(x)  # [T, F]
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            value = gelu_f32(x[t, f])
            out[t, f] = np.float32(10.0) if value > np.float32(10.0) else value
    return out


@jit
def quick_gelu(x: Floats) -> Floats:
    """Return x·sigmoid(1.702·x), element by element, [T, F].

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    out = np.empty_like(x)  # [T, F]
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            wide = np.float64(x[t, f])
            out[t, f] = np.float32(logistic(wide, 1.702 * wide))
    return out


@jit
def silu(x: Floats) -> Floats:
    """Return x·sigmoid(x), element by element, [T, F]."""
    out = np.empty_like(x)  # [T, F]
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            out[t, f] = silu_f32(x[t, f])
    return out


@jit
def relu(x: Floats) -> Floats:
    """Return x where it is positive, otherwise 0, element by element, [T, F]; NaN stays NaN."""
    out = np.empty_like(x)  # [T, F]
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            out[t, f] = np.float32(0.0) if x[t, f] <= np.float32(0.0) else x[t, f]
    return out


# Rotary embedding


@jit
def rope_table(positions: Ints, frequencies: NDArray[np.float64], magnitude: float) -> Floats:
    """Return (cos, sin) of position · frequency, times magnitude.

    The angle is one float64 product; sine and cosine times magnitude are another, rounded once.

    Args:
        positions: int64 [T].
        frequencies: float64 [R/2], in radians for each position.
        magnitude: A factor for both.

    Returns:
        [2, T, R/2].
    """
    n_tokens, n_pairs = positions.size, frequencies.size
    table = np.empty((2, n_tokens, n_pairs), np.float32)  # [2, T, R/2]
    for t in range(n_tokens):
        for pair in range(n_pairs):
            sine, cosine = sin_cos(np.float64(positions[t]) * frequencies[pair])
            table[0, t, pair] = cosine * magnitude
            table[1, t, pair] = sine * magnitude
    return table


def apply_rope(x: Floats, table: Floats, n_heads: int) -> Floats:
    """Return x with the pairs (2i, 2i+1) of its first heads rotated by the table's angles.

    Source: Su et al. 2021, arXiv:2104.09864, with the pairs side by side, as GGUF files store them.

    Args:
        x: [T, ≥ H, E].
        table: From `rope_table`, [2, T, R/2]. Heads wider than R keep their other elements.
        n_heads: H, the number of heads to rotate.

    Returns:
        [T, ≥ H, E].
    """
    out = empty(*x.shape)  # [T, ≥ H, E]
    _rope.choose(x.size)(x, table, n_heads, out)
    return out


@both
def _rope(x: Floats, table: Floats, n_heads: int, out: Floats) -> None:
    for t in prange(x.shape[0]):
        _rotate_token(t, x, table, n_heads, out)


@inner
def _rotate_token(t: int, x: Floats, table: Floats, n_heads: int, out: Floats) -> None:
    for h in range(x.shape[1]):
        for e in range(x.shape[2]):
            out[t, h, e] = x[t, h, e]
    for h in range(n_heads):
        for pair in range(table.shape[2]):
            cosine, sine = table[0, t, pair], table[1, t, pair]
            a, b = x[t, h, 2 * pair], x[t, h, 2 * pair + 1]
            out[t, h, 2 * pair] = a * cosine - b * sine
            out[t, h, 2 * pair + 1] = a * sine + b * cosine


# Pooling


@jit
def mean_rows(x: Floats) -> Floats:
    """Return the mean of the rows of x [T, D], [D]."""
    n_rows, width = x.shape
    totals = np.zeros(width, np.float64)  # [D]
    for t in range(n_rows):
        for d in range(width):
            totals[d] += np.float64(x[t, d])
    out = np.empty(width, np.float32)  # [D]
    for d in range(width):
        out[d] = np.float32(totals[d] / n_rows)
    return out


@jit
def l2_normalize(x: Floats) -> Floats:
    """Return x / max(‖x‖, 1e-12), [D]: the length is rounded to float32 before the division."""
    length = max(np.float32(math.sqrt(square_sum(x, 0, x.size))), np.float32(1e-12))
    out = np.empty_like(x)  # [D]
    for d in range(x.size):
        out[d] = x[d] / length
    return out
