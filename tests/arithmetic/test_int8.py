"""The int8 kernels against their rule; the rule against ggml, gguf-py and arithmetic by hand."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from refllm import oracle_int8
from refllm.jit.compile import use_threads
from refllm.kernels.int8.product import INT8_FORMATS, pack_int8, quantize
from refllm.kernels.int8.quantize import WIDE_ORDER
from refllm.kernels.linear import linear
from refllm.oracle_int8 import D_AT, M_AT
from refllm.quant import FORMATS, Tensor
from tests.conftest import HUNG_SECONDS
from tests.support.networks import random_floats, same_bits
from tests.support.other_cpus import environment_for, skip_unless_runnable

pytestmark = pytest.mark.usefixtures("all_threads")

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PROJECT = Path(__file__).resolve().parents[2]
ALL_FORMATS = sorted(INT8_FORMATS)


def random_weight(type_name: str, n_rows: int, n_columns: int, *, seed: int = 0) -> Tensor:
    """Any bytes are weights; only the halves d and m are chosen, to be ordinary numbers."""
    fmt = FORMATS[type_name]
    n_bytes = fmt.row_bytes(n_columns)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n_rows, n_bytes), np.uint8).reshape(-1, fmt.block_bytes)
    for byte in half_places(type_name):
        halves = rng.uniform(-0.02, 0.02, len(blocks)).astype("<f2")
        blocks[:, byte : byte + 2] = halves[:, None].view(np.uint8)
    return Tensor("test", fmt, (n_rows, n_columns), blocks.reshape(n_rows, n_bytes))


def half_places(type_name: str) -> list[int]:
    """The bytes of a block where its floats d and m begin."""
    return [D_AT.get(type_name, 0), *([M_AT[type_name]] if type_name in M_AT else [])]


# --- The kernels follow the rule -----------------------------------------------------------------


@pytest.mark.parametrize("type_name", ALL_FORMATS)
@pytest.mark.parametrize("n_tokens", [1, 5, 13])
def test_a_product_equals_the_oracle(type_name: str, n_tokens: int) -> None:
    x, weight = random_floats(n_tokens, 768), random_weight(type_name, 130, 768)
    assert same_bits(linear(x, pack_int8(weight)), oracle_int8.matmul(x, weight))


@pytest.mark.parametrize("n_tokens", [1, 4])
@pytest.mark.parametrize(("type_name", "n_columns"), [("Q8_0", 32), ("Q5_1", 288), ("Q6_K", 256)])
def test_a_last_k_block_may_be_short(type_name: str, n_columns: int, n_tokens: int) -> None:
    x, weight = random_floats(n_tokens, n_columns), random_weight(type_name, 3, n_columns)
    assert same_bits(linear(x, pack_int8(weight)), oracle_int8.matmul(x, weight))


EXTREME_BYTES = [0x00, 0x01, 0x0F, 0x7F, 0x80, 0x81, 0xF0, 0xFF]


def weight_of_bytes(type_name: str, choice: list[int]) -> Tensor:
    """A matrix [64, 512] of bytes that are drawn from `choice`, but for the halves d and m."""
    weight = random_weight(type_name, 64, 512)
    blocks = weight.data.reshape(-1, weight.format.block_bytes).copy()
    kept = [byte for first in half_places(type_name) for byte in (first, first + 1)]
    places = [place for place in range(blocks.shape[1]) if place not in kept]
    drawn = np.random.default_rng(0).choice(choice, (len(blocks), len(places)))
    blocks[:, places] = drawn.astype(np.uint8)
    return Tensor("test", weight.format, weight.shape, blocks.reshape(weight.data.shape))


@pytest.mark.parametrize("type_name", ALL_FORMATS)
@pytest.mark.parametrize("choice", [*([byte] for byte in EXTREME_BYTES), EXTREME_BYTES], ids=str)
@pytest.mark.parametrize("n_tokens", [1, 8])
def test_the_largest_integers_do_not_overflow(
    type_name: str, choice: list[int], n_tokens: int
) -> None:
    weight = weight_of_bytes(type_name, choice)
    x = np.sign(random_floats(n_tokens, 512))  # every a is 127 or -127
    packed = pack_int8(weight)
    for signs in (x, np.abs(x), -np.abs(x)):
        assert same_bits(linear(signs, packed), oracle_int8.matmul(signs, weight))


@pytest.mark.parametrize("n_tokens", [1, 8])
def test_every_byte_of_q8_0_is_multiplied_exactly_with_every_activation(n_tokens: int) -> None:
    # Column 0 holds one of the 256 bytes, column 1 an extreme one; the rest of a block is zero
    # but for the activation that makes its scale 1 / 127.
    fmt, scale = FORMATS["Q8_0"], np.frombuffer(np.float16(1).tobytes(), np.uint8)
    q = np.zeros((256, 255, 32), np.uint8)
    q[..., 0], q[..., 1] = np.arange(256)[:, None], 0x80
    a = np.arange(-127, 128)  # of column 0; column 1 has 127 or -127
    blocks = np.concatenate([np.broadcast_to(scale, (256, 255, 2)), q], axis=2)
    weight = Tensor("test", fmt, (256, 255 * 32), blocks.reshape(256, -1).copy())
    x = np.zeros((n_tokens, 255, 32), np.float32)
    x[..., 0], x[..., 1], x[..., 2] = a, np.where(np.arange(n_tokens) % 2, -127, 127)[:, None], 127
    rows = x.reshape(n_tokens, -1)
    expected = oracle_int8.matmul(rows, weight)
    signed = np.arange(256).astype(np.uint8).astype(np.int8).astype(np.int64)
    by_hand = signed * a.sum() + 255 * -128 * 127
    assert expected[0].tolist() == by_hand.tolist()
    assert same_bits(linear(rows, pack_int8(weight)), expected)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_1", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-41, 1e-38, 3e-37, 1e-7, 3e-5, 1e4, 1e30])
def test_activations_of_any_size_equal_the_oracle(type_name: str, scale: float) -> None:
    x = (random_floats(4, 512).astype(np.float64) * scale).astype(np.float32)
    x[1, 256:] = 0
    weight = random_weight(type_name, 70, 512)
    got, expected = linear(x, pack_int8(weight)), oracle_int8.matmul(x, weight)
    np.testing.assert_array_equal(got, expected)  # infinite scales give NaN, of either sign
    finite = np.isfinite(expected)
    assert same_bits(got[finite], expected[finite])


@pytest.mark.parametrize("type_name", ["Q8_0", "Q5_1", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_nan_changes_its_own_row_only(type_name: str, bad: float) -> None:
    x, weight = random_floats(4, 512), pack_int8(random_weight(type_name, 70, 512))
    expected = linear(x, weight)
    x[2, 300] = bad
    got = linear(x, weight)
    assert np.isnan(got[2]).all()
    assert same_bits(got[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K"])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(type_name: str) -> None:
    x, weight = random_floats(7, 512), pack_int8(random_weight(type_name, 200, 512))
    together = linear(x, weight)
    assert all(same_bits(linear(x[[t]], weight), together[[t]]) for t in range(7))


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("n_tokens", [1, 70])
def test_a_product_is_the_same_on_any_number_of_threads(n_threads: int, n_tokens: int) -> None:
    x, weight = random_floats(n_tokens, 512), random_weight("Q8_0", 700, 512)
    use_threads(n_threads)
    assert same_bits(linear(x, pack_int8(weight)), oracle_int8.matmul(x, weight))


def test_no_rows_are_no_rows() -> None:
    weight = pack_int8(random_weight("Q8_0", 65, 64))
    assert linear(np.empty((0, 64), np.float32), weight).shape == (0, 65)


def test_every_second_row_gives_the_bits_of_a_copy() -> None:
    x, weight = random_floats(8, 64), pack_int8(random_weight("Q8_0", 65, 64))
    assert same_bits(linear(x[::2], weight), linear(x[::2].copy(), weight))


# --- Other CPUs ----------------------------------------------------------------------------------


# Tables, quads, pairs, and words, with and without offsets, scales and minima.
COMPUTED_ELSEWHERE = [
    *(("haswell", type_name) for type_name in ("Q8_0", "Q4_0", "IQ4_XS", "Q3_K", "Q4_K")),
    *(("x86-64", type_name) for type_name in ("Q4_0", "IQ4_XS")),
    ("skylake-avx512", "Q8_0"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "type_name"), COMPUTED_ELSEWHERE)
def test_without_the_dot_product_instruction_the_bits_are_the_same(
    cpu: str, type_name: str
) -> None:
    skip_unless_runnable(cpu)
    tests = f"largest_integers and {type_name}"
    if type_name == "Q8_0":
        tests += " or every_byte"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", tests],
        env=environment_for(cpu),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


# --- The rule is ggml's --------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_activations_in_blocks_of_32_equal_gguf_py_s(scale: float) -> None:
    x = random_floats(3, 256) * np.float32(scale)
    x[1, 32:64] = 0
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    ours = oracle_int8.quantize_q8_0(x)
    assert np.array_equal(as_q8_0(ours), theirs.reshape(3, 8, 34))


def in_columns(q: NDArray[np.int8] | NDArray[np.int16]) -> NDArray[np.int8] | NDArray[np.int16]:
    """The kernel's activations in the order of the columns."""
    if q.dtype == np.int8:
        return q
    return q.reshape(*q.shape[:2], -1, 4)[..., np.argsort(WIDE_ORDER)].reshape(q.shape)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q5_1"])
