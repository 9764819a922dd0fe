"""The llama forward pass: token ids in, logits out.

T new tokens of all sequences together, D model width, H heads, K key/value heads, E head width,
F feed-forward width, V vocabulary, L layers, C capacity of a cache, S tokens of a sequence so far.

Several sequences go through one call (a ragged batch): matrix products see the tokens of all of
them as rows of one matrix, attention sees each sequence with its own cache. No row influences
another, so a sequence's numbers are the same alone and in company.

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
from refllm.kernels.kv_attention import Caches, append_kv, attention, describe_caches
from refllm.kernels.linear import Matrix, embedding, linear
from refllm.parameters import Parameters
from refllm.rope import YarnScaling, rope_frequencies
from refllm.tap import Tap, not_finite

__all__ = ["KVCache", "Llama", "LlamaConfig", "Segment"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """What a llama's arithmetic needs to know besides its weights."""

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
    """The weights of one layer; the biases are those that few models have.

    Matrices that meet the same input stand one below the other: one product computes them all.
    """

    attn_norm: Floats  # [D]
    attn_qkv: tuple[Matrix, ...]  # [(H + 2·K)·E, D]
    attn_output: Matrix  # [D, H·E]
    ffn_norm: Floats  # [D]
    ffn_gate_up: tuple[Matrix, ...]  # [2·F, D]
    ffn_down: Matrix  # [D, F]
    attn_qkv_bias: Floats | None  # [(H + 2·K)·E]
    attn_output_bias: Floats | None  # [D]
    ffn_gate_up_bias: Floats | None  # [2·F]
    ffn_down_bias: Floats | None  # [D]


class KVCache:
    """The keys and values of one sequence's tokens so far, float32.

    `length` tokens are in it; memory grows by doubling, up to the model's context. Keys are kept
    as [L, K, E, C], values as [L, K, C, E]: see `refllm.kernels.attention`.
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
        """What a token's keys and values take."""
        n_layers, n_kv_heads, head_dim, _ = self.keys.shape
        n_numbers: int = 2 * n_layers * n_kv_heads * head_dim
        return n_numbers * self.keys.itemsize

    def append(self, keys: Floats, values: Floats) -> None:
        """Take in the keys [L, K, E, n] and values [L, K, n, E] of the next n tokens."""
        stop = self.length + values.shape[2]
        self.reserve(stop)
        self.keys[..., self.length : stop] = keys
        self.values[:, :, self.length : stop] = values
        self.length = stop

    def copy_of(self, start: int, stop: int) -> tuple[Floats, Floats]:
        """Return the keys [L, K, E, n] and values [L, K, n, E] of tokens `start` … `stop` − 1."""
        return self.keys[..., start:stop].copy(), self.values[:, :, start:stop].copy()

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on."""
        if not 0 <= length <= self.length:
            raise InvalidInput(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def reserve(self, n_tokens: int) -> None:
        """Make room for `n_tokens` in all."""
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
        """Errors: `LlmRuntimeError` naming a tensor that is missing or has another shape."""
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
        """An empty cache for one sequence."""
        return KVCache(self.config)

    def forward(self, segments: Sequence[Segment], *, tap: Tap | None = None) -> list[Floats]:
        """The logits that follow each new token, for each segment [its tokens, V].

        The caches take in the new tokens. Errors: `InvalidInput` (a token that is not in the
        vocabulary, a context that is too small), `LlmRuntimeError` naming the layer whose values
        are not finite. After an error the caches are as before.
        """
        logits = self.logits(self.hidden(segments, tap=tap), tap=tap)  # [T, V]
        ends = np.cumsum([len(segment.token_ids) for segment in segments])
        return np.split(logits, ends[:-1])

    def hidden(self, segments: Sequence[Segment], *, tap: Tap | None = None) -> Floats:
        """The last layer's normalized output for each new token of all segments, [T, D].

        `forward` without its last product: whoever needs the logits of few tokens passes those
        rows to `logits`.
        """
        for segment in segments:
            self._check(segment)
        with np.errstate(all="ignore"):
            result = self._layers(segments, tap)
        if not np.isfinite(result).all():
            raise self._not_finite(segments)
        for segment in segments:
            segment.cache.length += len(segment.token_ids)
        return result

    def logits(self, hidden: Floats, *, tap: Tap | None = None) -> Floats:
        """The score of every vocabulary entry after each row of `hidden` [T, D], [T, V]."""
        result = linear(hidden, self.output)  # [T, V]
        if not np.isfinite(result).all():
            raise LlmRuntimeError(f"{self.path}: the output layer's logits are not finite")
        if tap:
            tap("result_output", result)
        return result

    def _layers(self, segments: Sequence[Segment], tap: Tap | None) -> Floats:
        """From token ids to `result_norm` [T, D]."""
        c = self.config
        token_ids = np.concatenate([np.asarray(s.token_ids, np.int64) for s in segments])  # [T]
        positions = np.concatenate([_positions(segment) for segment in segments])  # [T]
        table = rope_table(positions, self.frequencies, c.rope_attention_factor)  # [2, T, R/2]
        n_visible = positions + 1  # [T]
        caches = _caches(segments)
        x = embedding(token_ids, self.token_embd)  # [T, D]
        if tap:
            tap("inp_embd", x)
        for i, layer in enumerate(self.layers):
            h = rms_norm(x, layer.attn_norm, c.rms_norm_eps)  # [T, D]
            if tap:
                tap(f"attn_norm-{i}", h)
            x = x + self._attention(i, layer, h, table, n_visible, caches, tap)
            h = rms_norm(x, layer.ffn_norm, c.rms_norm_eps)  # [T, D]
            if tap:
                tap(f"ffn_inp-{i}", x)
                tap(f"ffn_norm-{i}", h)
            x = x + _feed_forward(i, layer, h, tap)
            if tap:
                tap(f"l_out-{i}", x)
        result = rms_norm(x, self.output_norm, c.rms_norm_eps)  # [T, D]
        if tap:
            tap("result_norm", result)
        return result

    def _attention(
        self,
        i: int,
        layer: LlamaLayer,
        h: Floats,
        table: Floats,
        n_visible: NDArray[np.int64],
        caches: Caches,
        tap: Tap | None,
    ) -> Floats:
        """What layer i's attention adds to each token, [T, D]."""
        c = self.config
        qkv = linear(h, *layer.attn_qkv, bias=layer.attn_qkv_bias)
        qkv = qkv.reshape(len(h), -1, c.head_dim)  # [T, H + 2·K, E]
        if tap:
            q, k, v = self._split(qkv)
            tap(f"Qcur-{i}", q)
            tap(f"Kcur-{i}", k)
            tap(f"Vcur-{i}", v)
        qkv = apply_rope(qkv, table, c.n_heads + c.n_kv_heads)
        if tap:
            q, k, _ = self._split(qkv)
            tap(f"Qcur-{i}", q)
            tap(f"Kcur-{i}", k)
        append_kv(qkv, caches, layer=i)
        heads = attention(qkv, caches, n_visible, n_heads=c.n_heads, layer=i)  # [T, H, E]
        if tap:
            for weights in self._attention_weights(i, qkv, n_visible, caches):
                tap(f"kq_soft_max-{i}", weights)  # [H, its T, S]
        merged = heads.reshape(len(h), -1)  # [T, H·E]
        out = linear(merged, layer.attn_output, bias=layer.attn_output_bias)  # [T, D]
        if tap:
            tap(f"kqv_out-{i}", merged)
            tap(f"attn_out-{i}", out)
        return out

    def _attention_weights(
        self, i: int, qkv: Floats, n_visible: NDArray[np.int64], caches: Caches
    ) -> Iterator[Floats]:
        """How much each new token of a sequence looks at each before it, for each sequence."""
        queries, _, _ = self._split(qkv)
        scale = attention_scale(self.config.head_dim)
        for cache, (keys, _) in zip(caches.descriptors, caches.buffers, strict=True):
            rows = slice(cache["first"], cache["first"] + cache["n_new"])
            seen = n_visible[rows]
            contiguous = np.ascontiguousarray(queries[rows])
            yield attention_weights(contiguous, keys[i], seen, scale, int(seen[-1]))

    def _split(self, qkv: Floats) -> list[Floats]:
        """Queries [T, H, E], keys [T, K, E] and values [T, K, E]."""
        first_key = self.config.n_heads
        return np.split(qkv, [first_key, first_key + self.config.n_kv_heads], axis=1)

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

    def _not_finite(self, segments: Sequence[Segment]) -> LlmRuntimeError:
        """The error that names the first value that is not finite: run again and watch."""
        return not_finite(self.path, lambda watch: self._layers(segments, watch))


