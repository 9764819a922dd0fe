"""Faults inside a llama: each computes the case's logits itself, in float64.

A backend's logits are compared as differences: what a fault changes, by a float64 network with it
and one without, against what is different from the case's logits. So activations that are quantized
on both sides, or matrices in another type than the network here has, do not matter.

T tokens, V vocabulary, P positions whose logits the case has.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import Doubles, array
from refllm.conform.faults.catalog import Faults, explained_share
from refllm.conform.faults.faulty_llama import Network, logits
from refllm.conform.faults.float64_models import tiny_chat_weights
from refllm.conform.faults.formulas import Mask, causal, gelu, gelu_tanh, relu, rms_norm, sigmoid

__all__ = ["LOGITS", "network_logits"]

LOGITS = Faults("logits")

# Several cases have the same tokens: enough rows for every fault in some of them.
MAX_KEPT = 256
BASES = (10_000.0, 500_000.0, 1_000_000.0)
EPSILONS = (1e-5, 1e-6, 1e-12)


def network_logits(name: str | None, token_ids: tuple[int, ...]) -> Doubles:
    """Return the logits [T, V] of tiny-chat with the fault of that name, or with none."""
    network = Network() if name is None else LOGITS.named(name).wrong
    with np.errstate(all="ignore"):
        return logits(tiny_chat_weights(), token_ids, network)


@lru_cache(MAX_KEPT)
def _rows(name: str | None, token_ids: tuple[int, ...], positions: tuple[int, ...]) -> Doubles:
    """Return the logits at these positions, [P, V]."""
    return network_logits(name, token_ids)[list(positions)]


def _network(name: str, cause: str, network: Network, *, op: str = "") -> None:
    """Add a fault of the network; `op` is the operation that shows it alone."""

    def evidence(case: Case, got: Json) -> float:
        if not case.input["model"].startswith("tiny-chat"):
            return 0.0
        positions = tuple(map(int, case.expected["positions"]))
        asked = tuple(map(int, case.input["token_ids"])), positions
        difference = array(got, "logits")[list(positions)] - array(case.expected, "rows")  # [P, V]
        return explained_share(difference, _rows(name, *asked) - _rows(None, *asked))

    LOGITS.add(name, cause, evidence, is_slow=True, wrong=network, op=op)


def _not_itself(n_tokens: int, n_seen: int) -> Mask:
    mask = causal(n_tokens, n_seen, ahead=-1)
    mask[:, 0] |= ~mask.any(axis=1)
    return mask


_network(
    "RoPE layout swapped",
    "RoPE turns the pairs (i, i + R/2) of a head where the file's rows are in the order for (2i, "
    "2i + 1): GGUF's llama has neighbors for pairs, Hugging Face's files have halves.",
    Network(rope_swaps_layout=True),
    op="rope",
)
for _base in BASES:
    _network(
        f"RoPE base {_base:.0f}",
        f"RoPE turns with the base {_base:.0f}: take the base from the model's file "
        "(llama.rope.freq_base, rope_theta).",
        Network(rope_base=_base),
        op="rope",
    )
_network(
    "RoPE backwards",
    "RoPE turns in the wrong direction: a·cos − b·sin comes first, a·sin + b·cos second.",
    Network(rope_sign=-1),
    op="rope",
)
_network(
    "RoPE on queries only",
    "RoPE turns the queries only: turn the keys as well.",
    Network(rotates="q"),
)
_network(
    "RoPE on keys only", "RoPE turns the keys only: turn the queries as well.", Network(rotates="k")
)
_network(
    "RoPE missing",
    "RoPE is missing: turn queries and keys before attention.",
    Network(rotates=""),
    op="rope",
)
for _eps in EPSILONS:
    _network(
        f"RMSNorm epsilon {_eps:g}",
        f"RMSNorm adds the epsilon {_eps:g}: take it from the model's file "
        "(llama.attention.layer_norm_rms_epsilon, rms_norm_eps).",
        Network(eps=_eps),
        op="rms_norm",
    )
_network(
    "RMSNorm with mean subtracted",
    "RMSNorm subtracts the mean, as LayerNorm does: only divide by the root of the mean square.",
    Network(norm=partial(rms_norm, centers=True)),
    op="rms_norm",
)
_network(
    "RMSNorm by the sum",
    "RMSNorm divides by the root of the sum of squares: take their mean.",
    Network(norm=partial(rms_norm, averages=False)),
    op="rms_norm",
)
_network(
    "RMSNorm without weight",
    "RMSNorm is not multiplied by its weight.",
    Network(norm=partial(rms_norm, weigh=np.ones_like)),
    op="rms_norm",
)
_network(
    "RMSNorm weight from one",
    "RMSNorm multiplies by 1 + weight, as Gemma does: multiply by the weight.",
    Network(norm=partial(rms_norm, weigh=lambda weight: 1.0 + weight)),
    op="rms_norm",
)
_network(
    "RMSNorm epsilon outside the root",
    "RMSNorm adds epsilon to the root: add it to the mean square.",
    Network(norm=partial(rms_norm, eps_outside=True)),
    op="rms_norm",
)
_network(
    "last norm missing", "The norm before the output matrix is missing.", Network(last_norm=False)
)
_network(
    "scores not scaled",
    "Attention scores are not scaled: divide them by the root of the head's width.",
    Network(scale=lambda _head_dim: 1.0),
    op="attention",
)
_network(
    "scores scaled by the width",
    "Attention scores are divided by the head's width: divide them by its root.",
    Network(scale=lambda head_dim: 1.0 / head_dim),
    op="attention",
)
_network(
    "GQA heads by modulo",
    "Query head h uses key/value head h modulo K: heads that share one are neighbors, so it is h "
    "divided by H/K, rounded down.",
    Network(kv_head=lambda h, n_kv, _group: h % n_kv),
    op="attention",
)
_network(
    "GQA all on the first head",
    "Every query head uses the first key/value head.",
    Network(kv_head=lambda _h, _n_kv, _group: 0),
    op="attention",
)
_network(
    "causal mask missing",
    "Tokens attend to those after them: the causal mask is missing.",
    Network(mask=lambda t, s: np.ones((t, s), bool)),
    op="attention",
)
_network(
    "causal mask one ahead",
    "Each token attends to the one after it: the causal mask is off by one.",
    Network(mask=partial(causal, ahead=1), looks_ahead=True),
    op="attention",
)
_network(
    "token does not see itself",
    "A token does not attend to itself: it must be in the cache, and visible, before its "
    "attention.",
    Network(mask=_not_itself),
    op="attention",
)
_network(
    "token before not seen",
    "A token does not attend to the one before it: the key/value cache is off by one.",
    Network(mask=lambda t, s: causal(t, s) & ~np.eye(t, k=-1, dtype=bool)),
)
_network(
    "first token not seen",
    "Tokens do not attend to the first one: the key/value cache begins one too late.",
    Network(mask=lambda t, s: causal(t, s) & ((np.arange(s) > 0) | np.eye(t, 1, dtype=bool))),
)
_network(
    "GELU for SiLU",
    "The feed-forward network uses GELU: a llama uses SiLU.",
    Network(activation=gelu),
    op="silu",
)
_network(
    "tanh GELU for SiLU",
    "The feed-forward network uses GELU by tanh: a llama uses SiLU.",
    Network(activation=gelu_tanh),
    op="silu",
)
_network(
    "ReLU for SiLU",
    "The feed-forward network uses ReLU: a llama uses SiLU.",
    Network(activation=relu),
    op="silu",
)
_network(
    "sigmoid for SiLU",
    "The gate is a sigmoid alone: SiLU multiplies it by its argument.",
    Network(activation=sigmoid),
    op="silu",
)
_network(
    "gate and up exchanged",
    "SiLU is applied to ffn_up (up_proj): it belongs to ffn_gate (gate_proj).",
    Network(renamed={"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}),
)
_network(
    "residual missing at attention",
    "What attention gives replaces its input: add it to the input.",
    Network(adds_attention=False),
)
_network(
    "residual missing at feed-forward",
    "What the feed-forward network gives replaces its input: add it to the input.",
    Network(adds_feed_forward=False),
)
_network(
    "norms exchanged",
    "The weights of attn_norm and ffn_norm are exchanged.",
    Network(renamed={"attn_norm": "ffn_norm", "ffn_norm": "attn_norm"}),
)
_network(
    "embeddings for output",
    "The output matrix is the embeddings': the model has one of its own.",
    Network(renamed={"output": "token_embd"}),
)
_network(
    "embeddings scaled",
    "Embeddings are multiplied by the root of their width, as Gemma does: a llama takes them as "
    "they are.",
    Network(embedding_scale=math.sqrt),
)
_network(
    "attn_output transposed",
    "The matrix attn_output (o_proj) is transposed: its rows are its outputs.",
    Network(transposed=frozenset({"attn_output"})),
)
_network(
    "attn_q transposed",
    "The matrix attn_q (q_proj) is transposed: its rows are its outputs.",
    Network(transposed=frozenset({"attn_q"})),
)
