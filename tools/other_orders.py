"""How else a text's logits are computed, to know by how much a correct backend's are off.

`tools.oracle_orders` has orders of summation that are the same on every machine, one operation at a
time. These are fewer and much faster, so that every token of every text can be read in each.

    float64              what float32 only comes near
    float32 angles       float64, but for the angles of RoPE, which most engines have in float32
    halves               float32, each product rounded, each sum in lanes and those in ever fewer,
                         as SIMD code does
    blas                 float32, products in whatever order the machine's BLAS likes
    float32 throughout   blas, float32 angles, and no sum and no exp in float64 either

T tokens, D model width, N outputs, R rotated part of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tools.oracle_orders import FLOAT32_FUNCTIONS, Variant

__all__ = ["ORDERS", "SAME_EVERYWHERE"]

Array: TypeAlias = NDArray[Any]


def by_blas(x: Array, w: Array) -> Array:
    """x [T, D] times the rows of w [N, D], in the order of the machine's BLAS, fused or not."""
    product: Array = x @ w.T
    return product


def in_halves(x: Array, w: Array) -> Array:
    """The same; of rounded products, the second half is added to the first, until one is left."""
    return np.stack([_sums_in_halves(row * w) for row in x])


def _sums_in_halves(terms: Array) -> Array:
    """The sum of each row of [N, D], [N]."""
    while terms.shape[1] > 1:
        half = (terms.shape[1] + 1) // 2
        first, second = terms[:, :half], terms[:, half:]
        first[:, : second.shape[1]] += second
        terms = first
    return terms[:, 0]


def successive_angles(
    x: Array, positions: Array, frequencies: Array, magnitude: float = 1.0
) -> Array:
    """`oracle.rope` with float32 angles, each pair's a constant times that of the pair before.

    Source: ggml_rope_cache_init in ggml's ggml-cpu/ops.cpp.
    """
    slower = np.float32(frequencies[1] / frequencies[0])
    angles = [positions.astype(np.float32)]
    while len(angles) < len(frequencies):
        angles.append(angles[-1] * slower)
    exact = np.stack(angles, axis=1).astype(np.float64)  # [T, R/2]
    turns = (turn(exact) * magnitude for turn in (np.cos, np.sin))
    cosine, sine = (turn.astype(x.dtype)[:, None, :] for turn in turns)
    out = x.copy()
    turned = 2 * len(frequencies)
    a, b = x[..., 0:turned:2], x[..., 1:turned:2]
    out[..., 0:turned:2] = a * cosine - b * sine
    out[..., 1:turned:2] = a * sine + b * cosine
    return out


ORDERS: Mapping[str, Variant] = {
    "float64": Variant(dtype=np.float64, product=by_blas),
    "float32 angles": Variant(
        dtype=np.float64, product=by_blas, functions={"rope": successive_angles}
    ),
    "halves": Variant(product=in_halves),
    "blas": Variant(product=by_blas),
    "float32 throughout": Variant(
        product=by_blas, functions={**FLOAT32_FUNCTIONS, "rope": successive_angles}
    ),
}
SAME_EVERYWHERE = ("float64", "float32 angles", "halves")
"""Those whose differences are the same on every machine, to many digits."""
