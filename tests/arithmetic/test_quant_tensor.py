"""Tensors: whole, row by row, empty, unaligned, and ones that are not what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.api import LlmRuntimeError
from refllm.quant import FORMATS, Tensor
from tests.arithmetic.test_quant import (
    KNOWN_TO_GGUF,
    assert_same_bits,
    random_blocks,
    random_tensor,
)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (0, 1), (2, 4), (4, 5), (3, 3), (5, 5)])
@pytest.mark.parametrize("name", KNOWN_TO_GGUF)
def test_rows_are_the_same_rows_of_the_array(name: str, start: int, stop: int) -> None:
    tensor = random_tensor(name)
    assert_same_bits(tensor.rows(start, stop), tensor.array()[start:stop])


@pytest.mark.parametrize("name", ["F32", "F16", "Q4_0", "Q6_K"])
def test_a_tensor_of_one_axis_has_one_row(name: str) -> None:
    form = FORMATS[name]
    tensor = Tensor("output_norm.weight", form, (form.block_size,), random_blocks(name, 1))
    assert tensor.rows(0, 1).shape == (1, form.block_size)
    assert_same_bits(tensor.array(), tensor.rows(0, 1)[0])


@pytest.mark.parametrize("name", ["F32", "F64", "Q4_0", "Q8_1", "IQ1_S"])
@pytest.mark.parametrize("empty", [(0, 256), (3, 0), (0,)])
def test_an_empty_tensor_is_an_empty_array(name: str, empty: tuple[int, ...]) -> None:
    form = FORMATS[name]
    n_rows = empty[0] if len(empty) == 2 else 1
    data = np.empty((n_rows, form.row_bytes(empty[-1])), np.uint8)
    assert Tensor("nothing", form, empty, data).array().shape == empty


def test_a_tensor_of_three_axes_keeps_its_shape() -> None:
    data = random_blocks("Q8_0", 12).reshape(6, -1)
    tensor = Tensor("experts", FORMATS["Q8_0"], (2, 3, 64), data)
    assert_same_bits(tensor.array(), tensor.rows(0, 6).reshape(2, 3, 64))


def test_rows_of_float32_share_memory_with_the_file() -> None:
    tensor = random_tensor("F32")
    assert np.shares_memory(tensor.rows(1, 3), tensor.data)
    assert np.shares_memory(tensor.array(), tensor.data)


@pytest.mark.parametrize("name", ["F32", "F16", "F64", "Q4_0", "Q8_1", "Q8_K", "IQ2_XS"])
@pytest.mark.parametrize("offset", [0, 1, 6])
def test_a_read_only_memory_map_at_any_offset_decodes(
    name: str, offset: int, tmp_path: Path
) -> None:
    tensor = random_tensor(name)
    path = tmp_path / "weights"
    path.write_bytes(bytes(offset) + tensor.data.tobytes())
    data = np.memmap(path, np.uint8, "r", offset, tensor.data.shape)
    mapped = Tensor("mapped", tensor.format, tensor.shape, data)
    assert_same_bits(mapped.array(), tensor.array())
    assert mapped.array().flags.aligned


@pytest.mark.parametrize("name", ["F32", "Q4_0", "Q8_K"])
def test_rows_that_do_not_touch_in_memory_decode(name: str) -> None:
    tensor = random_tensor(name)
    wide = np.zeros((len(tensor.data), tensor.data.shape[1] + 7), np.uint8)
    wide[:, 7:] = tensor.data
    apart = Tensor("apart", tensor.format, tensor.shape, wide[:, 7:])
    assert_same_bits(apart.array(), tensor.array())


@pytest.mark.parametrize(
    "data", [np.zeros((2, 17), np.uint8), np.zeros((3, 18), np.uint8), np.zeros((2, 18), np.int8)]
)
def test_data_that_is_not_what_the_shape_asks_for_is_an_error_that_names_the_tensor(
    data: NDArray[np.uint8],
) -> None:
    with pytest.raises(LlmRuntimeError, match=r"tensor blk.3.attn_q.weight: Q4_0 of shape"):
        Tensor("blk.3.attn_q.weight", FORMATS["Q4_0"], (2, 32), data)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 6), (3, 2), (6, 7)])
def test_rows_that_do_not_exist_are_an_error_that_names_the_tensor(start: int, stop: int) -> None:
    with pytest.raises(LlmRuntimeError, match=r"tensor blk.0.ffn_up.weight has 5 rows"):
        random_tensor("Q4_0").rows(start, stop)
