"""Quantizing: against gguf-py, values that need no rounding, and its own purpose."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from numpy.typing import NDArray

from refllm.api import InvalidInput
from refllm.ggml.encode import QUANTIZABLE
from refllm.quant import quantized

Floats = NDArray[np.float32]


def random_rows(n: int, width: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


@pytest.mark.parametrize("type_name", QUANTIZABLE)
def test_quantized_values_decode_to_nearly_the_same(type_name: str) -> None:
    most = {"F32": 0.0, "F16": 0.001, "BF16": 0.01, "Q8_0": 0.02, "Q4_0": 0.35, "Q4_K": 0.3}
    values = random_rows(5, 512)
    tensor = quantized("w", values, type_name)
    assert (tensor.shape, tensor.format.name) == ((5, 512), type_name)
    assert np.max(np.abs(tensor.array() - values)) <= most[type_name]


@pytest.mark.parametrize("type_name", QUANTIZABLE)
def test_gguf_py_decodes_the_same_bytes_to_the_same_values(type_name: str) -> None:
    tensor = quantized("w", random_rows(3, 256), type_name)
    theirs = quants.dequantize(tensor.data, gguf.GGMLQuantizationType[type_name])
    assert np.array_equal(tensor.array(), theirs)


def test_q4_k_keeps_values_on_its_levels() -> None:
    # Sub-block s is d·sc·q − dmin·mn with d = 1/2, dmin = 1/4, sc = 63 − s, mn = 63 − 2·s; the
    # first has both largest numbers, so d and dmin come out again, and all levels are used.
    q = np.arange(32, dtype=np.float32) % 16
    s = np.arange(8, dtype=np.float32)[:, None]
    values = np.float32(0.5) * (63 - s) * q - np.float32(0.25) * (63 - 2 * s)  # [8, 32]
    tensor = quantized("w", values.reshape(1, 256), "Q4_K")
    assert np.array_equal(tensor.array(), values.reshape(1, 256))


def test_q4_k_is_closer_than_q4_0_which_has_no_minimum() -> None:
    values = random_rows(8, 1024) + np.float32(0.5)
    errors = {
        type_name: np.sqrt(np.mean((quantized("w", values, type_name).array() - values) ** 2))
        for type_name in ("Q4_0", "Q4_K")
    }
    assert errors["Q4_K"] < 0.8 * errors["Q4_0"]


@pytest.mark.parametrize("value", [0.0, 1.5, -2.25])
@pytest.mark.parametrize("type_name", QUANTIZABLE)
def test_a_matrix_of_one_number_stays_that_number(type_name: str, value: float) -> None:
    tensor = quantized("w", np.full((2, 256), value, np.float32), type_name)
    assert tensor.array() == pytest.approx(value, rel=0.01)


def test_one_number_alone_among_zeros_is_kept() -> None:
    values = np.zeros((1, 256), np.float32)
    values[0, 77] = 3.0
    assert quantized("w", values, "Q4_K").array() == pytest.approx(values, abs=0.01)


@pytest.mark.parametrize(
    ("values", "type_name", "named"),
    [
        (random_rows(1, 100), "Q8_0", "blocks of 32"),
        (random_rows(1, 128), "Q4_K", "blocks of 256"),
        (random_rows(1, 256), "Q6_K", "cannot write Q6_K"),
        (np.full((1, 256), np.inf, np.float32), "Q4_0", "not finite"),
    ],
)
def test_a_value_that_cannot_be_quantized_is_named(
    values: Floats, type_name: str, named: str
) -> None:
    with pytest.raises(InvalidInput, match=named):
        quantized("w", values, type_name)


@pytest.mark.parametrize(
    ("type_name", "fits", "does_not_fit"),
    [
        # A scale is a float16, whose largest number is 65504; what is nearest to it is 65519.
        ("F16", 65_519, 65_520),
        ("BF16", 3.39e38, 3.4e38),
        ("Q8_0", 127 * 65_519, 127 * 65_521),
        ("Q4_0", 8 * 65_519, 8 * 65_520),
        ("Q4_K", 15 * 63 * 65_500, 15 * 63 * 65_530),
        ("Q4_K", -63 * 65_519, -63 * 65_521),
    ],
)
def test_numbers_that_a_type_would_make_infinite_are_refused(
    type_name: str, fits: float, does_not_fit: float
) -> None:
    values = np.zeros((3, 256), np.float32)
    values[1, :32] = fits
    assert np.isfinite(quantized("w", values, type_name).array()).all()
    values[1, :32] = does_not_fit
    others = "F32" if type_name == "BF16" else "BF16 or F32"
    largest = f"{abs(values[1, 0]):.6g}"
    with pytest.raises(InvalidInput, match="as large as") as caught:
        quantized("w", values, type_name)
    assert str(caught.value) == (
        f"tensor w has numbers as large as {largest}, which {type_name} would make infinite; "
        f"choose {others}"
    )


def test_f32_holds_every_number() -> None:
    values = np.full((1, 2), np.finfo(np.float32).max, np.float32)
    assert np.array_equal(quantized("w", values, "F32").array(), values)