def test_the_kernel_quantizes_as_the_oracle_does_in_blocks_of_32(type_name: str) -> None:
    x = random_floats(3, 256)
    x[0, 64], x[0, 65:96] = 127, np.arange(31) - 15.5  # ties
    x[1, :32] = -x[1, :32].max()  # a negative sum
    got, expected = quantize(x, type_name), oracle_int8.quantize_q8_0(x)
    assert np.array_equal(in_columns(got.q).transpose(1, 0, 2)[:3], expected.a)
    assert same_bits(got.d.T[:3].copy(), expected.d)
    assert same_bits(got.s.T[:3].copy(), expected.s)


def test_the_kernel_quantizes_as_the_oracle_does_in_super_blocks() -> None:
    x = random_floats(3, 768)
    x[0, :256] = np.arange(256) * 0.5 - 63.5  # ties, and a negative value is the largest …
    x[1, 7], x[1, 9] = -50, 50  # … of several the first
    x[2, 7], x[2, 9] = 50, -50
    got, expected = quantize(x, "Q2_K"), oracle_int8.quantize_q8_k(x)
    assert np.array_equal(in_columns(got.q).transpose(1, 0, 2)[:3], expected.a)
    assert same_bits(got.d.T[:3].copy(), expected.d)
    sums = expected.a.reshape(3, 3, 16, 16).sum(axis=3)
    assert np.array_equal(got.sums.transpose(1, 0, 2)[:3], sums)


