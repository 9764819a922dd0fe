"""The llama in float64, in parts, so that one of them can be replaced by a wrong formula.

`logits` computes what a network with a known fault would answer and compares the target's answer
with it. Sums are in NumPy's order: the effect of a fault is far larger than float64's rounding.
`refllm/oracle.py` is the place to read how it is done right.

T tokens, D model width, H heads, Hkv key/value heads, E head width, R rotated part of a head,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from refllm.conform.compare.numbers import Doubles
from refllm.conform.faults.float64_models import Weights
from refllm.conform.faults.formulas import (
    Mask,
    attention,
    causal,
    head_scale,
    neighboring_heads,
    rms_norm,
    rotate,
    silu,
)
from refllm.llama import LlamaConfig
from refllm.rope import rope_frequencies

__all__ = ["Network", "logits"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How a llama does each of its steps; None means as the model's file says.

    `kv_head` gives the key/value head of a query head h, of Hkv, shared by H/Hkv each. `positions`
    changes the positions 0 … T − 1. `mask` gives [T, S] instead of the causal mask; with one that
    `looks_ahead` a token's logits depend on later tokens. `renamed` are tensors that are taken for
    another.
    """

    eps: float | None = None
    norm: Callable[[Doubles, Doubles, float], Doubles] = rms_norm
    last_norm: bool = True
    rope_base: float | None = None
    rope_swaps_layout: bool = False
    rope_sign: int = 1
    rotates: str = "qk"
    positions: Callable[[Ints], Ints] = lambda positions: positions
    scale: Callable[[int], float] = head_scale
    kv_head: Callable[[int, int, int], int] = neighboring_heads
    mask: Callable[[int, int], Mask] | None = None
    looks_ahead: bool = False
    activation: Callable[[Doubles], Doubles] = silu
    embedding_scale: Callable[[int], float] = lambda width: 1.0
    adds_attention: bool = True
    adds_feed_forward: bool = True
    renamed: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()


def logits(weights: Weights[LlamaConfig], token_ids: Sequence[int], network: Network) -> Doubles:
    """Return the logits after each token, [T, V]."""
    c, n, n_tokens = weights.config, network, len(token_ids)

    def tensor(name: str) -> Doubles:
        prefix, _, last = name.rpartition(".")
        renamed = n.renamed.get(last, last)
        found = weights.tensors[f"{prefix}.{renamed}.weight" if prefix else f"{renamed}.weight"]
        is_turned = last in n.transposed and found.shape[0] == found.shape[-1]
        return found.T if is_turned else found

    def norm(x: Doubles, name: str) -> Doubles:
        return n.norm(x, tensor(name), c.rms_norm_eps if n.eps is None else n.eps)

    frequencies = rope_frequencies(
        base=c.rope_theta if n.rope_base is None else n.rope_base,
        rope_dim=c.rope_dim,
        factors=c.rope_factors,
        linear_scale=c.rope_linear_scale,
    )
    angles = n.rope_sign * n.positions(np.arange(n_tokens))[:, None, None] * frequencies
    mask = (n.mask or causal)(n_tokens, n_tokens)
    x = weights.tensors["token_embd.weight"][list(token_ids)]  # [T, D]
    x = x * n.embedding_scale(c.n_embd)
    for i in range(c.n_layers):
        h = norm(x, f"blk.{i}.attn_norm")
        heads = {
            part: (h @ tensor(f"blk.{i}.attn_{part}").T).reshape(n_tokens, -1, c.head_dim)
            for part in "qkv"
        }
        for part in n.rotates:
            heads[part] = rotate(heads[part], angles, halves=n.rope_swaps_layout)
        q, k, v = heads.values()
        mixed = attention(q, k, v, mask, scale=n.scale, kv_head=n.kv_head)  # [T, H, E]
        attended = mixed.reshape(n_tokens, -1) @ tensor(f"blk.{i}.attn_output").T
        x = x + attended if n.adds_attention else attended
        h = norm(x, f"blk.{i}.ffn_norm")
        gated = n.activation(h @ tensor(f"blk.{i}.ffn_gate").T) * (h @ tensor(f"blk.{i}.ffn_up").T)
        down = gated @ tensor(f"blk.{i}.ffn_down").T
        x = x + down if n.adds_feed_forward else down
    if n.last_norm:
        x = norm(x, "output_norm")
    has_output = "output.weight" in weights.tensors
    return np.asarray(x @ tensor("output" if has_output else "token_embd").T)
