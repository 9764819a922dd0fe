"""Measure the worst error of each elementary function over every float32 in its range.

    python tools/measure_math.py

The reference is the C library's float64 function, whose own error (below one unit of float64) is
2^-29 of a float32 unit: too small to show. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import njit, prange

from refllm.kernels.math import exp_f32, gelu_f32, sigmoid_f32, silu_f32, sin_cos, tanh_f32

INFINITY_BITS = 0x7F800000
SIGN = 0x80000000
EXPONENT_BITS = 0x7FF0000000000000


@njit(error_model="numpy")
def ulps(got: np.float32, exact: float) -> float:
    """|got − exact| in units of the last place of a float32 of exact's size."""
    size = np.float64(max(abs(exact), 2.0**-126))
    power_of_two = np.int64(size.view(np.int64) & EXPONENT_BITS).view(np.float64)
    return abs(np.float64(got) - exact) / (power_of_two * 2.0**-23)


@njit(error_model="numpy")
def exp_error(x: np.float32) -> float:
    """Of `exp_f32`."""
    return ulps(exp_f32(x), math.exp(np.float64(x)))


@njit(error_model="numpy")
def silu_error(x: np.float32) -> float:
    """Of `silu_f32`; where e**−x leaves float64, the result is below every float32."""
    wide = np.float64(x)
    return ulps(silu_f32(x), wide / (1.0 + math.exp(-wide)) if wide > -700.0 else 0.0)


@njit(error_model="numpy")
def sigmoid_error(x: np.float32) -> float:
    """Of `sigmoid_f32`; where e**−x leaves float64, the result is below every float32."""
    wide = np.float64(x)
    return ulps(sigmoid_f32(x), 1.0 / (1.0 + math.exp(-wide)) if wide > -700.0 else 0.0)


@njit(error_model="numpy")
def tanh_error(x: np.float32) -> float:
    """Of `tanh_f32`."""
    return ulps(tanh_f32(x), math.tanh(np.float64(x)))


@njit(error_model="numpy")
def gelu_error(x: np.float32) -> float:
    """Of `gelu_f32`."""
    wide = np.float64(x)
    return ulps(gelu_f32(x), wide * (0.5 * math.erfc(-wide / math.sqrt(2.0))))


@njit(error_model="numpy")
def sin_cos_error(x: np.float32) -> float:
    """The larger of `sin_cos`'s two."""
    wide = np.float64(x)
    sine, cosine = sin_cos(wide)
    return max(ulps(sine, math.sin(wide)), ulps(cosine, math.cos(wide)))


def worst(error: Callable[[np.float32], float], low: int, high: int) -> tuple[float, float]:
    """The largest error over the float32s whose bits are low … high − 1, and where it is."""

    @njit(parallel=True, error_model="numpy")
    def scan(low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        n_parts = 4096
        errors, places = np.zeros(n_parts), np.zeros(n_parts)
        for part in prange(n_parts):
            for bits in range(low + part, high, n_parts):
                x = np.uint32(bits).view(np.float32)
                here = error(x)
                if not here <= errors[part]:
                    errors[part], places[part] = here, x
        return errors, places

    errors, places = scan(low, high)
    top = int(np.argmax(errors))
    return float(errors[top]), float(places[top])


def bits_of(x: float) -> int:
    """The bits of the float32 x, as an integer."""
    return int(np.float32(x).view(np.uint32))


def main() -> None:
    """Print a line for each function."""
    ranges = {
        "exp_f32 (x ≤ 0)": (exp_error, [(SIGN, SIGN + INFINITY_BITS)]),
        "silu_f32": (silu_error, [(0, INFINITY_BITS), (SIGN, SIGN + INFINITY_BITS)]),
        "sigmoid_f32": (sigmoid_error, [(0, INFINITY_BITS), (SIGN, SIGN + INFINITY_BITS)]),
        "tanh_f32": (tanh_error, [(0, INFINITY_BITS), (SIGN, SIGN + INFINITY_BITS)]),
        "gelu_f32": (gelu_error, [(0, INFINITY_BITS), (SIGN, SIGN + INFINITY_BITS)]),
        "sin_cos (|x| ≤ 2^20)": (
            sin_cos_error,
            [(0, bits_of(2**20) + 1), (SIGN, bits_of(-(2**20)) + 1)],
        ),
    }
    for name, (error, parts) in ranges.items():
        found = max(worst(error, low, high) for low, high in parts)
        print(f"{name}: worst error {found[0]:.7f} ULP at x = {found[1]!r}", flush=True)


if __name__ == "__main__":
    main()
