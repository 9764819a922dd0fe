"""The fused multiply-add of the oracle and of the kernels, against arithmetic with fractions."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from refllm import oracle
from refllm.kernels.simd.lanes import LANES, fma, load_f32, store
from tests.conftest import PROJECT
from tests.support.networks import random_floats, same_bits
from tests.support.other_cpus import environment_for, skip_unless_runnable

Floats = NDArray[np.float32]
Operands = tuple[Floats, Floats, Floats]

N = 64 * 40
LARGEST = Fraction(2) ** 128 - Fraction(2) ** 103  # from here on, the nearest float32 is infinite


def rounded_once(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """a·b + c of finite numbers, exactly, to the nearest float32, ties to even."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return np.float32(np.float64(a) * np.float64(b) + np.float64(c))  # exact, with its sign
    if abs(exact) >= LARGEST:
        return np.float32(np.inf if exact > 0 else -np.inf)
    # A float32 has 24 bits, and its last one is worth at least 2^-149.
    exponent = max(_floor_log2(abs(exact)) - 23, -149)
    whole = round(exact / Fraction(2) ** exponent)  # Python rounds ties to even
    return np.float32(np.copysign(float(whole * Fraction(2) ** exponent), float(exact)))


def _floor_log2(x: Fraction) -> int:
    """The largest n with 2^n ≤ x."""
    n = x.numerator.bit_length() - x.denominator.bit_length()
    return n if Fraction(2) ** n <= x else n - 1


def scaled(x: Floats, exponents: NDArray[np.int64]) -> Floats:
    """x · 2^exponent, as float32."""
    return np.ldexp(x.astype(np.float64), exponents).astype(np.float32)


def hard_operands() -> dict[str, Operands]:
    """Factors and addends for which rounding is difficult, each of N numbers."""
    rng = np.random.default_rng(0)
    a, b, c = (random_floats(N, 1, seed=seed)[:, 0] for seed in range(3))
    odd = (1 + rng.integers(1, 1 << 12, N) * 2.0**-12).astype(np.float32)
    step = np.full(N, 1 + 2.0**-12, np.float32)
    return {
        "any": (a, b, c),
        "products far above the addend": (a, b, scaled(c, -rng.integers(20, 60, N))),
        "products far below the addend": (a, b, scaled(c, rng.integers(20, 40, N))),
        "cancellation": (a, b, (-(a.astype(np.float64) * b)).astype(np.float32)),
        "just beside a tie": (odd, step, np.full(N, 2.0**24, np.float32)),
        "just beside a tie, below": (odd, -step, np.full(N, 2.0**24 + 2, np.float32)),
        "ties": (odd, np.full(N, 2.0**-12, np.float32), np.full(N, 4096.0, np.float32)),
        "subnormal results": (scaled(odd, np.full(N, -80)), scaled(step, np.full(N, -60)), a * 0),
        "subnormal addends": (
            scaled(a, np.full(N, -75)),
            scaled(b, np.full(N, -70)),
            scaled(c, np.full(N, -140)),
        ),
        "overflow": (scaled(a, np.full(N, 64)), scaled(b, np.full(N, 63)), c),
        "exact zeros": (a, np.zeros(N, np.float32), np.where(c > 0, 0.0, -0.0).astype(np.float32)),
    }


HARD = hard_operands()


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def fma_of_lanes(a: Floats, b: Floats, c: Floats, out: Floats) -> None:
    for at in range(0, 4 * out.size, 4 * LANES):
        store(out, at, fma(load_f32(a, at), load_f32(b, at), load_f32(c, at)))


@pytest.mark.parametrize("name", HARD)
def test_the_oracle_s_fma_is_the_exact_number_rounded_once(name: str) -> None:
    a, b, c = HARD[name]
    expected = np.array([rounded_once(*one) for one in zip(a, b, c, strict=True)])
    assert same_bits(oracle.fma(a, b, c), expected)


@pytest.mark.parametrize("name", HARD)
def test_the_lanes_fma_has_the_oracle_s_bits(name: str) -> None:
    a, b, c = HARD[name]
    out = np.empty(N, np.float32)
    fma_of_lanes(a, b, c, out)
    assert same_bits(out, oracle.fma(a, b, c))


@pytest.mark.parametrize("name", ["any", "products far above the addend", "cancellation"])
def test_rounding_the_product_first_gives_another_number(name: str) -> None:
    a, b, c = HARD[name]
    assert (a * b + c != oracle.fma(a, b, c)).any()


def test_adding_in_float64_and_rounding_the_sum_is_no_fma() -> None:
    # The sum is just below the middle between two float32, closer than a float64 can tell.
    a, b, c = (np.array([x], np.float32) for x in (1 + 2.0**-20, 1 - 2.0**-20, 2.0**24 + 2))
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) == 2.0**24 + 4
    assert oracle.fma(a, b, c) == 2.0**24 + 2


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        (np.inf, 1.0, 1.0, np.inf),
        (np.inf, 1.0, -np.inf, np.nan),
        (np.inf, 0.0, 1.0, np.nan),
        (1.0, 1.0, -np.inf, -np.inf),
        (np.nan, 1.0, 1.0, np.nan),
    ],
)
def test_infinities_and_nans_are_those_of_ieee_754(
    a: float, b: float, c: float, expected: float
) -> None:
    operands = tuple(np.full(LANES, x, np.float32) for x in (a, b, c))
    out = np.empty(LANES, np.float32)
    fma_of_lanes(*operands, out)
    wanted = np.full(LANES, expected, np.float32)
    np.testing.assert_array_equal(oracle.fma(*operands), wanted)
    np.testing.assert_array_equal(out, wanted)


def test_float64_operands_are_multiplied_and_added() -> None:
    a, b, c = (np.array([x]) for x in (1 + 2.0**-30, 1 - 2.0**-30, -1.0))
    assert oracle.fma(a, b, c) == a * b + c


@pytest.mark.parametrize("cpu", ["x86-64", "haswell"])
def test_another_cpu_s_lanes_have_the_same_bits(cpu: str) -> None:
    skip_unless_runnable(cpu)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "test_the_lanes_fma or test_infinities"]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment_for(cpu), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
