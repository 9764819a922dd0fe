"""Kernels against the oracle, bit for bit, and the invariances that follow from the rule."""

from __future__ import annotations

from itertools import pairwise

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from refllm import oracle, oracle_int8
from refllm.jit.compile import use_threads
from refllm.kernels import elementwise
from refllm.kernels.attention import (
    attention_over_texts,
    attention_scale,
    attention_weights,
    key_value_buffers,
)
from refllm.kernels.int8.product import pack_int8
from refllm.kernels.kv_attention import Caches, append_kv, attention, describe_caches
from refllm.kernels.linear import embedding, linear
from refllm.kernels.packed.fields import WIDE_FIELDS
from refllm.kernels.packed.panels import pack
from refllm.quant import FORMATS, Tensor
from tests.support.networks import random_floats, same_bits

pytestmark = pytest.mark.usefixtures("all_threads")

Floats = NDArray[np.float32]


def stored(matrix: Floats, type_name: str = "F32") -> Tensor:
    """The matrix in a GGML format, quantized by gguf-py."""
    kind = gguf.GGMLQuantizationType[type_name]
    data = gguf.quants.quantize(matrix, kind).view(np.uint8)
    return Tensor("test", FORMATS[type_name], matrix.shape, data.reshape(len(matrix), -1))


# 64·1024 multiplications is where the parallel path begins.
SHAPES = [(1, 1, 1), (1, 64, 64), (3, 7, 65), (5, 100, 200), (2, 300, 1000), (17, 96, 130)]


@pytest.mark.parametrize(("T", "D", "N"), SHAPES)
def test_the_matrix_product_adds_from_left_to_right(T: int, D: int, N: int) -> None:
    x, w = random_floats(T, D), random_floats(N, D, seed=1)
    assert same_bits(linear(x, pack(stored(w))), oracle.matmul(x, w))


def test_the_matrix_product_starts_from_plus_zero() -> None:
    x, w = np.array([[-0.0]], np.float32), np.array([[1.0]], np.float32)
    assert not np.signbit(linear(x, pack(stored(w))))


@pytest.mark.parametrize("n_tokens", [1, 3, 9])
def test_the_matrix_product_rounds_a_product_and_its_sum_once(n_tokens: int) -> None:
    # (1 + e)² = 1 + 2e + e² would round to 1 + 2e; the fused multiply-add leaves e².
    e = np.float32(2.0**-12)
    x = np.array([[1.0 + 2 * e, 1.0 + e]] * n_tokens, np.float32)
    w = np.array([[-1.0, 1.0 + e]], np.float32)
    assert linear(x, pack(stored(w))).ravel().tolist() == [2.0**-24] * n_tokens


def random_blocks(type_name: str, n_rows: int, n_columns: int) -> Tensor:
    """A matrix of random bytes in a GGML format, with scales of an ordinary size."""
    fmt = FORMATS[type_name]
    rng = np.random.default_rng(0)
    n_blocks = n_columns // fmt.block_size
    blocks = rng.integers(0, 256, (n_rows, n_blocks, fmt.block_bytes), np.uint8)
    for place, width in WIDE_FIELDS[type_name].items():
        if width == 2:
            scales = rng.standard_normal((n_rows, n_blocks)).astype(np.float16)
            if type_name == "BF16":
                scales.view(np.uint16)[...] = scales.astype(np.float32).view(np.uint32) >> 16
            blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    if type_name == "F32":
        blocks = rng.standard_normal((n_rows, n_columns, 1), np.float32).view(np.uint8)
    return Tensor("test", fmt, (n_rows, n_columns), blocks.reshape(n_rows, -1))


# GEMV; less than a micro-batch; two that overlap; GEMM.
@pytest.mark.parametrize("n_tokens", [1, 2, 7, 10])
@pytest.mark.parametrize("type_name", WIDE_FIELDS)
def test_a_quantized_matrix_is_its_decoded_numbers(type_name: str, n_tokens: int) -> None:
    # 130 rows are two panels and two rows; 768 columns are a K-block and a half.
    x, weight = random_floats(n_tokens, 768), random_blocks(type_name, 130, 768)
    assert same_bits(linear(x, pack(weight)), oracle.matmul(x, weight.array()))


