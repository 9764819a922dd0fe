"""A llama as the paper prints it: token ids in, the logits of the next token out.

Read `forward` first, then the formulas in the order in which it calls them. The letters of the
shapes are

    T  tokens of the text          H    query heads        F  feed-forward width
    S  tokens that are seen        Hkv  key/value heads    V  vocabulary
    D  model width                 E    head width         R  rotated part of a head

There is no cache: `generate` computes the whole text again for each new token. There is no batch:
a call computes one text. Everything is float64, added in the order that NumPy chooses: close to the
real numbers, and with last bits that differ from machine to machine.

Sources: Touvron et al. 2023, "LLaMA", arXiv:2302.13971, which joins
    RMSNorm               Zhang and Sennrich 2019, arXiv:1910.07467
    RoPE                  Su et al. 2021, arXiv:2104.09864
    attention             Vaswani et al. 2017, arXiv:1706.03762
    grouped-query heads   Ainslie et al. 2023, arXiv:2305.13245 (in the larger Llama 2 models)
    SwiGLU                Shazeer 2020, arXiv:2002.05202

Example:
    >>> import refllm
    >>> from refllm.checkpoints.open import open_weights
    >>> model = refllm.load("tiny-chat")
    >>> tensors = {name: t.array() for name, t in open_weights(model.path).tensors.items()}
    >>> prompt = model.tokenizer.encode("Once upon a time")
    >>> forward(model.config, tensors, prompt).shape  # [T, V]
    (5, 1536)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from refllm.llama import LlamaConfig

__all__ = ["attention", "feed_forward", "forward", "generate", "rms_norm", "rope", "silu"]

Array: TypeAlias = NDArray[np.float64]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]


def forward(config: LlamaConfig, tensors: Tensors, token_ids: Sequence[int]) -> Array:
    """Return the logits that follow each token, float64 [T, V].

    Args:
        config: The hyperparameters, as `refllm.load(name).config` has them.
        tensors: The weights by GGUF's names, decoded; any float dtype.
        token_ids: The text, BOS included.

    Raises:
        ValueError: If the model has what the paper has not, such as biases or a stretched RoPE.
    """
    _check(config, tensors)
    w = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    x = w["token_embd.weight"][list(token_ids)]  # [T, D]
    for i in range(config.n_layers):
        prefix = f"blk.{i}."
        layer = {name.removeprefix(prefix): w[name] for name in w if name.startswith(prefix)}
        h = rms_norm(x, layer["attn_norm.weight"], config.rms_norm_eps)  # [T, D]
        x = x + self_attention(config, layer, h)  # [T, D]
        h = rms_norm(x, layer["ffn_norm.weight"], config.rms_norm_eps)  # [T, D]
        x = x + feed_forward(layer, h)  # [T, D]
    x = rms_norm(x, w["output_norm.weight"], config.rms_norm_eps)  # [T, D]
    output = w.get("output.weight", w["token_embd.weight"])  # [V, D]
    logits: Array = x @ output.T  # [T, V]
    return logits


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Return x / √(mean(x²) + ε) · weight, row by row, [T, D]."""
    mean_square = (x * x).mean(axis=-1, keepdims=True)  # [T, 1]
    result: Array = x / np.sqrt(mean_square + eps) * weight  # [T, D]
    return result


def self_attention(config: LlamaConfig, layer: Tensors, h: Array) -> Array:
    """Return what each token takes from itself and the tokens before it, [T, D]."""
    n_tokens = len(h)
    q = (h @ layer["attn_q.weight"].T).reshape(n_tokens, config.n_heads, -1)  # [T, H, E]
    k = (h @ layer["attn_k.weight"].T).reshape(n_tokens, config.n_kv_heads, -1)  # [T, Hkv, E]
    v = (h @ layer["attn_v.weight"].T).reshape(n_tokens, config.n_kv_heads, -1)  # [T, Hkv, E]
    positions = np.arange(n_tokens)  # [T]
    q = rope(q, positions, base=config.rope_theta, rope_dim=config.rope_dim)  # [T, H, E]
    k = rope(k, positions, base=config.rope_theta, rope_dim=config.rope_dim)  # [T, Hkv, E]
    heads = attention(q, k, v)  # [T, H, E]
    merged = heads.reshape(n_tokens, -1)  # [T, H·E]
    result: Array = merged @ layer["attn_output.weight"].T  # [T, D]
    return result


