"""Derive the coefficients of `refllm.kernels.math.upper_tail`: run it and compare.

    pip install mpmath
    python tools/fit_gelu.py

For a ≥ 0 the upper tail of the normal distribution is Q(a) = erfc(a/√2)/2. The product
T(a) = exp(a²/2)·Q(a) is smooth and falls as 1/a, so a quotient of polynomials of degree 6 and 7
fits it on 0 ≤ a ≤ 13.4; beyond, the GELU of −a is a subnormal float32 or 0.

The fit is linear least squares, repeated (Sanathanan and Koerner 1963): P(a) − T(a)·D(a), divided
by T(a) and the D of the time before, is the relative error once D has settled. Its points are those
of Chebyshev in (a − 2)/(a + 2), so the largest error is near the smallest possible.

All roots of P and D have negative real parts. Then the odd part of each has real roots −α in a²
(Hurwitz), and dividing by a² + α leaves a remainder without a term in a (Eve 1964):
P(a) = (… · (a² + α₁) + β₁) · (a² + α₂) + β₂ with one multiplication and two additions for two
degrees, where Horner's scheme has two of each.
"""

from __future__ import annotations

import mpmath

DEGREE_ABOVE, DEGREE_BELOW = 6, 7
MIDDLE = 2
LARGEST = mpmath.mpf("13.4")

Coefficients = list[mpmath.mpf]  # lowest power first


def scaled_tail(a: mpmath.mpf) -> mpmath.mpf:
    """exp(a²/2)·Q(a)."""
    return mpmath.exp(a * a / 2) * mpmath.erfc(a / mpmath.sqrt(2)) / 2


def value(coefficients: Coefficients, a: mpmath.mpf) -> mpmath.mpf:
    """The polynomial's value."""
    return mpmath.polyval(coefficients[::-1], a)


def points(count: int) -> list[mpmath.mpf]:
    """Places in [0, LARGEST], denser towards both ends."""
    end = (LARGEST - MIDDLE) / (LARGEST + MIDDLE)
    cosines = (mpmath.cos(mpmath.pi * i / (count - 1)) for i in range(count))
    places = ((end - 1) / 2 - (end + 1) / 2 * cosine for cosine in cosines)
    return [MIDDLE * (1 + u) / (1 - u) for u in places]


def fit() -> tuple[Coefficients, Coefficients]:
    """P and D, whose highest coefficient is 1."""
    places = points(120)
    targets = [scaled_tail(a) for a in places]
    previous = [mpmath.mpf(1)] * len(places)
    for _ in range(8):
        rows, right = [], []
        for a, target, divisor in zip(places, targets, previous, strict=True):
            scale = 1 / (target * divisor)
            above = [scale * a**k for k in range(DEGREE_ABOVE + 1)]
            below = [-scale * target * a**k for k in range(1, DEGREE_BELOW + 1)]
            rows.append(above + below)
            right.append(scale * target)
        matrix, vector = mpmath.matrix(rows), mpmath.matrix(right)
        solution = list(mpmath.lu_solve(matrix.T * matrix, matrix.T * vector))
        p, d = solution[: DEGREE_ABOVE + 1], [mpmath.mpf(1), *solution[DEGREE_ABOVE + 1 :]]
        previous = [value(d, a) for a in places]
    return [c / d[-1] for c in p], [c / d[-1] for c in d]


def factored(coefficients: Coefficients) -> tuple[Coefficients, list[tuple[float, float]]]:
    """The innermost polynomial and the pairs (α, β), innermost first."""
    odd = coefficients[1::2]
    roots = mpmath.polyroots(odd[::-1], maxsteps=500, extraprec=200)
    steps = []
    for alpha in sorted(-mpmath.re(root) for root in roots):
        # Synthetic division by a² + α.
        left = coefficients[::-1]
        for i in range(len(left) - 2):
            left[i + 2] -= alpha * left[i]
        coefficients = left[-3::-1]
        steps.append((float(alpha), float(left[-1])))
    return coefficients, steps[::-1]


def main() -> None:
    """Print the numbers of both polynomials, and the largest relative error of the fit."""
    mpmath.mp.dps = 50
    rounded = []
    for name, polynomial in zip("pd", fit(), strict=True):
        innermost, steps = factored(polynomial)
        start = [float(c) for c in innermost]
        print(f"{name} = {' + '.join(f'{c!r}·a^{k}' for k, c in enumerate(start))}")
        for alpha, beta in steps:
            print(f"{name} = {name} · (a² + {alpha!r}) + {beta!r}")
        rounded.append((start, steps))
    worst = mpmath.mpf(0)
    for a in points(3001):
        values = []
        for start, steps in rounded:
            y = value(start, a)
            for alpha, beta in steps:
                y = y * (a * a + alpha) + beta
            values.append(y)
        worst = max(worst, abs(values[0] / values[1] / scaled_tail(a) - 1))
    print("largest relative error: 2^", mpmath.nstr(mpmath.log(worst, 2), 5), sep="")


if __name__ == "__main__":
    main()
