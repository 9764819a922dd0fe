"""examples/ladder.py: each rung equals the last in every bit, and another order does not."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from examples import ladder
from refllm import oracle
from refllm.quant import FORMATS
from tests.support.other_cpus import has

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]
OfFloats: TypeAlias = Callable[[Floats, Floats], Floats]
OfBytes: TypeAlias = Callable[[Floats, Bytes], Floats]

Q8_0 = FORMATS["Q8_0"]
# Full panels, panels that are filled up, less than one panel, and one column block or many.
SHAPES = [(48, 64), (40, 96), (5, 32), (1, 512), (17, 1024)]
IS_X86 = platform.machine() in ("x86_64", "AMD64")
only_x86_with_fma = pytest.mark.skipif(
    not IS_X86 or not has("fma"), reason="names instructions that only x86 with FMA has"
)


def random_rows(random: np.random.Generator, n_rows: int, n_columns: int) -> Bytes:
    """Rows of Q8_0 blocks with scales of either sign, as a file has them."""
    blocks = np.empty((n_rows, n_columns // 32, 34), np.uint8)
    scales = random.standard_normal((n_rows, n_columns // 32, 1)) / 64
    blocks[..., :2] = scales.astype(np.float16).view(np.uint8)
    blocks[..., 2:] = random.integers(0, 256, (n_rows, n_columns // 32, 32))
    return blocks.reshape(n_rows, -1)


@pytest.fixture(params=SHAPES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Floats, Bytes, Floats]:
    """x [D], rows of Q8_0 blocks, and the same rows as w [N, D]."""
    n_rows, n_columns = request.param
    random = np.random.default_rng(n_rows)
    x = random.standard_normal(n_columns).astype(np.float32)
    stored = random_rows(random, n_rows, n_columns)
    return x, stored, Q8_0.decode(stored)


# --- The rungs -----------------------------------------------------------------------------------


def test_the_loop_is_the_rule_of_the_oracle(case: tuple[Floats, Bytes, Floats]) -> None:
    x, _, w = case
    assert ladder.loop(x, w).tobytes() == oracle.matmul(x[None], w)[0].tobytes()


@pytest.mark.parametrize(
    ("rung", "last"),
    [
        (ladder.columns, ladder.loop),
        (ladder.compiled, ladder.columns),
        (ladder.panels, ladder.compiled),
    ],
    ids=lambda rung: str(rung.__name__),
)
def test_a_rung_of_floats_equals_the_last_in_every_bit(
    rung: OfFloats, last: OfFloats, case: tuple[Floats, Bytes, Floats]
) -> None:
    x, _, w = case
    y = rung(x, w)
    assert y.dtype == np.float32
    assert y.tobytes() == last(x, w).tobytes()


def test_the_rung_that_decodes_equals_the_last_of_the_decoded_matrix_in_every_bit(
    case: tuple[Floats, Bytes, Floats],
) -> None:
    x, stored, w = case
    y = ladder.q8_0(x, stored)
    assert y.dtype == np.float32
    assert y.tobytes() == ladder.panels(x, w).tobytes()


@pytest.mark.parametrize(
    ("rung", "last"),
    [(ladder.threads, ladder.q8_0), (ladder.refllm_does, ladder.threads)],
    ids=lambda rung: str(rung.__name__),
)
def test_a_rung_of_blocks_equals_the_last_in_every_bit(
    rung: OfBytes, last: OfBytes, case: tuple[Floats, Bytes, Floats]
) -> None:
    x, stored, _ = case
    y = rung(x, stored)
    assert y.dtype == np.float32
    assert y.tobytes() == last(x, stored).tobytes()


@pytest.fixture
def _threads() -> Iterator[None]:
    """A test may set the number of threads."""
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal(256).astype(np.float32)
    stored = random_rows(random, 500, 256)
    results = set()
    for n_threads in {1, numba.get_num_threads()}:
        numba.set_num_threads(n_threads)
        results.add(ladder.threads(x, stored).tobytes())
    assert results == {ladder.q8_0(x, stored).tobytes()}


# --- What is not a rung --------------------------------------------------------------------------


def test_another_order_is_as_precise_and_has_other_bits() -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal(1024).astype(np.float32)
    w = random.standard_normal((64, 1024)).astype(np.float32)
    exact = w.astype(np.float64) @ x
    rule, other = ladder.columns(x, w), ladder.another_order(x, w)
    differ = np.mean(rule != other)
    assert differ > 0.9
    assert np.abs(other - exact).max() < np.abs(rule - exact).max() < 1e-4 * np.abs(exact).max()


# --- The machine code that the docstrings and docs/learn/ladder.md describe ----------------------


def machine_code(kernel: Any) -> str:
    """The assembly of a kernel, compiled for the types of its one call."""
    x, w = np.ones(32, np.float32), np.ones((16, 32), np.float32)
    ladder.compiled(x, w)
    ladder.panels(x, w)
    ladder.q8_0(x, random_rows(np.random.default_rng(0), 16, 32))
    [assembly] = kernel.inspect_asm().values()
    return str(assembly)


def instructions(kernel: Any, name: str) -> int:
    """How many instructions whose name matches a kernel consists of."""
    return len(re.findall(rf"^\s*{name}\s", machine_code(kernel), re.MULTILINE))


@only_x86_with_fma
def test_the_compiled_loop_computes_one_lane_at_a_time() -> None:
    assert instructions(ladder.compiled, r"vfmadd\d+ss") > 0
    assert instructions(ladder.compiled, r"vfmadd\d+ps") == 0


@only_x86_with_fma
@pytest.mark.parametrize("kernel", [ladder.add_panel, ladder.add_q8_0_panel])
def test_a_panel_is_computed_several_lanes_at_a_time(kernel: Any) -> None:
    assert instructions(kernel, r"vfmadd\d+ps") > 0


@only_x86_with_fma
@pytest.mark.parametrize("kernel", [ladder.compiled, ladder.add_panel])
def test_a_product_and_its_sum_are_one_instruction(kernel: Any) -> None:
    assert instructions(kernel, r"v?(mul|add)[ps]s") == 0


@only_x86_with_fma
def test_a_decoded_weight_is_rounded_before_it_is_multiplied() -> None:
    assert instructions(ladder.add_q8_0_panel, "vmulps") > 0  # scale · quant
    assert instructions(ladder.add_q8_0_panel, "v?add[ps]s") == 0
