"""Activations in float64 as textbooks write them, the right ones and those taken for them."""

from __future__ import annotations

import math

import numpy as np

from refllm.conform.compare.numbers import Doubles

__all__ = ["gelu", "gelu_sigmoid", "gelu_tanh", "relu", "sigmoid", "silu"]


_ERFC = np.vectorize(math.erfc, otypes=[np.float64])


def silu(x: Doubles) -> Doubles:
    """x / (1 + e^−x)."""
    with np.errstate(over="ignore"):
        return np.asarray(x / (1.0 + np.exp(-x)))


def sigmoid(x: Doubles) -> Doubles:
    """1 / (1 + e^−x)."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-x)))


def relu(x: Doubles) -> Doubles:
    """max(x, 0)."""
    return np.maximum(x, 0.0)


def gelu(x: Doubles) -> Doubles:
    """x·Φ(x), with the upper tail of the normal distribution: no cancellation where x < 0."""
    return np.asarray(0.5 * x * _ERFC(-x / math.sqrt(2.0)))


def gelu_tanh(x: Doubles) -> Doubles:
    """x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def gelu_sigmoid(x: Doubles) -> Doubles:
    """x·sigmoid(1.702·x)."""
    return x * sigmoid(1.702 * x)
