"""One vector from a text's tokens, and two activations of the layer that follows it.

T tokens of one text, D width of a vector, N vectors. Every function takes and returns float32; sums
over tokens are float64 from left to right, rounded once (rule 3 of SPEC.md).
"""

from __future__ import annotations

import math

import numpy as np

from refllm.jit.buffers import Floats
from refllm.jit.compile import jit
from refllm.kernels.math import sigmoid_f32, tanh_f32

__all__ = [
    "max_rows",
    "mean_sqrt_rows",
    "sigmoid",
    "tanh",
    "weighted_mean_rows",
]


@jit
def max_rows(x: Floats) -> Floats:
    """Return the largest value of each column of x [T, D], [D]; of equal ones, the first."""
    n_rows, width = x.shape
    out = np.empty(width, np.float32)  # [D]
    for d in range(width):
        largest = x[0, d]
        for t in range(1, n_rows):
            if x[t, d] > largest:
                largest = x[t, d]
        out[d] = largest
    return out


@jit
def mean_sqrt_rows(x: Floats) -> Floats:
    """Return the sum of the rows of x [T, D] divided by √T, [D]."""
    n_rows, width = x.shape
    totals = np.zeros(width, np.float64)  # [D]
    for t in range(n_rows):
        for d in range(width):
            totals[d] += np.float64(x[t, d])
    divisor = math.sqrt(np.float64(n_rows))
    out = np.empty(width, np.float32)  # [D]
    for d in range(width):
        out[d] = np.float32(totals[d] / divisor)
    return out


@jit
def weighted_mean_rows(x: Floats, first_weight: int) -> Floats:
    """Return the mean of the rows of x [T, D] with weights first_weight, first_weight + 1, …; [D].

    Source: Muennighoff 2022, arXiv:2202.08904, section 3.1.1.
    """
    n_rows, width = x.shape
    totals = np.zeros(width, np.float64)  # [D]
    total_weight = 0.0
    for t in range(n_rows):
        weight = np.float64(first_weight + t)
        total_weight += weight
        for d in range(width):
            totals[d] += np.float64(x[t, d]) * weight
    out = np.empty(width, np.float32)  # [D]
    for d in range(width):
        out[d] = np.float32(totals[d] / total_weight)
    return out


@jit
def tanh(x: Floats) -> Floats:
    """Return the hyperbolic tangent, element by element, [N, D]."""
    out = np.empty_like(x)  # [N, D]
    for n in range(x.shape[0]):
        for d in range(x.shape[1]):
            out[n, d] = tanh_f32(x[n, d])
    return out


@jit
def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + e**−x), element by element, [N, D]."""
    out = np.empty_like(x)  # [N, D]
    for n in range(x.shape[0]):
        for d in range(x.shape[1]):
            out[n, d] = sigmoid_f32(x[n, d])
    return out
