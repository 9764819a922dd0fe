"""Memory for large arrays.

Results reuse it: never while an array or view of it exists, and not without bound. Weights are
placed end to end.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from refllm.jit import buffers as memory
from refllm.jit.buffers import LARGE_PAGE, MIN_BYTES, begin_arena, empty, zeros

N = MIN_BYTES // 4  # floats


@pytest.fixture(autouse=True)
def nothing_is_free(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(memory, "_free", [])
    monkeypatch.setattr(memory, "_rest", np.empty(0, np.uint8))
    yield
    gc.collect()


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


# --- Results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (0, 5), (2, N), (N, 1, 2)], ids=str)
def test_an_array_is_like_any_other(shape: tuple[int, ...]) -> None:
    array = empty(*shape)
    assert array.shape == shape
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned


def test_memory_without_an_array_is_used_again() -> None:
    array = empty(2, N)
    before = address(array)
    del array
    assert address(empty(N, 2)) == before


def test_sizes_that_are_almost_the_same_take_turns() -> None:
    array = empty(4 * N)
    before = address(array)
    del array
    assert address(empty(4 * N - 10)) == before


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array,
        lambda array: array[1:],
        lambda array: array.reshape(-1)[::7],
        lambda array: np.split(array, 2)[1].T.view(np.int32),
        memoryview,
    ],
    ids=["itself", "slice", "steps", "view of a view", "buffer"],
)
def test_memory_of_an_array_or_a_view_is_not_used_again(view: object) -> None:
    seen = view(empty(2, N))  # type: ignore[operator]
    assert not np.shares_memory(np.asarray(seen), empty(2, N))


def test_threads_do_not_get_each_other_s_memory() -> None:
    def is_kept(number: int) -> bool:
        arrays = [empty(N + number) for _ in range(20)]
        for array in arrays:
            array[:] = number
        return all(bool((array == number).all()) for array in arrays)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_kept, range(100)))


def test_memory_beyond_the_limit_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_BYTES", 3 * MIN_BYTES)
    arrays = [empty(N) for _ in range(5)]
    del arrays
    assert sum(block.nbytes for block in memory._free) == 3 * MIN_BYTES


def test_sizes_that_are_no_longer_wanted_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_BYTES", 3 * MIN_BYTES)
    small = [empty(N) for _ in range(3)]
    del small
    large = empty(2 * N)
    before = address(large)
    del large
    assert address(empty(2 * N)) == before


def test_small_arrays_are_allocated_by_numpy() -> None:
    assert empty(N - 1).flags.owndata


def test_a_program_ends_quietly_with_arrays_in_use() -> None:
    program = f"""
import builtins, refllm.jit.buffers as memory
builtins.kept = memory.empty({N}), [memory.empty({N})]
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- Weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (2, 40_000_000), (0, 7)], ids=str)
def test_room_for_weights_is_zeros(shape: tuple[int, int]) -> None:
    array = zeros(*shape)
    assert array.shape == shape
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert not array.any()


def test_weights_lie_end_to_end_from_the_beginning_of_a_large_page() -> None:
    first, second, third = zeros(1, 1000), zeros(5, 20), zeros(1, 1)
    assert address(first) % LARGE_PAGE == 0
    assert [address(second) - address(first), address(third) - address(second)] == [1024, 128]


def test_weights_do_not_share_a_byte() -> None:
    def is_kept(number: int) -> bool:
        arrays = [zeros(1 + number, 100) for _ in range(20)]
        for array in arrays:
            array[:] = number
        return all(bool((array == number).all()) for array in arrays)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_kept, range(100)))


def test_an_arena_is_freed_with_its_last_array(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "ARENA_BYTES", LARGE_PAGE)
    first, second = zeros(1, LARGE_PAGE // 2), zeros(1, 200)
    arena = weakref.ref(first.base)
    zeros(1, LARGE_PAGE)  # does not fit, so there is an arena after it
    del first
    assert arena() is not None
    del second
    assert arena() is None


def test_weights_between_two_beginnings_of_arenas_share_none() -> None:
    first = zeros(1, 200)
    begin_arena()
    second, third = zeros(1, 200), zeros(1, 200)
    begin_arena()
    assert second.base is third.base is not first.base
    arena = weakref.ref(second.base)
    del second, third
    assert arena() is None
