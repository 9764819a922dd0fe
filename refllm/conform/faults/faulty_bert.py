"""The BERT encoder in float64, in parts, so that one of them can be replaced by a wrong formula.

As `faulty_llama`. Texts are padded to one length, as many engines do, so that faults of padding
can be computed too.

N texts, T tokens of the longest, D model width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from refllm.bert import BertConfig
from refllm.conform.compare.numbers import Doubles
from refllm.conform.faults.float64_models import Weights
from refllm.conform.faults.formulas import Mask, attention, gelu, head_scale, layer_norm

__all__ = ["Encoder", "embeddings"]

PADDING = 0  # [PAD]
MIN_LENGTH = 1e-12


def mean(x: Doubles, is_real: Mask) -> Doubles:
    """Return the mean of the real tokens of each text, [N, D], of x [N, T, D], is_real [N, T]."""
    weights = is_real[..., None]
    result: Doubles = (x * weights).sum(axis=1) / weights.sum(axis=1)
    return result


def to_length_1(x: Doubles) -> Doubles:
    """x / max(‖x‖, 1e-12) for each row of x [N, D]."""
    lengths = np.sqrt((x**2).sum(axis=-1, keepdims=True))
    return np.asarray(x / np.maximum(lengths, MIN_LENGTH))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """How an encoder does each of its steps; None means as the model's file says.

    `tokens` changes a text's token ids, special ones included. `masks` says whether padding is
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


def embeddings(
    weights: Weights[BertConfig], texts: Sequence[Sequence[int]], encoder: Encoder
) -> Doubles:
    """Return the vector of each text, [N, D]; `texts` are token ids, special ones included."""
    e, tensors = encoder, weights.tensors
    eps = weights.config.layer_norm_eps if e.eps is None else e.eps

    def affine(x: Doubles, name: str) -> Doubles:
        return np.asarray(x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"])

    def norm(x: Doubles, name: str) -> Doubles:
        return e.norm(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    texts = [e.tokens(text) for text in texts]
    longest = max(map(len, texts))
    ids = np.array([[*text, *[PADDING] * (longest - len(text))] for text in texts])  # [N, T]
    is_real = np.array([[i < len(text) for i in range(longest)] for text in texts])  # [N, T]
    mask = is_real[:, None, None, :] if e.masks else np.ones((1, 1, 1, longest), bool)
    if e.is_causal:
        mask = mask & np.tri(longest, dtype=bool)  # [N, 1, T, T]
    x = tensors["token_embd.weight"][ids]  # [N, T, D]
    if e.token_type is not None:
        x = x + tensors["token_types.weight"][e.token_type]
    if e.has_positions:
        x = x + tensors["position_embd.weight"][e.first_position :][:longest]
    x = norm(x, "token_embd_norm")
    for i in range(weights.config.n_layers):
        q, k, v = (
            affine(x, f"blk.{i}.attn_{part}").reshape(*x.shape[:2], weights.config.n_heads, -1)
            for part in "qkv"
        )  # [N, T, H, E]
        mixed = attention(q, k, v, mask, scale=e.scale).reshape(x.shape)
        attended = affine(mixed, f"blk.{i}.attn_output")
        x = norm(x * e.adds_residual + attended, f"blk.{i}.attn_output_norm")
        down = affine(e.activation(affine(x, f"blk.{i}.ffn_up")), f"blk.{i}.ffn_down")
        x = norm(x * e.adds_residual + down, f"blk.{i}.layer_output_norm")
    return e.normalize(e.pool(x, is_real))
