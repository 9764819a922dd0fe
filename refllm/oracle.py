"""The rule in plain NumPy: what every kernel must equal, bit for bit.

T tokens, S context so far, D model width, N outputs of a matrix, H heads, Hkv key/value heads, E
head width, F feed-forward width, R rotated part of a head, V vocabulary.

This module has every formula of the two networks, slow and without a cache. Sums over the
contracted axis are a Python loop or `np.add.accumulate`, which adds from left to right by
definition. With float32 arrays the functions follow SPEC.md's rule exactly. With float64 arrays the
same lines compute in float64 with NumPy's own elementary functions, which measures the error of
float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refllm.rope import rope_frequencies

if TYPE_CHECKING:  # those modules import the kernels
    from refllm.bert import BertConfig
    from refllm.llama import LlamaConfig

__all__ = [
    "attention",
    "bert",
    "exp",
    "fma",
    "gelu",
    "layer_norm",
    "llama",
    "matmul",
    "mean_rows",
    "normalize",
    "rms_norm",
    "rope",
    "silu",
    "softmax",
]

Array = NDArray[Any]
Arrays = Mapping[str, Array]


# Sums


def fma(a: Array, b: Array, c: Array) -> Array:
    """Return a·b + c of float32 arrays, rounded once; of float64 arrays, product and sum rounded.

    The product of two float32 is exact in float64, but its sum with c is rounded to float64, and
    then to float32. Rounding twice is wrong only where the float64 is in the middle between two
    float32, and there the sum is rounded to odd first: where it is inexact, the last bit is set. A
    number of 53 bits that is rounded to odd rounds to 24 bits as the exact one would. Source: Boldo
    and Melquiond 2008, doi:10.1109/TC.2007.70819.
    """
    if np.result_type(a, b, c) == np.float64:
        result: Array = a * b + c
        return result
    with np.errstate(all="ignore"):  # an infinite total has no error
        product = np.multiply(a, b, dtype=np.float64)
        total = product + c
        bits = total.view(np.int64)
        in_the_middle = bits & 0x1FFFFFFF == 0x10000000  # the 29 bits that a float32 drops
        is_subnormal = np.abs(total) < 2.0**-126  # there it drops more
        if (in_the_middle | is_subnormal).any():
            added = total - product
            error = (product - (total - added)) + (c - added)  # total + error: exact (TwoSum)
            is_beyond = (error > 0) != (total > 0)  # the exact sum is nearer to zero than total
            is_inexact = (error > 0) | (error < 0)
            total = np.where(is_inexact, (bits - is_beyond) | 1, bits).view(np.float64)
        return total.astype(np.float32)


def matmul(x: Array, w: Array) -> Array:
    """Return x [T, D] times the rows of w [N, D], each product added by one `fma`: [T, N]."""
    y = np.zeros((len(x), len(w)), x.dtype)  # [T, N]
    for d in range(x.shape[1]):
        y = fma(x[:, d, None], w[None, :, d], y)
    return y


def row_sums(x: Array) -> Array:
    """Return the float64 sums of the last axis from left to right, [..., 1]."""
    return np.add.accumulate(x.astype(np.float64), axis=-1)[..., -1:]  # [..., 1]


def mean_rows(x: Array) -> Array:
    """Return the mean of the rows of x [T, D], [D]."""
    return (row_sums(x.T) / len(x)).astype(x.dtype)[:, 0]


# Elementary functions: float64 inside, rounded once


def exp(x: Array) -> Array:
    """Return e**x."""
    return (_exp(x.astype(np.float64)) if x.dtype == np.float32 else np.exp(x)).astype(x.dtype)


def silu(x: Array) -> Array:
    """Return x / (1 + e**−x)."""
    wide = x.astype(np.float64)
    e = _exp(-wide) if x.dtype == np.float32 else np.exp(-wide)
    return (wide / (1.0 + e)).astype(x.dtype)


def gelu(x: Array) -> Array:
    """Return x·Φ(x), by the upper tail of the normal distribution where x is negative."""
    wide = x.astype(np.float64)
    tail = (_upper_tail if x.dtype == np.float32 else _erfc_tail)(np.abs(wide))
    return (wide * np.where(wide < 0, tail, 1.0 - tail)).astype(x.dtype)


def activation(name: str, x: Array) -> Array:
    """Return the activation in a BERT's feed-forward block, by its name in `BertConfig`."""
    wide = x.astype(np.float64)
    if name in ("gelu", "gelu_clipped"):
        result: Array = gelu(x)
        return result if name == "gelu" else np.clip(result, -10, 10)
    if name == "relu":
        return np.where(x <= 0, x.dtype.type(0), x)
    exponent = {
        "gelu_tanh": -(1.5957691216057308 * (wide + 0.044715 * (wide * wide * wide))),
        "quick_gelu": -(1.702 * wide),
        "silu": -wide,
    }[name]
    e = _exp(exponent) if x.dtype == np.float32 else np.exp(exponent)
    return (wide / (1.0 + e)).astype(x.dtype)


