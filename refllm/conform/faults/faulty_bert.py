"""The BERT encoder in float64, in parts, so that one of them can be replaced by a wrong formula.

As `faulty_llama`. Texts are padded to one length, as many engines do, so that faults of padding
can be computed too.

N texts, T tokens of the longest, D model width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from refllm.bert import BertConfig
from refllm.conform.faults.float64_models import Weights
from refllm.trace.faults.bert import Encoder, mean
from refllm.trace.faults.formulas import Doubles, attention

__all__ = ["Encoder", "embeddings"]

PADDING = 0  # [PAD]


def embeddings(
    weights: Weights[BertConfig],
    texts: Sequence[Sequence[int]],
    encoder: Encoder,
    *,
    tap: Callable[[str, Doubles], object] = lambda _name, _value: None,
) -> Doubles:
    """Return the vector of each text, [N, D]; `tap` is called with llama.cpp's names.

    The texts are token ids, special ones included.
    """
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
    tap("inp_embd", x)
    x = norm(x, "token_embd_norm")
    tap("inp_norm", x)
    for i in range(weights.config.n_layers):
        q, k, v = (
            affine(x, f"blk.{i}.attn_{part}").reshape(*x.shape[:2], weights.config.n_heads, -1)
            for part in "qkv"
        )  # [N, T, H, E]
        for name, value in (("Qcur", q), ("Kcur", k), ("Vcur", v)):
            tap(f"{name}-{i}", value)
        mixed = attention(q, k, v, mask, scale=e.scale).reshape(x.shape)
        tap(f"kqv_out-{i}", mixed)
        attended = affine(mixed, f"blk.{i}.attn_output")
        tap(f"attn_out-{i}", attended)
        x = norm(x * e.adds_residual + attended, f"blk.{i}.attn_output_norm")
        tap(f"ffn_inp-{i}", x)
        up = affine(x, f"blk.{i}.ffn_up")
        tap(f"ffn_up-{i}", up)
        active = e.activation(up)
        tap(f"ffn_gelu-{i}", active)
        down = affine(active, f"blk.{i}.ffn_down")
        tap(f"ffn_out-{i}", down)
        x = norm(x * e.adds_residual + down, f"blk.{i}.layer_output_norm")
        tap(f"l_out-{i}", x)
    pooled = (e.pool or mean)(x, is_real)
    tap("result_embd_pooled", pooled)
    result = e.normalize(pooled)
    tap("result_embd", result)
    return result
