"""Faults inside a BERT: which step of it a backend computes otherwise, and the words for it.

N texts, T tokens of the longest, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

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

__all__ = ["ENCODER_FAULTS", "Encoder", "EncoderFault"]

MIN_LENGTH = 1e-12
EPSILONS = (1e-5, 1e-6, 1e-12)


def mean(x: Doubles, is_real: Mask) -> Doubles:
    """Return the mean of the real tokens of each text, [N, D], of x [N, T, D], is_real [N, T]."""
    weights = is_real[..., None]
    result: Doubles = (x * weights).sum(axis=1) / weights.sum(axis=1)
    return result


def to_length_1(x: Doubles) -> Doubles:
    """Return x / max(‖x‖, 1e-12) for each row of x [N, D]."""
    lengths = np.sqrt((x**2).sum(axis=-1, keepdims=True))
    return np.asarray(x / np.maximum(lengths, MIN_LENGTH))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """How an encoder does each of its steps; None for as in the model's file.

    `tokens` changes a text's token ids, special ones included. With `masks`, padding is
    masked in attention.
    """

    tokens: Callable[[Sequence[int]], Sequence[int]] = lambda ids: ids
    masks: bool = True
    is_causal: bool = False
    eps: float | None = None
    norm: Callable[[Doubles, Doubles, Doubles, float], Doubles] = layer_norm
    activation: Callable[[Doubles], Doubles] = gelu
    scale: Callable[[int], float] = head_scale
    pool: Callable[[Doubles, Mask], Doubles] = mean
    normalize: Callable[[Doubles], Doubles] = to_length_1
    first_position: int = 0
    has_positions: bool = True
    token_type: int | None = 0
    adds_residual: bool = True


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
        "no attention mask",
        "Texts attend to their padding, so a text's vector depends on the texts beside it: mask "
        "the padding in attention.",
        Encoder(masks=False),
    ),
    EncoderFault(
        "embeddings not normalized",
        "The vectors are not scaled to length 1: divide each by its length.",
        Encoder(normalize=lambda x: x),
        op="l2_normalize",
    ),
    EncoderFault(
        "CLS pooling",
        "A text's vector is that of its first token: take the mean of all tokens.",
        Encoder(pool=lambda x, _is_real: x[:, 0]),
        op="mean_pool",
    ),
    EncoderFault(
        "last token pooling",
        "A text's vector is that of its last token: take the mean of all tokens.",
        Encoder(pool=lambda x, is_real: x[np.arange(len(x)), is_real.sum(axis=1) - 1]),
    ),
    EncoderFault(
        "max pooling",
        "A text's vector is the largest of each component: take the mean of all tokens.",
        Encoder(pool=lambda x, is_real: np.where(is_real[..., None], x, -np.inf).max(axis=1)),
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
