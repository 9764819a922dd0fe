"""Fused multiply-adds are in the machine code where the rule says so, and nowhere else.

So are the dot products of ARM64, which is compiled for, but not run.

A dispatcher from the disk cache has no assembly to show, so kernels are compiled here once more,
with the options that `refllm.jit.compile` gave them.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba import float32, float64, int64, types, uint8
from numpy.typing import NDArray

from refllm.jit.compile import jit
from refllm.jit.cpu import SDOT_CPUS
from refllm.kernels import math64
from refllm.kernels.linear import Algorithm, _kernel
from refllm.kernels.simd.lanes import fma, load_f32, splat, store, zeros
from tests.conftest import PROJECT
from tests.support.other_cpus import (
    environment_for,
    has,
    skip_unless_asked_for,
    skip_unless_runnable,
)

Floats = NDArray[np.float32]

X86 = platform.machine() in {"x86_64", "AMD64"}
FUSED = re.compile(
    r"\b(?:vfn?m(?:add|sub)\w*)" if X86 else r"\b(?:fn?m(?:add|sub|l[as])\w*|bf?ml[as]l?\w*)"
)
# The same for vectors of float32 alone, of which products are made.
FUSED_FLOATS = re.compile(r"\bvfn?m(?:add|sub)\d*ps\b" if X86 else r"\bfml[as]\b")
# What a loop that rounds twice needs, so that an assembly without it was read wrongly.
MULTIPLIED = re.compile(r"\bv?mul[ps]s\b" if X86 else r"\bfmul\b")
ADDED = re.compile(r"\bv?add[ps]s\b" if X86 else r"\bfadd\b")
MULTIPLIED_DOUBLES = re.compile(r"\bv?mul[ps]d\b" if X86 else r"\bfmul\b")

PANELS, MATRIX, VECTOR = uint8[:, ::1], float32[:, ::1], float32[::1]


@pytest.fixture
def cpu_can_fuse() -> None:
    if X86 and not has("fma"):
        pytest.skip("this CPU has no fused multiply-add, so there is nothing to find")


def assembly(kernel: Any, signature: tuple[types.Type, ...], **more: object) -> str:
    """The kernel's machine code for this CPU, compiled with its own options and `more`."""
    options = {key: value for key, value in kernel.targetoptions.items() if key != "nopython"}
    compiled = numba.njit(**(options | more))(kernel.py_func)
    compiled.compile(signature)
    [text] = compiled.inspect_asm().values()
    return str(text)


def fused(weights: Floats, x: Floats, out: Floats) -> None:
    total = zeros()
    for k in range(x.size):
        total = fma(splat(x[k]), load_f32(weights, k * 256), total)
    store(out, 0, total)


def multiplied_and_added(weights: Floats, x: Floats, out: Floats) -> None:
    total = zeros()
    for k in range(x.size):
        total = total + load_f32(weights, k * 256) * splat(x[k])
    store(out, 0, total)


@pytest.mark.usefixtures("cpu_can_fuse")
def test_an_fma_is_one_instruction_and_a_product_that_is_added_is_two() -> None:
    arguments = (VECTOR, VECTOR, VECTOR)
    once, twice = (assembly(jit(loop), arguments) for loop in (fused, multiplied_and_added))
    assert FUSED_FLOATS.search(once)
    assert not MULTIPLIED.search(once)
    assert not ADDED.search(once)
    assert FUSED.findall(twice) == []
    assert MULTIPLIED.search(twice)
    assert ADDED.search(twice)


@pytest.mark.usefixtures("cpu_can_fuse")
def test_the_same_search_finds_what_a_compiler_that_may_fuse_makes_of_the_second_loop() -> None:
    kernel, arguments = jit(multiplied_and_added), (VECTOR, VECTOR, VECTOR)
    assert FUSED.findall(assembly(kernel, arguments, fastmath={"contract"})) != []


@pytest.mark.usefixtures("cpu_can_fuse")
@pytest.mark.parametrize("algorithm", ["gemv", "small_batch", "gemm"])
def test_the_product_with_q4_0_fuses_its_sums_and_rounds_its_weights(algorithm: Algorithm) -> None:
    signature = (PANELS, MATRIX, VECTOR, MATRIX, int64, int64)
    text = assembly(_kernel("Q4_0", algorithm).serial, signature)
    assert FUSED_FLOATS.search(text)
    assert MULTIPLIED.search(text)  # d · (nibble - 8)
    assert set(FUSED.findall(text)) == set(FUSED_FLOATS.findall(text))


