"""Running refllm's kernels as another CPU than this machine's would.

numba chooses the CPU when it starts, from its environment: another CPU needs a new process.
Compiling every kernel takes minutes, so most such tests are marked `slow`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import llvmlite.binding as llvm
import pytest

__all__ = ["CPUS", "environment_for", "has", "skip_unless_asked_for", "skip_unless_runnable"]

# numba's name of a CPU, and what the CPU that runs its code must have.
CPUS: Mapping[str, tuple[str, ...]] = {
    "x86-64": ("sse2",),
    "haswell": ("avx2", "fma", "f16c", "bmi2"),
    "znver3": ("avx2", "fma", "f16c", "bmi2", "vaes", "vpclmulqdq"),
    "skylake-avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
}
CHOSEN_BY = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")


def environment_for(cpu: str | None) -> dict[str, str]:
    """This process's environment for one that compiles for `cpu`, None for the machine's own.

    The features must be said to be none beyond what the name says: where nothing is said, numba
    adds all that this machine has to any name.
    """
    environment = {key: value for key, value in os.environ.items() if key not in CHOSEN_BY}
    if cpu is None:
        return environment
    return environment | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}


def has(feature: str) -> bool:
    """Whether this machine's CPU has what LLVM calls by this name."""
    return bool(llvm.get_host_cpu_features().get(feature))


def skip_unless_runnable(cpu: str) -> None:
    """Skip the test where this machine cannot run code made for `cpu`."""
    missing = [feature for feature in CPUS[cpu] if not has(feature)]
    if missing:
        pytest.skip(f"this CPU has no {', '.join(missing)}, so it cannot run code for {cpu}")


def skip_unless_asked_for(request: pytest.FixtureRequest) -> None:
    """Skip a slow test that was not named: `-m "not network"` replaces `-m "not slow"`."""
    if "slow" not in request.config.option.markexpr:
        pytest.skip("takes minutes; pytest -m slow runs it")
