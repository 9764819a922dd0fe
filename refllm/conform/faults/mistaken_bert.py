"""The BERT encoder in float64, in parts, so that one of them can be replaced by a mistake.

As `mistaken_llama`. Texts are laid side by side and padded, as many engines do, so that what
padding does wrong can be computed too.

N texts, S tokens of the longest, D model width, H heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refllm.bert import BertConfig
from refllm.conform.compare.numbers import Doubles
from refllm.conform.faults.activations import gelu
from refllm.conform.faults.float64_weights import Weights

__all__ = ["Encoder", "embeddings", "mean"]

Mask = NDArray[np.bool_]

PADDING = 0  # [PAD]
SMALLEST_LENGTH = 1e-12


def mean(x: Doubles, is_real: Mask) -> Doubles:
    """The mean of the real tokens of each text, [N, D], of x [N, S, D] and is_real [N, S]."""
    weights = is_real[..., None]
    result: Doubles = (x * weights).sum(axis=1) / weights.sum(axis=1)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """How an encoder does each of its steps; None means as the model's file says.

    `tokens` changes a text's token ids, special ones included. `masks` says whether attention
    knows which tokens are padding.
    """

    tokens: Callable[[Sequence[int]], Sequence[int]] = lambda ids: ids
    masks: bool = True
    is_causal: bool = False
    eps: float | None = None
    activation: Callable[[Doubles], Doubles] = gelu
    scale: Callable[[int], float] = lambda head_dim: 1.0 / math.sqrt(head_dim)
    pool: Callable[[Doubles, Mask], Doubles] = mean
    normalizes: bool = True
    first_position: int = 0
    has_positions: bool = True
    token_type: int | None = 0
    adds_attention: bool = True
    adds_feed_forward: bool = True


def embeddings(
    weights: Weights[BertConfig], texts: Sequence[Sequence[int]], encoder: Encoder
) -> Doubles:
    """The vector of each text, [N, D]; `texts` are token ids, special ones included."""
    e, tensors = encoder, weights.tensors
    texts = [e.tokens(text) for text in texts]
    longest = max(map(len, texts))
    ids = np.array([[*text, *[PADDING] * (longest - len(text))] for text in texts])  # [N, S]
    is_real = np.array([[i < len(text) for i in range(longest)] for text in texts])  # [N, S]
    x = tensors["token_embd.weight"][ids]  # [N, S, D]
    if e.token_type is not None:
        x = x + tensors["token_types.weight"][e.token_type]
    if e.has_positions:
        x = x + tensors["position_embd.weight"][e.first_position :][:longest]
    eps = weights.config.layer_norm_eps if e.eps is None else e.eps
    x = _norm(tensors, "token_embd_norm", x, eps)
    mask = _mask(is_real, e)
    for i in range(weights.config.n_layers):
        prefix = f"blk.{i}"
        attended = _attention(weights, e, prefix, x, mask)
        x = _norm(tensors, f"{prefix}.attn_output_norm", x * e.adds_attention + attended, eps)
        up = e.activation(_affine(tensors, f"{prefix}.ffn_up", x))
        down = _affine(tensors, f"{prefix}.ffn_down", up)
        x = _norm(tensors, f"{prefix}.layer_output_norm", x * e.adds_feed_forward + down, eps)
    pooled = e.pool(x, is_real)  # [N, D]
    if not e.normalizes:
        return pooled
    lengths = np.sqrt((pooled**2).sum(axis=1, keepdims=True))
    result: Doubles = pooled / np.maximum(lengths, SMALLEST_LENGTH)
    return result


def _mask(is_real: Mask, encoder: Encoder) -> Mask:
    """Who sees whom in each text, [N, 1, S, S]."""
    n_texts, longest = is_real.shape
    mask = np.ones((n_texts, 1, longest, longest), bool)
    if encoder.masks:
        mask = mask & is_real[:, None, None, :]
    if encoder.is_causal:
        mask = mask & np.tri(longest, dtype=bool)
    return mask


def _affine(tensors: Mapping[str, Doubles], name: str, x: Doubles) -> Doubles:
    result: Doubles = x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
    return result


def _norm(tensors: Mapping[str, Doubles], name: str, x: Doubles, eps: float) -> Doubles:
    centered = x - x.mean(axis=-1, keepdims=True)
    normal = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps)
    result: Doubles = normal * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
    return result


def _attention(
    weights: Weights[BertConfig], e: Encoder, prefix: str, x: Doubles, mask: Mask
) -> Doubles:
    """What attention adds to each token, [N, S, D]."""
    n_heads = weights.config.n_heads
    q, k, v = (
        _affine(weights.tensors, f"{prefix}.attn_{part}", x).reshape(*x.shape[:2], n_heads, -1)
        for part in "qkv"
    )
    scores = np.einsum("nthe,nshe->nhts", q, k) * e.scale(q.shape[-1])
    scores = np.where(mask, scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    merged = np.einsum("nhts,nshe->nthe", shares, v).reshape(x.shape)
    return _affine(weights.tensors, f"{prefix}.attn_output", merged)