def _layer(c: LlamaConfig, p: Parameters, prefix: str) -> LlamaLayer:
    n_q, n_kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    qkv = {f"{prefix}.attn_q": n_q, f"{prefix}.attn_k": n_kv, f"{prefix}.attn_v": n_kv}
    fused = (
        f"{prefix}.attn_qkv"  # the three below each other in one tensor, as some files have them
    )
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


def _feed_forward(i: int, layer: LlamaLayer, h: Floats, tap: Tap | None) -> Floats:
    """What layer i's feed-forward network adds to each token, [T, D]."""
    gate_up = linear(h, *layer.ffn_gate_up, bias=layer.ffn_gate_up_bias)  # [T, 2·F]
    gated = swiglu(gate_up)  # [T, F]
    out = linear(gated, layer.ffn_down, bias=layer.ffn_down_bias)  # [T, D]
    if tap:
        gate, up = np.split(gate_up, 2, axis=1)  # [T, F]
        tap(f"ffn_gate-{i}", gate)
        tap(f"ffn_up-{i}", up)
        tap(f"ffn_swiglu-{i}", gated)
        tap(f"ffn_out-{i}", out)
    return out


def _positions(segment: Segment) -> NDArray[np.int64]:
    """The positions of the segment's new tokens in its sequence, [its tokens]."""
    start = segment.cache.length
    return np.arange(start, start + len(segment.token_ids))


def _caches(segments: Sequence[Segment]) -> Caches:
    """The segments' caches, for the kernels."""
    return describe_caches(
        [(segment.cache.keys, segment.cache.values) for segment in segments],
        n_before=[segment.cache.length for segment in segments],
        n_new=[len(segment.token_ids) for segment in segments],
    )
