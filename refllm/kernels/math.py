"""Elementary functions that give the same bits on every machine.

`exp` of the C library, of Intel's SVML and of NumPy differ in the last bit, between each other and
between versions. The functions here use only what IEEE 754 defines exactly (+, −, ×, ÷ on float64)
and operations on bits, with fixed coefficients, so they cannot differ. Functions that return
float32 round once, at the end: the error before that rounding is below 2^-13 of a float32 unit in
the last place (ULP), so the result is the correctly rounded one but for a few inputs in ten
thousand.

The stated worst errors are over every float32 input (`python tools/measure_math.py` repeats the
measurement); 0.5 ULP is what perfect rounding would give.
"""

from __future__ import annotations

import numpy as np

from refllm.jit.buffers import Floats
from refllm.jit.compile import elementary, inner

__all__ = [
    "ROUNDER",
    "bits_of",
    "exp",
    "exp_f32",
    "float_of",
    "gelu_f32",
    "row_max",
    "sigmoid_f32",
    "silu_f32",
    "sin_cos",
    "tanh_f32",
]

# ln 2 in two parts: the first has 38 bits, so that its product with a 15-bit integer is exact.
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.6931471805582987
LN2_LOW = 1.6465949582897082e-12

# π/2 in three parts of 33, 33 and 53 bits: products with integers below 2^20 are exact.
TWO_OVER_PI = 0.6366197723675814
HALF_PI_1 = 1.5707963267341256
HALF_PI_2 = 6.077100506303966e-11
HALF_PI_3 = 2.0222662487959506e-21

# x + 1.5·2^52 has no bits for a fraction, so the addition rounds x to the nearest integer, ties to
# even. The lowest bits of the sum are that integer, too.
ROUNDER = 6755399441055744.0
ONE_BITS = 0x3FF0000000000000


@inner
def exp(x: float) -> float:
    """Return e**x as float64 for −708 ≤ x ≤ 708; beyond, the value at that end. NaN stays NaN.

    x = n·ln2 + r with |r| ≤ ln2/2, so e**x = 2**n · e**r, and e**r is its Taylor series
    1 + r + r²/2! + … + r¹⁰/10!, whose remainder is below 2^-41.
    """
    if x > 708.0:
        x = 708.0
    if x < -708.0:
        x = -708.0
    shifted = x * LOG2_E + ROUNDER
    n = shifted - ROUNDER
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    series = 1 / 3628800
    series = series * r + 1 / 362880
    series = series * r + 1 / 40320
    series = series * r + 1 / 5040
    series = series * r + 1 / 720
    series = series * r + 1 / 120
    series = series * r + 1 / 24
    series = series * r + 1 / 6
    series = series * r + 1 / 2
    series = series * r + 1.0
    series = series * r + 1.0
    two_to_n = float_of((bits_of(shifted) << 52) + ONE_BITS)
    return series * two_to_n


@elementary
def exp_f32(x: np.float32) -> np.float32:
    """Return e**x, rounded once. Worst error 0.500002 ULP, over every float32 x ≤ 0 (softmax)."""
    return np.float32(exp(np.float64(x)))


@elementary
def silu_f32(x: np.float32) -> np.float32:
    """Return x·sigmoid(x) = x / (1 + e**−x), rounded once. Worst error 0.500004 ULP.

    Source: Elfwing et al. 2017, arXiv:1702.03118.
    """
    wide = np.float64(x)
    return np.float32(wide / (1.0 + exp(-wide)))


@elementary
def sigmoid_f32(x: np.float32) -> np.float32:
    """Return 1 / (1 + e**−x), rounded once. Worst error 0.500002 ULP."""
    return np.float32(1.0 / (1.0 + exp(-np.float64(x))))


@elementary
def tanh_f32(x: np.float32) -> np.float32:
    """Return tanh x, rounded once. Worst error 0.500002 ULP.

    1 − 2/(1 + e**2a) with a = |x|; below 1/4, where that cancels, the Taylor series up to a¹⁵,
    whose remainder is below 2^-42 of the result.
    """
    a = abs(np.float64(x))
    if a < 0.25:
        square = a * a
        series = -929569 / 638512875
        series = series * square + 21844 / 6081075
        series = series * square + -1382 / 155925
        series = series * square + 62 / 2835
        series = series * square + -17 / 315
        series = series * square + 2 / 15
        series = series * square + -1 / 3
        return np.float32(np.copysign(a + a * (square * series), x))
    return np.float32(np.copysign(1.0 - 2.0 / (1.0 + exp(2.0 * a)), x))


