"""The llama forward pass: token ids in, logits out.

T new tokens of all sequences together, S context of one sequence so far, D model width, H heads,
Hkv key/value heads, E head width, F feed-forward width, V vocabulary, C capacity of a cache.

One call computes several sequences (a ragged batch): the tokens of all sequences are rows of one
matrix in the matrix products, and attention uses each sequence's own cache. No row influences
another, so a sequence has the same numbers alone and in a batch.

Source: Touvron et al. 2023, arXiv:2302.13971; names of the intermediate values are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.kernels.attention import attention_scale, attention_weights, key_value_buffers
from refllm.kernels.elementwise import apply_rope, rms_norm, rope_table, swiglu
from refllm.kernels.kv_attention import append_kv, attention, describe_caches
from refllm.kernels.linear import Matrix, embedding, linear
from refllm.parameters import Parameters
from refllm.rope import YarnScaling, rope_frequencies
from refllm.tap import Tap, at_layer, ignore, not_finite

__all__ = ["KVCache", "Llama", "LlamaConfig", "LlamaLayer", "Segment"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """The hyperparameters of a llama: all that its arithmetic needs besides the weights."""

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    rms_norm_eps: float
    rope_dim: int
    rope_theta: float = 10000.0
    rope_linear_scale: float = 1.0
    rope_factors: tuple[float, ...] | None = None
    rope_yarn: YarnScaling | None = None
    rope_attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """The weights of one layer; most models have no biases.

    Matrices with the same input are stacked, so that one product computes them all.
    """

    attn_norm: Floats  # [D]
    attn_qkv: tuple[Matrix, ...]  # [(H + 2·Hkv)·E, D]
    attn_output: Matrix  # [D, H·E]
    ffn_norm: Floats  # [D]
    ffn_gate_up: tuple[Matrix, ...]  # [2·F, D]
    ffn_down: Matrix  # [D, F]
    attn_qkv_bias: Floats | None  # [(H + 2·Hkv)·E]
    attn_output_bias: Floats | None  # [D]
    ffn_gate_up_bias: Floats | None  # [2·F]
    ffn_down_bias: Floats | None  # [D]


class KVCache:
    """The keys and values of one sequence's tokens so far, float32.

    `length` tokens are stored; the capacity C doubles when it is full, up to the model's context.
    Keys are [layers, Hkv, E, C], values [layers, Hkv, C, E]: see `refllm.kernels.attention`.
    """

    __slots__ = ("keys", "length", "n_ctx", "values")

    def __init__(self, config: LlamaConfig) -> None:
        self.n_ctx = config.n_ctx
        self.length = 0
        self.keys, self.values = key_value_buffers(
            config.n_layers, config.n_kv_heads, n_tokens=0, head_dim=config.head_dim
        )

    @property
    def n_bytes_per_token(self) -> int:
        """The bytes of one token's keys and values."""
        n_layers, n_kv_heads, head_dim, _ = self.keys.shape
        n_numbers: int = 2 * n_layers * n_kv_heads * head_dim
        return n_numbers * self.keys.itemsize

    def append(self, keys: Floats, values: Floats) -> None:
        """Store the next n tokens: keys [layers, Hkv, E, n], values [layers, Hkv, n, E]."""
        stop = self.length + values.shape[2]
        self.reserve(stop)
        self.keys[..., self.length : stop] = keys
        self.values[:, :, self.length : stop] = values
        self.length = stop

    def copy_of(self, start: int, stop: int) -> tuple[Floats, Floats]:
        """Return keys [layers, Hkv, E, n], values [layers, Hkv, n, E] of `start` … `stop` − 1."""
        return self.keys[..., start:stop].copy(), self.values[:, :, start:stop].copy()

    def truncate(self, length: int) -> None:
        """Drop every token from position `length` on."""
        if not 0 <= length <= self.length:
            raise InvalidInput(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def reserve(self, n_tokens: int) -> None:
        """Grow the capacity to at least `n_tokens`."""
        capacity = self.values.shape[2]
        if n_tokens <= capacity:
            return
        capacity = min(max(n_tokens, 2 * capacity, 64), self.n_ctx)
        n_layers, n_kv_heads, head_dim, _ = self.keys.shape
        keys, values = key_value_buffers(n_layers, n_kv_heads, n_tokens=capacity, head_dim=head_dim)
        keys[..., : self.length] = self.keys[..., : self.length]
        values[:, :, : self.length] = self.values[:, :, : self.length]
        self.keys, self.values = keys, values


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens of one sequence, and the cache that holds the tokens before them."""

    token_ids: Sequence[int]
    cache: KVCache


class Llama:
    """A llama ready to run; holds no state between calls."""

    def __init__(self, config: LlamaConfig, parameters: Parameters) -> None:
        """Take the weights from `parameters`.

        Raises:
            LlmRuntimeError: If a tensor is missing or has another shape; the message names it.
        """
        self.config = config
        self.path = parameters.path
        c, p = config, parameters
        self.token_embd = p.table("token_embd.weight", c.n_vocab, c.n_embd)
        self.layers = [_layer(c, p, f"blk.{i}") for i in range(c.n_layers)]
        self.output_norm = p.vector("output_norm.weight", c.n_embd)
        output = "output.weight" if "output.weight" in p.tensors else "token_embd.weight"
        self.output = p.matrix(output, c.n_vocab, c.n_embd)
        self.frequencies = rope_frequencies(
            base=c.rope_theta,
            rope_dim=c.rope_dim,
            factors=c.rope_factors,
            linear_scale=c.rope_linear_scale,
            yarn=c.rope_yarn,
        )

    def new_cache(self) -> KVCache:
        """Return an empty cache for one sequence."""
        return KVCache(self.config)

    def forward(self, segments: Sequence[Segment], *, tap: Tap = ignore) -> list[Floats]:
        """Return the logits after each new token, for each segment float32 [its T, V].

        The caches store the new tokens; after an error they are as before.

        Args:
            segments: The new tokens of each sequence, with the sequence's cache.
            tap: Called with every intermediate value.

        Raises:
            InvalidInput: For no token, a token id outside the vocabulary, and more tokens than the
                context has.
            LlmRuntimeError: If a value is not finite; the message names the first one.
        """
        logits = self.logits(self.hidden(segments, tap=tap), tap=tap)  # [T, V]
        ends = np.cumsum([len(segment.token_ids) for segment in segments])
        return np.split(logits, ends[:-1])

    def hidden(self, segments: Sequence[Segment], *, tap: Tap = ignore) -> Floats:
        """Return the last layer's normalized output for the new tokens of all segments, [T, D].

        This is `forward` without its last product: a caller that needs the logits of few tokens
        passes only those rows to `logits`. Arguments and errors are those of `forward`.
        """
        for segment in segments:
            self._check(segment)
        with np.errstate(all="ignore"):
            result = self._layers(segments, tap)
        if not np.isfinite(result).all():
            raise not_finite(self.path, lambda watch: self._layers(segments, watch))
        for segment in segments:
            segment.cache.length += len(segment.token_ids)
        return result

    def logits(self, hidden: Floats, *, tap: Tap = ignore) -> Floats:
        """Return the score of every vocabulary entry, [T, V], after each row of `hidden` [T, D]."""
        result = linear(hidden, self.output)  # [T, V]
        if not np.isfinite(result).all():
            raise LlmRuntimeError(f"{self.path}: the output layer's logits are not finite")
        tap("result_output", result)
        return result

    def _layers(self, segments: Sequence[Segment], tap: Tap) -> Floats:
        """Return `result_norm` [T, D]: embedding, then every layer, then the last norm."""
        c = self.config
        token_ids = np.concatenate([np.asarray(s.token_ids, np.int64) for s in segments])  # [T]
        positions = np.concatenate([_positions(segment) for segment in segments])  # [T]
        table = rope_table(positions, self.frequencies, c.rope_attention_factor)  # [2, T, R/2]
        caches = describe_caches(
            [(segment.cache.keys, segment.cache.values) for segment in segments],
            n_before=[segment.cache.length for segment in segments],
            n_new=[len(segment.token_ids) for segment in segments],
        )
        x = embedding(token_ids, self.token_embd)  # [T, D]
        tap("inp_embd", x)
        for i, layer in enumerate(self.layers):
            show = at_layer(tap, i)
            h = rms_norm(x, layer.attn_norm, c.rms_norm_eps)  # [T, D]
            if show is not ignore:
                show("attn_norm", h)
            qkv = self._queries_keys_values(layer, h, table, show)  # [T, H + 2·Hkv, E]
            append_kv(qkv, caches, layer=i)
            heads = attention(qkv, caches, positions + 1, n_heads=c.n_heads, layer=i)  # [T, H, E]
            merged = heads.reshape(len(x), -1)  # [T, H·E]
            out = linear(merged, layer.attn_output, bias=layer.attn_output_bias)  # [T, D]
            x = x + out
            h = rms_norm(x, layer.ffn_norm, c.rms_norm_eps)  # [T, D]
            if show is not ignore:
                for weights in _attention_weights(i, qkv[:, : c.n_heads], segments):
                    show("kq_soft_max", weights)  # [H, its T, S]
                show("kqv_out", merged)
                show("attn_out", out)
                show("ffn_inp", x)
                show("ffn_norm", h)
            x = x + _feed_forward(layer, h, show)
            if show is not ignore:
                show("l_out", x)
        result = rms_norm(x, self.output_norm, c.rms_norm_eps)  # [T, D]
        tap("result_norm", result)
        return result

    def _queries_keys_values(
        self, layer: LlamaLayer, h: Floats, table: Floats, show: Tap
    ) -> Floats:
        """Return queries and keys, turned by RoPE, and values: [T, H + 2·Hkv, E]."""
        c = self.config
        qkv = linear(h, *layer.attn_qkv, bias=layer.attn_qkv_bias)
        qkv = qkv.reshape(len(h), -1, c.head_dim)  # [T, H + 2·Hkv, E]
        turned = apply_rope(qkv, table, c.n_heads + c.n_kv_heads)
        if show is not ignore:
            first_key, first_value = c.n_heads, c.n_heads + c.n_kv_heads
            show("Qcur", qkv[:, :first_key])
            show("Kcur", qkv[:, first_key:first_value])
            show("Vcur", qkv[:, first_value:])
            show("Qcur", turned[:, :first_key])
            show("Kcur", turned[:, first_key:first_value])
        return turned

    def _check(self, segment: Segment) -> None:
        """Refuse what would read outside the vocabulary or the context."""
        if len(segment.token_ids) == 0:
            raise InvalidInput("there is no token to compute; give at least one token id")
        for token_id in segment.token_ids:
            if not 0 <= token_id < self.config.n_vocab:
                raise InvalidInput(
                    f"token id {token_id} is outside the vocabulary of {self.config.n_vocab}"
                )
        n_tokens = segment.cache.length + len(segment.token_ids)
        if n_tokens > self.config.n_ctx:
            raise InvalidInput(
                f"{n_tokens} tokens do not fit the model's context of {self.config.n_ctx} tokens"
            )
        segment.cache.reserve(n_tokens)


def _layer(c: LlamaConfig, p: Parameters, prefix: str) -> LlamaLayer:
    n_q, n_kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    qkv = {f"{prefix}.attn_q": n_q, f"{prefix}.attn_k": n_kv, f"{prefix}.attn_v": n_kv}
    fused = f"{prefix}.attn_qkv"  # some files stack the three in one tensor
    matrices = {fused: n_q + 2 * n_kv} if f"{fused}.weight" in p.tensors else qkv
    biases = {fused: n_q + 2 * n_kv} if f"{fused}.bias" in p.tensors else qkv
    gate_up = {f"{prefix}.ffn_gate": c.n_ff, f"{prefix}.ffn_up": c.n_ff}
    return LlamaLayer(
        attn_norm=p.vector(f"{prefix}.attn_norm.weight", c.n_embd),
        attn_qkv=p.matrices({f"{name}.weight": n for name, n in matrices.items()}, c.n_embd),
        attn_output=p.matrix(f"{prefix}.attn_output.weight", c.n_embd, n_q),
        ffn_norm=p.vector(f"{prefix}.ffn_norm.weight", c.n_embd),
        ffn_gate_up=p.matrices({f"{name}.weight": n for name, n in gate_up.items()}, c.n_embd),
        ffn_down=p.matrix(f"{prefix}.ffn_down.weight", c.n_embd, c.n_ff),
        attn_qkv_bias=p.vectors_or_none({f"{name}.bias": n for name, n in biases.items()}),
        attn_output_bias=p.vector_or_none(f"{prefix}.attn_output.bias", c.n_embd),
        ffn_gate_up_bias=p.vectors_or_none({f"{name}.bias": n for name, n in gate_up.items()}),
        ffn_down_bias=p.vector_or_none(f"{prefix}.ffn_down.bias", c.n_embd),
    )


def _positions(segment: Segment) -> NDArray[np.int64]:
    """Return the positions of the segment's new tokens in its sequence, [its T]."""
    start = segment.cache.length
    return np.arange(start, start + len(segment.token_ids))


def _feed_forward(layer: LlamaLayer, h: Floats, show: Tap) -> Floats:
    """Return what a layer's feed-forward network (SwiGLU) adds to each token, [T, D]."""
    gate_up = linear(h, *layer.ffn_gate_up, bias=layer.ffn_gate_up_bias)  # [T, 2·F]
    gated = swiglu(gate_up)  # [T, F]
    out = linear(gated, layer.ffn_down, bias=layer.ffn_down_bias)  # [T, D]
    if show is not ignore:
        n_ff = gated.shape[1]
        show("ffn_gate", gate_up[:, :n_ff])
        show("ffn_up", gate_up[:, n_ff:])
        show("ffn_swiglu", gated)
        show("ffn_out", out)
    return out


def _attention_weights(i: int, queries: Floats, segments: Sequence[Segment]) -> Iterator[Floats]:
    """Yield layer i's attention weights of each segment: [H, its new tokens, S]."""
    first = 0
    for segment in segments:
        last = first + len(segment.token_ids)
        n_visible = _positions(segment) + 1  # [its T]
        rows = np.ascontiguousarray(queries[first:last])  # [its T, H, E]
        scale = attention_scale(queries.shape[2])
        keys = segment.cache.keys[i]  # [Hkv, E, C]
        yield attention_weights(rows, keys, n_visible, scale, int(n_visible[-1]))
        first = last
