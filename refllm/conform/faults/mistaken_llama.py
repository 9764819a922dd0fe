"""The llama in float64, in parts, so that one of them can be replaced by a mistake.

`of_logits` asks what a network with a known mistake would answer, and looks whether a target
answers just that. Sums are NumPy's own, in whatever order: what tells a mistake is far larger than
float64's rounding. `refllm/oracle.py` is the place to read how it is done right.

T tokens, D model width, H heads, K key/value heads, E head width, R rotated part of a head,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from refllm.conform.compare.numbers import Doubles
from refllm.conform.faults.activations import silu
from refllm.conform.faults.float64_weights import Weights
from refllm.llama import LlamaConfig
from refllm.rope import rope_frequencies

__all__ = ["Network", "causal", "logits", "rms_norm"]

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


def causal(n_tokens: int) -> Mask:
    """Who sees whom: token t sees the tokens up to itself, [T, T]."""
    return np.tri(n_tokens, dtype=bool)


def rms_norm(x: Doubles, weight: Doubles, eps: float) -> Doubles:
    """x / √(mean(x²) + ε) · weight for each row of x [T, D]."""
    result: Doubles = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How a network does each of its steps; None means as the model's file says.

    `kv_head` says which key/value head a query head h uses, of K, shared by H/K each. `positions`
    changes the positions 0 … T − 1. `renamed` are tensors that are taken for another.
    """

    eps: float | None = None
    norm: Callable[[Doubles, Doubles, float], Doubles] = rms_norm
    last_norm: bool = True
    rope_base: float | None = None
    rope_halves: bool = False
    rope_sign: int = 1
    rotates: str = "qk"
    positions: Callable[[Ints], Ints] = lambda positions: positions
    scale: Callable[[int], float] = lambda head_dim: 1.0 / math.sqrt(head_dim)
    kv_head: Callable[[int, int, int], int] = lambda h, n_kv, group: h // group
    mask: Callable[[int], Mask] = causal
    activation: Callable[[Doubles], Doubles] = silu
    embedding_scale: Callable[[int], float] = lambda width: 1.0
    adds_attention: bool = True
    adds_feed_forward: bool = True
    renamed: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()


def logits(weights: Weights[LlamaConfig], token_ids: Sequence[int], network: Network) -> Doubles:
    """The logits after each token, [T, V]."""
    c, n = weights.config, network
    eps = c.rms_norm_eps if n.eps is None else n.eps
    x = weights.tensors["token_embd.weight"][list(token_ids)]  # [T, D]
    x = x * n.embedding_scale(c.n_embd)
    table = _rope_table(c, n.positions(np.arange(len(token_ids))), n)
    mask = n.mask(len(token_ids))
    for i in range(c.n_layers):
        h = n.norm(x, _tensor(weights, n, f"blk.{i}.attn_norm"), eps)
        attended = _attention(weights, n, i, h, table, mask)
        x = x + attended if n.adds_attention else attended
        h = n.norm(x, _tensor(weights, n, f"blk.{i}.ffn_norm"), eps)
        gate = n.activation(h @ _tensor(weights, n, f"blk.{i}.ffn_gate").T)
        gated = gate * (h @ _tensor(weights, n, f"blk.{i}.ffn_up").T)
        down = gated @ _tensor(weights, n, f"blk.{i}.ffn_down").T
        x = x + down if n.adds_feed_forward else down
    if n.last_norm:
        x = n.norm(x, _tensor(weights, n, "output_norm"), eps)
    has_output = "output.weight" in weights.tensors
    return np.asarray(x @ _tensor(weights, n, "output" if has_output else "token_embd").T)


def _tensor(weights: Weights[LlamaConfig], network: Network, name: str) -> Doubles:
    prefix, _, last = name.rpartition(".")
    taken = network.renamed.get(last, last)
    tensor = weights.tensors[f"{prefix}.{taken}.weight" if prefix else f"{taken}.weight"]
    is_turned = last in network.transposed and tensor.shape[0] == tensor.shape[-1]
    return tensor.T if is_turned else tensor


def _attention(
    weights: Weights[LlamaConfig],
    n: Network,
    i: int,
    h: Doubles,
    table: tuple[Doubles, Doubles],
    mask: Mask,
) -> Doubles:
    """What layer i's attention gives each token, [T, D]."""
    c = weights.config
    n_tokens = len(h)
    q, k, v = (
        (h @ _tensor(weights, n, f"blk.{i}.attn_{part}").T).reshape(n_tokens, -1, c.head_dim)
        for part in "qkv"
    )
    q = _turned(q, table, n) if "q" in n.rotates else q
    k = _turned(k, table, n) if "k" in n.rotates else k
    group = c.n_heads // c.n_kv_heads
    shared = [n.kv_head(head, c.n_kv_heads, group) for head in range(c.n_heads)]
    k, v = k[:, shared], v[:, shared]  # [T, H, E]
    scores = np.einsum("the,she->hts", q, k) * n.scale(c.head_dim)
    scores = np.where(mask, scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    merged = np.einsum("hts,she->the", shares, v).reshape(n_tokens, -1)  # [T, H·E]
    return np.asarray(merged @ _tensor(weights, n, f"blk.{i}.attn_output").T)


def _rope_table(c: LlamaConfig, positions: Ints, n: Network) -> tuple[Doubles, Doubles]:
    """Cosine and sine of each token's angles, [T, 1, R/2] each."""
    frequencies = rope_frequencies(
        base=c.rope_theta if n.rope_base is None else n.rope_base,
        rope_dim=c.rope_dim,
        factors=c.rope_factors,
        linear_scale=c.rope_linear_scale,
    )
    angles = n.rope_sign * positions[:, None, None] * frequencies
    return np.cos(angles), np.sin(angles)


def _turned(x: Doubles, table: tuple[Doubles, Doubles], n: Network) -> Doubles:
    cosine, sine = table
    n_pairs = cosine.shape[-1]
    if n.rope_halves:
        first, second = slice(0, n_pairs), slice(n_pairs, 2 * n_pairs)
    else:
        first, second = slice(0, 2 * n_pairs, 2), slice(1, 2 * n_pairs, 2)
    out = x.copy()
    a, b = x[..., first], x[..., second]
    out[..., first] = a * cosine - b * sine
    out[..., second] = a * sine + b * cosine
    return out
