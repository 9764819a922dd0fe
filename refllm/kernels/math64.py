"""exp and softmax in float64, for the probabilities that a token is sampled from.

`refllm.kernels.math.exp` is for results that are rounded to float32 afterwards. This one is what
`refllm.sampling` defines, to the last bit of a float64.

V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refllm.jit.compile import inner, jit
from refllm.kernels.math import ROUNDER, bits_of, float_of

__all__ = ["exp", "softmax"]

Doubles = NDArray[np.float64]

# ln 2 in two parts. The high part ends in 21 zero bits, so n * LN2_HIGH is exact for |n| < 2^21.
LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
INVERSE_LN2 = float.fromhex("0x1.71547652b82fep+0")
COEFFICIENTS = tuple(1.0 / math.factorial(k) for k in range(13, -1, -1))  # k! < 2^53: exact
UNDERFLOW = -746.0  # below -745.14 the nearest float64 to exp(x) is 0
BIAS, MANTISSA_BITS = 1023, 52


@jit
def exp(x: Doubles) -> Doubles:
    """Return e^x for each x <= 0 of [V], as `refllm.sampling.exp` defines it."""
    out = np.empty_like(x)
    for i in range(x.size):
        out[i] = _exp_of_one(x[i])
    return out


@jit
def softmax(logits: Doubles) -> Doubles:
    """Return e^(logit - max) over the sum of all of them, left to right, for each of [V]."""
    largest = logits.max()
    powers = np.empty_like(logits)  # [V]
    for i in range(logits.size):
        powers[i] = _exp_of_one(logits[i] - largest)
    total = 0.0
    for i in range(logits.size):
        total += powers[i]
    for i in range(logits.size):
        powers[i] /= total
    return powers


@inner
def _exp_of_one(x: float) -> float:
    if x < UNDERFLOW:
        x = UNDERFLOW
    shifted = x * INVERSE_LN2 + ROUNDER
    n = shifted - ROUNDER
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    series = COEFFICIENTS[0]
    for coefficient in COEFFICIENTS[1:]:
        series = series * r + coefficient
    # In two factors, because 2^-1075 is no float64: the first product is exact, the second rounds.
    exponent = bits_of(shifted) - bits_of(ROUNDER)
    half = exponent >> 1
    return (series * _power_of_two(half)) * _power_of_two(exponent - half)


@inner
def _power_of_two(exponent: np.int64) -> np.float64:
    return float_of((exponent + BIAS) << MANTISSA_BITS)