def test_a_format_without_a_kernel_becomes_floats() -> None:
    x, weight = (
        random_floats(2, 256),
        Tensor("t", FORMATS["I8"], (70, 256), np.ones((70, 256), np.uint8)),
    )
    packed = pack(weight)
    assert packed.format.name == "F32"
    assert same_bits(linear(x, packed), oracle.matmul(x, weight.array()))


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_several_matrices_stand_side_by_side_each_with_its_part_of_the_bias(n_tokens: int) -> None:
    x, bias = random_floats(n_tokens, 256), random_floats(70 + 200 + 3, seed=1)
    weights = [
        *(random_blocks("Q4_0", 70, 256), random_blocks("F32", 200, 256)),
        random_blocks("Q8_0", 3, 256),
    ]
    each = [oracle.matmul(x, weight.array()) for weight in weights]
    expected = np.concatenate(each, axis=1) + bias
    assert same_bits(linear(x, *map(pack, weights), bias=bias), expected)


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_matrices_for_both_numerics_stand_side_by_side(n_tokens: int) -> None:
    x, bias = random_floats(n_tokens, 256), random_floats(140, seed=1)
    weight = random_blocks("Q8_0", 70, 256)
    got = linear(x, pack(weight), pack_int8(weight), bias=bias)
    expected = np.concatenate(
        [oracle.matmul(x, weight.array()), oracle_int8.matmul(x, weight)], axis=1
    )
    assert same_bits(got, expected + bias)


def test_a_wide_matrix_is_computed_whole() -> None:
    x, w = random_floats(1, 2048), random_floats(1100, 2048, seed=1)
    assert same_bits(linear(x, pack(stored(w, "F16"))), oracle.matmul(x, stored(w, "F16").array()))


@pytest.mark.parametrize("n_tokens", range(2, 14))
@pytest.mark.parametrize("type_name", ["F32", "Q8_0"])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(type_name: str, n_tokens: int) -> None:
    x, weight = random_floats(n_tokens, 128), random_blocks(type_name, 700, 128)
    together = linear(x, pack(weight))
    alone = [linear(x[t : t + 1], pack(weight)) for t in range(n_tokens)]
    assert same_bits(np.concatenate(alone), together)


@pytest.mark.parametrize("n_threads", [1, 2, None])
def test_the_matrix_product_is_the_same_on_any_number_of_threads(n_threads: int | None) -> None:
    x, w = random_floats(8, 256), random_floats(1000, 256, seed=1)
    use_threads(n_threads)
    assert same_bits(linear(x, pack(stored(w))), oracle.matmul(x, w))


def test_embedding_picks_rows() -> None:
    w = random_floats(10, 32)
    ids = np.array([3, 3, 9])
    assert same_bits(embedding(ids, stored(w)), w[[3, 3, 9]])
    assert same_bits(embedding(ids, stored(w, "Q8_0")), stored(w, "Q8_0").array()[[3, 3, 9]])


# T new tokens after P old ones; the last three are large enough for the parallel path.
ATTENTION = [
    (1, 0, 1, 1, 4),
    (5, 0, 4, 2, 8),
    (3, 6, 4, 1, 8),
    (33, 40, 8, 4, 16),
    (1, 900, 8, 2, 16),
]


@pytest.mark.parametrize(("T", "P", "H", "K", "E"), ATTENTION)
def test_causal_attention_equals_the_oracle(T: int, P: int, H: int, K: int, E: int) -> None:
    q = random_floats(T, H, E)
    k, v = random_floats(P + T, K, E, seed=1), random_floats(P + T, K, E, seed=2)
    n_visible = np.arange(P + 1, P + T + 1)
    got = attention(q, cache_of(k, v, n_new=T), n_visible, n_heads=H)
    assert same_bits(got, oracle.attention(q, k, v, n_visible.tolist()))


# Tokens before and new tokens of each sequence; the last has enough of them for the parallel path.
SEQUENCES = [[(0, 1)], [(7, 1), (0, 3), (20, 1)], [(90, 1)] * 8, [(0, 50), (300, 1), (10, 70)]]


@pytest.mark.parametrize("sequences", SEQUENCES)
def test_sequences_together_append_and_attend_as_the_oracle_does_for_each(
    sequences: list[tuple[int, int]],
) -> None:
    n_heads, n_kv_heads, head_dim, layer = 4, 2, 8, 1
    n_new = [new for _, new in sequences]
    qkv = random_floats(sum(n_new), n_heads + 2 * n_kv_heads, head_dim)
    old = [
        [random_floats(before, n_kv_heads, head_dim, seed=2 * n + i) for i in range(2)]
        for n, (before, _) in enumerate(sequences)
    ]
    caches = describe_caches(
        [
            cache_of(k, v, n_new=0, n_layers=3, layer=layer, n_free=new).buffers[0]
            for (k, v), new in zip(old, n_new, strict=True)
        ],
        n_before=[before for before, _ in sequences],
        n_new=n_new,
    )
    n_visible = np.concatenate([before + 1 + np.arange(new) for before, new in sequences])
    append_kv(qkv, caches, layer=layer)
    got = attention(qkv, caches, n_visible, n_heads=n_heads, layer=layer)
    ends = np.cumsum(n_new)
    for rows, (k_old, v_old), (before, new), heads in zip(
        np.split(qkv, ends[:-1]), old, sequences, np.split(got, ends[:-1]), strict=True
    ):
        q, k_new, v_new = np.split(rows, [n_heads, n_heads + n_kv_heads], axis=1)
        k, v = np.concatenate([k_old, k_new]), np.concatenate([v_old, v_new])
        seen = (before + 1 + np.arange(new)).tolist()
        assert same_bits(heads, oracle.attention(q, k, v, seen))


