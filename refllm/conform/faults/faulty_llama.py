"""The llama in float64, in parts, so that one of them can be replaced by a wrong formula.

`logits` computes what a network with a known fault would answer and compares the target's answer
with it. Sums are in NumPy's order: the effect of a fault is far larger than float64's rounding.
`refllm/oracle.py` is the place to read how it is done right.

T tokens, D model width, H heads, Hkv key/value heads, E head width, R rotated part of a head,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from refllm.conform.faults.float64_models import Weights
from refllm.llama import LlamaConfig
from refllm.rope import rope_frequencies
from refllm.trace.faults.formulas import (
    Doubles,
    attention_weights,
    causal,
    rotate,
    shared_heads,
)
from refllm.trace.faults.llama import Network

__all__ = ["Network", "logits"]


def logits(
    weights: Weights[LlamaConfig],
    token_ids: Sequence[int],
    network: Network,
    *,
    tap: Callable[[str, Doubles], object] = lambda _name, _value: None,
) -> Doubles:
    """Return the logits after each token, [T, V]; `tap` is called with llama.cpp's names."""
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
    tap("inp_embd", x)
    for i in range(c.n_layers):
        h = norm(x, f"blk.{i}.attn_norm")
        tap(f"attn_norm-{i}", h)
        heads = {
            part: (h @ tensor(f"blk.{i}.attn_{part}").T).reshape(n_tokens, -1, c.head_dim)
            for part in "qkv"
        }
        for part in "qkv":
            tap(f"{part.upper()}cur-{i}", heads[part])
        for part in n.rotates:
            heads[part] = rotate(heads[part], angles, halves=n.rope_swaps_layout)
        q, k, v = heads.values()
        tap(f"Qcur-{i}", q)
        tap(f"Kcur-{i}", k)
        weights_of_heads = attention_weights(q, k, mask, scale=n.scale, kv_head=n.kv_head)
        tap(f"kq_soft_max-{i}", weights_of_heads)  # [H, T, S]
        shared = shared_heads(c.n_heads, c.n_kv_heads, n.kv_head)
        mixed = np.einsum("hts,she->the", weights_of_heads, v[:, shared])  # [T, H, E]
        tap(f"kqv_out-{i}", mixed.reshape(n_tokens, -1))
        attended = mixed.reshape(n_tokens, -1) @ tensor(f"blk.{i}.attn_output").T
        tap(f"attn_out-{i}", attended)
        x = x + attended if n.adds_attention else attended
        tap(f"ffn_inp-{i}", x)
        h = norm(x, f"blk.{i}.ffn_norm")
        tap(f"ffn_norm-{i}", h)
        gate, up = h @ tensor(f"blk.{i}.ffn_gate").T, h @ tensor(f"blk.{i}.ffn_up").T
        tap(f"ffn_gate-{i}", gate)
        tap(f"ffn_up-{i}", up)
        gated = n.activation(gate) * up
        tap(f"ffn_swiglu-{i}", gated)
        down = gated @ tensor(f"blk.{i}.ffn_down").T
        tap(f"ffn_out-{i}", down)
        x = x + down if n.adds_feed_forward else down
        tap(f"l_out-{i}", x)
    if n.last_norm:
        x = norm(x, "output_norm")
    tap("result_norm", x)
    has_output = "output.weight" in weights.tensors
    result = np.asarray(x @ tensor("output" if has_output else "token_embd").T)
    tap("result_output", result)
    return result
