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

from refllm.jit.compile import elementary, inner
from refllm.kernels.simd.doubles import at_least, times_power

__all__ = [
    "LOG2_E",
    "ROUNDER",
    "bits_of",
    "exp2",
    "exp_f32",
    "float_of",
    "gelu_f32",
    "logistic",
    "sigmoid_f32",
    "silu_f32",
    "sin_cos",
    "tanh_f32",
]

# 1/ln 2 = log2 e, so e**x = 2**(x·LOG2_E), and e**(−a²/2) = 2**(a²·MINUS_HALF_LOG2_E).
LOG2_E = 1.4426950408889634
MINUS_HALF_LOG2_E = -0.7213475204444817

# π/2 in three parts of 33, 33 and 53 bits: products with integers below 2^20 are exact.
TWO_OVER_PI = 0.6366197723675814
HALF_PI_1 = 1.5707963267341256
HALF_PI_2 = 6.077100506303966e-11
HALF_PI_3 = 2.0222662487959506e-21

# x + 1.5·2^52 has no bits for a fraction, so the addition rounds x to the nearest integer, ties to
# even. The lowest bits of the sum are that integer, too.
ROUNDER = 6755399441055744.0
# 2**y is computed for |y| up to here: beyond, no float32 result depends on it.
LARGEST_POWER = 1020.0


@inner
def exp2(y: float) -> float:
    """Return 2**y as float64 for −1020 ≤ y ≤ 1020; below, the value at −1020. NaN stays NaN.

    y = n + f with |f| ≤ 1/2. 2**f is a polynomial of degree 8, fitted by `tools/fit_exp.py` with a
    relative error below 2^-39.7 and exact at 0; its terms are added in pairs, which do not wait for
    each other. n is added to the exponent's bits.
    """
    y = at_least(y, -LARGEST_POWER)
    shifted = y + ROUNDER
    f = y - (shifted - ROUNDER)
    f2 = f * f
    f4 = f2 * f2
    low = (0.6931471805412327 * f + 1.0) + f2 * (0.05550410959228811 * f + 0.2402265069474259)
    middle = 0.0013333434157560176 * f + 0.009618129558838935
    high = 1.5314209223349525e-05 * f + 0.0001540309828656179
    high = high + f2 * 1.3344183484134179e-06
    return times_power(low + f4 * (middle + f2 * high), shifted)


@inner
def power_ratio(y: float) -> tuple[float, float, float]:
    """Return (a, b, shifted) with 2**y = a/b · 2**n and shifted = n + ROUNDER, for |y| ≤ 1020.

    y = n + f with |f| ≤ 1/2. 2**f = (c + f)/(c − f), where c = f·(2**f + 1)/(2**f − 1) is an even
    function of f, here a polynomial of degree 3 in f²; `tools/fit_exp.py` fits it, with a relative
    error of 2**f below 2^-40. A function that divides anyway needs no second division.
    """
    shifted = y + ROUNDER
    f = y - (shifted - ROUNDER)
    square = f * f
    c = 1.0518900052726976e-05 * square + -0.000925058601582435
    c = c * square + 0.11552452959976861
    c = c * square + 2.8853900817817824
    return c + f, c - f, shifted


@elementary
def exp_f32(x: np.float32) -> np.float32:
    """Return e**x, rounded once, for x ≤ 88. Worst error for x ≤ 0: 0.500017 ULP."""
    return np.float32(exp2(np.float64(x) * LOG2_E))


@inner
def logistic(x: float, z: float) -> float:
    """Return x·sigmoid(z) = x/(1 + e**−z) in float64.

    With e**−z = a/b it is x·b/(a + b).
    """
    y = z * -LOG2_E
    if y > LARGEST_POWER:
        y = LARGEST_POWER
    if y < -LARGEST_POWER:
        y = -LARGEST_POWER
    a, b, shifted = power_ratio(y)
    return (x * b) / (b + times_power(a, shifted))


@elementary
def silu_f32(x: np.float32) -> np.float32:
    """Return x·sigmoid(x) = x / (1 + e**−x), rounded once. Worst error 0.500004 ULP.

    Source: Elfwing et al. 2017, arXiv:1702.03118.
    """
    wide = np.float64(x)
    return np.float32(logistic(wide, wide))


@elementary
def sigmoid_f32(x: np.float32) -> np.float32:
    """Return 1 / (1 + e**−x), rounded once. Worst error 0.500002 ULP."""
    return np.float32(logistic(1.0, np.float64(x)))


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
    return np.float32(np.copysign(1.0 - logistic(2.0, -2.0 * a), x))


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

    e**(−a²/2) · P(a)/D(a) with polynomials of degree 6 and 7, fitted by `tools/fit_gelu.py` for
    a ≤ 13.4, with a relative error below 2^-39. Beyond, the only promise is that its product with
    any float32 is less than half of the smallest float32. Each polynomial is written in a² as far
    as possible, (… · (a² + α) + β) · (a² + α′) + β′, with a third fewer multiplications than
    Horner's scheme (Knuth, The Art of Computer Programming, volume 2, section 4.6.4).
    """
    if a > 20.0:
        a = 20.0
    square = a * a
    up, down, shifted = power_ratio(square * MINUS_HALF_LOG2_E)
    p = (6.7136677878884825 * a + 38.38084904498811) + 0.39894236027429336 * square
    p = p * (square + 31.361438475160114) + -775.1323481572097
    p = p * (square + 6.4392526309277) + -1563.6058460293232
    d = a + 16.828684937345106
    d = d * (square + 118.18183232417287) + -1619.0091183179852
    d = d * (square + 14.040634582686492) + -2877.4948211370356
    d = d * (square + 2.7842095106018054) + -4054.2702054982556
    return times_power((up * p) / (down * d), shifted)


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


@inner
def bits_of(x: float) -> np.int64:
    """Return the 64 bits of a float64 as an integer."""
    return np.float64(x).view(np.int64)


@inner
def float_of(bits: np.int64) -> np.float64:
    """Return the float64 with these 64 bits."""
    return np.int64(bits).view(np.float64)
