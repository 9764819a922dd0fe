"""What each value of a call must be, given the values before it: a network taken apart.

`LlamaFormulas` and `BertFormulas` compute one value from its own inputs, as a trace has them, in
float64. An input that the trace does not have is computed from its inputs in turn. With a `How`
they compute it as a program with a fault or with another rule of numerics would.

T tokens of a call, S tokens so far, D model width, H heads, Hkv key/value heads, E head width,
N outputs of a matrix, F feed-forward width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.bert import BertConfig
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.open import Weights, open_weights
from refllm.checkpoints.safetensors import SINGLE, read_safetensors
from refllm.checkpoints.sentence_config import module_folders, sentence_config
from refllm.llama import LlamaConfig
from refllm.oracle_int8 import quantize_q8_0, quantize_q8_k
from refllm.pooling import MEAN_NORMALIZED, Dense
from refllm.quant import Tensor
from refllm.rope import rope_frequencies
from refllm.trace import near
from refllm.trace.faults.bert import POOLS, Encoder
from refllm.trace.faults.formulas import (
    Doubles,
    Mask,
    causal,
    gelu,
    gelu_sigmoid,
    gelu_tanh,
    relu,
    shared_heads,
    sigmoid,
    silu,
)
from refllm.trace.faults.llama import Network
from refllm.trace.near import Near
from refllm.trace.reader import Trace

__all__ = ["Formulas", "How", "Inputs", "formulas_of", "layer_of"]

FLIPS = 4  # activations that another rounding of 127 / max can quantize to a neighboring integer
CACHED_NUMBERS = 2**26  # of decoded matrices: half a GiB of float64

ACTIVATIONS: Mapping[str, Callable[[Doubles], Doubles]] = {
    "gelu_clipped": lambda x: np.clip(gelu(x), -10.0, 10.0),
    "gelu_tanh": gelu_tanh,
    "quick_gelu": gelu_sigmoid,
    "relu": relu,
    "silu": silu,
}
"""Those of `refllm.bert.ACTIVATIONS` besides GELU."""

DENSE_ACTIVATIONS: Mapping[str, Callable[[Doubles], Doubles]] = {
    "Tanh": np.tanh,
    "ReLU": relu,
    "GELU": gelu,
    "SiLU": silu,
    "Sigmoid": sigmoid,
}
"""Those of `refllm.pooling.ACTIVATIONS` besides Identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a program computes.

    Attributes:
        network: A llama's steps.
        encoder: A BERT's steps.
        products: "exact", "int8" for quantized weights, or the type that activations are rounded
            to before each product: "float16", "bfloat16".
        rounds_cache: Whether keys and values are stored as float16.
        is_mean: Whether a text's vector is the mean of its tokens with the length 1, as Spin's
            engine computes it, whatever the model's files say.
        turns_neighbors_of_halves: Whether RoPE turns the pairs (2i, 2i + 1) of rows that are in the
            order of Hugging Face's files, which is for the pairs (i, i + R/2).
    """

    network: Network = field(default_factory=Network)
    encoder: Encoder = field(default_factory=Encoder)
    products: str = "exact"
    rounds_cache: bool = False
    is_mean: bool = False
    turns_neighbors_of_halves: bool = False


class Inputs:
    """The values of one call of a trace, and of the calls of the same text before it."""

    def __init__(self, trace: Trace, call: int) -> None:
        self._trace = trace
        self.call = call
        meta = trace.metadata
        this = meta.calls[call]
        text = meta.texts[this.text]
        self.n_tokens, self.first = this.n_tokens, this.first
        self.token_ids = text.token_ids[this.first : this.first + this.n_tokens]
        self.n_prompt = text.n_prompt
        self._before = [i for i, each in enumerate(meta.calls[:call]) if each.text == this.text]
        self.is_whole = sum(meta.calls[i].n_tokens for i in self._before) == this.first
        self._read: dict[str, Doubles] = {}
        self._halves: set[str] = set()  # the names of the values that are stored as float16

    @property
    def before(self) -> list[Inputs]:
        """The calls with the tokens before these, oldest first."""
        return [Inputs(self._trace, i) for i in self._before]

    def get(self, name: str) -> Doubles | None:
        """Return a value of the trace as float64, None if it has none of this name."""
        if name not in self._trace.metadata.calls[self.call].values:
            return None
        if name not in self._read:
            stored = self._trace.value(name, self.call)
            self._read[name] = stored.astype(np.float64)
            if stored.dtype == np.float16:
                self._halves.add(name)
        return self._read[name]

    def is_half(self, name: str) -> bool:
        """Return whether the trace has a value that is rounded to float16."""
        return self.get(name) is not None and name in self._halves


def layer_of(name: str) -> tuple[str, int]:
    """Return the value's name without its layer, and the layer; −1 outside the layers.

    Example:
        >>> layer_of("Qcur-3#2"), layer_of("inp_embd")
        (('Qcur#2', 3), ('inp_embd', -1))
    """
    plain, number, second = name.partition("#")
    base, dash, layer = plain.rpartition("-")
    if not dash or not layer.isdecimal():
        return name, -1
    return f"{base}{number}{second}", int(layer)


class Formulas(ABC):
    """The values of one model's network."""

    config: LlamaConfig | BertConfig

    def __init__(self, weights: Weights) -> None:
        self.path, self.architecture = weights.path, weights.architecture
        self._tensors = weights.tensors
        self._decoded: dict[str, Doubles] = {}

    def expected(self, inputs: Inputs, name: str, how: How) -> Near | None:
        """Return what a value must be; None for one whose formula is not here."""
        base, layer = layer_of(name)
        with np.errstate(all="ignore"):
            try:
                return self._computed(inputs, base, layer, how)
            except NotKnown:
                return None

    @abstractmethod
    def _computed(self, inputs: Inputs, base: str, layer: int, how: How) -> Near: ...

    def _value(self, inputs: Inputs, base: str, layer: int, how: How, *shape: int) -> Near:
        """Return a value of the trace, or compute it; in this shape, if there is one."""
        plain, number, second = base.partition("#")
        name = base if layer < 0 else f"{plain}-{layer}{number}{second}"
        recorded = inputs.get(name)
        if recorded is None:
            found = self._computed(inputs, base, layer, how)
        elif inputs.is_half(name):
            found = Near(recorded, near.half_rounding(recorded))
        else:
            found = near.exactly(recorded)
        return found.map(lambda array: array.reshape(shape)) if shape else found

    def _whole(self, inputs: Inputs, base: str, layer: int, how: How, *shape: int) -> Near:
        """Return a value of this call and of those before it, along the tokens."""
        if not inputs.is_whole:
            raise NotKnown
        parts = [
            self._value(each, base, layer, how, each.n_tokens, *shape)
            for each in (*inputs.before, inputs)
        ]
        return Near(
            np.concatenate([part.value for part in parts]),
            np.concatenate([part.bound for part in parts]),
        )

    def _rounded(self, x: Near, how: How) -> Near:
        """Return an operand of a product with the cache, as llama.cpp's float16 cache has it."""
        return replace(x, value=_as_half(x.value)) if how.rounds_cache else x

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise NotKnown
        return self._tensors[name]

    def _array(self, name: str) -> Doubles:
        """Return a tensor as float64."""
        if name in self._decoded:
            return self._decoded[name]
        array = self._tensor(name).array().astype(np.float64)
        if sum(each.size for each in self._decoded.values()) + array.size <= CACHED_NUMBERS:
            self._decoded[name] = array
        return array

    def _matrix(self, name: str, how: How) -> tuple[Doubles, str]:
        """Return a matrix [N, D], and its format."""
        stored = self._tensor(name)
        found = self._array(name)
        last = name.removesuffix(".weight").rpartition(".")[2]
        is_turned = last in how.network.transposed and found.shape[0] == found.shape[-1]
        return found.T if is_turned else found, stored.format.name

    def _product(
        self,
        x: Near,
        name: str,
        how: How,
        *,
        rows: slice = slice(None),
        bias: Doubles | None = None,
    ) -> Near:
        """Return x [T, D] times the rows of a matrix."""
        w, format_name = self._matrix(f"{name}.weight", how)
        return _multiplied(x, w[rows], format_name, bias, how)


