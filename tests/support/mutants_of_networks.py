"""Wrong backends that compute otherwise: blocks, the llama, the BERT.

T tokens, D model width, H heads, K key/value heads, E head width, F feed-forward width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm import llama
from refllm.conform.case import Group
from refllm.ggml.blocks import Q4_0, Q8_0
from refllm.ggml.superblocks import Q4_K
from refllm.kernels.elementwise import (
    gelu,
    gelu_tanh,
    layer_norm,
    rms_norm,
    rope_table,
    swiglu,
)
from refllm.kernels.kv_attention import Caches, attention
from refllm.kernels.linear import Matrix
from refllm.kernels.packed.panels import pack
from refllm.llama import LlamaLayer, Segment
from refllm.models.load import BertModel
from refllm.parameters import Parameters
from refllm.quant import FORMATS, Tensor
from refllm.rope import rope_frequencies
from refllm.tap import Tap
from tests.support.mutants import Mutant

__all__ = ["MUTANTS_OF_NETWORKS"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

real_attention = attention
real_decode_q4_0 = Q4_0._decode_blocks
real_decode_q4_k = Q4_K._decode_blocks
real_decode_q8_0 = Q8_0._decode_blocks
real_embed_groups = BertModel.embed_groups
real_layer_norm = layer_norm
real_matrix = Parameters.matrix
real_positions = llama._positions
real_feed_forward = llama._feed_forward
real_rms_norm = rms_norm
real_rope_frequencies = rope_frequencies
real_rope_table = rope_table
real_swiglu = swiglu


# --- Blocks --------------------------------------------------------------------------------------


def decoded_from(
    decode: Callable[[Bytes, Floats], None], change: Callable[[Bytes], None]
) -> Callable[[Bytes, Floats], None]:
    """The decoder, given blocks in which something is changed."""

    def decode_changed(blocks: Bytes, out: Floats) -> None:
        changed = blocks.copy()
        change(changed)
        changed.flags.writeable = False  # as the decoder knows blocks
        decode(changed, out)

    return staticmethod(decode_changed)


def interleave_nibbles(blocks: Bytes, out: Floats) -> None:
    real_decode_q4_0(blocks, out)
    out[...] = out.reshape(-1, 2, 16).swapaxes(1, 2).reshape(out.shape)


def read_unsigned(blocks: Bytes, out: Floats) -> None:
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    out[...] = scale * blocks[:, 2:]


def flip_minimum(blocks: Bytes) -> None:
    blocks[:, 3] ^= 0x80


def drop_upper_bits(blocks: Bytes) -> None:
    blocks[:, 4:12] &= 63


def flush_subnormal_scale(blocks: Bytes) -> None:
    blocks[(blocks[:, 1] & 0x7C) == 0, 0] = 0
    blocks[(blocks[:, 1] & 0x7C) == 0, 1] &= 0x80


# --- The llama -----------------------------------------------------------------------------------


def rms_norm_of_1e_6(x: Floats, weight: Floats, eps: float) -> Floats:
    return real_rms_norm(x, weight, eps / 10 if math.isclose(eps, 1e-5, rel_tol=1e-3) else eps)


def centered_rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    return real_rms_norm(x - x.mean(axis=1, keepdims=True), weight, eps)


def attention_by_modulo(
    query: Floats, caches: Caches, n_visible: Ints, *, n_heads: int, layer: int = 0
) -> Floats:
    order = sorted(range(n_heads), key=lambda h: (h % caches.n_kv_heads, h))
    out = np.empty((len(query), n_heads, query.shape[2]), np.float32)
    queries = np.ascontiguousarray(query[:, order])
    out[:, order] = real_attention(queries, caches, n_visible, n_heads=n_heads, layer=layer)
    return out


def attention_to_everybody(
    query: Floats, caches: Caches, n_visible: Ints, *, n_heads: int, layer: int = 0
) -> Floats:
    ends = caches.places["n_before"] + caches.places["n_new"]
    everybody = np.repeat(ends, caches.places["n_new"])
    return real_attention(query, caches, everybody, n_heads=n_heads, layer=layer)


def rope_of_halves(x: Floats, table: Floats, n_heads: int) -> Floats:
    cosine, sine = table[:, :, None, :]  # [T, 1, R/2] each
    n_pairs = cosine.shape[-1]
    out = x.copy()
    a, b = x[:, :n_heads, :n_pairs], x[:, :n_heads, n_pairs : 2 * n_pairs]
    out[:, :n_heads, :n_pairs] = a * cosine - b * sine
    out[:, :n_heads, n_pairs : 2 * n_pairs] = a * sine + b * cosine
    return out


def frequencies_of_500000(*, base: float, **options: Any) -> NDArray[np.float64]:
    return real_rope_frequencies(base=500_000.0, **options)


def rope_one_further(positions: Ints, frequencies: NDArray[np.float64], magnitude: float) -> Floats:
    return real_rope_table(positions + 1, frequencies, magnitude)


def positions_one_behind(segment: Segment) -> Ints:
    positions = real_positions(segment)
    return positions if segment.cache.length == 0 else positions - 1


def geglu(gate_up: Floats) -> Floats:
    gate, up = np.split(gate_up, 2, axis=1)
    return gelu(np.ascontiguousarray(gate)) * up


def reglu(gate_up: Floats) -> Floats:
    gate, up = np.split(gate_up, 2, axis=1)
    return np.asarray(np.maximum(gate, np.float32(0)) * up)


def remembering_rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    last_input[:] = [x]
    return real_rms_norm(x, weight, eps)


def feed_forward_without_residual(layer: LlamaLayer, h: Floats, show: Tap) -> Floats:
    return np.asarray(real_feed_forward(layer, h, show) - last_input[0])


last_input: list[Floats] = []


def swiglu_of_up(gate_up: Floats) -> Floats:
    gate, up = np.split(gate_up, 2, axis=1)
    return real_swiglu(np.concatenate([up, gate], axis=1))


def transposed_attn_output(self: Parameters, name: str, n_rows: int, n_columns: int) -> Matrix:
    if not name.endswith("attn_output.weight"):
        return real_matrix(self, name, n_rows, n_columns)
    self.asked.add(name)
    turned = np.ascontiguousarray(self.tensors[name].array().T)
    return pack(Tensor(name, FORMATS["F32"], turned.shape, turned.view(np.uint8)))


def unscaled(_head_dim: int) -> np.float32:
    return np.float32(1.0)


# --- The BERT ------------------------------------------------------------------------------------


def layer_norm_of_1e_5(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    return real_layer_norm(x, weight, bias, 1e-5)


def first_row(x: Floats) -> Floats:
    return np.asarray(x[0].copy())


def as_it_is(x: Floats) -> Floats:
    return x


def embed_padded(
    self: BertModel, texts: Sequence[Sequence[int]], **options: Any
) -> Iterator[Floats]:
    longest = max(map(len, texts), default=0)
    padded = [[*text, *[0] * (longest - len(text))] for text in texts]
    return real_embed_groups(self, padded, **options)


def mutant(
    name: str, groups: tuple[Group, ...], changed: str, replacement: Any, *symptoms: str
) -> Mutant:
    """With the replacement in the place of what is changed: a name, or several with a space."""
    return Mutant(
        name=name,
        groups=groups,
        changes={f"refllm.{place}": replacement for place in changed.split()},
        symptoms=frozenset(symptoms),
    )


QUANT: tuple[Group, ...] = ("quant",)
LLAMA: tuple[Group, ...] = ("ops", "logits")
BERT: tuple[Group, ...] = ("ops", "embeddings")

MUTANTS_OF_NETWORKS = (
    mutant(
        "Q4_0 nibbles interleaved",
        QUANT,
        "quant_blocks.Q4_0._decode_blocks",
        staticmethod(interleave_nibbles),
        "Q4_0 nibbles interleaved",
    ),
    mutant(
        "Q8_0 unsigned",
        QUANT,
        "quant_blocks.Q8_0._decode_blocks",
        staticmethod(read_unsigned),
        "Q8_0 unsigned",
    ),
    mutant(
        "Q8_0 scale flushed",
        QUANT,
        "quant_blocks.Q8_0._decode_blocks",
        decoded_from(real_decode_q8_0, flush_subnormal_scale),
        "Q8_0 subnormal scale flushed",
    ),
    mutant(
        "Q4_K minimum added",
        QUANT,
        "quant_k.Q4_K._decode_blocks",
        decoded_from(real_decode_q4_k, flip_minimum),
        "Q4_K minimum added",
    ),
    mutant(
        "Q4_K scales of four bits",
        QUANT,
        "quant_k.Q4_K._decode_blocks",
        decoded_from(real_decode_q4_k, drop_upper_bits),
        "Q4_K 6-bit scales without upper bits",
    ),
    mutant("epsilon 1e-6", LLAMA, "llama.rms_norm", rms_norm_of_1e_6, "RMSNorm epsilon 1e-06"),
    mutant(
        "RMSNorm centered",
        LLAMA,
        "llama.rms_norm",
        centered_rms_norm,
        "RMSNorm with mean subtracted",
    ),
    mutant(
        "scores not scaled",
        (*LLAMA, "embeddings"),
        "kernels.attention.attention_scale kernels.cached_attention.attention_scale",
        unscaled,
        "scores not scaled",
    ),
    mutant("GQA by modulo", LLAMA, "llama.attention", attention_by_modulo, "GQA heads by modulo"),
    mutant(
        "no causal mask", LLAMA, "llama.attention", attention_to_everybody, "causal mask missing"
    ),
    mutant("RoPE of halves", LLAMA, "llama.apply_rope", rope_of_halves, "RoPE layout swapped"),
    mutant(
        "RoPE base 500000",
        LLAMA,
        "llama.rope_frequencies",
        frequencies_of_500000,
        "RoPE base 500000",
    ),
    mutant(
        "RoPE one position further",
        LLAMA,
        "llama.rope_table",
        rope_one_further,
        "RoPE position one too large",
    ),
    mutant(
        "cache off by one",
        ("logits", "text"),
        "llama._positions",
        positions_one_behind,
        "KV cache off by one",
    ),
    mutant("GELU in the llama", LLAMA, "llama.swiglu", geglu, "GELU for SiLU"),
    mutant("ReLU in the llama", LLAMA, "llama.swiglu", reglu, "ReLU for SiLU"),
    mutant("gate and up exchanged", LLAMA, "llama.swiglu", swiglu_of_up, "gate and up exchanged"),
    Mutant(
        name="no residual at the feed-forward network",
        groups=("logits",),
        changes={
            "refllm.llama.rms_norm": remembering_rms_norm,
            "refllm.llama._feed_forward": feed_forward_without_residual,
        },
        symptoms=frozenset({"residual missing at feed-forward"}),
    ),
    mutant(
        "attn_output transposed",
        LLAMA,
        "parameters.Parameters.matrix",
        transposed_attn_output,
        "attn_output transposed",
    ),
    mutant("tanh GELU", BERT, "engine.gelu", gelu_tanh, "tanh GELU"),
    mutant("CLS pooling", BERT, "pooling.mean_rows", first_row, "CLS pooling"),
    mutant(
        "vectors not normalized",
        BERT,
        "pooling.l2_normalize",
        as_it_is,
        "embeddings not normalized",
    ),
    mutant(
        "padded mean",
        ("embeddings",),
        "loading.BertModel.embed_groups",
        embed_padded,
        "padded mean pooling",
    ),
    mutant(
        "LayerNorm epsilon 1e-5",
        BERT,
        "bert.layer_norm",
        layer_norm_of_1e_5,
        "LayerNorm epsilon 1e-05",
    ),
)
