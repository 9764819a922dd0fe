"""Faults inside a llama: which step of it a backend computes otherwise, and the words for it.

T tokens, S tokens that are seen, D model width, H heads, Hkv key/value heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from refllm.trace.faults.formulas import (
    Doubles,
    Mask,
    causal,
    gelu,
    gelu_tanh,
    head_scale,
    neighboring_heads,
    relu,
    rms_norm,
    sigmoid,
    silu,
)

__all__ = ["NETWORK_FAULTS", "Network", "NetworkFault"]

Ints = NDArray[np.int64]

BASES = (10_000.0, 500_000.0, 1_000_000.0)
EPSILONS = (1e-5, 1e-6, 1e-12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How a llama does each of its steps; None for as in the model's file.

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


@dataclass(frozen=True, slots=True)
class NetworkFault:
    """A known fault of a llama.

    Attributes:
        name: A few words.
        cause: A sentence for a report: what is wrong and what to do.
        network: What computes it.
        op: The operation of the golden suite's group ops that shows it alone; "" if none does.
    """

    name: str
    cause: str
    network: Network
    op: str = ""


def _not_itself(n_tokens: int, n_seen: int) -> Mask:
    mask = causal(n_tokens, n_seen, ahead=-1)
    mask[:, 0] |= ~mask.any(axis=1)
    return mask


NETWORK_FAULTS: tuple[NetworkFault, ...] = (
    NetworkFault(
        "RoPE layout swapped",
        "RoPE turns the pairs (i, i + R/2) of a head where the file's rows are in the order for "
        "(2i, 2i + 1): GGUF's llama has neighbors for pairs, Hugging Face's files have halves.",
        Network(rope_swaps_layout=True),
        op="rope",
    ),
    *(
        NetworkFault(
            f"RoPE base {base:.0f}",
            f"RoPE turns with the base {base:.0f}: take the base from the model's file "
            "(llama.rope.freq_base, rope_theta).",
            Network(rope_base=base),
            op="rope",
        )
        for base in BASES
    ),
    NetworkFault(
        "RoPE backwards",
        "RoPE turns in the wrong direction: a·cos − b·sin comes first, a·sin + b·cos second.",
        Network(rope_sign=-1),
        op="rope",
    ),
    NetworkFault(
        "RoPE on queries only",
        "RoPE turns the queries only: turn the keys as well.",
        Network(rotates="q"),
    ),
    NetworkFault(
        "RoPE on keys only",
        "RoPE turns the keys only: turn the queries as well.",
        Network(rotates="k"),
    ),
    NetworkFault(
        "RoPE missing",
        "RoPE is missing: turn queries and keys before attention.",
        Network(rotates=""),
        op="rope",
    ),
    *(
        NetworkFault(
            f"RMSNorm epsilon {eps:g}",
            f"RMSNorm adds the epsilon {eps:g}: take it from the model's file "
            "(llama.attention.layer_norm_rms_epsilon, rms_norm_eps).",
            Network(eps=eps),
            op="rms_norm",
        )
        for eps in EPSILONS
    ),
    NetworkFault(
        "RMSNorm with mean subtracted",
        "RMSNorm subtracts the mean, as LayerNorm does: only divide by the root of the mean "
        "square.",
        Network(norm=partial(rms_norm, centers=True)),
        op="rms_norm",
    ),
    NetworkFault(
        "RMSNorm by the sum",
        "RMSNorm divides by the root of the sum of squares: take their mean.",
        Network(norm=partial(rms_norm, averages=False)),
        op="rms_norm",
    ),
    NetworkFault(
        "RMSNorm without weight",
        "RMSNorm is not multiplied by its weight.",
        Network(norm=partial(rms_norm, weigh=np.ones_like)),
        op="rms_norm",
    ),
    NetworkFault(
        "RMSNorm weight from one",
        "RMSNorm multiplies by 1 + weight, as Gemma does: multiply by the weight.",
        Network(norm=partial(rms_norm, weigh=lambda weight: 1.0 + weight)),
        op="rms_norm",
    ),
    NetworkFault(
        "RMSNorm epsilon outside the root",
        "RMSNorm adds epsilon to the root: add it to the mean square.",
        Network(norm=partial(rms_norm, eps_outside=True)),
        op="rms_norm",
    ),
    NetworkFault(
        "last norm missing",
        "The norm before the output matrix is missing.",
        Network(last_norm=False),
    ),
    NetworkFault(
        "scores not scaled",
        "Attention scores are not scaled: divide them by the root of the head's width.",
        Network(scale=lambda _head_dim: 1.0),
        op="attention",
    ),
    NetworkFault(
        "scores scaled by the width",
        "Attention scores are divided by the head's width: divide them by its root.",
        Network(scale=lambda head_dim: 1.0 / head_dim),
        op="attention",
    ),
    NetworkFault(
        "GQA heads by modulo",
        "Query head h uses key/value head h modulo K: heads that share one are neighbors, so it "
        "is h divided by H/K, rounded down.",
        Network(kv_head=lambda h, n_kv, _group: h % n_kv),
        op="attention",
    ),
    NetworkFault(
        "GQA all on the first head",
        "Every query head uses the first key/value head.",
        Network(kv_head=lambda _h, _n_kv, _group: 0),
        op="attention",
    ),
    NetworkFault(
        "causal mask missing",
        "Tokens attend to those after them: the causal mask is missing.",
        Network(mask=lambda t, s: np.ones((t, s), bool)),
        op="attention",
    ),
    NetworkFault(
        "causal mask one ahead",
        "Each token attends to the one after it: the causal mask is off by one.",
        Network(mask=partial(causal, ahead=1), looks_ahead=True),
        op="attention",
    ),
    NetworkFault(
        "token does not see itself",
        "A token does not attend to itself: it must be in the cache, and visible, before its "
        "attention.",
        Network(mask=_not_itself),
        op="attention",
    ),
    NetworkFault(
        "token before not seen",
        "A token does not attend to the one before it: the key/value cache is off by one.",
        Network(mask=lambda t, s: causal(t, s) & ~np.eye(t, k=-1, dtype=bool)),
    ),
    NetworkFault(
        "first token not seen",
        "Tokens do not attend to the first one: the key/value cache begins one too late.",
        Network(mask=lambda t, s: causal(t, s) & ((np.arange(s) > 0) | np.eye(t, 1, dtype=bool))),
    ),
    NetworkFault(
        "GELU for SiLU",
        "The feed-forward network uses GELU: a llama uses SiLU.",
        Network(activation=gelu),
        op="silu",
    ),
    NetworkFault(
        "tanh GELU for SiLU",
        "The feed-forward network uses GELU by tanh: a llama uses SiLU.",
        Network(activation=gelu_tanh),
        op="silu",
    ),
    NetworkFault(
        "ReLU for SiLU",
        "The feed-forward network uses ReLU: a llama uses SiLU.",
        Network(activation=relu),
        op="silu",
    ),
    NetworkFault(
        "sigmoid for SiLU",
        "The gate is a sigmoid alone: SiLU multiplies it by its argument.",
        Network(activation=sigmoid),
        op="silu",
    ),
    NetworkFault(
        "gate and up exchanged",
        "SiLU is applied to ffn_up (up_proj): it belongs to ffn_gate (gate_proj).",
        Network(renamed={"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}),
    ),
    NetworkFault(
        "residual missing at attention",
        "What attention gives replaces its input: add it to the input.",
        Network(adds_attention=False),
    ),
    NetworkFault(
        "residual missing at feed-forward",
        "What the feed-forward network gives replaces its input: add it to the input.",
        Network(adds_feed_forward=False),
    ),
    NetworkFault(
        "norms exchanged",
        "The weights of attn_norm and ffn_norm are exchanged.",
        Network(renamed={"attn_norm": "ffn_norm", "ffn_norm": "attn_norm"}),
    ),
    NetworkFault(
        "embeddings for output",
        "The output matrix is the embeddings': the model has one of its own.",
        Network(renamed={"output": "token_embd"}),
    ),
    NetworkFault(
        "embeddings scaled",
        "Embeddings are multiplied by the root of their width, as Gemma does: a llama takes them "
        "as they are.",
        Network(embedding_scale=math.sqrt),
    ),
    NetworkFault(
        "attn_output transposed",
        "The matrix attn_output (o_proj) is transposed: its rows are its outputs.",
        Network(transposed=frozenset({"attn_output"})),
    ),
    NetworkFault(
        "attn_q transposed",
        "The matrix attn_q (q_proj) is transposed: its rows are its outputs.",
        Network(transposed=frozenset({"attn_q"})),
    ),
)
"""The known faults; of two that explain a difference equally well, the first is named."""
