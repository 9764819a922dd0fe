"""Rotary position embedding (RoPE): the rotation of each pair of a head's elements.

Pair i of R/2 is rotated by base^(−2i/R) radians per position, divided by a factor in a model that
was extended to a longer context:

    linear    the same factor for every pair
    Llama 3   `factor` for long waves, 1 for short ones, a blend between them
    YaRN      the same idea with another blend; rotated pairs are also scaled

R elements of a head are rotated, E at most. Source: Su et al. 2021, arXiv:2104.09864.

`pow` differs between C libraries, so the frequencies are computed in decimal arithmetic and rounded
once.
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Llama3Scaling", "YarnScaling", "rope_frequencies"]

DIGITS = 50
PI = Decimal("3.14159265358979323846264338327950288419716939937511")


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's scaling: the frequencies of long waves are divided by `factor`.

    Wave lengths are in positions; between original_context / high_freq_factor and
    original_context / low_freq_factor the divisor is a blend of 1 and `factor`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def factors(self, *, base: float, rope_dim: int) -> tuple[float, ...]:
        """Return the divisor of each pair's frequency, [R/2], each the nearest float32.

        GGUF files store these numbers as `rope_freqs.weight`.
        Source: Llama 3.1's reference code (`apply_scaling`), "use_scaled_rope".
        """
        with decimal.localcontext(prec=DIGITS):
            low, high = Decimal(self.low_freq_factor), Decimal(self.high_freq_factor)
            factor, context = Decimal(self.factor), Decimal(self.original_context)
            found = []
            for frequency in _unscaled(base, rope_dim):
                wave_length = 2 * PI / frequency
                if wave_length < context / high:
                    found.append(Decimal(1))
                elif wave_length > context / low:
                    found.append(factor)
                else:
                    smooth = (context / wave_length - low) / (high - low)
                    found.append(1 / ((1 - smooth) / factor + smooth))
            with np.errstate(over="ignore"):  # an infinite one is the file's, and is refused
                return tuple(float(np.float32(value)) for value in found)


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN's scaling: pairs that rotate often within the original context keep their frequency.

    Pairs with more than `beta_fast` rotations within `original_context` positions keep their
    frequency, pairs with fewer than `beta_slow` get it divided by `factor`; a ramp over the pairs'
    numbers blends between the two.

    Attributes:
        factor: The ratio of the new context to the original one.
        original_context: The context of the first training, in positions.
        beta_fast: Rotations within the original context where the ramp begins.
        beta_slow: Rotations within the original context where the ramp ends.
        truncate: Whether the ends of the ramp are rounded to whole pairs.

    Source: Peng et al. 2023, arXiv:2309.00071, with the ramp of transformers and llama.cpp.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def divisors(self, *, base: float, rope_dim: int) -> tuple[Decimal, ...]:
        """Return the divisor of each pair's frequency, [R/2]."""
        with decimal.localcontext(prec=DIGITS):
            low, high = (
                rope_dim
                * (Decimal(self.original_context) / (Decimal(turns) * 2 * PI)).ln()
                / (2 * Decimal(base).ln())
                for turns in (self.beta_fast, self.beta_slow)
            )
            if self.truncate:
                low = low.to_integral_value(decimal.ROUND_FLOOR)
                high = high.to_integral_value(decimal.ROUND_CEILING)
            low, high = max(low, Decimal(0)), min(high, Decimal(rope_dim - 1))
            if low == high:
                high += Decimal("0.001")
            found = []
            for pair in range(rope_dim // 2):
                slowed = min(max((pair - low) / (high - low), Decimal(0)), Decimal(1))
                found.append(1 / (slowed / Decimal(self.factor) + 1 - slowed))
            return tuple(found)

    def attention_factor(self, *, multiplier: float = 1.0) -> float:
        """Return 0.1·multiplier·ln(factor) + 1, the scale of a rotated pair."""
        if self.factor <= 1.0:
            return 1.0
        with decimal.localcontext(prec=DIGITS):
            return float(Decimal("0.1") * Decimal(multiplier) * Decimal(self.factor).ln() + 1)


def rope_frequencies(
    *,
    base: float,
    rope_dim: int,
    factors: Sequence[float] | None = None,
    linear_scale: float = 1.0,
    yarn: YarnScaling | None = None,
) -> NDArray[np.float64]:
    """Return base^(−2i/R) / (factors[i] · linear_scale) for i = 0 … R/2 − 1, float64 [R/2].

    Each is rounded once. With `yarn`, its divisor of each pair multiplies the other divisors.

    Example:
        >>> rope_frequencies(base=10000.0, rope_dim=4)
        array([1.  , 0.01])
    """
    with decimal.localcontext(prec=DIGITS):
        unscaled = _unscaled(base, rope_dim)
        divisors = [Decimal(factor) for factor in factors or [1.0] * len(unscaled)]
        if yarn is not None:
            stretched = yarn.divisors(base=base, rope_dim=rope_dim)
            divisors = [a * b for a, b in zip(divisors, stretched, strict=True)]
        stretch = Decimal(linear_scale)
        pairs = zip(unscaled, divisors, strict=True)
        return np.array([float(value / (divisor * stretch)) for value, divisor in pairs])


def _unscaled(base: float, rope_dim: int) -> list[Decimal]:
    """Return base^(−2i/R) for i = 0 … R/2 − 1, to 50 digits."""
    logarithm = Decimal(base).ln()
    return [(logarithm * -2 * i / rope_dim).exp() for i in range(rope_dim // 2)]
