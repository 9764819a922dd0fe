"""BERT as the paper prints it, with the mean of its tokens as a text's vector.

Read `forward` first. What differs from a llama (`refllm.plain.llama`): every token sees every other
one, positions are rows of a table that are added, a norm also subtracts the mean, a norm follows
each sum instead of preceding each part, matrices have biases, and GELU takes SwiGLU's place.
The letters of the shapes are

    T  tokens of the text    H  heads         F  feed-forward width
    D  model width           E  head width

A call computes one text, so there is no padding and no mask. Everything is float64.

Sources: Devlin et al. 2018, "BERT", arXiv:1810.04805, which joins
    attention    Vaswani et al. 2017, arXiv:1706.03762
    LayerNorm    Ba et al. 2016, arXiv:1607.06450
    GELU         Hendrycks and Gimpel 2016, arXiv:1606.08415
and for the mean of the tokens Reimers and Gurevych 2019, "Sentence-BERT", arXiv:1908.10084.

Example:
    >>> import refllm
    >>> from refllm.checkpoints.open import open_weights
    >>> model = refllm.load("tiny-embed")
    >>> tensors = {name: t.array() for name, t in open_weights(model.path).tensors.items()}
    >>> text = model.tokenizer.encode("A cat sat on the mat.")
    >>> forward(model.config, tensors, text).shape  # [D]
    (384,)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from refllm.bert import BertConfig

__all__ = ["attention", "encode", "forward", "gelu", "layer_norm", "normalize", "softmax"]

Array: TypeAlias = NDArray[np.float64]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]


def forward(config: BertConfig, tensors: Tensors, token_ids: Sequence[int]) -> Array:
    """Return the vector of one text, float64 [D], of length 1.

    Args:
        config: The hyperparameters, as `refllm.load(name).config` has them.
        tensors: The weights by GGUF's names, decoded; any float dtype.
        token_ids: The text, [CLS] and [SEP] included.

    Raises:
        ValueError: If the model is one of BERT's descendants, which other formulas describe.
    """
    tokens = encode(config, tensors, token_ids)  # [T, D]
    return normalize(tokens.mean(axis=0))  # [D]


def encode(config: BertConfig, tensors: Tensors, token_ids: Sequence[int]) -> Array:
    """Return the last layer's output for each token, float64 [T, D]."""
    _check(config, tensors)
    w = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    words = w["token_embd.weight"][list(token_ids)]  # [T, D]
    positions = w["position_embd.weight"][: len(token_ids)]  # [T, D]
    first_sentence = w["token_types.weight"][0]  # [D]
    x = norm(config, w, "token_embd_norm", words + positions + first_sentence)  # [T, D]
    for i in range(config.n_layers):
        prefix = f"blk.{i}."
        layer = {name.removeprefix(prefix): w[name] for name in w if name.startswith(prefix)}
        x = norm(config, layer, "attn_output_norm", x + self_attention(config, layer, x))  # [T, D]
        x = norm(config, layer, "layer_output_norm", x + feed_forward(layer, x))  # [T, D]
    return x


def self_attention(config: BertConfig, layer: Tensors, x: Array) -> Array:
    """Return what each token takes from all tokens, [T, D]."""
    n_tokens = len(x)
    q = affine(layer, "attn_q", x).reshape(n_tokens, config.n_heads, -1)  # [T, H, E]
    k = affine(layer, "attn_k", x).reshape(n_tokens, config.n_heads, -1)  # [T, H, E]
    v = affine(layer, "attn_v", x).reshape(n_tokens, config.n_heads, -1)  # [T, H, E]
    heads = attention(q, k, v)  # [T, H, E]
    return affine(layer, "attn_output", heads.reshape(n_tokens, -1))  # [T, D]


def attention(q: Array, k: Array, v: Array) -> Array:
    """Return softmax(q·k/√E)·v of each head; all three and the result are [T, H, E]."""
    scores = np.einsum("the,she->hts", q, k) / math.sqrt(q.shape[2])  # [H, T, T]
    result: Array = np.einsum("hts,she->the", softmax(scores), v)  # [T, H, E]
    return result


def softmax(x: Array) -> Array:
    """Return e^x / Σ e^x over the last axis; the largest x is subtracted, which changes nothing."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = e / e.sum(axis=-1, keepdims=True)
    return result


def feed_forward(layer: Tensors, x: Array) -> Array:
    """Return gelu(x·W_up + b_up)·W_down + b_down, [T, D]."""
    up = affine(layer, "ffn_up", x)  # [T, F]
    return affine(layer, "ffn_down", gelu(up))  # [T, D]


def gelu(x: Array) -> Array:
    """Return x·Φ(x), Φ the normal distribution; erfc is precise also where Φ is tiny."""
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    result: Array = x * 0.5 * erfc(-x / math.sqrt(2))
    return result


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Return (x − mean) / √(variance + ε) · weight + bias, row by row, [T, D]."""
    centered = x - x.mean(axis=-1, keepdims=True)  # [T, D]
    variance = (centered * centered).mean(axis=-1, keepdims=True)  # [T, 1]
    result: Array = centered / np.sqrt(variance + eps) * weight + bias  # [T, D]
    return result


def normalize(x: Array) -> Array:
    """Return x / ‖x‖, a vector of length 1; one of zeros stays one of zeros."""
    return x / max(float(np.linalg.norm(x)), 1e-12)


def affine(layer: Tensors, name: str, x: Array) -> Array:
    """Return x·Wᵀ + b for the matrix [N, D] and the bias [N] called `name`, [T, N]."""
    result: Array = x @ layer[f"{name}.weight"].T + layer[f"{name}.bias"]
    return result


def norm(config: BertConfig, layer: Tensors, name: str, x: Array) -> Array:
    """Return the `layer_norm` of x [T, D] with the weight and the bias called `name`."""
    return layer_norm(x, layer[f"{name}.weight"], layer[f"{name}.bias"], config.layer_norm_eps)


def _check(config: BertConfig, tensors: Tensors) -> None:
    """Refuse a model that the formulas of this file do not describe."""
    found = [name for name in tensors if ".attn_qkv." in name]
    if config.activation != "gelu":
        found.append(f"the activation {config.activation}")
    if config.padding_id is not None or config.relative_attention:
        found.append("positions as RoBERTa or MPNet count them")
    if config.n_token_types == 0:
        found.append("no token types")
    if found:
        raise ValueError(
            f"the model has {found[0]}, which refllm.plain.bert leaves out; use refllm.bert"
        )
