"""Panels against their drawing: byte by byte, for every format, whatever the number of rows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.jit.compile import use_threads
from refllm.kernels.packed import panels
from refllm.kernels.packed.fields import WIDE_FIELDS
from refllm.kernels.packed.panels import pack, side_by_side
from refllm.kernels.simd.lanes import LANES
from refllm.quant import FORMATS, Tensor

pytestmark = pytest.mark.usefixtures("all_threads")

Bytes = NDArray[np.uint8]


def random_tensor(type_name: str, n_rows: int, n_columns: int) -> Tensor:
    row_bytes = FORMATS[type_name].row_bytes(n_columns)
    data = np.random.default_rng(n_rows).integers(0, 256, (n_rows, row_bytes), np.uint8)
    return Tensor("test", FORMATS[type_name], (n_rows, n_columns), data)


def as_drawn(rows: Bytes, widths: list[int]) -> Bytes:
    """Field after field of each block, and of each field all rows': the docstring in NumPy."""
    n_panels, n_blocks = -(-len(rows) // LANES), rows.shape[1] // sum(widths)
    filled = np.zeros((n_panels * LANES, rows.shape[1]), np.uint8)
    filled[: len(rows)] = rows
    blocks = filled.reshape(n_panels, LANES, n_blocks, sum(widths)).swapaxes(1, 2)
    places = np.cumsum([0, *widths])
    fields = [
        blocks[..., place : place + width].reshape(n_panels, n_blocks, LANES * width)
        for place, width in zip(places, widths, strict=False)
    ]
    return np.concatenate(fields, axis=2).reshape(n_panels, -1)


def widths_of(type_name: str) -> list[int]:
    widths: list[int] = []
    while sum(widths) < FORMATS[type_name].block_bytes:
        widths.append(WIDE_FIELDS[type_name].get(sum(widths), 1))
    return widths


def test_three_rows_of_two_halves_lie_as_drawn() -> None:
    halves = np.array([[0x11, 0x12], [0x21, 0x22], [0x31, 0x32]], "<u2")
    tensor = Tensor("test", FORMATS["F16"], (3, 2), halves.view(np.uint8))
    panel = pack(tensor).data.view("<u2")
    nothing = [0] * (LANES - 3)
    assert panel.tolist() == [[0x11, 0x21, 0x31, *nothing, 0x12, 0x22, 0x32, *nothing]]


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("type_name", WIDE_FIELDS)
def test_every_byte_of_a_block_is_where_the_drawing_has_it(type_name: str, n_rows: int) -> None:
    tensor = random_tensor(type_name, n_rows, 512)
    packed = pack(tensor)
    assert (packed.format, packed.n_rows, packed.n_columns) == (tensor.format, n_rows, 512)
    assert np.array_equal(packed.data, as_drawn(tensor.data, widths_of(type_name)))


@pytest.mark.parametrize("n_columns", [1, 3, 4, 7, 8, 9, 100])
@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_rows_of_any_length_are_turned_whole(type_name: str, n_columns: int) -> None:
    tensor = random_tensor(type_name, 130, n_columns)
    assert np.array_equal(pack(tensor).data, as_drawn(tensor.data, widths_of(type_name)))


@pytest.mark.parametrize("widths", [[2, 1, 1, 4, 4], [1] * 12, [4, 2, 2, 2, 2], [4, 4, 4]])
def test_other_fields_can_be_asked_for(widths: list[int]) -> None:
    tensor = random_tensor("F32", 100, 12)
    assert np.array_equal(
        side_by_side(tensor, widths=np.array(widths)), as_drawn(tensor.data, widths)
    )


def test_fields_can_stand_in_another_order() -> None:
    # A block of 34 bytes whose eight words come before its half.
    tensor = random_tensor("Q8_0", 70, 64)
    order = [*range(2, 34), 0, 1]
    blocks = tensor.data.reshape(70, 2, 34)[:, :, order].reshape(70, -1)
    got = side_by_side(tensor, widths=np.array([2, *[4] * 8]), order=np.array(order))
    assert np.array_equal(got, as_drawn(blocks, [*[4] * 8, 2]))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_large_matrix_is_packed_in_chunks(
    n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(n_threads)
    tensor = random_tensor("Q8_0", 16 * LANES - 5, 256)
    monkeypatch.setattr(panels, "CHUNK_BYTES", 3 * LANES * tensor.data.shape[1])
    seen: list[Bytes] = []
    packed = pack(tensor, consumed=seen.append)
    assert np.array_equal(packed.data, as_drawn(tensor.data, widths_of("Q8_0")))
    assert len(seen) == 6  # 16 panels, three at a time
    assert np.array_equal(np.concatenate(seen), tensor.data)


def test_a_format_without_a_kernel_becomes_float32_chunk_by_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = np.random.default_rng(0).standard_normal((300, 32))
    tensor = Tensor("test", FORMATS["F64"], numbers.shape, numbers.view(np.uint8))
    monkeypatch.setattr(panels, "CHUNK_BYTES", 2 * LANES * 32 * 4)
    seen: list[Bytes] = []
    packed = pack(tensor, consumed=seen.append)
    floats = numbers.astype(np.float32).view(np.uint8)
    assert packed.format is FORMATS["F32"]
    assert np.array_equal(packed.data, as_drawn(floats, [4]))
    assert np.array_equal(np.concatenate(seen), tensor.data)


def test_rows_may_begin_at_any_address() -> None:
    tensor = random_tensor("F32", 70, 20)
    memory = np.zeros(tensor.data.size + 1, np.uint8)
    moved = memory[1:].reshape(tensor.data.shape)
    moved[...] = tensor.data
    packed = pack(Tensor("test", tensor.format, tensor.shape, moved))
    assert np.array_equal(packed.data, as_drawn(tensor.data, [4]))


def test_packing_leaves_the_tensor_as_it_was() -> None:
    tensor = random_tensor("Q4_0", 70, 64)
    before = tensor.data.copy()
    pack(tensor)
    assert tensor.data.flags.writeable
    assert np.array_equal(tensor.data, before)
