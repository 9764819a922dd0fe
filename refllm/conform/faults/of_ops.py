"""Mistakes in single operations: each computes the case's output itself, in float64.

T tokens, S tokens seen, D width, H heads, K key/value heads, E head width, R rotated part of a
head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import Doubles, array
from refllm.conform.faults.activations import gelu, gelu_sigmoid, gelu_tanh, relu, sigmoid, silu
from refllm.conform.faults.of_embeddings import ENCODERS
from refllm.conform.faults.of_logits import NETWORKS
from refllm.conform.faults.symptom import Symptom, agrees, explained_share, seen

__all__ = ["OPS"]

Mask: TypeAlias = NDArray[np.bool_]
# An operation's output, from its inputs by name: arrays are arrays.
Compute: TypeAlias = Callable[[Mapping[str, Any]], Doubles]

BASES = (10_000.0, 500_000.0)
EPSILONS = (1e-5, 1e-6, 1e-12)
# A number beside which a deviation is lost when both are squared in float32.
FAR = 100.0
# float16, bfloat16 and TF32 have 8 to 11 bits.
FEW_BITS = 2.0**-6


# What a mistake computes; every function has the right answer as its default.


def rms_norm(
    i: Mapping[str, Any],
    *,
    eps: float | None = None,
    centers: bool = False,
    averages: bool = True,
    weight: Callable[[Doubles], Doubles] = lambda weight: weight,
    eps_outside: bool = False,
) -> Doubles:
    """x / √(mean(x²) + ε) · weight."""
    x, eps = i["x"], i["eps"] if eps is None else eps
    x = x - x.mean(axis=-1, keepdims=True) if centers else x
    squares = (x * x).sum(axis=-1, keepdims=True) / (x.shape[-1] if averages else 1)
    root = np.sqrt(squares) + eps if eps_outside else np.sqrt(squares + eps)
    return np.asarray(x / root * weight(i["weight"]))


def layer_norm(
    i: Mapping[str, Any],
    *,
    eps: float | None = None,
    centers: bool = True,
    n_less: int = 0,
    adds_bias: bool = True,
    eps_outside: bool = False,
) -> Doubles:
    """(x − mean) / √(variance + ε) · weight + bias."""
    x, eps = i["x"], i["eps"] if eps is None else eps
    centered = x - x.mean(axis=-1, keepdims=True) if centers else x
    variance = (centered**2).sum(axis=-1, keepdims=True) / (x.shape[-1] - n_less)
    root = np.sqrt(variance) + eps if eps_outside else np.sqrt(variance + eps)
    return np.asarray(centered / root * i["weight"] + adds_bias * i["bias"])


def rope(
    i: Mapping[str, Any],
    *,
    swaps_layout: bool = False,
    shift: int = 0,
    theta: float | None = None,
    sign: int = 1,
    turns_all: bool = False,
    by_head: bool = False,
) -> Doubles:
    """Pairs of x [T, H, E] turned by position · theta^(−2i/R)."""
    x, rope_dim = i["x"], x_dim(i) if turns_all else i["rope_dim"]
    n_pairs = rope_dim // 2
    base = i["theta"] if theta is None else theta
    exponents = np.arange(n_pairs) * -2.0 / (x_dim(i) if by_head else rope_dim)
    positions = np.array(i["positions"], float) + shift
    angles = sign * positions[:, None, None] * base**exponents  # [T, 1, R/2]
    neighbors = (i["layout"] == "norm") != swaps_layout
    step, second = (2, 1) if neighbors else (1, n_pairs)
    first = np.arange(0, rope_dim, 2) if step == 2 else np.arange(n_pairs)
    out = x.copy()
    a, b = x[..., first], x[..., first + second]
    out[..., first] = a * np.cos(angles) - b * np.sin(angles)
    out[..., first + second] = a * np.sin(angles) + b * np.cos(angles)
    return np.asarray(out)


def x_dim(i: Mapping[str, Any]) -> int:
    """E."""
    return int(i["x"].shape[-1])


def softmax(x: Doubles, *, axis: int = -1) -> Doubles:
    """e^x / Σ e^x."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def causal(n_tokens: int, n_seen: int, *, ahead: int = 0) -> Mask:
    """Who sees whom, [T, S]: the T tokens are the last of the S."""
    return np.tri(n_tokens, n_seen, k=n_seen - n_tokens + ahead, dtype=bool)


def _not_itself(n_tokens: int, n_seen: int) -> Mask:
    mask = causal(n_tokens, n_seen, ahead=-1)
    mask[:, 0] |= ~mask.any(axis=1)
    return mask


