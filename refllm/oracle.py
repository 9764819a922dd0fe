"""The rule in plain NumPy: what every kernel must equal, bit for bit.

T tokens, S context so far, D model width, N outputs of a matrix, H heads, Hkv key/value heads, E
head width, F feed-forward width, R rotated part of a head, V vocabulary.

This module has every formula of the two networks, slow and without a cache. Sums are a Python loop
or `np.add.accumulate`, which adds from left to right by definition. With float32 arrays the
functions follow SPEC.md's rule exactly. With float64 arrays the same lines compute in float64 with
NumPy's own elementary functions, which measures the error of float32.
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
    """Return the float64 sums of the last axis, [..., 1].

    A sum is sixteen from left to right, of every sixteenth number each, starting from +0; then the
    upper half of them is added to the lower one until one is left.
    """
    n_groups = -(-x.shape[-1] // 16)
    padded = np.zeros((*x.shape[:-1], 16 * n_groups))
    padded[..., : x.shape[-1]] = x
    groups = padded.reshape(*x.shape[:-1], n_groups, 16)
    sums = np.add.accumulate(groups, axis=-2)[..., -1, :]  # [..., 16]
    for half in (8, 4, 2, 1):
        sums = sums[..., :half] + sums[..., half:]
    return sums + 0.0  # [..., 1]; a sum of −0 alone is +0


def mean_rows(x: Array) -> Array:
    """Return the mean of the rows of x [T, D], [D]; each column's float64 sum is left to right."""
    total = np.add.accumulate(x, axis=0, dtype=np.float64)[-1] + 0.0
    mean: Array = (total / len(x)).astype(x.dtype)
    return mean


# Elementary functions: float64 inside, rounded once


def exp(x: Array) -> Array:
    """Return e**x."""
    return _exp(x.astype(np.float64), of=x).astype(x.dtype)


def silu(x: Array) -> Array:
    """Return x / (1 + e**−x)."""
    wide = x.astype(np.float64)
    return _logistic(wide, wide, of=x).astype(x.dtype)


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
    argument = {
        "gelu_tanh": 1.5957691216057308 * (wide + 0.044715 * (wide * wide * wide)),
        "quick_gelu": 1.702 * wide,
        "silu": wide,
    }[name]
    return _logistic(wide, argument, of=x).astype(x.dtype)


# e**x = 2**(x·LOG2_E), and e**(−a²/2) = 2**(a²·MINUS_HALF_LOG2_E).
LOG2_E = 1.4426950408889634
MINUS_HALF_LOG2_E = -0.7213475204444817
LARGEST_POWER = 1020.0


def _exp(x: Array, *, of: Array) -> Array:
    """Return e**x in float64, the rule's for float32 numbers `of`."""
    return _exp2(x * LOG2_E) if of.dtype == np.float32 else np.exp(x)


def _logistic(x: Array, z: Array, *, of: Array) -> Array:
    """Return x / (1 + e**−z) in float64, the rule's for float32 numbers `of`."""
    if of.dtype == np.float64:
        return x / (1.0 + np.exp(-z))
    above, below, n = _power_ratio(np.clip(z * -LOG2_E, -LARGEST_POWER, LARGEST_POWER))
    result: Array = (x * below) / (below + _times_power(above, n))
    return result


def _exp2(y: Array) -> Array:
    """Return the rule's 2**y in float64: y = n + f, so 2**n times a polynomial of f.

    `tools/fit_exp.py` prints the coefficients, here and in `_power_ratio`.
    """
    y = np.maximum(y, -LARGEST_POWER)
    n = np.rint(y)
    f = y - n
    f2 = f * f
    f4 = f2 * f2
    low = (0.6931471805412327 * f + 1.0) + f2 * (0.05550410959228811 * f + 0.2402265069474259)
    middle = 0.0013333434157560176 * f + 0.009618129558838935
    high = 1.5314209223349525e-05 * f + 0.0001540309828656179
    high = high + f2 * 1.3344183484134179e-06
    return _times_power(low + f4 * (middle + f2 * high), n)


def _power_ratio(y: Array) -> tuple[Array, Array, Array]:
    """Return (a, b, n) with 2**y = a/b · 2**n: y = n + f and 2**f = (c + f)/(c − f)."""
    n = np.rint(y)
    f = y - n
    square = f * f
    c = 1.0518900052726976e-05 * square + -0.000925058601582435
    c = c * square + 0.11552452959976861
    c = c * square + 2.8853900817817824
    return c + f, c - f, n


def _times_power(x: Array, n: Array) -> Array:
    """Return x·2**n, which is exact here; NaN stays NaN."""
    return np.ldexp(x, np.nan_to_num(n).astype(np.int64))


def _upper_tail(a: Array) -> Array:
    """Return the rule's erfc(a/√2)/2 in float64, a ≥ 0.

    It is e**(−a²/2) · P(a)/D(a). `tools/fit_gelu.py` prints the coefficients of both polynomials.
    """
    a = np.minimum(a, 20.0)
    square = a * a
    above, below, n = _power_ratio(square * MINUS_HALF_LOG2_E)
    p = (6.7136677878884825 * a + 38.38084904498811) + 0.39894236027429336 * square
    p = p * (square + 31.361438475160114) + -775.1323481572097
    p = p * (square + 6.4392526309277) + -1563.6058460293232
    d = a + 16.828684937345106
    d = d * (square + 118.18183232417287) + -1619.0091183179852
    d = d * (square + 14.040634582686492) + -2877.4948211370356
    d = d * (square + 2.7842095106018054) + -4054.2702054982556
    return _times_power((above * p) / (below * d), n)


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


def softmax(scores: Array, scale: float = 1.0) -> Array:
    """Return e**((s − max)·scale) / Σ e**((s − max)·scale) over the last axis, rounded once."""
    wide = scores.astype(np.float64)
    difference = wide - wide.max(axis=-1, keepdims=True)
    exact = scores.dtype == np.float64
    e = np.exp(difference * scale) if exact else _exp2(difference * (LOG2_E * scale))
    return (e * (1.0 / row_sums(e))).astype(scores.dtype)


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
    """Return softmax(q·k/√E + bias)·v, [T, H, E]: q [T, H, E], k, v [S, Hkv, E], bias [H, T, S].

    The bias is multiplied by √E before it is added, because the softmax divides the sum by √E.
    """
    out = np.empty_like(q)
    root = math.sqrt(q.shape[2])
    group = q.shape[1] // k.shape[1]
    for t, n in enumerate(n_visible):
        for h in range(q.shape[1]):
            keys, values = k[:n, h // group], v[:n, h // group]  # [S, E]
            scores = matmul(q[t, h, None], keys)  # [1, S]
            if bias is not None:
                scores = scores + bias[h, t, :n] * q.dtype.type(root)
            out[t, h] = matmul(softmax(scores, 1 / root), values.T)[0]  # [E]
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
