"""The BERT encoder and its family: token ids in, one vector for each text out.

RoBERTa (XLM-RoBERTa, CamemBERT) numbers positions behind the padding token's id, DistilBERT has no
token types, and MPNet adds a learned bias for the distance of two tokens to their attention score.

T tokens of all texts together, D model width, H heads, E head width, F feed-forward width,
N texts, S tokens of one text.

Texts of different length are laid end to end, not padded: matrix products see all tokens as rows
of one matrix, attention and pooling see each text alone. This is what an attention mask does to a
padded batch, without computing what it hides, so no text can influence another.

Source: Devlin et al. 2018, arXiv:1810.04805; RoBERTa: Liu et al. 2019, arXiv:1907.11692;
DistilBERT: Sanh et al. 2019, arXiv:1910.01108; MPNet: Song et al. 2020, arXiv:2004.09297; pooling:
Reimers and Gurevych 2019, arXiv:1908.10084; names of the intermediate values are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from refllm.errors import InvalidInput
from refllm.kernels.attention import (
    attention_over_texts,
    attention_scale,
    attention_weights,
    biased_attention_over_texts,
    biased_attention_weights,
    key_value_buffers,
)
from refllm.kernels.elementwise import (
    gelu,
    gelu_clipped,
    gelu_tanh,
    layer_norm,
    quick_gelu,
    relu,
    silu,
)
from refllm.kernels.linear import Matrix, embedding, linear
from refllm.parameters import Parameters
from refllm.pooling import MEAN_NORMALIZED, SentenceHead
from refllm.tap import Tap, at_layer, ignore, not_finite

__all__ = ["ACTIVATIONS", "Activation", "Bert", "BertConfig"]

Floats = NDArray[np.float32]
Activation = Callable[[Floats], Floats]

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": gelu,
    "gelu_clipped": gelu_clipped,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "silu": silu,
}
"""What a feed-forward part can apply between its two products, by the name in `BertConfig`."""

# The distance of two tokens from which each bucket of MPNet's bias begins, 16 for each direction:
# exact to 8, then growing by a factor of ∜2 to 128, as transformers 5.24 rounds its logarithms.
BUCKETS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """What a BERT's arithmetic needs to know besides its weights.

    Attributes:
        n_ctx: The most tokens of a text.
        activation: A key of `ACTIVATIONS`.
        n_token_types: The rows of the table of token types, of which only the first is used; 0
            for a model without them.
        padding_id: The padding token in a model that numbers positions as RoBERTa does: the first
            token that is no padding has the position padding_id + 1, and every padding token has
            the position padding_id. None where positions count all tokens from 0.
        relative_attention: Whether attention has MPNet's bias for the distance of two tokens.
    """

    n_ctx: int
    n_embd: int
    n_layers: int
    n_heads: int
    n_ff: int
    layer_norm_eps: float
    activation: str = "gelu"
    n_token_types: int = 2
    padding_id: int | None = None
    relative_attention: bool = False


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

    def __call__(self, x: Floats, residual: Floats | None = None) -> Floats:
        """x [T, D], with the residual added to it first, → [T, D]."""
        return layer_norm(x, self.weight, self.bias, self.eps, residual=residual)


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
        self.token_types = (
            p.table("token_types.weight", c.n_token_types, c.n_embd) if c.n_token_types else None
        )
        n_positions = c.n_ctx if c.padding_id is None else c.padding_id + 1 + c.n_ctx
        self.position_embd = p.table("position_embd.weight", n_positions, c.n_embd)
        self.bias_by_bucket = (
            p.table("attn_rel_b.weight", 2 * len(BUCKETS), c.n_heads).array()  # [buckets, H]
            if c.relative_attention
            else None
        )
        self.token_embd_norm = _norm(c, p, "token_embd_norm")
        self.layers = [_layer(c, p, f"blk.{i}") for i in range(c.n_layers)]

    def embed(
        self,
        texts: Sequence[Sequence[int]],
        *,
        head: SentenceHead = MEAN_NORMALIZED,
        n_prompt: int = 0,
        activation: Activation = gelu,
        tap: Tap = ignore,
    ) -> Floats:
        """Return each text's vector, [N, K].

        Args:
            texts: Token ids, special tokens included.
            head: What makes a vector of a text's last layer.
            n_prompt: How many tokens at the beginning of each text are the prompt's.
            activation: What a model with GELU has for it: the exact one, unless the caller wants
                to see another one's result.
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
        tap: Tap = ignore,
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

    def _layers(self, texts: Sequence[Sequence[int]], activation: Activation, tap: Tap) -> Floats:
        """From token ids to the last layer's output, [T, D]."""
        token_ids = np.concatenate([np.asarray(text, np.int64) for text in texts])  # [T]
        positions = np.concatenate([self._positions(text) for text in texts])  # [T]
        x = embedding(token_ids, self.token_embd)  # [T, D]
        if self.token_types is not None:
            first_type = np.zeros_like(token_ids)  # [T]: there is only one sentence
            x = x + embedding(first_type, self.token_types)
        x = x + embedding(positions, self.position_embd)  # [T, D]
        tap("inp_embd", x)
        x = self.token_embd_norm(x)
        tap("inp_norm", x)
        starts = _starts(texts)
        bias = self._bias_by_distance(int(np.diff(starts).max()))  # [H, 2·S − 1]
        if self.config.activation != "gelu":
            activation = ACTIVATIONS[self.config.activation]
        for i, layer in enumerate(self.layers):
            show = at_layer(tap, i)
            attended = self._attention(layer, x, starts, bias, show)  # [T, D]
            h = layer.attn_output_norm(attended, residual=x)
            up = layer.ffn_up(h)  # [T, F]
            active = activation(up)  # [T, F]
            down = layer.ffn_down(active)  # [T, D]
            x = layer.layer_output_norm(down, residual=h)
            show("ffn_inp", h)
            show("ffn_up", up)
            show("ffn_gelu", active)
            show("ffn_out", down)
            show("l_out", x)
        return x

    def _positions(self, text: Sequence[int]) -> NDArray[np.int64]:
        """Return the row of the table of positions for each token of a text, [S]."""
        padding_id = self.config.padding_id
        if padding_id is None:
            return np.arange(len(text))
        counted = np.asarray(text) != padding_id  # [S]
        return padding_id + np.where(counted, np.cumsum(counted), 0)

    def _bias_by_distance(self, n_tokens: int) -> Floats | None:
        """Return MPNet's bias for a key that is d places behind a query: [H, S − 1 + d]."""
        if self.bias_by_bucket is None:
            return None
        distances = np.arange(1 - n_tokens, n_tokens)  # [2·S − 1]
        buckets = np.searchsorted(BUCKETS, np.abs(distances), side="right") - 1
        buckets[distances > 0] += len(BUCKETS)
        return np.ascontiguousarray(self.bias_by_bucket[buckets].T)

    def _attention(
        self, layer: BertLayer, x: Floats, starts: NDArray[np.int64], bias: Floats | None, show: Tap
    ) -> Floats:
        """Return what a layer's attention adds to each token, [T, D]."""
        n_heads = self.config.n_heads
        qkv = layer.attn_qkv(x).reshape(len(x), 3 * n_heads, -1)  # [T, 3·H, E]
        if bias is None:
            heads = attention_over_texts(qkv, starts)  # [T, H, E]
        else:
            heads = biased_attention_over_texts(qkv, starts, bias)  # [T, H, E]
        show("Qcur", qkv[:, :n_heads])
        show("Kcur", qkv[:, n_heads : 2 * n_heads])
        show("Vcur", qkv[:, 2 * n_heads :])
        if show is not ignore:
            for first, last in pairwise(starts.tolist()):
                show("kq_soft_max", _attention_weights(qkv[first:last], bias))
        merged = heads.reshape(x.shape)  # [T, D]
        out = layer.attn_output(merged)  # [T, D]
        show("kqv_out", merged)
        show("attn_out", out)
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
    return Affine(weights, p.vectors({f"{name}.bias": n for name, n in n_outputs.items()}))