class NotKnown(Exception):
    """A value that cannot be computed from what the trace and the model have."""


class LlamaFormulas(Formulas):
    """The values of a llama."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.config: LlamaConfig = llama_config(weights)

    def _computed(self, inputs: Inputs, base: str, layer: int, how: How) -> Near:
        c, n_tokens, network = self.config, inputs.n_tokens, how.network
        heads = (n_tokens, c.n_heads, c.head_dim)
        kv_heads = (n_tokens, c.n_kv_heads, c.head_dim)
        before = ("inp_embd", -1) if layer <= 0 else ("l_out", layer - 1)

        def value(name: str, *shape: int) -> Near:
            return self._value(inputs, name, layer, how, *shape)

        match base:
            case "inp_embd":
                table = self._tensor("token_embd.weight")
                rows = np.concatenate([table.rows(i, i + 1) for i in inputs.token_ids])  # [T, D]
                embedded = rows.astype(np.float64) * network.embedding_scale(c.n_embd)
                return Near(embedded, 2 * near.UNIT * np.abs(embedded))
            case "attn_norm":
                return self._norm(self._value(inputs, *before, how), f"blk.{layer}.attn_norm", how)
            case "Qcur":
                return self._part(value("attn_norm"), layer, "q", how, heads)
            case "Kcur":
                return self._part(value("attn_norm"), layer, "k", how, kv_heads)
            case "Vcur":
                return self._part(value("attn_norm"), layer, "v", how, kv_heads)
            case "Qcur#2":
                return self._rope(inputs, value("Qcur", *heads), "q", how)
            case "Kcur#2":
                return self._rope(inputs, value("Kcur", *kv_heads), "k", how)
            case "kq_soft_max":
                n_seen = inputs.first + n_tokens
                mask = (network.mask or causal)(n_seen, n_seen)[inputs.first :]
                q = value("Qcur#2", *heads)
                k = self._whole(inputs, "Kcur#2", layer, how, c.n_kv_heads, c.head_dim)
                return near.attention_weights(
                    self._rounded(q, how),
                    self._rounded(k, how),
                    mask,
                    scale=network.scale(c.head_dim),
                    shared=shared_heads(c.n_heads, c.n_kv_heads, network.kv_head),
                )
            case "kqv_out":
                v = self._whole(inputs, "Vcur", layer, how, c.n_kv_heads, c.head_dim)
                shared = shared_heads(c.n_heads, c.n_kv_heads, network.kv_head)
                weights = value("kq_soft_max")
                if weights.value.shape != (c.n_heads, n_tokens, len(v.value)):
                    raise NotKnown
                return near.weighted_values(
                    self._rounded(weights, how), self._rounded(v, how), shared=shared
                )
            case "attn_out":
                merged = value("kqv_out", n_tokens, c.n_heads * c.head_dim)
                return self._affine(merged, f"blk.{layer}.attn_output", how)
            case "ffn_inp":
                attended = value("attn_out")
                x = self._value(inputs, *before, how)
                return near.total(x, attended) if network.adds_attention else attended
            case "ffn_norm":
                return self._norm(value("ffn_inp"), f"blk.{layer}.ffn_norm", how)
            case "ffn_gate" | "ffn_up":
                return self._affine(value("ffn_norm"), f"blk.{layer}.{base}", how)
            case "ffn_swiglu":
                gate = near.elementwise(value("ffn_gate"), network.activation)
                up = value("ffn_up")
                bound = gate.bound * np.abs(up.value) + np.abs(gate.value) * up.bound
                gated = gate.value * up.value
                return Near(gated, bound + near.UNIT * np.abs(gated))
            case "ffn_out":
                return self._affine(value("ffn_swiglu"), f"blk.{layer}.ffn_down", how)
            case "l_out":
                down, x = value("ffn_out"), value("ffn_inp")
                return near.total(x, down) if network.adds_feed_forward else down
            case "result_norm":
                x = self._value(inputs, "l_out", c.n_layers - 1, how)
                return self._norm(x, "output_norm", how) if network.last_norm else x
            case "result_output":
                has_output = "output.weight" in self._tensors
                name = network.renamed.get("output", "output") if has_output else "token_embd"
                return self._product(self._value(inputs, "result_norm", -1, how), name, how)
        raise NotKnown

    def _renamed(self, name: str, how: How) -> str:
        prefix, dot, last = name.rpartition(".")
        return f"{prefix}{dot}{how.network.renamed.get(last, last)}"

    def _norm(self, x: Near, name: str, how: How) -> Near:
        weight = self._array(f"{self._renamed(name, how)}.weight")
        eps = self.config.rms_norm_eps if how.network.eps is None else how.network.eps
        return near.normalized(
            x, lambda rows: how.network.norm(rows, weight, eps), weight, eps, centers=False
        )

    def _affine(self, x: Near, name: str, how: How) -> Near:
        name = self._renamed(name, how)
        bias = self._array(f"{name}.bias") if f"{name}.bias" in self._tensors else None
        return self._product(x, name, how, bias=bias)

    def _part(self, x: Near, layer: int, part: str, how: How, shape: tuple[int, int, int]) -> Near:
        """Return the queries, the keys or the values of a layer."""
        c, fused = self.config, f"blk.{layer}.attn_qkv"
        if f"{fused}.weight" not in self._tensors:
            found = self._affine(x, f"blk.{layer}.attn_{part}", how)
        else:
            n_q, n_kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
            start = {"q": 0, "k": n_q, "v": n_q + n_kv}[part]
            rows = slice(start, start + (n_q if part == "q" else n_kv))
            has_bias = f"{fused}.bias" in self._tensors
            bias = self._array(f"{fused}.bias")[rows] if has_bias else None
            found = self._product(x, fused, how, rows=rows, bias=bias)
        return found.map(lambda array: array.reshape(shape))

    def _rope(self, inputs: Inputs, x: Near, part: str, how: How) -> Near:
        c, network = self.config, how.network
        if part not in network.rotates:
            return x
        frequencies = rope_frequencies(
            base=c.rope_theta if network.rope_base is None else network.rope_base,
            rope_dim=c.rope_dim,
            factors=c.rope_factors,
            linear_scale=c.rope_linear_scale,
            yarn=c.rope_yarn,
        )
        positions = network.positions(np.arange(inputs.first, inputs.first + inputs.n_tokens))
        angles = network.rope_sign * positions[:, None, None] * frequencies  # [T, 1, R/2]
        if how.turns_neighbors_of_halves:
            order = np.arange(c.head_dim)
            rotated = order[: c.rope_dim].copy()
            order[: c.rope_dim] = np.concatenate([rotated[::2], rotated[1::2]])
            turned = near.rope(
                x.map(lambda array: array[..., order]),
                angles,
                halves=False,
                magnitude=c.rope_attention_factor,
            )
            return turned.map(lambda array: array[..., np.argsort(order)])
        return near.rope(
            x, angles, halves=network.rope_swaps_layout, magnitude=c.rope_attention_factor
        )


class BertFormulas(Formulas):
    """The values of a BERT; each call is one text."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.config: BertConfig = bert_config(weights)
        self._head = sentence_config(weights, n_embd=self.config.n_embd).head
        has_dense = any(isinstance(step, Dense) for step in self._head.steps)
        self._dense = [  # the tensors of each dense layer; no other module has any
            {
                name: each.named(name).array().astype(np.float64)
                for name, each in read_safetensors(path).items()
            }
            for folder in (module_folders(weights.path) if has_dense else ())
            if (path := weights.path / folder).joinpath(SINGLE).is_file()
        ]

    def _computed(self, inputs: Inputs, base: str, layer: int, how: How) -> Near:
        c, encoder = self.config, how.encoder
        heads = (inputs.n_tokens, c.n_heads, c.n_embd // c.n_heads)
        before = ("inp_norm", -1) if layer <= 0 else ("l_out", layer - 1)
        attention_norm = f"blk.{layer}.attn_output_norm"
        output_norm = f"blk.{layer}.layer_output_norm"

        def value(name: str, *shape: int) -> Near:
            return self._value(inputs, name, layer, how, *shape)

        def block_input(x: Near, norm: str) -> Near:
            return self._norm(x, norm, how) if encoder.normalizes == "before" else x

        def block_output(x: Near, inner: Near, norm: str) -> Near:
            if encoder.normalizes == "inside":
                inner = self._norm(inner, norm, how)
            whole = near.total(x, inner) if encoder.adds_residual else inner
            return self._norm(whole, norm, how) if encoder.normalizes == "after" else whole

        match base:
            case "inp_embd":
                return self._embedded(inputs, encoder)
            case "inp_norm":
                return self._norm(value("inp_embd"), "token_embd_norm", how)
            case "Qcur" | "Kcur" | "Vcur":
                x = block_input(self._value(inputs, *before, how), attention_norm)
                found = self._part(x, layer, base, how)
                return found.map(lambda array: array.reshape(heads))
            case "kq_soft_max":
                return self._attention_weights(inputs, layer, how, heads)
            case "kqv_out":
                weights, v = value("kq_soft_max"), value("Vcur", *heads)
                return near.weighted_values(weights, v, shared=range(c.n_heads))
            case "attn_out":
                merged = value("kqv_out", inputs.n_tokens, c.n_embd)
                return self._affine(merged, f"blk.{layer}.attn_output", how)
            case "ffn_inp":
                x = self._value(inputs, *before, how)
                return block_output(x, value("attn_out"), attention_norm)
            case "ffn_up":
                x = block_input(value("ffn_inp"), output_norm)
                return self._affine(x, f"blk.{layer}.ffn_up", how)
            case "ffn_gelu":
                return near.elementwise(value("ffn_up"), self._activation(encoder))
            case "ffn_out":
                return self._affine(value("ffn_gelu"), f"blk.{layer}.ffn_down", how)
            case "l_out":
                return block_output(value("ffn_inp"), value("ffn_out"), output_norm)
            case "result_embd_pooled":
                return self._pooled(inputs, how)
            case "result_embd_dense":
                return self._dense_layer(self._vectors(inputs, layer, how), layer, encoder, how)
            case "result_embd":
                found = self._vectors(inputs, 0 if how.is_mean else len(self._dense), how)
                width = None if how.is_mean else self._head.truncate_dim
                if width is None or width >= found.value.shape[1]:
                    return found
                cut = found.map(lambda array: array[:, :width])
                return Near(encoder.cut(cut.value), cut.bound)
        raise NotKnown

    def _embedded(self, inputs: Inputs, encoder: Encoder) -> Near:
        c = self.config
        table = self._tensor("token_embd.weight")
        ids = np.asarray(inputs.token_ids)
        words = np.concatenate([table.rows(i, i + 1) for i in inputs.token_ids])  # [T, D]
        parts = [words.astype(np.float64)]
        if c.n_token_types and encoder.token_type is not None:
            types = self._array("token_types.weight")
            parts.append(np.broadcast_to(types[encoder.token_type], words.shape))
        if encoder.has_positions:
            positions: NDArray[np.int64] = np.arange(len(ids))
            if c.padding_id is not None and encoder.skips_padding_id:
                counted = ids != c.padding_id
                positions = c.padding_id + np.where(counted, np.cumsum(counted), 0)
            parts.append(self._array("position_embd.weight")[encoder.first_position + positions])
        return near.total(*map(near.exactly, parts))

    def _attention_weights(
        self, inputs: Inputs, layer: int, how: How, heads: tuple[int, int, int]
    ) -> Near:
        """Return the attention weights of a layer, [H, T, T]."""
        encoder, (n, n_heads, head_dim) = how.encoder, heads
        mask: Mask = np.tri(n, dtype=bool) if encoder.is_causal else np.ones((n, n), bool)
        bias = None
        if self.config.relative_attention:
            buckets = _distance_buckets(n)  # [T, T]
            bias = self._array("attn_rel_b.weight")[buckets].transpose(2, 0, 1)  # [H, T, T]
            bias = encoder.relative_bias(bias, head_dim)
        found = near.attention_weights(
            self._value(inputs, "Qcur", layer, how, *heads),
            self._value(inputs, "Kcur", layer, how, *heads),
            mask,
            scale=encoder.scale(head_dim),
            shared=range(n_heads),
            bias=bias,
        )
        recorded = inputs.get(f"kq_soft_max-{layer}")
        if encoder.masks or recorded is None or recorded.shape != found.value.shape:
            return found
        # What a text gives to padding is missing here, in the same proportion for each token.
        given = recorded.sum(axis=-1, keepdims=True)  # [H, T, 1]
        return found.map(lambda array: array * given)

    def _pooled(self, inputs: Inputs, how: How) -> Near:
        """Return what pooling makes of a text's tokens, [1, M·D]."""
        encoder, c = how.encoder, self.config
        pooling = (MEAN_NORMALIZED if how.is_mean else self._head).pooling
        includes_prompt = pooling.include_prompt
        if encoder.pools_prompt is not None:
            includes_prompt = encoder.pools_prompt
        counts = np.ones((1, inputs.n_tokens), bool)
        counts[:, : 0 if includes_prompt else inputs.n_prompt] = False
        pools = [POOLS[mode] for mode in pooling.modes] if encoder.pool is None else [encoder.pool]
        return near.pooled(
            self._value(inputs, "l_out", c.n_layers - 1, how),
            lambda x: np.concatenate([pool(x[None], counts) for pool in pools], axis=1),
        )

    def _vectors(self, inputs: Inputs, n_dense: int, how: How) -> Near:
        """Return the vector behind so many dense layers and what follows the last of them."""
        name = ("result_embd_dense", n_dense - 1) if n_dense else ("result_embd_pooled", -1)
        found = self._value(inputs, *name, how)
        steps = (MEAN_NORMALIZED if how.is_mean else self._head).steps
        places = [i for i, step in enumerate(steps) if isinstance(step, Dense)]
        first, last = ([-1, *places, len(steps)][n_dense + i] for i in range(2))
        for _ in steps[first + 1 : last]:
            found = near.of_length_1(found, how.encoder.normalize)
        return found

    def _dense_layer(self, x: Near, i: int, encoder: Encoder, how: How) -> Near:
        if i >= len(self._dense):
            raise NotKnown
        if not encoder.has_dense:
            return x
        tensors = self._dense[i]
        bias = tensors.get("linear.bias") if encoder.adds_biases else None
        found = _multiplied(x, tensors["linear.weight"], "F32", bias, how)
        [step] = [step for step in self._head.steps if isinstance(step, Dense)][i : i + 1]
        activation = encoder.dense_activation or step.activation
        if activation == "Identity":
            return found
        return near.elementwise(found, DENSE_ACTIVATIONS[activation])

    def _activation(self, encoder: Encoder) -> Callable[[Doubles], Doubles]:
        if self.config.activation == "gelu":
            return encoder.activation
        return ACTIVATIONS[self.config.activation]

    def _norm(self, x: Near, name: str, how: How) -> Near:
        weight, bias = self._array(f"{name}.weight"), self._array(f"{name}.bias")
        eps = self.config.layer_norm_eps if how.encoder.eps is None else how.encoder.eps
        found = near.normalized(
            x, lambda rows: how.encoder.norm(rows, weight, bias, eps), weight, eps, centers=True
        )
        return replace(found, bound=found.bound + 2 * near.UNIT * np.abs(bias))

    def _affine(self, x: Near, name: str, how: How) -> Near:
        bias = self._array(f"{name}.bias") if how.encoder.adds_biases else None
        return self._product(x, name, how, bias=bias)

    def _part(self, x: Near, layer: int, base: str, how: How) -> Near:
        fused, part = f"blk.{layer}.attn_qkv", base[0].lower()
        if f"{fused}.weight" not in self._tensors:
            return self._affine(x, f"blk.{layer}.attn_{part}", how)
        n = self.config.n_embd
        start = "qkv".index(part) * n
        rows = slice(start, start + n)
        bias = self._array(f"{fused}.bias")[rows] if how.encoder.adds_biases else None
        return self._product(x, fused, how, rows=rows, bias=bias)


def formulas_of(path: Path) -> Formulas:
    """Return the formulas of the model in a file or folder. Raises as `open_weights`."""
    weights = open_weights(path)
    return LlamaFormulas(weights) if weights.architecture == "llama" else BertFormulas(weights)


def _distance_buckets(n_tokens: int) -> NDArray[np.int64]:
    """Return the bucket of MPNet's bias for each query and key, [T, T].

    Buckets 0 to 7 are for these distances, 8 to 15 for those to 128 by the logarithm, and 16 more
    for a key behind the query. Source: Song et al. 2020, arXiv:2004.09297; Raffel et al. 2019,
    arXiv:1910.10683, section 2.1.
    """
    distances = np.arange(n_tokens) - np.arange(n_tokens)[:, None]  # key − query, [T, T]
    far = np.abs(distances)
    logarithmic = 8 + np.floor(2 * np.log2(np.maximum(far, 8) / 8))  # exact at powers of 2
    buckets: NDArray[np.int64] = np.where(far < 8, far, np.minimum(logarithmic, 15)).astype(int)
    return buckets + 16 * (distances > 0)


def _multiplied(x: Near, w: Doubles, format_name: str, bias: Doubles | None, how: How) -> Near:
    """Return x [T, D] times w [N, D]."""
    match how.products:
        case "exact":
            return near.product(x, w, bias)
        case "float16":
            return near.product(replace(x, value=_as_half(x.value)), w, bias)
        case "bfloat16":
            return near.product(replace(x, value=_as_bfloat16(x.value)), w, bias)
    return _int8_product(x, w, format_name, bias)


def _int8_product(x: Near, w: Doubles, format_name: str, bias: Doubles | None) -> Near:
    """Return the product of quantized activations, if the format is one that is multiplied so."""
    from refllm.kernels.int8.product import INT8_FORMATS

    if format_name not in INT8_FORMATS:
        return near.product(x, w, bias)
    rows = x.value.astype(np.float32)
    is_small = format_name.endswith(("_0", "_1", "_NL"))
    quantized = quantize_q8_0(rows) if is_small else quantize_q8_k(rows)
    d = quantized.d.astype(np.float64)[..., None]  # [T, B, 1]
    found = near.product(near.exactly((quantized.a * d).reshape(rows.shape)), w, bias)
    step = np.broadcast_to(d, quantized.a.shape).reshape(rows.shape)  # [T, D]
    largest = np.abs(w).max(axis=1)  # [N]
    bound = found.bound + FLIPS * step.max(axis=1)[:, None] * largest + x.bound @ np.abs(w).T
    if format_name in ("Q4_1", "Q5_1"):  # a sum of activations is rounded to float16
        bound = bound + 2.0**-10 * (np.abs(x.value) @ np.abs(w).T)
    return Near(found.value, bound)


def _as_half(x: Doubles) -> Doubles:
    return x.astype(np.float16).astype(np.float64)


def _as_bfloat16(x: Doubles) -> Doubles:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    found: Doubles = (rounded & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    return found
