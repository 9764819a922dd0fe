"""Derive the coefficients of `exp2` and `power_ratio` in `refllm.kernels.math`: run and compare.

    pip install mpmath
    python tools/fit_exp.py

Both compute 2**f for |f| ≤ 1/2. `exp2` has a polynomial 1 + c₁·f + … + c₈·f⁸ with the smallest
possible largest relative error (Remez's algorithm: a linear system makes the error equal, with
alternating sign, at nine points; the points then move to where the error is largest).
`power_ratio` has (c + f)/(c − f) with c = f·(2**f + 1)/(2**f − 1), which is an even function;
Chebyshev interpolation fits it by a polynomial of degree 3 in f².
"""

from __future__ import annotations

from itertools import groupby

import mpmath

DEGREE = 8
RATIO_DEGREE = 3
HALF = mpmath.mpf("0.5")

Coefficients = list[mpmath.mpf]  # lowest power first


def relative_error(coefficients: Coefficients, f: mpmath.mpf) -> mpmath.mpf:
    """Of the polynomial 1 + f·(…)."""
    return (1 + f * mpmath.polyval(coefficients[::-1], f)) / 2**f - 1


def fit_polynomial() -> Coefficients:
    """c₁ … c₈."""
    count = DEGREE + 1
    fine = mpmath.linspace(-HALF, HALF, 4001)
    places = [-HALF * mpmath.cos(mpmath.pi * (i + HALF) / count) for i in range(count)]
    for _ in range(10):
        rows = [[*(f**k for k in range(1, count)), (-1) ** i * 2**f] for i, f in enumerate(places)]
        right = [2**f - 1 for f in places]
        solution = list(mpmath.lu_solve(mpmath.matrix(rows), mpmath.matrix(right)))
        coefficients = solution[:-1]
        errors = [(relative_error(coefficients, f), f) for f in fine]
        runs = [list(run) for _, run in groupby(errors, key=lambda pair: pair[0] > 0)]
        peaks = [max(run, key=lambda pair: abs(pair[0])) for run in runs]
        largest = sorted(peaks, key=lambda pair: abs(pair[0]))[-count:]
        places = sorted(f for _, f in largest)
    return coefficients


def scaled_cotangent(square: mpmath.mpf) -> mpmath.mpf:
    """f·(2**f + 1)/(2**f − 1) of f²."""
    if square == 0:
        return 2 / mpmath.log(2)
    f = mpmath.sqrt(square)
    return f * (2**f + 1) / (2**f - 1)


def main() -> None:
    """Print the coefficients, highest power first, and the largest relative errors."""
    mpmath.mp.dps = 40
    fine = mpmath.linspace(-HALF, HALF, 4001)
    polynomial = [float(c) for c in fit_polynomial()]
    print("exp2:", *(repr(c) for c in reversed(polynomial)), "1.0", sep="\n    ")
    worst = max(abs(relative_error(polynomial, f)) for f in fine)
    print("largest relative error: 2^", mpmath.nstr(mpmath.log(worst, 2), 5), sep="")
    fitted = mpmath.chebyfit(scaled_cotangent, [0, HALF**2], RATIO_DEGREE + 1)
    ratio = [float(c) for c in fitted]  # highest power first
    print("power_ratio:", *(repr(c) for c in ratio), sep="\n    ")
    centers = [(mpmath.polyval(ratio, f * f), f) for f in fine]
    worst = max(abs((c + f) / (c - f) / 2**f - 1) for c, f in centers)
    print("largest relative error: 2^", mpmath.nstr(mpmath.log(worst, 2), 5), sep="")


if __name__ == "__main__":
    main()
