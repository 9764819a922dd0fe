"""Mistakes inside a llama: each computes the case's logits itself, in float64.

A backend's logits are compared as differences: what a mistake changes, by a float64 network with it
and one without, against what is different from the case's logits. So activations that are quantized
on both sides, or matrices in another type than the network here has, are not in the way.

T tokens, V vocabulary, P positions whose logits the case has.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.checkpoints.config import llama_config
from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import Doubles, array
from refllm.conform.faults.activations import gelu, gelu_tanh, relu, sigmoid
from refllm.conform.faults.float64_weights import Weights, open_float64
from refllm.conform.faults.mistaken_llama import Network, causal, logits
from refllm.conform.faults.symptom import Symptom, explained_share
from refllm.conform.models import suite_model
from refllm.llama import LlamaConfig

__all__ = ["LOGITS", "NETWORKS", "network_logits", "tiny_chat_weights"]

Mask = NDArray[np.bool_]

# So many tables of logits are kept, because several cases ask about the same tokens.
KEPT = 32
BASES = (10_000.0, 500_000.0, 1_000_000.0)
EPSILONS = (1e-5, 1e-6, 1e-12)


def _centered_norm(x: Doubles, weight: Doubles, eps: float) -> Doubles:
    centered = x - x.mean(axis=-1, keepdims=True)
    result: Doubles = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps) * weight
    return result


def _norm_of_length(x: Doubles, weight: Doubles, eps: float) -> Doubles:
    result: Doubles = x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + eps) * weight
    return result


def _unweighted_norm(x: Doubles, _weight: Doubles, eps: float) -> Doubles:
    result: Doubles = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return result


def _norm_with_weight_from_one(x: Doubles, weight: Doubles, eps: float) -> Doubles:
    return _unweighted_norm(x, weight, eps) * (1.0 + weight)


def _norm_with_eps_outside(x: Doubles, weight: Doubles, eps: float) -> Doubles:
    result: Doubles = x / (np.sqrt((x * x).mean(axis=-1, keepdims=True)) + eps) * weight
    return result


def _everybody(n_tokens: int) -> Mask:
    return np.ones((n_tokens, n_tokens), bool)


def _one_ahead(n_tokens: int) -> Mask:
    return np.tri(n_tokens, k=1, dtype=bool)


def _not_itself(n_tokens: int) -> Mask:
    mask = np.tri(n_tokens, k=-1, dtype=bool)
    mask[0, 0] = True
    return mask


def _not_the_one_before(n_tokens: int) -> Mask:
    return causal(n_tokens) & ~np.eye(n_tokens, k=-1, dtype=bool)


def _not_the_first(n_tokens: int) -> Mask:
    mask = causal(n_tokens)
    mask[1:, 0] = False
    return mask


def _of_another_base(base: float) -> tuple[str, str, Network]:
    return (
        f"RoPE base {base:.0f}",
        f"RoPE turns with the base {base:.0f}: take the base from the model's file "
        "(llama.rope.freq_base, rope_theta).",
        Network(rope_base=base),
    )


def _of_another_epsilon(eps: float) -> tuple[str, str, Network]:
    return (
        f"RMSNorm epsilon {eps:g}",
        f"RMSNorm adds the epsilon {eps:g}: take it from the model's file "
        "(llama.attention.layer_norm_rms_epsilon, rms_norm_eps).",
        Network(eps=eps),
    )


NETWORKS: tuple[tuple[str, str, Network], ...] = (
    (
        "RoPE layout swapped",
        "RoPE turns the pairs (i, i + R/2) of a head where the file's rows are in the order for "
        "(2i, 2i + 1): GGUF's llama has neighbors for pairs, Hugging Face's files have halves.",
        Network(rope_halves=True),
    ),
    *map(_of_another_base, BASES),
    (
        "RoPE backwards",
        "RoPE turns in the wrong direction: a·cos − b·sin comes first, a·sin + b·cos second.",
        Network(rope_sign=-1),
    ),
    (
        "RoPE on queries only",
        "RoPE turns the queries only: turn the keys as well.",
        Network(rotates="q"),
    ),
    (
        "RoPE on keys only",
        "RoPE turns the keys only: turn the queries as well.",
        Network(rotates="k"),
    ),
    (
        "RoPE missing",
        "RoPE is missing: turn queries and keys before attention.",
        Network(rotates=""),
    ),
    *map(_of_another_epsilon, EPSILONS),
    (
        "RMSNorm with mean subtracted",
        "RMSNorm subtracts the mean, as LayerNorm does: only divide by the root of the mean "
        "square.",
        Network(norm=_centered_norm),
    ),
    (
        "RMSNorm by the sum",
        "RMSNorm divides by the root of the sum of squares: take their mean.",
        Network(norm=_norm_of_length),
    ),
    (
        "RMSNorm without weight",
        "RMSNorm is not multiplied by its weight.",
        Network(norm=_unweighted_norm),
    ),
    (
        "RMSNorm weight from one",
        "RMSNorm multiplies by 1 + weight, as Gemma does: multiply by the weight.",
        Network(norm=_norm_with_weight_from_one),
    ),
    (
        "RMSNorm epsilon outside the root",
        "RMSNorm adds epsilon to the root: add it to the mean square.",
        Network(norm=_norm_with_eps_outside),
    ),
    (
        "last norm missing",
        "The norm before the output matrix is missing.",
        Network(last_norm=False),
    ),
    (
        "scores not scaled",
        "Attention scores are not scaled: divide them by the root of the head's width.",
        Network(scale=lambda _head_dim: 1.0),
    ),
    (
        "scores scaled by the width",
        "Attention scores are divided by the head's width: divide them by its root.",
        Network(scale=lambda head_dim: 1.0 / head_dim),
    ),
    (
        "GQA heads by modulo",
        "Query head h uses key/value head h modulo K: heads that share one are neighbors, so it "
        "is h divided by H/K, rounded down.",
        Network(kv_head=lambda h, n_kv, _group: h % n_kv),
    ),
    (
        "GQA all on the first head",
        "Every query head uses the first key/value head.",
        Network(kv_head=lambda _h, _n_kv, _group: 0),
    ),
    (
        "causal mask missing",
        "Tokens attend to those after them: the causal mask is missing.",
        Network(mask=_everybody),
    ),
    (
        "causal mask one ahead",
        "Each token attends to the one after it: the causal mask is off by one.",
        Network(mask=_one_ahead),
    ),
    (
        "token does not see itself",
        "A token does not attend to itself: it must be in the cache, and visible, before its "
        "attention.",
        Network(mask=_not_itself),
    ),
    (
        "token before not seen",
        "A token does not attend to the one before it: the key/value cache is off by one.",
        Network(mask=_not_the_one_before),
    ),
    (
        "first token not seen",
        "Tokens do not attend to the first one: the key/value cache begins one too late.",
        Network(mask=_not_the_first),
    ),
    (
        "GELU for SiLU",
        "The feed-forward network uses GELU: a llama uses SiLU.",
        Network(activation=gelu),
    ),
    (
        "tanh GELU for SiLU",
        "The feed-forward network uses GELU by tanh: a llama uses SiLU.",
        Network(activation=gelu_tanh),
    ),
    (
        "ReLU for SiLU",
        "The feed-forward network uses ReLU: a llama uses SiLU.",
        Network(activation=relu),
    ),
    (
        "sigmoid for SiLU",
        "The gate is a sigmoid alone: SiLU multiplies it by its argument.",
        Network(activation=sigmoid),
    ),
    (
        "gate and up exchanged",
        "SiLU is applied to ffn_up (up_proj): it belongs to ffn_gate (gate_proj).",
        Network(renamed={"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}),
    ),
    (
        "residual missing at attention",
        "What attention gives replaces its input: add it to the input.",
        Network(adds_attention=False),
    ),
    (
        "residual missing at feed-forward",
        "What the feed-forward network gives replaces its input: add it to the input.",
        Network(adds_feed_forward=False),
    ),
    (
        "norms exchanged",
        "The weights of attn_norm and ffn_norm are exchanged.",
        Network(renamed={"attn_norm": "ffn_norm", "ffn_norm": "attn_norm"}),
    ),
    (
        "embeddings for output",
        "The output matrix is the embeddings': the model has one of its own.",
        Network(renamed={"output": "token_embd"}),
    ),
    (
        "embeddings scaled",
        "Embeddings are multiplied by the root of their width, as Gemma does: a llama takes them "
        "as they are.",
        Network(embedding_scale=math.sqrt),
    ),
    (
        "attn_output transposed",
        "The matrix attn_output (o_proj) is transposed: its rows are its outputs.",
        Network(transposed=frozenset({"attn_output"})),
    ),
    (
        "attn_q transposed",
        "The matrix attn_q (q_proj) is transposed: its rows are its outputs.",
        Network(transposed=frozenset({"attn_q"})),
    ),
)


@cache
def tiny_chat_weights() -> Weights[LlamaConfig]:
    """Those of the suite's own llama."""
    path = suite_model("tiny-chat", Path())  # it ships: nothing is made
    assert path is not None
    return open_float64(path, llama_config)


@lru_cache(KEPT)
def network_logits(name: str | None, token_ids: tuple[int, ...]) -> Doubles:
    """The logits [T, V] of tiny-chat with the mistake of that name, or with none."""
    network = Network() if name is None else BY_NAME[name]
    with np.errstate(all="ignore"):
        return logits(tiny_chat_weights(), token_ids, network)


BY_NAME = {name: network for name, _, network in NETWORKS}


def _share_of_logits(name: str, case: Case, got: Json) -> float:
    if not case.input["model"].startswith("tiny-chat"):
        return 0.0
    token_ids = tuple(map(int, case.input["token_ids"]))
    positions = list(map(int, case.expected["positions"]))
    difference = array(got, "logits")[positions] - array(case.expected, "rows")  # [P, V]
    right = network_logits(None, token_ids)[positions]
    return explained_share(difference, network_logits(name, token_ids)[positions] - right)


LOGITS: tuple[Symptom, ...] = tuple(
    Symptom(
        name=name,
        cause=cause,
        groups=frozenset({"logits"}),
        evidence=partial(_share_of_logits, name),
        is_slow=True,
    )
    for name, cause, _ in NETWORKS
)