def test_ties_are_rounded_as_each_block_format_does() -> None:
    x = np.zeros((1, 256), np.float32)
    x[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -2.5]
    assert oracle_int8.quantize_q8_0(x).a[0, 0, :6].tolist() == [127, 1, 2, 3, -1, -3]
    assert oracle_int8.quantize_q8_k(x).a[0, 0, :6].tolist() == [-127, 0, -2, -2, 0, 2]


def test_one_block_of_q4_0_by_hand() -> None:
    # d_w = 0.5; the lower nibbles are 9 (w = 1), the upper ones 3 (w = -5).
    block = np.array([0x00, 0x38, *[0x39] * 16], np.uint8)
    weight = Tensor("test", FORMATS["Q4_0"], (1, 32), block[None])
    # amax = 254, d_x = 2: a = 127, 2 (1.5 rounded away from zero), 0 …, and in column 16, -50.
    x = np.zeros((1, 32), np.float32)
    x[0, 0], x[0, 1], x[0, 16] = 254, 3, -100
    # (127 + 2 + 250) · 0.5 · 2
    assert linear(x, pack_int8(weight)).tolist() == [[379.0]]


def test_one_block_of_q4_1_by_hand() -> None:
    # d_w = 0.5, m_w = 0.25; the lower nibbles are 9, the upper ones 3.
    block = np.array([0x00, 0x38, 0x00, 0x34, *[0x39] * 16], np.uint8)
    weight = Tensor("test", FORMATS["Q4_1"], (1, 32), block[None])
    x = np.zeros((1, 32), np.float32)
    x[0, 0], x[0, 16] = 254, -100  # d_x = 2: a = 127 and -50, s = 2 · 77
    # (9 · 127 - 3 · 50) · (0.5 · 2) + 0.25 · 154
    assert linear(x, pack_int8(weight)).tolist() == [[1031.5]]


def test_one_block_of_q4_k_by_hand() -> None:
    # d = 0.5, dmin = 0.25; sub-block 0 has sc = 3 and mn = 2, nibbles are 9 below and 3 above.
    block = np.zeros(144, np.uint8)
    block[:4], block[4], block[8], block[16:48] = [0x00, 0x38, 0x00, 0x34], 3, 2, 0x39
    weight = Tensor("test", FORMATS["Q4_K"], (1, 256), block[None])
    x = np.zeros((1, 256), np.float32)
    x[0, 0], x[0, 1] = 254, -100  # f = -0.5, d_x = -2: a = -127 and 50
    # 3 · 9 · (-127 + 50) · (0.5 · -2) - 2 · (-127 + 50) · (0.25 · -2)
    assert linear(x, pack_int8(weight)).tolist() == [[2079.0 - 77.0]]