def _layer(c: BertConfig, p: Parameters, prefix: str) -> BertLayer:
    attn_qkv = {f"{prefix}.attn_{part}": c.n_embd for part in "qkv"}
    if f"{prefix}.attn_qkv.weight" in p.tensors:
        attn_qkv = {f"{prefix}.attn_qkv": 3 * c.n_embd}
    return BertLayer(
        attn_qkv=_affine(p, c.n_embd, attn_qkv),
        attn_output=_affine(p, c.n_embd, {f"{prefix}.attn_output": c.n_embd}),
        attn_output_norm=_norm(c, p, f"{prefix}.attn_output_norm"),
        ffn_up=_affine(p, c.n_embd, {f"{prefix}.ffn_up": c.n_ff}),
        ffn_down=_affine(p, c.n_ff, {f"{prefix}.ffn_down": c.n_embd}),
        layer_output_norm=_norm(c, p, f"{prefix}.layer_output_norm"),
    )


def _starts(texts: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Where each text begins among the tokens of all, and where the last one ends: [N + 1]."""
    return np.cumsum([0, *(len(text) for text in texts)])


def _attention_weights(qkv: Floats, bias: Floats | None) -> Floats:
    """Return the attention weights of one text, [H, S, S], from qkv [S, 3·H, E]."""
    n_tokens, n_heads, head_dim = len(qkv), qkv.shape[1] // 3, qkv.shape[2]
    scale = attention_scale(head_dim)
    if bias is not None:
        return biased_attention_weights(qkv, scale, bias)
    keys, _ = key_value_buffers(n_heads, n_tokens=n_tokens, head_dim=head_dim)  # [H, E, C]
    keys[..., :n_tokens] = qkv[:, n_heads : 2 * n_heads].transpose(1, 2, 0)
    queries = np.ascontiguousarray(qkv[:, :n_heads])  # [S, H, E]
    return attention_weights(queries, keys, np.full(n_tokens, n_tokens), scale, n_tokens)