def attention(
    i: Mapping[str, Any],
    *,
    scale: Callable[[int], float] = lambda width: 1.0 / math.sqrt(width),
    kv_head: Callable[[int, int, int], int] = lambda h, _n_kv, group: h // group,
    mask: Callable[[int, int], Mask] | None = None,
) -> Doubles:
    """softmax(q·k·scale)·v: q [T, H, E], k and v [S, K, E] → [T, H, E]."""
    q, k, v = i["q"], i["k"], i["v"]
    n_tokens, n_heads, width = q.shape
    n_kv = k.shape[1]
    shared = [kv_head(h, n_kv, n_heads // n_kv) for h in range(n_heads)]
    scores = np.einsum("the,she->hts", q, k[:, shared]) * scale(width)
    if mask is None and i["causal"]:
        mask = causal
    if mask is not None:
        scores = np.where(mask(n_tokens, len(k)), scores, -np.inf)
    return np.asarray(np.einsum("hts,she->the", softmax(scores), v[:, shared]))


def mean_pool(
    i: Mapping[str, Any], *, counts_all: bool = False, keeps_all: bool = False
) -> Doubles:
    """The mean of the rows of x [T, D] whose mask is 1."""
    mask = np.ones(len(i["x"])) if keeps_all else np.array(i["mask"], float)
    total = (i["x"] * mask[:, None]).sum(axis=0)
    return np.asarray(total / (len(mask) if counts_all else mask.sum()))


def l2_normalize(i: Mapping[str, Any]) -> Doubles:
    """x / max(‖x‖, 1e-12)."""
    return np.asarray(i["x"] / max(math.sqrt((i["x"] ** 2).sum()), 1e-12))


RIGHT: Mapping[str, Compute] = {
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "rope": rope,
    "softmax": lambda i: softmax(i["x"]),
    "silu": lambda i: silu(i["x"]),
    "gelu": lambda i: gelu(i["x"]),
    "attention": attention,
    "matmul": lambda i: np.asarray(i["x"] @ i["w"].T),
    "mean_pool": mean_pool,
    "l2_normalize": l2_normalize,
}


def _activation(function: Callable[[Doubles], Doubles]) -> Compute:
    return lambda i: function(i["x"])


def _square_transposed(i: Mapping[str, Any]) -> Doubles:
    if i["w"].shape[0] != i["w"].shape[1]:
        return np.full((len(i["x"]), len(i["w"])), np.nan)
    return np.asarray(i["x"] @ i["w"])


# Mistakes that whole networks make too have their sentences there.
SHARED = {name: cause for name, cause, _ in (*NETWORKS, *ENCODERS)}

OPERATIONS: tuple[tuple[str, str, Compute], ...] = (
    *((f"RMSNorm epsilon {eps:g}", "rms_norm", partial(rms_norm, eps=eps)) for eps in EPSILONS),
    ("RMSNorm with mean subtracted", "rms_norm", partial(rms_norm, centers=True)),
    ("RMSNorm by the sum", "rms_norm", partial(rms_norm, averages=False)),
    ("RMSNorm without weight", "rms_norm", partial(rms_norm, weight=np.ones_like)),
    ("RMSNorm weight from one", "rms_norm", partial(rms_norm, weight=lambda weight: 1.0 + weight)),
    ("RMSNorm epsilon outside the root", "rms_norm", partial(rms_norm, eps_outside=True)),
    *(
        (f"LayerNorm epsilon {eps:g}", "layer_norm", partial(layer_norm, eps=eps))
        for eps in EPSILONS
    ),
    ("LayerNorm without mean", "layer_norm", partial(layer_norm, centers=False)),
    ("LayerNorm by D - 1", "layer_norm", partial(layer_norm, n_less=1)),
    ("LayerNorm without bias", "layer_norm", partial(layer_norm, adds_bias=False)),
    ("LayerNorm epsilon outside the root", "layer_norm", partial(layer_norm, eps_outside=True)),
    ("RoPE layout swapped", "rope", partial(rope, swaps_layout=True)),
    *((f"RoPE base {base:.0f}", "rope", partial(rope, theta=base)) for base in BASES),
    ("RoPE backwards", "rope", partial(rope, sign=-1)),
    ("RoPE missing", "rope", lambda i: np.asarray(i["x"])),
    ("RoPE position one too large", "rope", partial(rope, shift=1)),
    ("RoPE position one too small", "rope", partial(rope, shift=-1)),
    ("RoPE turns the whole head", "rope", partial(rope, turns_all=True)),
    ("RoPE frequencies by the head", "rope", partial(rope, by_head=True)),
    ("softmax over columns", "softmax", lambda i: softmax(i["x"], axis=0)),
    ("GELU for SiLU", "silu", _activation(gelu)),
    ("tanh GELU for SiLU", "silu", _activation(gelu_tanh)),
    ("ReLU for SiLU", "silu", _activation(relu)),
    ("sigmoid for SiLU", "silu", _activation(sigmoid)),
    ("tanh GELU", "gelu", _activation(gelu_tanh)),
    ("sigmoid GELU", "gelu", _activation(gelu_sigmoid)),
    ("ReLU for GELU", "gelu", _activation(relu)),
    ("SiLU for GELU", "gelu", _activation(silu)),
    ("scores not scaled", "attention", partial(attention, scale=lambda _width: 1.0)),
    (
        "scores scaled by the width",
        "attention",
        partial(attention, scale=lambda width: 1.0 / width),
    ),
    (
        "GQA heads by modulo",
        "attention",
        partial(attention, kv_head=lambda h, n_kv, _group: h % n_kv),
    ),
    ("GQA all on the first head", "attention", partial(attention, kv_head=lambda *_: 0)),
    (
        "causal mask missing",
        "attention",
        partial(attention, mask=lambda t, s: np.ones((t, s), bool)),
    ),
    ("causal mask one ahead", "attention", partial(attention, mask=partial(causal, ahead=1))),
    ("token does not see itself", "attention", partial(attention, mask=_not_itself)),
    (
        "cached tokens not seen",
        "attention",
        partial(attention, mask=lambda t, s: np.tri(t, s, dtype=bool)),
    ),
    ("matrix transposed", "matmul", _square_transposed),
    ("padding in the mean", "mean_pool", partial(mean_pool, keeps_all=True)),
    ("mean divided by the padded length", "mean_pool", partial(mean_pool, counts_all=True)),
    ("CLS pooling", "mean_pool", lambda i: np.asarray(i["x"][0])),
    ("embeddings not normalized", "l2_normalize", lambda i: np.asarray(i["x"])),
)
CAUSES = {
    **SHARED,
    "LayerNorm without mean": "LayerNorm does not subtract the mean, as RMSNorm does not: subtract "
    "it.",
    "LayerNorm by D - 1": "LayerNorm's variance is divided by D - 1: divide by D.",
    "LayerNorm without bias": "LayerNorm's bias is not added.",
    "LayerNorm epsilon outside the root": "LayerNorm adds epsilon to the root: add it to the "
    "variance.",
    "RoPE position one too large": "RoPE turns by a position that is one too large: the first "
    "token has position 0.",
    "RoPE position one too small": "RoPE turns by a position that is one too small.",
    "RoPE turns the whole head": "RoPE turns the whole head: turn its first R elements only.",
    "RoPE frequencies by the head": "RoPE's frequencies are theta^(-2i/E) by the head's width: "
    "take R, the part that is turned.",
    "softmax over columns": "The softmax goes over columns: each row sums to 1.",
    "cached tokens not seen": "New tokens do not see all that is in the cache: they are the last "
    "of the tokens seen, so token t sees the first S - T + t + 1.",
    "matrix transposed": "The matrix is transposed: its rows are its outputs.",
    "mean divided by the padded length": "The sum of the real tokens is divided by the padded "
    "length: divide it by the number of real tokens.",
}


def inputs(case: Case) -> dict[str, Any]:
    """The case's inputs by name, arrays as arrays."""
    return {
        name: array(case.input, name) if isinstance(value, Mapping) else value
        for name, value in case.input.items()
    }


def _computed(compute: Compute, case: Case) -> Doubles:
    with np.errstate(all="ignore"):
        return compute(inputs(case))


def _symptom(name: str, op: str, compute: Compute) -> Symptom:
    def evidence(case: Case, got: Json) -> float:
        if case.input["op"] != op:
            return 0.0
        right = _computed(RIGHT[op], case)
        difference = array(got, "output") - right
        return explained_share(difference, _computed(compute, case) - right)

    def would_fail(case: Case) -> bool:
        if case.input["op"] != op:
            return False
        mistaken = _computed(compute, case)
        written = {"shape": list(mistaken.shape), "values": mistaken.ravel().tolist()}
        return not agrees(case, case.expected, {"output": written})

    return Symptom(
        name=name,
        cause=CAUSES[name],
        groups=frozenset({"ops"}),
        evidence=evidence,
        would_fail=would_fail,
    )


def _overflows(case: Case, got: Json) -> bool:
    is_finite = np.isfinite(array(case.expected, "output")).all()
    return bool(is_finite and not np.isfinite(array(got, "output")).all())


def _loses_the_deviation(case: Case, got: Json) -> bool:
    if case.input["op"] != "layer_norm":
        return False
    x = array(case.input, "x")
    is_far = np.abs(x.mean(axis=-1)) > FAR * x.std(axis=-1)
    return bool(is_far.all() and np.isfinite(array(got, "output")).all())


def _has_few_bits(case: Case, got: Json) -> bool:
    """Whether all is nearly right."""
    wanted, found = array(case.expected, "output"), array(got, "output")
    size = np.maximum(np.abs(wanted), float(case.tolerance.get("scale", 0.0)))
    return bool((np.abs(found - wanted) <= FEW_BITS * size).all())


OPS: tuple[Symptom, ...] = (
    *(_symptom(*operation) for operation in OPERATIONS),
    seen(
        "overflow",
        "The exponential overflows, or something is divided by 0: subtract the largest number "
        "before exp, and keep a length from being 0.",
        "ops",
        _overflows,
    ),
    seen(
        "variance by difference",
        "LayerNorm's variance is a difference of large squares: subtract the mean first, and "
        "then square.",
        "ops",
        _loses_the_deviation,
        is_vague=True,
    ),
    seen(
        "few bits",
        "The numbers have fewer than float32's 24 bits (float16, bfloat16 or TF32): compute in "
        "float32.",
        "ops",
        _has_few_bits,
        is_vague=True,
    ),
)