# What ggml 0.25.3 (the library of llama-cpp-python 0.3.36) makes of the numbers below: SHA-256 of
# the blocks that its quantize_row_q8_0_ref, _q8_1_ref and _q8_K_ref write …
GGML_BLOCKS = {
    "Q8_0": "93c231ca9ce9133a",
    "Q8_1": "c41421a8a8363288",
    "Q8_K": "d069649a1fa84c84",
}
# … and what ggml_vec_dot_*_generic returns for those. For Q5_0 it is what ggml_vec_dot_q5_0_q8_0
# returns on x86-64: that build's portable function for Q5_0 is far from it and from the formula.
GGML_DOTS = {
    "Q8_0": 58.448536,
    "Q4_0": -4.323248,
    "Q4_1": 0.32558346,
    "Q5_0": 7.102401,
    "Q5_1": 13.052844,
    "IQ4_NL": -68.450294,
    "Q2_K": -10.003003,
    "Q3_K": -31.662508,
    "Q4_K": 427.30035,
    "Q5_K": 768.03876,
    "Q6_K": 100.13025,
    "IQ4_XS": -622.0865,
}


def splitmix64(n: int, seed: int) -> NDArray[np.uint64]:
    """n numbers that any language can make again."""
    z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def activations_for_ggml() -> Floats:
    """2048 numbers between −3 and 3."""
    fractions = (splitmix64(2048, 1) >> np.uint64(40)).astype(np.float64) / 2**24
    return ((fractions - 0.5).astype(np.float32) * np.float32(6))[None]


def weight_for_ggml(type_name: str) -> Tensor:
    """A row of 2048 weights; d and m are made ordinary numbers by their exponents' bits."""
    fmt = FORMATS[type_name]
    n_bytes = fmt.row_bytes(2048)
    blocks = splitmix64(n_bytes, 2).astype(np.uint8).reshape(-1, fmt.block_bytes)
    for byte in half_places(type_name):
        blocks[:, byte + 1] = blocks[:, byte + 1] & 0x83 | 0x20
    return Tensor("test", fmt, (1, 2048), blocks.reshape(1, n_bytes))


def as_q8_0(x: oracle_int8.Activations) -> Bytes:
    """The blocks as ggml's Q8_0 stores them, [T, B, 34]."""
    d = x.d.astype("<f2")[..., None].view(np.uint8)
    return np.concatenate([d, x.a.astype(np.int8).view(np.uint8)], axis=2)


def as_q8_1(x: oracle_int8.Activations) -> Bytes:
    """The blocks as ggml's Q8_1 stores them, [T, B, 36]."""
    d, s = (y.astype("<f2")[..., None].view(np.uint8) for y in (x.d, x.s))
    return np.concatenate([d, s, x.a.astype(np.int8).view(np.uint8)], axis=2)


def as_q8_k(x: oracle_int8.Activations) -> Bytes:
    """The blocks as ggml's Q8_K stores them, [T, B, 292]."""
    d = x.d.astype("<f4")[..., None].view(np.uint8)
    sums = x.a.reshape(*x.a.shape[:2], 16, 16).sum(axis=3).astype("<i2").view(np.uint8)
    return np.concatenate([d, x.a.astype(np.int8).view(np.uint8), sums], axis=2)


def test_activations_are_quantized_to_the_bytes_that_ggml_writes() -> None:
    x = activations_for_ggml()
    q8_0, q8_k = oracle_int8.quantize_q8_0(x), oracle_int8.quantize_q8_k(x)
    blocks = {"Q8_0": as_q8_0(q8_0), "Q8_1": as_q8_1(q8_0), "Q8_K": as_q8_k(q8_k)}
    hashes = {name: hashlib.sha256(made.tobytes()) for name, made in blocks.items()}
    assert {name: hashed.hexdigest()[:16] for name, hashed in hashes.items()} == GGML_BLOCKS


@pytest.mark.parametrize("type_name", ALL_FORMATS)
def test_a_product_is_ggmls_but_for_the_order_of_additions(type_name: str) -> None:
    x, weight = activations_for_ggml(), weight_for_ggml(type_name)
    got = linear(x, pack_int8(weight)).item()
    magnitude = np.abs(x.astype(np.float64) * weight.array()).sum()
    assert abs(got - GGML_DOTS[type_name]) < 2e-8 * magnitude


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "IQ4_NL"])
def test_with_products_rounded_by_themselves_a_product_is_ggml_s_portable_one(
    type_name: str,
) -> None:
    # For these formats ggml's portable code adds block by block, too, but rounds twice.
    x = oracle_int8.quantize_q8_0(activations_for_ggml())
    w = oracle_int8.integer_weights(weight_for_ggml(type_name))
    total = np.float32(0)
    for b in range(x.d.shape[1]):
        w_a = np.float32(x.a[0, b] @ w.w[0, b])
        d_w, d_x = w.d[0, b], x.d[0, b]
        total += (w_a * d_w) * d_x if type_name == "Q4_0" else w_a * (d_w * d_x)
    assert total == np.float32(GGML_DOTS[type_name])
