"""The BERT encoder: token ids in, one vector for each text out.

T tokens of all texts together, D model width, H heads, E head width, F feed-forward width,
N texts, S tokens of one text.

Texts of different length are laid end to end, not padded: matrix products see all tokens as rows
of one matrix, attention and pooling see each text alone. This is what an attention mask does to a
padded batch, without computing what it hides, so no text can influence another.

Source: Devlin et al. 2018, arXiv:1810.04805; pooling: Reimers and Gurevych 2019, arXiv:1908.10084;
names of the intermediate values are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from refllm.api import InvalidInput
from refllm.kernels.attention import (
    attention_over_texts,
    attention_scale,
    attention_weights,
    key_value_buffers,
)
from refllm.kernels.elementwise import gelu, layer_norm
from refllm.kernels.linear import Matrix, embedding, linear
from refllm.parameters import Parameters
from refllm.pooling import MEAN_NORMALIZED, SentenceHead
from refllm.tap import Tap, not_finite

__all__ = ["Bert", "BertConfig"]

Floats = NDArray[np.float32]
Activation = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """What a BERT's arithmetic needs to know besides its weights."""

    n_ctx: int
    n_embd: int
    n_layers: int
    n_heads: int
    n_ff: int
    layer_norm_eps: float


@dataclass(frozen=True, slots=True)
class Affine:
    """x·Wᵀ + b; W can be several matrices, one below the other."""

    weights: tuple[Matrix, ...]  # [outputs, inputs]
    bias: Floats  # [outputs]

    def __call__(self, x: Floats) -> Floats:
        """x [T, inputs] → [T, outputs]; the bias is added to the finished sum."""
        return linear(x, *self.weights, bias=self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalization with its learned scale and shift."""

    weight: Floats  # [D]
    bias: Floats  # [D]
    eps: float

    def __call__(self, x: Floats) -> Floats:
        """x [T, D] → [T, D]."""
        return layer_norm(x, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class BertLayer:
    """The weights of one layer."""

    attn_qkv: Affine
    attn_output: Affine
    attn_output_norm: Norm
    ffn_up: Affine
    ffn_down: Affine
    layer_output_norm: Norm


class Bert:
    """A BERT encoder ready to run; holds no state between calls."""

    def __init__(self, config: BertConfig, parameters: Parameters) -> None:
        """Errors: `LlmRuntimeError` naming a tensor that is missing or has another shape."""
        self.config = config
        self.path = parameters.path
        c, p = config, parameters
        self.n_vocab = p.n_rows("token_embd.weight")
        self.token_embd = p.table("token_embd.weight", self.n_vocab, c.n_embd)
        self.token_types = p.table("token_types.weight", p.n_rows("token_types.weight"), c.n_embd)
        self.position_embd = p.table("position_embd.weight", c.n_ctx, c.n_embd)
        self.token_embd_norm = _norm(c, p, "token_embd_norm")
        self.layers = [_layer(c, p, f"blk.{i}") for i in range(c.n_layers)]

    def embed(
        self,
        texts: Sequence[Sequence[int]],
        *,
        head: SentenceHead = MEAN_NORMALIZED,
        n_prompt: int = 0,
        activation: Activation = gelu,
        tap: Tap | None = None,
    ) -> Floats:
        """Return each text's vector, [N, K].

        Args:
            texts: Token ids, special tokens included.
            head: What makes a vector of a text's last layer.
            n_prompt: How many tokens at the beginning of each text are the prompt's.
            activation: The exact GELU unless the caller wants to see another one's result.
            tap: Called with every intermediate value.

        Raises:
            InvalidInput: For no token, a token that is not in the vocabulary, a text longer than
                the context, or one of which pooling leaves nothing.
            LlmRuntimeError: Naming the layer whose values are not finite.
        """
        x = self.hidden(texts, activation=activation, tap=tap)  # [T, D]
        starts = _starts(texts).tolist()
        with np.errstate(all="ignore"):
            result = head(x, starts, n_prompt=n_prompt, tap=tap)  # [N, K]
        if not np.isfinite(result).all():
            raise not_finite(self.path, lambda watch: head(x, starts, n_prompt=n_prompt, tap=watch))
        return result

    def hidden(
        self,
        texts: Sequence[Sequence[int]],
        *,
        activation: Activation = gelu,
        tap: Tap | None = None,
    ) -> Floats:
        """Return the last layer of all texts' tokens, end to end, [T, D].

        Arguments and errors are those of `embed`.
        """
        for token_ids in texts:
            self._check(token_ids)
        with np.errstate(all="ignore"):
            x = self._layers(texts, activation, tap)  # [T, D]
        if not np.isfinite(x).all():
            raise not_finite(self.path, lambda watch: self._layers(texts, activation, watch))
        return x

    def _layers(
        self, texts: Sequence[Sequence[int]], activation: Activation, tap: Tap | None
    ) -> Floats:
        """From token ids to the last layer's output, [T, D]."""
        token_ids = np.concatenate([np.asarray(text, np.int64) for text in texts])  # [T]
        positions = np.concatenate([np.arange(len(text)) for text in texts])  # [T]
        first_type = np.zeros_like(token_ids)  # [T]: there is only one sentence
        x = embedding(token_ids, self.token_embd) + embedding(first_type, self.token_types)
        x = x + embedding(positions, self.position_embd)  # [T, D]
        if tap:
            tap("inp_embd", x)
        x = self.token_embd_norm(x)
        if tap:
            tap("inp_norm", x)
        starts = _starts(texts)
        for i, layer in enumerate(self.layers):
            attended = x + self._attention(i, layer, x, starts, tap)  # [T, D]
            h = layer.attn_output_norm(attended)
            up = layer.ffn_up(h)  # [T, F]
            active = activation(up)  # [T, F]
            down = layer.ffn_down(active)  # [T, D]
            x = layer.layer_output_norm(h + down)
            if tap:
                tap(f"ffn_inp-{i}", h)
                tap(f"ffn_up-{i}", up)
                tap(f"ffn_gelu-{i}", active)
                tap(f"ffn_out-{i}", down)
                tap(f"l_out-{i}", x)
        return x

    def _attention(
        self, i: int, layer: BertLayer, x: Floats, starts: NDArray[np.int64], tap: Tap | None
    ) -> Floats:
        """What layer i's attention adds to each token, [T, D]."""
        c = self.config
        qkv = layer.attn_qkv(x).reshape(len(x), 3 * c.n_heads, -1)  # [T, 3·H, E]
        merged = attention_over_texts(qkv, starts)  # [T, H, E]
        if tap:
            q, k, v = np.split(qkv, 3, axis=1)  # [T, H, E]
            tap(f"Qcur-{i}", q)
            tap(f"Kcur-{i}", k)
            tap(f"Vcur-{i}", v)
            _show_weights(i, q, k, starts, tap)
        out = layer.attn_output(merged.reshape(x.shape))  # [T, D]
        if tap:
            tap(f"kqv_out-{i}", merged.reshape(x.shape))
            tap(f"attn_out-{i}", out)
        return out

    def _check(self, token_ids: Sequence[int]) -> None:
        """Refuse what would read outside the vocabulary or the context."""
        if len(token_ids) == 0:
            raise InvalidInput("a text without a single token has no embedding")
        if len(token_ids) > self.config.n_ctx:
            raise InvalidInput(
                f"a text of {len(token_ids)} tokens does not fit the model's context of "
                f"{self.config.n_ctx} tokens"
            )
        for token_id in token_ids:
            if not 0 <= token_id < self.n_vocab:
                raise InvalidInput(
                    f"token id {token_id} is outside the vocabulary of {self.n_vocab}"
                )


def _norm(c: BertConfig, p: Parameters, name: str) -> Norm:
    weight = p.vector(f"{name}.weight", c.n_embd)
    return Norm(weight, p.vector(f"{name}.bias", c.n_embd), c.layer_norm_eps)


def _affine(p: Parameters, n_inputs: int, n_outputs: Mapping[str, int]) -> Affine:
    """Of several tensors, by name, the outputs side by side."""
    weights = p.matrices({f"{name}.weight": n for name, n in n_outputs.items()}, n_inputs)
    biases = [p.vector(f"{name}.bias", n) for name, n in n_outputs.items()]
    return Affine(weights, np.concatenate(biases))


def _layer(c: BertConfig, p: Parameters, prefix: str) -> BertLayer:
    return BertLayer(
        attn_qkv=_affine(p, c.n_embd, {f"{prefix}.attn_{part}": c.n_embd for part in "qkv"}),
        attn_output=_affine(p, c.n_embd, {f"{prefix}.attn_output": c.n_embd}),
        attn_output_norm=_norm(c, p, f"{prefix}.attn_output_norm"),
        ffn_up=_affine(p, c.n_embd, {f"{prefix}.ffn_up": c.n_ff}),
        ffn_down=_affine(p, c.n_ff, {f"{prefix}.ffn_down": c.n_embd}),
        layer_output_norm=_norm(c, p, f"{prefix}.layer_output_norm"),
    )


def _starts(texts: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Where each text begins among the tokens of all, and where the last one ends: [N + 1]."""
    return np.cumsum([0, *(len(text) for text in texts)])


def _show_weights(i: int, q: Floats, k: Floats, starts: NDArray[np.int64], tap: Tap) -> None:
    """Show the tap layer i's attention weights, [H, S, S], of each text."""
    _, n_heads, head_dim = q.shape
    for first, last in pairwise(starts.tolist()):
        n_tokens = last - first
        keys, _ = key_value_buffers(n_heads, n_tokens=n_tokens, head_dim=head_dim)
        keys[..., :n_tokens] = k[first:last].transpose(1, 2, 0)
        n_visible = np.full(n_tokens, n_tokens)
        scale = attention_scale(head_dim)
        queries = np.ascontiguousarray(q[first:last])
        weights = attention_weights(queries, keys, n_visible, scale, n_tokens)
        tap(f"kq_soft_max-{i}", weights)
