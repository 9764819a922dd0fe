"""Faults inside a BERT: which step of it a backend computes otherwise, and the words for it.

N texts, T tokens of the longest, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refllm.pooling import PoolingMode
from refllm.trace.faults.formulas import (
    Doubles,
    Mask,
    gelu,
    gelu_sigmoid,
    gelu_tanh,
    head_scale,
    layer_norm,
    relu,
    silu,
)

__all__ = ["ENCODER_FAULTS", "POOLS", "TRACED_FAULTS", "Encoder", "EncoderFault", "Pool", "mean"]

MIN_LENGTH = 1e-12
EPSILONS = (1e-5, 1e-6, 1e-12)

Pool = Callable[[Doubles, Mask], Doubles]
"""From the tokens of each text, x [N, T, D], of which is_real [N, T] count, to a vector, [N, D]."""


def mean(x: Doubles, is_real: Mask) -> Doubles:
    """Return the mean of the tokens that count."""
    weights = is_real[..., None]
    result: Doubles = (x * weights).sum(axis=1) / weights.sum(axis=1)
    return result


def weighted_mean(x: Doubles, is_real: Mask) -> Doubles:
    """Return the mean, the first token of a text with the weight 1, the next one with 2, …"""
    weights = (is_real * np.arange(1, x.shape[1] + 1))[..., None]
    result: Doubles = (x * weights).sum(axis=1) / weights.sum(axis=1)
    return result


def _one_token(x: Doubles, positions: NDArray[np.int64]) -> Doubles:
    return x[np.arange(len(x)), positions]


POOLS: Mapping[PoolingMode, Pool] = {
    "cls": lambda x, is_real: _one_token(x, is_real.argmax(axis=1)),
    "max": lambda x, is_real: np.where(is_real[..., None], x, -np.inf).max(axis=1),
    "mean": mean,
    "mean_sqrt_len_tokens": lambda x, is_real: (
        mean(x, is_real) * np.sqrt(is_real.sum(axis=1, keepdims=True))
    ),
    "weightedmean": weighted_mean,
    "lasttoken": lambda x, is_real: _one_token(
        x, is_real.shape[1] - 1 - is_real[:, ::-1].argmax(axis=1)
    ),
}
"""By the names that `refllm.pooling` has."""


def to_length_1(x: Doubles) -> Doubles:
    """Return x / max(‖x‖, 1e-12) for each row of x [N, D]."""
    lengths = np.sqrt((x**2).sum(axis=-1, keepdims=True))
    return np.asarray(x / np.maximum(lengths, MIN_LENGTH))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """How an encoder does each of its steps; None for as in the model's file.

    `tokens` changes a text's token ids, special ones included. With `masks`, padding is
    masked in attention. `normalizes` is where LayerNorm stands: "after" the sum of a block's input
    and output, "before" the block, or "inside", before the sum. `relative_bias` changes MPNet's
    bias [H, T, S] of attention scores, given the head's width. `skips_padding_id`: positions begin
    behind the padding token's id in a model that has them so. `dense_activation` is a name in
    `refllm.pooling.ACTIVATIONS`, and `cut` changes a vector [N, K] that was cut.
    """

    tokens: Callable[[Sequence[int]], Sequence[int]] = lambda ids: ids
    masks: bool = True
    is_causal: bool = False
    eps: float | None = None
    norm: Callable[[Doubles, Doubles, Doubles, float], Doubles] = layer_norm
    activation: Callable[[Doubles], Doubles] = gelu
    scale: Callable[[int], float] = head_scale
    pool: Pool | None = None
    pools_prompt: bool | None = None
    has_dense: bool = True
    dense_activation: str | None = None
    cut: Callable[[Doubles], Doubles] = lambda x: x
    normalize: Callable[[Doubles], Doubles] = to_length_1
    first_position: int = 0
    has_positions: bool = True
    skips_padding_id: bool = True
    token_type: int | None = 0
    adds_residual: bool = True
    adds_biases: bool = True
    normalizes: Literal["after", "before", "inside"] = "after"
    relative_bias: Callable[[Doubles, int], Doubles] = lambda bias, _head_dim: bias


@dataclass(frozen=True, slots=True)
class EncoderFault:
    """A known fault of a BERT; attributes as those of `refllm.trace.faults.llama.NetworkFault`."""

    name: str
    cause: str
    encoder: Encoder
    op: str = ""


def _mean_between_specials(x: Doubles, is_real: Mask) -> Doubles:
    """Return the mean without [CLS] and [SEP]; of a text that has nothing else, with them."""
    inside = is_real.copy()
    inside[:, 0] = False
    inside[np.arange(len(x)), is_real.sum(axis=1) - 1] = False
    inside = np.where(inside.any(axis=1, keepdims=True), inside, is_real)
    result: Doubles = (x * inside[..., None]).sum(axis=1) / inside.sum(axis=1, keepdims=True)
    return result


AS_IN_THE_FILES = (
    "pool as the model's files say (pooling_type, 1_Pooling/config.json); without a word of them, "
    "take the mean of all tokens."
)

ENCODER_FAULTS: tuple[EncoderFault, ...] = (
    EncoderFault(
        "tanh GELU",
        "GELU is computed by its approximation with tanh: compute x/2·(1 + erf(x/√2)), as the "
        "model's configuration says.",
        Encoder(activation=gelu_tanh),
        op="gelu",
    ),
    EncoderFault(
        "sigmoid GELU",
        "GELU is computed by its approximation with a sigmoid: compute x/2·(1 + erf(x/√2)).",
        Encoder(activation=gelu_sigmoid),
        op="gelu",
    ),
    EncoderFault(
        "ReLU for GELU",
        "The feed-forward network uses ReLU: a BERT uses GELU.",
        Encoder(activation=relu),
        op="gelu",
    ),
    EncoderFault(
        "SiLU for GELU",
        "The feed-forward network uses SiLU: a BERT uses GELU.",
        Encoder(activation=silu),
        op="gelu",
    ),
    *(
        EncoderFault(
            f"LayerNorm epsilon {eps:g}",
            f"LayerNorm adds the epsilon {eps:g}: take it from the model's file "
            "(bert.attention.layer_norm_epsilon, layer_norm_eps).",
            Encoder(eps=eps),
            op="layer_norm",
        )
        for eps in EPSILONS
    ),
    EncoderFault(
        "no attention mask",
        "Texts attend to their padding, so a text's vector depends on the texts beside it: mask "
        "the padding in attention.",
        Encoder(masks=False),
    ),
    EncoderFault(
        "padded mean pooling",
        "Padding is computed like text: no attention mask, and the mean is over the padded "
        "length, so a text's vector depends on the texts beside it. Mask the padding in attention "
        "and leave it out of the mean.",
        Encoder(masks=False, pool=lambda x, _is_real: x.mean(axis=1)),
    ),
    EncoderFault(
        "padding in the mean",
        "The mean is over the padded length, so a text's vector depends on the texts beside it: "
        "take the mean of the real tokens.",
        Encoder(pool=lambda x, _is_real: x.mean(axis=1)),
        op="mean_pool",
    ),
    EncoderFault(
        "embeddings not normalized",
        "The vectors are not scaled to length 1: divide each by its length.",
        Encoder(normalize=lambda x: x),
        op="l2_normalize",
    ),
    EncoderFault(
        "CLS pooling",
        f"A text's vector is that of its first token: {AS_IN_THE_FILES}",
        Encoder(pool=POOLS["cls"]),
        op="mean_pool",
    ),
    EncoderFault(
        "last token pooling",
        f"A text's vector is that of its last token: {AS_IN_THE_FILES}",
        Encoder(pool=POOLS["lasttoken"]),
    ),
    EncoderFault(
        "max pooling",
        f"A text's vector is the largest of each component: {AS_IN_THE_FILES}",
        Encoder(pool=POOLS["max"]),
    ),
    EncoderFault(
        "mean without special tokens",
        "[CLS] and [SEP] are left out of the mean: they belong to it.",
        Encoder(pool=_mean_between_specials),
    ),
    EncoderFault(
        "special tokens missing",
        "A text is embedded without [CLS] and [SEP]: the tokenizer adds both.",
        Encoder(tokens=lambda ids: ids[1:-1] or ids),
    ),
    EncoderFault(
        "CLS missing",
        "A text is embedded without [CLS]: the tokenizer adds it in front.",
        Encoder(tokens=lambda ids: ids[1:]),
    ),
    EncoderFault(
        "SEP missing",
        "A text is embedded without [SEP]: the tokenizer adds it at the end.",
        Encoder(tokens=lambda ids: ids[:-1]),
    ),
    EncoderFault(
        "encoder attends causally",
        "Tokens do not attend to those after them: an encoder has no causal mask.",
        Encoder(is_causal=True),
    ),
    EncoderFault(
        "scores not scaled",
        "Attention scores are not scaled: divide them by the root of the head's width.",
        Encoder(scale=lambda _head_dim: 1.0),
    ),
    EncoderFault(
        "positions from one",
        "Position embeddings begin with number 1: the first token has position 0.",
        Encoder(first_position=1),
    ),
    EncoderFault(
        "positions from two",
        "Position embeddings begin with number 2, as RoBERTa's do: the first token has position 0.",
        Encoder(first_position=2),
    ),
    EncoderFault(
        "positions missing", "Position embeddings are not added.", Encoder(has_positions=False)
    ),
    EncoderFault(
        "token types missing",
        "Token type embeddings are not added: those of type 0 belong to every token.",
        Encoder(token_type=None),
    ),
    EncoderFault(
        "second token type",
        "Token type 1 is added: the tokens of a single text have type 0.",
        Encoder(token_type=1),
    ),
    EncoderFault(
        "encoder residual missing",
        "What a block of the encoder gives replaces its input: add it to the input.",
        Encoder(adds_residual=False),
    ),
)
"""The known faults; of two that explain a difference equally well, the first is named."""

TRACED_FAULTS: tuple[EncoderFault, ...] = (
    EncoderFault(
        "LayerNorm before the block",
        "LayerNorm is applied to the input of attention and of the feed-forward network: a BERT "
        "applies it to the sum of a block's input and output.",
        Encoder(normalizes="before"),
    ),
    EncoderFault(
        "LayerNorm before the sum",
        "LayerNorm is applied to a block's output, and the block's input is added after it: add "
        "first.",
        Encoder(normalizes="inside"),
    ),
    EncoderFault(
        "LayerNorm without bias",
        "The bias of LayerNorm is not added.",
        Encoder(norm=partial(layer_norm, adds_bias=False)),
    ),
    EncoderFault(
        "biases missing",
        "The bias of a matrix product is not added.",
        Encoder(adds_biases=False),
    ),
    EncoderFault(
        "positions without the padding token's id",
        "Position embeddings begin with number 0: those of RoBERTa and MPNet begin behind the "
        "padding token's id (pad_token_id + 1).",
        Encoder(skips_padding_id=False),
    ),
    EncoderFault(
        "relative bias missing",
        "MPNet's bias for the distance of two tokens is not added to their attention score "
        "(relative_attention_bias).",
        Encoder(relative_bias=lambda bias, _head_dim: np.zeros_like(bias)),
    ),
    EncoderFault(
        "relative bias backwards",
        "MPNet's bias is that of the opposite distance: buckets from 16 on are for keys behind the "
        "query.",
        Encoder(relative_bias=lambda bias, _head_dim: bias.swapaxes(-1, -2)),
    ),
    EncoderFault(
        "relative bias scaled",
        "MPNet's bias is divided by the root of the head's width, as the score is: add it to the "
        "scaled score.",
        Encoder(relative_bias=lambda bias, head_dim: bias * head_scale(head_dim)),
    ),
    EncoderFault(
        "mean pooling",
        "A text's vector is the mean of its tokens: pool as the model's files say (pooling_type, "
        "1_Pooling/config.json).",
        Encoder(pool=mean),
    ),
    EncoderFault(
        "weighted mean pooling",
        f"A text's vector is the mean with weights that grow with the position: {AS_IN_THE_FILES}",
        Encoder(pool=POOLS["weightedmean"]),
    ),
    EncoderFault(
        "mean by the root of the length",
        "The sum of the tokens is divided by the root of their number: " + AS_IN_THE_FILES,
        Encoder(pool=POOLS["mean_sqrt_len_tokens"]),
    ),
    EncoderFault(
        "prompt pooled",
        "The tokens of the prompt count in pooling: leave them out (include_prompt is false).",
        Encoder(pools_prompt=True),
    ),
    EncoderFault(
        "dense layer missing",
        "The dense layer behind pooling is not computed (modules.json).",
        Encoder(has_dense=False),
    ),
    *(
        EncoderFault(
            f"dense layer with {name}",
            f"The dense layer's activation is {name}: take the one of its config.json "
            "(activation_function).",
            Encoder(dense_activation=name),
        )
        for name in ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
    ),
    EncoderFault(
        "normalized after the cut",
        "A vector that is cut to fewer numbers is scaled to length 1 again: cut it at the end "
        "(truncate_dim).",
        Encoder(cut=to_length_1),
    ),
)
"""Further faults, for which `refllm diff` alone looks, because it has the values of each step."""