# ln 2 in two parts. The high one has 38 bits, so its product with an integer n of up to 15 bits is
# exact in float64; LN2_LOW has the next 53 bits. With n·ln2 as one rounded product, r would be
# wrong by up to 2^-44.
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.6931471805582987
LN2_LOW = 1.6465949582897082e-12


def _exp(x: Array) -> Array:
    """Return the rule's e**x in float64: x = n·ln2 + r, so 2**n times e**r's Taylor series."""
    x = np.clip(x, -708.0, 708.0)
    n = np.rint(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    series = np.full_like(x, 1 / math.factorial(10))
    for k in range(9, -1, -1):
        series = series * r + 1 / math.factorial(k)
    return series * np.ldexp(1.0, n.astype(np.int64))


# Of the polynomial in `_upper_tail`, highest power first; printed by `tools/fit_gelu.py`.
TAIL_COEFFICIENTS = (
    6.678069290679525e-06,
    1.571064635189188e-05,
    -5.213519787978206e-05,
    -5.9673544027723074e-05,
    0.000545678871653129,
    -0.000797675237674831,
    -0.0029935042639485667,
    0.020795034186024366,
    -0.0691186275617298,
    0.1650203681378432,
    -0.31353315715020325,
    0.4953056159426588,
    -0.6653825028835866,
    0.7691930497499815,
)


def _upper_tail(a: Array) -> Array:
    """Return the rule's erfc(a/√2)/2 in float64, a ≥ 0.

    It is e**(−a²/2) · P(u)/(a + 5), with u = (a − 5)/(a + 5) and a polynomial P.
    """
    a = np.minimum(a, 40.0)
    inverse = 1.0 / (a + 5.0)
    u = (a - 5.0) * inverse
    p = np.zeros_like(a)
    for coefficient in TAIL_COEFFICIENTS:
        p = p * u + coefficient
    return _exp(-0.5 * (a * a)) * (p * inverse)


def _erfc_tail(a: Array) -> Array:
    result: Array = 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(a / math.sqrt(2.0))
    return result


# π/2 in three parts of 33, 33 and 53 bits, for the same reason: products with integers below 2^20
# are exact.
TWO_OVER_PI = 0.6366197723675814
HALF_PI_1 = 1.5707963267341256
HALF_PI_2 = 6.077100506303966e-11
HALF_PI_3 = 2.0222662487959506e-21


def _cos_sin(angle: Array) -> tuple[Array, Array]:
    """Return the rule's cosine and sine in float64, |angle| ≤ 2^20: angle = n·π/2 + r."""
    n = np.rint(angle * TWO_OVER_PI)
    r = angle - n * HALF_PI_1
    r = (r - n * HALF_PI_2) - n * HALF_PI_3
    square = r * r
    s, c = np.zeros_like(r), np.zeros_like(r)
    for k in range(15, 1, -2):  # −1/15!, 1/13!, …, −1/3!
        s = s * square + (-1) ** (k // 2) / math.factorial(k)
    for k in range(16, 2, -2):  # 1/16!, −1/14!, …, 1/4!
        c = c * square + (-1) ** (k // 2) / math.factorial(k)
    sine = r + r * (square * s)
    cosine = 1.0 + square * (square * c - 0.5)
    quadrant = n.astype(np.int64) & 3
    return (
        np.choose(quadrant, [cosine, -sine, -cosine, sine]),
        np.choose(quadrant, [sine, cosine, -sine, -cosine]),
    )


# One row at a time


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Return x / √(mean(x²) + ε) · weight, [T, D]."""
    wide = x.astype(np.float64)
    mean_square = (row_sums(wide * wide) / x.shape[1]).astype(x.dtype)  # [T, 1]
    result: Array = (x * (1 / np.sqrt(mean_square + x.dtype.type(eps)))) * weight
    return result


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Return (x − mean) / √(variance + ε) · weight + bias, [T, D]."""
    centered = x - (row_sums(x) / x.shape[1]).astype(x.dtype)  # [T, D]
    wide = centered.astype(np.float64)
    variance = (row_sums(wide * wide) / x.shape[1]).astype(x.dtype)  # [T, 1]
    result: Array = (centered * (1 / np.sqrt(variance + x.dtype.type(eps)))) * weight + bias
    return result


def softmax(scores: Array) -> Array:
    """Return e**(x − max) / Σ e**(x − max) over the last axis."""
    e = exp(scores - scores.max(axis=-1, keepdims=True))
    result: Array = e / row_sums(e).astype(scores.dtype)
    return result


def normalize(x: Array) -> Array:
    """Return x / max(‖x‖, 1e-12) over the last axis."""
    wide = x.astype(np.float64)
    length = np.sqrt(row_sums(wide * wide)).astype(x.dtype)
    result: Array = x / np.maximum(length, x.dtype.type(1e-12))
    return result


def rope(x: Array, positions: Array, frequencies: Array, magnitude: float = 1.0) -> Array:
    """Return x [T, H, E] with its pairs (2i, 2i+1), i < R/2, rotated by position · frequency.

    A rotated pair is also multiplied by `magnitude`.
    """
    angle = positions[:, None] * frequencies  # [T, R/2]
    exact = x.dtype == np.float64
    cos_sin = (np.cos(angle), np.sin(angle)) if exact else _cos_sin(angle)
    # Two arrays [T, 1, R/2].
    cosine, sine = ((part * magnitude).astype(x.dtype)[:, None, :] for part in cos_sin)
    out = x.copy()
    rotated = 2 * len(frequencies)  # R
    a, b = x[..., 0:rotated:2], x[..., 1:rotated:2]  # [T, H, R/2]
    out[..., 0:rotated:2] = a * cosine - b * sine
    out[..., 1:rotated:2] = a * sine + b * cosine
    return out


def attention(
    q: Array, k: Array, v: Array, n_visible: Sequence[int], bias: Array | None = None
) -> Array:
    """Return softmax(q·k/√E + bias)·v, [T, H, E]: q [T, H, E], k, v [S, Hkv, E], bias [H, T, S]."""
    out = np.empty_like(q)
    scale = q.dtype.type(1 / math.sqrt(q.shape[2]))
    group = q.shape[1] // k.shape[1]
    for t, n in enumerate(n_visible):
        for h in range(q.shape[1]):
            keys, values = k[:n, h // group], v[:n, h // group]  # [S, E]
            scores = matmul(q[t, h, None], keys) * scale  # [1, S]
            weights = softmax(scores if bias is None else scores + bias[h, t, :n])  # [1, S]
            out[t, h] = matmul(weights, values.T)[0]
    return out


# The networks


def llama(config: LlamaConfig, w: Arrays, token_ids: Sequence[int]) -> Array:
    """Return the logits after each token [T, V]; `w` are a llama's tensors by canonical name."""
    c = config
    n_tokens = len(token_ids)
    positions = np.arange(n_tokens)
    n_visible = range(1, n_tokens + 1)
    frequencies = rope_frequencies(
        base=c.rope_theta,
        rope_dim=c.rope_dim,
        factors=c.rope_factors,
        linear_scale=c.rope_linear_scale,
        yarn=c.rope_yarn,
    )
    magnitude = c.rope_attention_factor
    x = w["token_embd.weight"][list(token_ids)]  # [T, D]
    for i in range(c.n_layers):
        layer = _under(w, f"blk.{i}.")
        h = rms_norm(x, layer["attn_norm.weight"], c.rms_norm_eps)
        q = _affine(layer, "attn_q", h).reshape(n_tokens, c.n_heads, c.head_dim)
        k = _affine(layer, "attn_k", h).reshape(n_tokens, c.n_kv_heads, c.head_dim)
        v = _affine(layer, "attn_v", h).reshape(n_tokens, c.n_kv_heads, c.head_dim)
        q, k = (rope(part, positions, frequencies, magnitude) for part in (q, k))
        attended = attention(q, k, v, n_visible).reshape(n_tokens, -1)  # [T, H·E]
        x = x + _affine(layer, "attn_output", attended)
        h = rms_norm(x, layer["ffn_norm.weight"], c.rms_norm_eps)
        gated = silu(_affine(layer, "ffn_gate", h)) * _affine(layer, "ffn_up", h)  # [T, F]
        x = x + _affine(layer, "ffn_down", gated)
    x = rms_norm(x, w["output_norm.weight"], c.rms_norm_eps)
    return matmul(x, w.get("output.weight", w["token_embd.weight"]))


def bert(config: BertConfig, w: Arrays, token_ids: Sequence[int]) -> Array:
    """Return the normalized embedding [D] of a text; `w` are a BERT's tensors by canonical name."""
    c = config
    n_tokens = len(token_ids)
    n_visible = [n_tokens] * n_tokens
    x = w["token_embd.weight"][list(token_ids)]
    if c.n_token_types:
        x = x + w["token_types.weight"][0]
    positions, n_counted = [], 0
    for token_id in token_ids:
        n_counted += token_id != c.padding_id
        padding_id = -1 if c.padding_id is None else c.padding_id
        positions.append(padding_id + (0 if token_id == c.padding_id else n_counted))
    x = _norm(_under(w, "token_embd_"), "norm", x + w["position_embd.weight"][positions], c)
    bias = _bias_of_distances(w["attn_rel_b.weight"], n_tokens) if c.relative_attention else None
    for i in range(c.n_layers):
        layer = _under(w, f"blk.{i}.")
        q, k, v = (
            _affine(layer, name, x).reshape(n_tokens, c.n_heads, -1)
            for name in ("attn_q", "attn_k", "attn_v")
        )
        attended = attention(q, k, v, n_visible, bias).reshape(x.shape)  # [T, D]
        x = _norm(layer, "attn_output_norm", x + _affine(layer, "attn_output", attended), c)
        up = activation(c.activation, _affine(layer, "ffn_up", x))  # [T, F]
        x = _norm(layer, "layer_output_norm", x + _affine(layer, "ffn_down", up), c)
    return normalize(mean_rows(x))


def _bias_of_distances(by_bucket: Array, n_tokens: int) -> Array:
    """Return MPNet's bias [H, T, S] from that of its 32 buckets [32, H].

    Half of the buckets are for keys behind the query. Of a half, the first eight are distances; the
    others are logarithmic up to 128, and the last is for all larger distances, too.
    """
    out = np.empty((by_bucket.shape[1], n_tokens, n_tokens), by_bucket.dtype)
    for t in range(n_tokens):
        for s in range(n_tokens):
            bucket = distance = abs(s - t)
            if distance >= 8:
                # The small addend keeps powers of two, whose logarithms are inexact, from rounding
                # down into the bucket before.
                bucket = min(15, int(8 + 8 * math.log(distance / 8) / math.log(16) + 1e-9))
            out[:, t, s] = by_bucket[bucket + (16 if s > t else 0)]
    return out


def _under(w: Arrays, prefix: str) -> Arrays:
    """Return the tensors whose names begin with `prefix`, by their names without it."""
    return {name.removeprefix(prefix): w[name] for name in w if name.startswith(prefix)}


def _affine(w: Arrays, name: str, x: Array) -> Array:
    product = matmul(x, w[f"{name}.weight"])
    return product + w[f"{name}.bias"] if f"{name}.bias" in w else product


def _norm(w: Arrays, name: str, x: Array, c: BertConfig) -> Array:
    return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], c.layer_norm_eps)
