"""Rotary position embedding: by how much each pair of a head turns per position.

Pair i of R/2 turns by base^(−2i/R) radians per position, divided by a factor where the model was
stretched to a longer context. `pow` differs between C libraries, so the frequencies are computed
in decimal arithmetic and rounded once.
"""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Llama3Scaling", "rope_frequencies"]

DIGITS = 50
PI = Decimal("3.14159265358979323846264338327950288419716939937511")


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretch: long waves are slowed by `factor`, short ones are left alone.

    Wave lengths are in positions; between original_context / high_freq_factor and
    original_context / low_freq_factor the two are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def factors(self, *, base: float, rope_dim: int) -> tuple[float, ...]:
        """What each pair's frequency is divided by, [R/2], each the nearest float32.

        These are the numbers that GGUF files carry as `rope_freqs.weight`.
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
            return tuple(float(np.float32(value)) for value in found)


def rope_frequencies(
    *,
    base: float,
    rope_dim: int,
    factors: Sequence[float] | None = None,
    linear_scale: float = 1.0,
) -> NDArray[np.float64]:
    """base^(−2i/R) / (factors[i] · linear_scale) for i = 0 … R/2 − 1, each rounded once, [R/2]."""
    with decimal.localcontext(prec=DIGITS):
        unscaled = _unscaled(base, rope_dim)
        divisors = [Decimal(factor) for factor in factors or [1.0] * len(unscaled)]
        stretch = Decimal(linear_scale)
        pairs = zip(unscaled, divisors, strict=True)
        return np.array([float(value / (divisor * stretch)) for value, divisor in pairs])


def _unscaled(base: float, rope_dim: int) -> list[Decimal]:
    """base^(−2i/R) for i = 0 … R/2 − 1, to 50 digits."""
    logarithm = Decimal(base).ln()
    return [(logarithm * -2 * i / rope_dim).exp() for i in range(rope_dim // 2)]
