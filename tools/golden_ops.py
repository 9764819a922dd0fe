"""Writes golden/ops/cases.json: one operation at a time, what goes in and what must come out.

    python -m tools.golden_ops [FOLDER]

What comes out is computed by `tools.decimal_ops` with 120 digits and rounded once to float32. The
tolerance of a case is how far float32 arithmetic in any order can get from that at worst, by the
usual analysis of rounding errors (Higham, Accuracy and Stability of Numerical Algorithms, section
3.1): a sum of n terms is off by at most n·2^-24 times the sum of their magnitudes, to first order.
No number is larger than 2^24 units in its own last place, so that is n ulp of that sum.

Letters as in `tools.decimal_ops`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools import decimal_ops
from tools.golden_layout import array, document, hexadecimal, rounded_up
from tools.op_cases import CASES, Question

__all__ = ["main"]

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "ops"

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|got − expected| ≤ ulps · ulp(max(|expected|, scale)), and why."""

    ulps: int
    reason: str
    scale: float = 0.0


def main() -> None:
    """Write cases.json into the folder that is named, by default golden/ops."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    text = document("ops", [entry(question) for question in CASES])
    (folder / "cases.json").write_text(text, encoding="ascii")


def entry(question: Question) -> dict[str, object]:
    """The case as the file has it, with its answer and its tolerance."""
    op, inputs = question.op, question.inputs
    expected = decimal_ops.exactly(
        getattr(decimal_ops, op),
        **{name: as_decimal(name, value) for name, value in inputs.items()},
    )
    tolerance = Tolerance(0, question.exact) if question.exact else TOLERANCES[op](**inputs)
    allowed: dict[str, object] = {"ulps": tolerance.ulps}
    if tolerance.scale:
        allowed["scale"] = hexadecimal(rounded_up(tolerance.scale))
    result: dict[str, object] = {
        "id": f"ops/{op.replace('_', '-')}-{question.name}",
        "proves": question.proves,
        "clause": CLAUSES[op],
        "input": {"op": op, **{name: as_json(value) for name, value in inputs.items()}},
        "expected": {"output": array(expected)},
        "tolerance": {**allowed, "reason": tolerance.reason},
    }
    return {**result, "quick": True} if question.is_quick else result


def as_decimal(name: str, value: Any) -> Any:
    """Arrays and epsilons as decimals, all else as it is."""
    return decimal_ops.decimals(value) if isinstance(value, np.ndarray) or name == "eps" else value


def as_json(value: Any) -> object:
    """Arrays and floats as golden files have them, all else as it is."""
    if isinstance(value, np.ndarray):
        return array(value)
    return hexadecimal(value) if isinstance(value, float) else value


CLAUSES: Mapping[str, str] = {
    "rms_norm": "RMSNorm",
    "layer_norm": "LayerNorm",
    "rope": "RoPE",
    "softmax": "softmax",
    "silu": "SiLU",
    "gelu": "GELU",
    "attention": "attention",
    "matmul": "matrix product",
    "mean_pool": "mean pooling",
    "l2_normalize": "L2 norm",
}


# Tolerances


def _of_rms_norm(x: Floats, weight: Floats, eps: float) -> Tolerance:
    return Tolerance(
        x.shape[-1] // 2 + 6,
        "D/2 for a sum of D squares in any order, under a root; 6 for epsilon, root, reciprocal "
        "and two products",
    )


def _of_layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Tolerance:
    width, wide = x.shape[-1], x.astype(np.float64)
    deviation = np.sqrt(wide.var(axis=-1) + eps)  # [T]
    size = float((np.abs(wide).max(axis=-1) / deviation).max()) * float(np.abs(weight).max())
    return Tolerance(
        math.ceil((1 + math.sqrt(width)) * (width + 1)) + width + 10,
        "the mean of D numbers is off by D ulp of the largest x, and that enters every difference "
        "and the variance; scale is the largest x over the deviation, times the largest weight, or "
        "the largest bias",
        scale=max(size, float(np.abs(bias).max())),
    )


def _of_rope(
    x: Floats, positions: Sequence[int], theta: float, rope_dim: int, layout: str
) -> Tolerance:
    # The first pair's frequency is 1, and its angle exact.
    slower = decimal_ops.frequencies(theta, rope_dim)[1:]
    angle = max(positions) * max(slower, default=Decimal(0))
    return Tolerance(
        4 + math.ceil(3 * angle),
        "4 for sine, cosine, two products and a sum; 3 for each radian of the largest angle that "
        "is not whole, because float32 angles are off by 2^-23 of it; scale is the largest x",
        scale=float(np.abs(x).max()),
    )


def _of_softmax(x: Floats) -> Tolerance:
    gap = x.max(axis=-1, keepdims=True) - x
    is_exact = np.array_equal(gap, x.max(axis=-1, keepdims=True) - x.astype(np.float64))
    extra = 0 if is_exact else math.ceil(float(gap.max()))
    return Tolerance(
        x.shape[-1] + 5 + extra,
        "N for a sum of N exponentials, 5 for two exponentials and a quotient"
        + ("; no difference from the maximum is rounded" if is_exact else "")
        + (f"; {extra} for the rounding of the largest difference from the maximum" * (extra > 0)),
    )


def _of_silu(x: Floats) -> Tolerance:
    smallest = 2.0**-100 if x.min() < -80 else 0.0
    return Tolerance(
        4,
        "2 for the exponential, 2 for a sum and a quotient"
        + ("; where e^-x overflows in float32, zero is right" if smallest else ""),
        scale=smallest,
    )


def _of_gelu(x: Floats) -> Tolerance:
    return Tolerance(
        4,
        "x/2·(1 + erf(x/√2)) in float32 loses what is small beside 1 where x is negative, so scale "
        "is the largest |x|; 4 for erf and its argument, a sum and two products",
        scale=float(np.abs(x).max()),
    )


def _of_attention(q: Floats, k: Floats, v: Floats, causal: bool) -> Tolerance:
    width, group = q.shape[2], q.shape[1] // k.shape[1]
    queries = np.abs(q).astype(np.float64)  # [T, H, E]
    keys = np.repeat(np.abs(k), group, axis=1)  # [S, H, E]
    largest = float((queries[:, None] * keys).sum(axis=-1).max()) / math.sqrt(width)
    return Tolerance(
        math.ceil(2 * (width + 2) * largest) + k.shape[0] + 8,
        "a score is off by (E + 2)·A·2^-24, A the largest Σ|q·k|/√E, and so is each weight, above "
        "and below the line; S + 8 for the softmax and the sum of S values; scale is the largest v",
        scale=float(np.abs(v).max()),
    )


def _of_matmul(x: Floats, w: Floats) -> Tolerance:
    return Tolerance(
        x.shape[1],
        "a sum of D products in any order; scale is the largest sum of their magnitudes",
        scale=float((np.abs(x).astype(np.float64)[:, None] * np.abs(w)).sum(axis=-1).max()),
    )


def _of_mean_pool(x: Floats, mask: Sequence[int]) -> Tolerance:
    kept = np.abs(x[np.array(mask) == 1]).astype(np.float64)
    return Tolerance(
        len(kept) + 1,
        "a sum of n rows in any order, and a quotient; scale is the largest mean of magnitudes",
        scale=float(kept.mean(axis=0).max()),
    )


def _of_l2_normalize(x: Floats) -> Tolerance:
    return Tolerance(
        len(x) // 2 + 4, "D/2 for a sum of D squares in any order, under a root; 4 for the rest"
    )


TOLERANCES: Mapping[str, Callable[..., Tolerance]] = {
    "rms_norm": _of_rms_norm,
    "layer_norm": _of_layer_norm,
    "rope": _of_rope,
    "softmax": _of_softmax,
    "silu": _of_silu,
    "gelu": _of_gelu,
    "attention": _of_attention,
    "matmul": _of_matmul,
    "mean_pool": _of_mean_pool,
    "l2_normalize": _of_l2_normalize,
}


if __name__ == "__main__":
    main()