@pytest.mark.usefixtures("cpu_can_fuse")
def test_the_powers_of_a_draw_are_multiplied_and_added_and_never_fused() -> None:
    text = assembly(math64.exp, (float64[::1],))
    assert MULTIPLIED_DOUBLES.search(text)
    assert FUSED.findall(text) == []


# The dot product of `refllm.kernels.simd.ints` as another CPU's LLVM compiles it.
DOT_PRODUCT_FOR_ARM64 = """
import sys
import llvmlite.binding as llvm
from llvmlite import ir
from refllm.jit import cpu
triple, name = "aarch64-unknown-linux-gnu", sys.argv[1]
cpu.CPU = cpu.described(triple, name, "")
from refllm.kernels.simd import ints
module = ir.Module()
kind = ir.FunctionType(ints.INTS, [ints.INTS] * 3)
builder = ir.IRBuilder(ir.Function(module, kind, "dot").append_basic_block())
builder.ret(ints._add_quads(builder, *builder.function.args))
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
machine = llvm.Target.from_triple(triple).create_target_machine(cpu=name, opt=3)
print(machine.emit_assembly(llvm.parse_assembly(str(module))))
"""


def dot_product_for_arm64(cpu: str) -> list[str]:
    """The instructions' names."""
    done = subprocess.run(
        [sys.executable, "-c", DOT_PRODUCT_FOR_ARM64, cpu],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"^\t([a-z]\w*)", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("cpu", sorted(SDOT_CPUS))
def test_on_arm64_with_dot_products_of_bytes_four_products_are_one_instruction(cpu: str) -> None:
    assert dot_product_for_arm64(cpu) == ["sdot", "ret"]


def test_on_arm64_without_them_bytes_are_spread_and_multiplied() -> None:
    instructions = dot_product_for_arm64("cortex-a72")
    assert "sdot" not in instructions
    assert "smull" in instructions


def assembly_of_two_models(cpu: str, cache: Path) -> str:
    """The machine code of all that a Q4_0 llama and a BERT call, for this CPU."""
    # An empty cache, or nothing would be compiled.
    printing = {"NUMBA_DUMP_ASSEMBLY": "1", "REFLLM_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tools.hash_bits", "kernels"),
            *("--only", "llama-Q4_0", "--only", "bert"),
        ],
        cwd=PROJECT,
        env=environment_for(cpu) | printing,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fused_instructions(text: str, kernel: str) -> set[str] | None:
    """The fused instructions in functions with that in their name; None where there is none."""
    parts = re.split(r"-+ASSEMBLY (\S+?)-+\n", text)[1:]
    found = [code for name, code in zip(parts[::2], parts[1::2], strict=True) if kernel in name]
    return set(FUSED.findall("\n".join(found))) if found else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "registers"),
    [
        ("x86-64", {"xmm"}),
        ("haswell", {"xmm", "ymm"}),
        ("skylake-avx512", {"xmm", "ymm", "zmm"}),
    ],
)
def test_on_any_cpu_only_products_of_matrices_fuse(
    cpu: str, registers: set[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    skip_unless_asked_for(request)
    skip_unless_runnable(cpu)
    text = assembly_of_two_models(cpu, tmp_path)
    assert set(re.findall(r"%([xyz]mm)\d", text)) == registers, "compiled for another CPU"
    products = [f"Q4_0_{algorithm}_" for algorithm in ("gemv", "small_batch", "gemm")]
    multiplying = (*products, "kv_attention", "texts")
    others = ("swiglu", "gelu", "layer_norm", "rms_norm")
    kernels = {name: fused_instructions(text, name) for name in (*multiplying, *others)}
    assert [name for name, found in kernels.items() if found is None] == [], "not compiled"
    assert [name for name in others if kernels[name]] == []
    fusing = [name for name in multiplying if kernels[name]]
    assert fusing == ([] if cpu == "x86-64" else list(multiplying))
    assert "fmaf" not in text  # the C library's