@elementary
def gelu_f32(x: np.float32) -> np.float32:
    """Return x·Φ(x) = x/2·(1 + erf(x/√2)), rounded once. Worst error 0.500016 ULP.

    This is the exact GELU, not the tanh approximation. For negative x, where 1 + erf cancels,
    Φ(x) is the upper tail at |x|. Source: Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    wide = np.float64(x)
    tail = upper_tail(abs(wide))
    phi = tail if wide < 0.0 else 1.0 - tail
    return np.float32(wide * phi)


@inner
def upper_tail(a: float) -> float:
    """Return Q(a) = erfc(a/√2)/2, the normal distribution's mass above a ≥ 0.

    e**(−a²/2) · P(u)/(a + 5) with u = (a − 5)/(a + 5) and a polynomial P of degree 13, fitted by
    `tools/fit_gelu.py` for a ≤ 16, with a relative error below 2^-38. Beyond, the only promise is
    that its product with any float32 is less than half of the smallest float32.
    """
    if a > 40.0:
        a = 40.0
    inverse = 1.0 / (a + 5.0)
    u = (a - 5.0) * inverse
    p = 6.678069290679525e-06
    p = p * u + 1.571064635189188e-05
    p = p * u + -5.213519787978206e-05
    p = p * u + -5.9673544027723074e-05
    p = p * u + 0.000545678871653129
    p = p * u + -0.000797675237674831
    p = p * u + -0.0029935042639485667
    p = p * u + 0.020795034186024366
    p = p * u + -0.0691186275617298
    p = p * u + 0.1650203681378432
    p = p * u + -0.31353315715020325
    p = p * u + 0.4953056159426588
    p = p * u + -0.6653825028835866
    p = p * u + 0.7691930497499815
    return exp(-0.5 * (a * a)) * (p * inverse)


@elementary
def sin_cos(x: float) -> tuple[np.float32, np.float32]:
    """Return (sin x, cos x) for a float64 |x| ≤ 2^20, each rounded once to float32.

    x = n·π/2 + r with |r| ≤ π/4 (Cody and Waite's reduction, π/2 in three parts), then the Taylor
    series of sine and cosine; n modulo 4 selects the series and the sign. Worst error
    0.5000001 ULP, over every float32 in the range.
    """
    shifted = x * TWO_OVER_PI + ROUNDER
    n = shifted - ROUNDER
    quadrant = bits_of(shifted) & 3
    r = ((x - n * HALF_PI_1) - n * HALF_PI_2) - n * HALF_PI_3
    square = r * r
    s = -1 / 1307674368000
    s = s * square + 1 / 6227020800
    s = s * square + -1 / 39916800
    s = s * square + 1 / 362880
    s = s * square + -1 / 5040
    s = s * square + 1 / 120
    s = s * square + -1 / 6
    s = r + r * (square * s)
    c = 1 / 20922789888000
    c = c * square + -1 / 87178291200
    c = c * square + 1 / 479001600
    c = c * square + -1 / 3628800
    c = c * square + 1 / 40320
    c = c * square + -1 / 720
    c = c * square + 1 / 24
    c = 1.0 + square * (square * c - 0.5)
    if quadrant == 0:
        return np.float32(s), np.float32(c)
    if quadrant == 1:
        return np.float32(c), np.float32(-s)
    if quadrant == 2:
        return np.float32(-s), np.float32(-c)
    return np.float32(-c), np.float32(s)


@elementary
def row_max(row: Floats) -> np.float32:
    """Return the largest number; a NaN with sign + counts as larger than all.

    Floats are compared as integers, which a compiler may compare in any order, so several at a
    time. The bits of a negative float grow with its magnitude; with all but the sign inverted, they
    fall.
    """
    bits = row.view(np.int32)
    largest = np.int32(-(2**31))
    for i in range(bits.size):
        largest = max(largest, _ordered(bits[i]))
    return np.int32(_ordered(largest)).view(np.float32)


@inner
def _ordered(bits: np.int32) -> np.int32:
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@inner
def bits_of(x: float) -> np.int64:
    """Return the 64 bits of a float64 as an integer."""
    return np.float64(x).view(np.int64)


@inner
def float_of(bits: np.int64) -> np.float64:
    """Return the float64 with these 64 bits."""
    return np.int64(bits).view(np.float64)
