"""The operations of the two networks in decimal numbers of 120 digits, rounded once at the end.

A second implementation, to hold the first one to: it shares no code with refllm but the rounding
of `tools.make_sampling_goldens`, and has nothing of float32 in it but the inputs. Arrays are NumPy
arrays of `decimal.Decimal`, which NumPy adds and multiplies one by one.

T tokens, S tokens seen, D width, H heads, K key/value heads, E head width, R rotated part of it.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tools.make_sampling_goldens import rounded

__all__ = [
    "attention",
    "decimals",
    "exactly",
    "frequencies",
    "gelu",
    "l2_normalize",
    "layer_norm",
    "matmul",
    "mean_pool",
    "rms_norm",
    "rope",
    "silu",
    "softmax",
    "to_float32",
]

Floats: TypeAlias = NDArray[np.float32]
Decimals: TypeAlias = NDArray[np.object_]

DIGITS = 120
# No larger than this, a term of a series is nothing.
NOTHING = Decimal(10) ** (-DIGITS - 5)


# In and out


def decimals(values: Floats | float) -> Decimals:
    """The numbers as they are: every float32 is a decimal number."""
    wide = np.asarray(values, np.float64)
    return np.array([Decimal(x) for x in wide.ravel().tolist()], object).reshape(wide.shape)


def exactly(compute: Callable[..., Decimals], **inputs: Any) -> Floats:
    """compute(**inputs) at 120 digits, each number rounded once to float32."""
    with decimal.localcontext(prec=DIGITS):
        result = compute(**inputs)
    values = [to_float32(x) for x in result.ravel().tolist()]
    return np.array(values, np.float32).reshape(result.shape)


def to_float32(x: Decimal) -> float:
    """The nearest float32, half to even."""
    return float(rounded(Fraction(x), precision=24, lowest_exponent=-149))


# Functions of one number


def _phi(x: Decimal) -> Decimal:
    """The normal distribution's Φ(x): half of 1 + erf(x/√2), by a series of positive terms."""
    square, term, total, n = x * x, abs(x), Decimal(0), 1
    while term > NOTHING:
        total += term
        n += 2
        term = term * square / n
    half_erf = total * (-square / 2).exp() / (2 * _pi()).sqrt()
    return Decimal("0.5") + half_erf.copy_sign(x)


@cache
def _pi() -> Decimal:
    """Machin: π = 16·arctan(1/5) − 4·arctan(1/239)."""
    return 16 * _arctan_of_inverse(5) - 4 * _arctan_of_inverse(239)


def _arctan_of_inverse(n: int) -> Decimal:
    power, total, k = Decimal(1) / n, Decimal(0), 1
    while abs(power) > NOTHING:
        total += power / k
        power, k = -power / (n * n), k + 2
    return total


def _cos_sin(angle: Decimal) -> tuple[Decimal, Decimal]:
    """By Taylor's series, after whole turns are taken off."""
    turn = 2 * _pi()
    x = angle - (angle / turn).to_integral_value() * turn
    parts, term, n = [Decimal(0)] * 4, Decimal(1), 0
    while abs(term) > NOTHING or n < 4:
        parts[n % 4] += term
        n += 1
        term = term * x / n
    return parts[0] - parts[2], parts[1] - parts[3]


_PHI = np.frompyfunc(_phi, 1, 1)


# Operations


def silu(x: Decimals) -> Decimals:
    """x / (1 + e^−x)."""
    result: Decimals = x / (1 + np.exp(-x))
    return result


def gelu(x: Decimals) -> Decimals:
    """x·Φ(x)."""
    result: Decimals = x * _PHI(x)
    return result


def softmax(x: Decimals) -> Decimals:
    """e^x / Σ e^x over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Decimals = e / e.sum(axis=-1, keepdims=True)
    return result


def rms_norm(x: Decimals, weight: Decimals, eps: Decimals) -> Decimals:
    """x / √(mean(x²) + ε) · weight for each row of x [T, D]."""
    mean_square = (x * x).sum(axis=-1, keepdims=True) / x.shape[-1]
    result: Decimals = x / np.sqrt(mean_square + eps) * weight
    return result


def layer_norm(x: Decimals, weight: Decimals, bias: Decimals, eps: Decimals) -> Decimals:
    """(x − mean) / √(mean((x − mean)²) + ε) · weight + bias for each row of x [T, D]."""
    centered = x - x.sum(axis=-1, keepdims=True) / x.shape[-1]
    result: Decimals = rms_norm(centered, weight, eps) + bias
    return result


def frequencies(theta: float, rope_dim: int) -> list[Decimal]:
    """By how many radians each pair turns per position: theta^(−2i/R), [R/2]."""
    logarithm = Decimal(theta).ln()
    return [(logarithm * -2 * i / rope_dim).exp() for i in range(rope_dim // 2)]


def rope(
    x: Decimals, positions: Sequence[int], theta: float, rope_dim: int, layout: str
) -> Decimals:
    """The pairs in the first R elements of each head of x [T, H, E], turned."""
    out = x.copy()
    n_pairs = rope_dim // 2
    for t, position in enumerate(positions):
        for i, frequency in enumerate(frequencies(theta, rope_dim)):
            cosine, sine = _cos_sin(position * frequency)
            first, second = (2 * i, 2 * i + 1) if layout == "norm" else (i, i + n_pairs)
            a, b = x[t, :, first], x[t, :, second]
            out[t, :, first] = a * cosine - b * sine
            out[t, :, second] = a * sine + b * cosine
    return out


def attention(q: Decimals, k: Decimals, v: Decimals, causal: bool) -> Decimals:
    """softmax(q·k/√E)·v: q [T, H, E], k and v [S, K, E]; causal tokens are the last T of the S."""
    n_tokens, n_heads, width = q.shape
    n_seen, n_kv_heads, _ = k.shape
    out = np.empty_like(q)
    for t in range(n_tokens):
        visible = n_seen - n_tokens + t + 1 if causal else n_seen
        for h in range(n_heads):
            head = h * n_kv_heads // n_heads
            scores = k[:visible, head] @ q[t, h] / Decimal(width).sqrt()
            out[t, h] = softmax(scores) @ v[:visible, head]
    return out


def matmul(x: Decimals, w: Decimals) -> Decimals:
    """x [T, D] times the rows of w [N, D]: [T, N]."""
    result: Decimals = x @ w.T
    return result


def mean_pool(x: Decimals, mask: Sequence[int]) -> Decimals:
    """The mean of those rows of x [T, D] whose mask is 1, [D]."""
    kept = x[np.array(mask) == 1]
    result: Decimals = kept.sum(axis=0) / len(kept)
    return result


def l2_normalize(x: Decimals) -> Decimals:
    """x / max(‖x‖, 1e-12), [D]."""
    length: Decimal = np.sum(x * x).sqrt()
    result: Decimals = x / max(length, Decimal("1e-12"))
    return result
