"""Norms, rotary embedding, activations and pooling: what happens to one row at a time.

T tokens, D model width, F feed-forward width, H heads, E head width, R rotated part of a head.
Every function takes and returns float32; statistics are float64 sums from left to right, rounded
once (rule 3 of SPEC.md).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refllm.jit.buffers import empty
from refllm.jit.compile import inner, jit, parallel_jit, prange
from refllm.kernels.math import exp, gelu_f32, silu_f32, sin_cos

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
    "silu",
    "swiglu",
]

Floats = NDArray[np.float32]


# Sums of several rows advance together, because an addition waits for the one before it.
ROWS = 4
# Below this many elements one thread is done before a second has woken up.
SERIAL_WORK = 1 << 15


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x / √(mean(x²) + ε) · weight for each row of x [T, D].

    The mean is rounded to float32; everything after it is float32.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    out = empty(*x.shape)  # [T, D]
    run = _rms_norm_serial if x.size < SERIAL_WORK else _rms_norm_parallel
    run(x, weight, eps, out)
    return out


def layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    """(x − mean) / √(mean((x − mean)²) + ε) · weight + bias for each row of x [T, D].

    Both means are rounded to float32; everything between and after them is float32.
    Source: Ba et al. 2016, arXiv:1607.06450.
    """
    out = empty(*x.shape)  # [T, D]
    run = _layer_norm_serial if x.size < SERIAL_WORK else _layer_norm_parallel
    run(x, weight, bias, eps, out)
    return out


def swiglu(gate_up: Floats) -> Floats:
    """silu(gate) · up, [T, F], element by element: gate and up are the halves of rows [T, 2·F].

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    out = empty(gate_up.shape[0], gate_up.shape[1] // 2)  # [T, F]
    run = _swiglu_serial if out.size < SERIAL_WORK else _swiglu_parallel
    run(gate_up, out)
    return out


def gelu(x: Floats) -> Floats:
    """x·Φ(x), the exact GELU, element by element, [T, F]."""
    out = empty(*x.shape)  # [T, F]
    run = _gelu_serial if x.size < SERIAL_WORK else _gelu_parallel
    run(x, out)
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
def gelu_clipped(x: Floats) -> Floats:
    """The exact GELU, but 10 where it is greater, element by element, [T, F].

    GELU is never below −0.17, so the lower bound of −10 that goes with it bounds nothing.
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
    """x·sigmoid(1.702·x), element by element, [T, F].

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    out = np.empty_like(x)  # [T, F]
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            wide = np.float64(x[t, f])
            out[t, f] = np.float32(wide / (1.0 + exp(-(1.702 * wide))))
    return out


@jit
def silu(x: Floats) -> Floats:
    """x·sigmoid(x), element by element, [T, F]."""
    out = np.empty_like(x)  # [T, F]
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            out[t, f] = silu_f32(x[t, f])
    return out


@jit
def relu(x: Floats) -> Floats:
    """x where it is positive, otherwise 0, element by element, [T, F]; NaN stays NaN."""
    out = np.empty_like(x)  # [T, F]
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            out[t, f] = np.float32(0.0) if x[t, f] <= np.float32(0.0) else x[t, f]
    return out


@inner
def _totals(x: Floats, t: int) -> tuple[float, float, float, float]:
    """Σ x of rows t … t + 3."""
    total0 = total1 = total2 = total3 = 0.0
    for d in range(x.shape[1]):
        total0 += np.float64(x[t, d])
        total1 += np.float64(x[t + 1, d])
        total2 += np.float64(x[t + 2, d])
        total3 += np.float64(x[t + 3, d])
    return total0, total1, total2, total3


@inner
def _square_totals(x: Floats, t: int, center: Floats) -> tuple[float, float, float, float]:
    """Σ (x − center)² of rows t … t + 3, each with its own center; the difference is float32."""
    total0 = total1 = total2 = total3 = 0.0
    for d in range(x.shape[1]):
        x0, x1 = np.float64(x[t, d] - center[0]), np.float64(x[t + 1, d] - center[1])
        x2, x3 = np.float64(x[t + 2, d] - center[2]), np.float64(x[t + 3, d] - center[3])
        total0 += x0 * x0
        total1 += x1 * x1
        total2 += x2 * x2
        total3 += x3 * x3
    return total0, total1, total2, total3


@inner
def _rows_together(x: Floats, group: int) -> tuple[Floats, int]:
    """Rows 4·group … of x [T, D] as four rows, and how many of them are real."""
    first = group * ROWS
    n_rows = min(ROWS, x.shape[0] - first)
    if n_rows == ROWS:
        return x[first : first + ROWS], n_rows
    filled = np.zeros((ROWS, x.shape[1]), np.float32)
    for r in range(n_rows):
        for d in range(x.shape[1]):
            filled[r, d] = x[first + r, d]
    return filled, n_rows


@inner
def _rms_norm_rows(group: int, x: Floats, weight: Floats, eps: float, out: Floats) -> None:
    width = x.shape[1]
    rows, n_rows = _rows_together(x, group)
    totals = _square_totals(rows, 0, np.zeros(ROWS, np.float32))
    for i in range(n_rows):
        mean_square = np.float32(totals[i] / width)
        scale = np.float32(1.0) / np.sqrt(mean_square + np.float32(eps))
        for d in range(width):
            out[group * ROWS + i, d] = (rows[i, d] * scale) * weight[d]


@inner
def _layer_norm_rows(
    group: int, x: Floats, weight: Floats, bias: Floats, eps: float, out: Floats
) -> None:
    width = x.shape[1]
    rows, n_rows = _rows_together(x, group)
    means = np.empty(ROWS, np.float32)
    totals = _totals(rows, 0)
    for i in range(ROWS):
        means[i] = np.float32(totals[i] / width)
    totals = _square_totals(rows, 0, means)
    for i in range(n_rows):
        variance = np.float32(totals[i] / width)
        scale = np.float32(1.0) / np.sqrt(variance + np.float32(eps))
        for d in range(width):
            normal = (rows[i, d] - means[i]) * scale
            out[group * ROWS + i, d] = normal * weight[d] + bias[d]


@jit
def _rms_norm_serial(x: Floats, weight: Floats, eps: float, out: Floats) -> None:
    for group in range((x.shape[0] + ROWS - 1) // ROWS):
        _rms_norm_rows(group, x, weight, eps, out)


@parallel_jit
def _rms_norm_parallel(x: Floats, weight: Floats, eps: float, out: Floats) -> None:
    for group in prange((x.shape[0] + ROWS - 1) // ROWS):
        _rms_norm_rows(group, x, weight, eps, out)


@jit
def _layer_norm_serial(x: Floats, weight: Floats, bias: Floats, eps: float, out: Floats) -> None:
    for group in range((x.shape[0] + ROWS - 1) // ROWS):
        _layer_norm_rows(group, x, weight, bias, eps, out)


@parallel_jit
def _layer_norm_parallel(x: Floats, weight: Floats, bias: Floats, eps: float, out: Floats) -> None:
    for group in prange((x.shape[0] + ROWS - 1) // ROWS):
        _layer_norm_rows(group, x, weight, bias, eps, out)


@jit
def _swiglu_serial(gate_up: Floats, out: Floats) -> None:
    width = out.shape[1]
    for t in range(out.shape[0]):
        for f in range(width):
            out[t, f] = silu_f32(gate_up[t, f]) * gate_up[t, width + f]


@parallel_jit
def _swiglu_parallel(gate_up: Floats, out: Floats) -> None:
    width = out.shape[1]
    for t in prange(out.shape[0]):
        for f in range(width):
            out[t, f] = silu_f32(gate_up[t, f]) * gate_up[t, width + f]


@jit
def _gelu_serial(x: Floats, out: Floats) -> None:
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            out[t, f] = gelu_f32(x[t, f])


@parallel_jit
def _gelu_parallel(x: Floats, out: Floats) -> None:
    for t in prange(x.shape[0]):
        for f in range(x.shape[1]):
            out[t, f] = gelu_f32(x[t, f])


@jit
def rope_table(
    positions: NDArray[np.int64], frequencies: NDArray[np.float64], magnitude: float
) -> Floats:
    """(cos, sin) of position · frequency, times magnitude, [2, T, R/2].

    The angle is one float64 product; sine and cosine times magnitude are another, rounded once.
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
    """x [T, ≥ H, E] with the pairs (2i, 2i+1) of its first H heads turned by `rope_table`'s angles.

    Heads wider than the table (R < E) keep their other elements. Source: Su et al. 2021,
    arXiv:2104.09864, with the pairs side by side, as GGUF files store them.
    """
    out = empty(*x.shape)  # [T, ≥ H, E]
    run = _rope_serial if x.size < SERIAL_WORK else _rope_parallel
    run(x, table, n_heads, out)
    return out


@inner
def _turn_token(t: int, x: Floats, table: Floats, n_heads: int, out: Floats) -> None:
    for h in range(x.shape[1]):
        for e in range(x.shape[2]):
            out[t, h, e] = x[t, h, e]
    for h in range(n_heads):
        for pair in range(table.shape[2]):
            cosine, sine = table[0, t, pair], table[1, t, pair]
            a, b = x[t, h, 2 * pair], x[t, h, 2 * pair + 1]
            out[t, h, 2 * pair] = a * cosine - b * sine
            out[t, h, 2 * pair + 1] = a * sine + b * cosine


@jit
def _rope_serial(x: Floats, table: Floats, n_heads: int, out: Floats) -> None:
    for t in range(x.shape[0]):
        _turn_token(t, x, table, n_heads, out)


@parallel_jit
def _rope_parallel(x: Floats, table: Floats, n_heads: int, out: Floats) -> None:
    for t in prange(x.shape[0]):
        _turn_token(t, x, table, n_heads, out)


@jit
def mean_rows(x: Floats) -> Floats:
    """The mean of the rows of x [T, D], [D]."""
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
    """x / max(‖x‖, 1e-12), [D]: the length is rounded to float32 before the division."""
    total = 0.0
    for d in range(x.size):
        total += np.float64(x[d]) * np.float64(x[d])
    length = max(np.float32(math.sqrt(total)), np.float32(1e-12))
    out = np.empty_like(x)  # [D]
    for d in range(x.size):
        out[d] = x[d] / length
    return out