def rope(x: Array, positions: NDArray[np.int64], *, base: float, rope_dim: int) -> Array:
    """Return x [T, H, E] with each pair (2i, 2i + 1), i < R/2, turned by position · base^(−2i/R).

    A pair is a complex number a + bi, and e^(iφ) times it is the pair turned by φ radians.
    """
    frequencies = base ** (-np.arange(0, rope_dim, 2) / rope_dim)  # [R/2]
    angles = positions[:, None] * frequencies  # [T, R/2]
    pairs = x[..., 0:rope_dim:2] + 1j * x[..., 1:rope_dim:2]  # [T, H, R/2]
    turned = pairs * np.exp(1j * angles)[:, None, :]  # [T, H, R/2]
    result = x.copy()  # what is beyond R is not turned
    result[..., 0:rope_dim:2] = turned.real
    result[..., 1:rope_dim:2] = turned.imag
    return result  # [T, H, E]


def attention(q: Array, k: Array, v: Array, *, causal: bool = True) -> Array:
    """Return softmax(q·k/√E)·v of each head: q [T, H, E], k and v [S, Hkv, E] → [T, H, E].

    The T queries are the last of the S tokens. Each sees itself and what is before it; if not
    `causal`, each sees all S.
    """
    (n_new, n_heads, head_dim), (n_seen, n_kv_heads, _) = q.shape, k.shape
    k = np.repeat(k, n_heads // n_kv_heads, axis=1)  # [S, H, E]: neighboring heads share
    v = np.repeat(v, n_heads // n_kv_heads, axis=1)  # [S, H, E]
    scores = np.einsum("the,she->hts", q, k) / np.sqrt(head_dim)  # [H, T, S]
    if causal:
        sees = np.tri(n_new, n_seen, n_seen - n_new, dtype=bool)  # [T, S]
        scores = np.where(sees, scores, -np.inf)  # [H, T, S]
    weights = softmax(scores)  # [H, T, S]
    result: Array = np.einsum("hts,she->the", weights, v)  # [T, H, E]
    return result


def softmax(x: Array) -> Array:
    """Return e^x / Σ e^x over the last axis; the largest x is subtracted, which changes nothing."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = e / e.sum(axis=-1, keepdims=True)
    return result


def feed_forward(layer: Tensors, h: Array) -> Array:
    """Return SwiGLU: (silu(h·W_gate) ∘ h·W_up)·W_down, [T, D]."""
    gate = silu(h @ layer["ffn_gate.weight"].T)  # [T, F]
    up = h @ layer["ffn_up.weight"].T  # [T, F]
    result: Array = (gate * up) @ layer["ffn_down.weight"].T  # [T, D]
    return result


def silu(x: Array) -> Array:
    """Return x / (1 + e^−x), the same shape."""
    with np.errstate(over="ignore"):  # e^−x is infinite for a very negative x, and x / ∞ is −0
        result: Array = x / (1 + np.exp(-x))
    return result


def generate(
    config: LlamaConfig,
    tensors: Tensors,
    token_ids: Sequence[int],
    *,
    max_tokens: int,
    end_ids: Collection[int] = (),
) -> list[int]:
    """Return the most likely continuation: at most `max_tokens` new ids, an end token included."""
    text = list(token_ids)
    while len(text) < len(token_ids) + max_tokens:
        logits = forward(config, tensors, text)[-1]  # [V]: only the last row is used
        text.append(int(logits.argmax()))
        if text[-1] in end_ids:
            break
    return text[len(token_ids) :]


def _check(config: LlamaConfig, tensors: Tensors) -> None:
    """Refuse a model that the formulas of this file do not describe."""
    found = [name for name in tensors if name.endswith(".bias") or ".attn_qkv." in name]
    if config.rope_factors or config.rope_yarn or config.rope_linear_scale != 1.0:
        found.append("RoPE stretched to a longer context")
    if found:
        raise ValueError(
            f"the model has {found[0]}, which refllm.plain.llama leaves out; use refllm.llama"
        )
