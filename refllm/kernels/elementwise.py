"""Norms, rotary embedding, activations and pooling: what happens to one row at a time.

T tokens, D model width, F feed-forward width, H heads, E head width, R rotated part of a head.
Every function takes and returns float32; statistics are float64 sums from left to right, rounded
once (rule 3 of SPEC.md).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refllm.kernels.jit import jit
from refllm.kernels.math import exp, gelu_f32, silu_f32, sin_cos

__all__ = [
    "apply_rope",
    "gelu",
    "gelu_tanh",
    "l2_normalize",
    "layer_norm",
    "mean_rows",
    "rms_norm",
    "rope_table",
    "swiglu",
]

Floats = NDArray[np.float32]


@jit
def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x / √(mean(x²) + ε) · weight for each row of x [T, D].

    The mean is rounded to float32; everything after it is float32.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    n_rows, width = x.shape
    out = np.empty((n_rows, width), np.float32)  # [T, D]
    for t in range(n_rows):
        total = 0.0
        for d in range(width):
            total += np.float64(x[t, d]) * np.float64(x[t, d])
        mean_square = np.float32(total / width)
        scale = np.float32(1.0) / np.sqrt(mean_square + np.float32(eps))
        for d in range(width):
            out[t, d] = (x[t, d] * scale) * weight[d]
    return out


@jit
def layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    """(x − mean) / √(mean((x − mean)²) + ε) · weight + bias for each row of x [T, D].

    Both means are rounded to float32; everything between and after them is float32.
    Source: Ba et al. 2016, arXiv:1607.06450.
    """
    n_rows, width = x.shape
    out = np.empty((n_rows, width), np.float32)  # [T, D]
    for t in range(n_rows):
        total = 0.0
        for d in range(width):
            total += np.float64(x[t, d])
        mean = np.float32(total / width)
        total = 0.0
        for d in range(width):
            centered = np.float64(x[t, d] - mean)
            total += centered * centered
        variance = np.float32(total / width)
        scale = np.float32(1.0) / np.sqrt(variance + np.float32(eps))
        for d in range(width):
            out[t, d] = ((x[t, d] - mean) * scale) * weight[d] + bias[d]
    return out


@jit
def swiglu(gate: Floats, up: Floats) -> Floats:
    """silu(gate) · up, element by element, both [T, F]. Source: Shazeer 2020, arXiv:2002.05202."""
    out = np.empty_like(gate)  # [T, F]
    for t in range(gate.shape[0]):
        for f in range(gate.shape[1]):
            out[t, f] = silu_f32(gate[t, f]) * up[t, f]
    return out


@jit
def gelu(x: Floats) -> Floats:
    """x·Φ(x), the exact GELU, element by element, [T, F]."""
    out = np.empty_like(x)  # [T, F]
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            out[t, f] = gelu_f32(x[t, f])
    return out


@jit
def gelu_tanh(x: Floats) -> Floats:
    """The approximation of GELU that some engines use instead, element by element, [T, F].

    x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), written as x·sigmoid of twice the argument.
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    out = np.empty_like(x)  # [T, F]
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            wide = np.float64(x[t, f])
            argument = 1.5957691216057308 * (wide + 0.044715 * (wide * wide * wide))
            out[t, f] = np.float32(wide / (1.0 + exp(-argument)))
    return out


@jit
def rope_table(positions: NDArray[np.int64], frequencies: NDArray[np.float64]) -> Floats:
    """(cos, sin) of position · frequency, [2, T, R/2].

    The angle is one float64 product; sine and cosine are rounded once.
    """
    n_tokens, n_pairs = positions.size, frequencies.size
    table = np.empty((2, n_tokens, n_pairs), np.float32)  # [2, T, R/2]
    for t in range(n_tokens):
        for pair in range(n_pairs):
            sine, cosine = sin_cos(np.float64(positions[t]) * frequencies[pair])
            table[0, t, pair] = cosine
            table[1, t, pair] = sine
    return table


@jit
def apply_rope(x: Floats, table: Floats) -> Floats:
    """x [T, H, E] with its pairs (2i, 2i+1) turned by the angles of `rope_table`.

    Heads wider than the table (R < E) keep their other elements. Source: Su et al. 2021,
    arXiv:2104.09864, with the pairs side by side, as GGUF files store them.
    """
    n_tokens, n_heads, _ = x.shape
    n_pairs = table.shape[2]
    out = x.copy()  # [T, H, E]
    for t in range(n_tokens):
        for h in range(n_heads):
            for pair in range(n_pairs):
                cosine, sine = table[0, t, pair], table[1, t, pair]
                a, b = x[t, h, 2 * pair], x[t, h, 2 * pair + 1]
                out[t, h, 2 * pair] = a * cosine - b * sine
                out[t, h, 2 * pair + 1] = a * sine + b * cosine
    return out


@jit
def mean_rows(x: Floats) -> Floats:
    """The mean of the rows of x [T, D], [D]."""
    n_rows, width = x.shape
    out = np.empty(width, np.float32)  # [D]
    for d in range(width):
        total = 0.0
        for t in range(n_rows):
            total += np.float64(x[t, d])
        out[d] = np.float32(total / n_rows)
    return out


@jit
def l2_normalize(x: Floats) -> Floats:
    """x / max(‖x‖, 1e-12), [D]: the length is rounded to float32 before the division."""
    total = 0.0
    for d in range(x.size):
        total += np.float64(x[d]) * np.float64(x[d])
    length = max(np.float32(math.sqrt(total)), np.float32(1e-12))
    out = np.empty_like(x)  # [D]
    for d in range(x.size):
        out[d] = x[d] / length
    return out
