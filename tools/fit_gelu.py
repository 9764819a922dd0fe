"""Derive the coefficients of `refllm.kernels.math.upper_tail`: run it and compare.

    pip install mpmath
    python tools/fit_gelu.py

For a ≥ 0 the upper tail of the normal distribution is Q(a) = erfc(a/√2)/2. The product
exp(a²/2)·Q(a)·(a + 5) is smooth and of the order of 1; with u = (a − 5)/(a + 5) the half line
becomes the interval [−1, 1), and a polynomial of degree 13 in u fits it. The coefficients are
Chebyshev interpolation on 0 ≤ a ≤ 16, computed with 40 digits.
"""

from __future__ import annotations

import mpmath

DEGREE = 13
POLE = 5
LARGEST = 16


def scaled_tail(u: mpmath.mpf) -> mpmath.mpf:
    """exp(a²/2)·Q(a)·(a + 5) where u = (a − 5)/(a + 5)."""
    a = POLE * (1 + u) / (1 - u)
    return mpmath.exp(a * a / 2) * mpmath.erfc(a / mpmath.sqrt(2)) / 2 * (a + POLE)


def main() -> None:
    """Print the coefficients, highest power first, and the largest relative error of the fit."""
    mpmath.mp.dps = 40
    interval = [mpmath.mpf(-1), mpmath.mpf(LARGEST - POLE) / (LARGEST + POLE)]
    coefficients = [float(c) for c in mpmath.chebyfit(scaled_tail, interval, DEGREE + 1)]
    for coefficient in coefficients:
        print(repr(coefficient))
    points = mpmath.linspace(*interval, 2001)
    error = max(abs(mpmath.polyval(coefficients, u) / scaled_tail(u) - 1) for u in points)
    print("largest relative error:", mpmath.nstr(error, 3))


if __name__ == "__main__":
    main()