@pytest.mark.parametrize("n_tokens", [5, 100])
def test_attention_within_texts_equals_the_oracle(n_tokens: int) -> None:
    # Six texts end to end; the last is longer than a block of queries.
    lengths = [1, 3, 12, 2, 30, n_tokens]
    starts = np.cumsum([0, *lengths])
    q, k, v = (random_floats(int(starts[-1]), 4, 8, seed=seed) for seed in range(3))
    got = attention_over_texts(np.concatenate([q, k, v], axis=1), starts)
    for first, last in pairwise(starts):
        text = slice(first, last)
        exact = oracle.attention(q[text], k[text], v[text], [last - first] * (last - first))
        assert same_bits(got[text], exact)


def test_attention_weights_equal_the_weights_inside_attention() -> None:
    q, k, v = random_floats(3, 4, 8), random_floats(5, 2, 8, seed=1), random_floats(5, 2, 8, seed=2)
    cache = cache_of(k, v, n_new=3)
    [(keys, _)] = cache.buffers
    n_visible = np.array([3, 4, 5])
    weights = attention_weights(q, keys[0], n_visible, attention_scale(8), 5)  # [H, T, S]
    assert weights.shape == (4, 3, 5)
    assert weights[:, 0, 3:].tolist() == [[0.0, 0.0]] * 4
    by_hand = np.stack(
        [oracle.matmul(weights[h], np.ascontiguousarray(v[:, h // 2].T)) for h in range(4)], axis=1
    )
    assert same_bits(by_hand, attention(q, cache, n_visible, n_heads=4))


def cache_of(
    k: Floats, v: Floats, *, n_new: int, n_layers: int = 1, layer: int = 0, n_free: int = 5
) -> Caches:
    """[S, K, E] as a cache keeps them, with 1e30 where nothing has been written."""
    n_seen, n_heads, head_dim = k.shape
    keys, values = key_value_buffers(n_layers, n_heads, n_tokens=n_seen + n_free, head_dim=head_dim)
    keys[:], values[:] = 1e30, 1e30
    keys[layer, ..., :n_seen] = k.transpose(1, 2, 0)
    values[layer, :, :n_seen] = v.transpose(1, 0, 2)
    return describe_caches([(keys, values)], n_before=[n_seen - n_new], n_new=[n_new])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_norms_equal_the_oracle(scale: float) -> None:
    x = random_floats(6, 100) * np.float32(scale)
    weight, bias = random_floats(100, seed=1), random_floats(100, seed=2)
    assert same_bits(elementwise.rms_norm(x, weight, 1e-5), oracle.rms_norm(x, weight, 1e-5))
    assert same_bits(
        elementwise.layer_norm(x, weight, bias, 1e-12), oracle.layer_norm(x, weight, bias, 1e-12)
    )


def test_swiglu_equals_the_oracle() -> None:
    gate, up = random_floats(3, 50) * np.float32(9), random_floats(3, 50, seed=1)
    together = np.concatenate([gate, up], axis=1)
    assert same_bits(elementwise.swiglu(together), oracle.silu(gate) * up)


@pytest.mark.parametrize("n_pairs", [4, 3])
def test_rope_equals_the_oracle(n_pairs: int) -> None:
    x = random_floats(5, 2, 8)
    positions, frequencies = (
        np.array([0, 1, 2, 77, 4000]),
        10.0 ** -np.arange(n_pairs, dtype=np.float64),
    )
    table = elementwise.rope_table(positions, frequencies, 1.0)
    got = elementwise.apply_rope(x, table, 2)
    assert same_bits(got, oracle.rope(x, positions, frequencies))
    assert same_bits(got[0], x[0]), "position 0 turns nothing"


def test_pooling_and_normalization_equal_the_oracle() -> None:
    x = random_floats(13, 40)
    assert same_bits(elementwise.mean_rows(x), oracle.mean_rows(x))
    assert same_bits(elementwise.l2_normalize(x[0]), oracle.normalize(x[0]))


def test_the_length_of_nothing_is_not_divided_by() -> None:
    assert elementwise.l2_normalize(np.zeros(4, np.float32)).tolist() == [0.0] * 4
