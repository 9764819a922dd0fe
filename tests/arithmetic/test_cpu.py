"""What numba's names for a CPU say about its registers and instructions."""

from __future__ import annotations

import pytest

from refllm.jit.cpu import CPU, Cpu, described

X86 = "x86_64-unknown-linux-gnu"
BASELINE = Cpu(registers=16, float_lanes=4, converts_halves=False, fuses=False)
SSSE3 = Cpu(registers=16, float_lanes=4, shuffles_bytes=True, converts_halves=False, fuses=False)
HALF_AVX2 = Cpu(registers=16, float_lanes=4, shuffles_bytes=True)
AVX2 = Cpu(registers=16, float_lanes=8, shuffles_bytes=True)
AVX_VNNI = Cpu(registers=16, float_lanes=8, has_vnni=True, shuffles_bytes=True)
AVX512 = Cpu(registers=32, float_lanes=16)
AVX512_VNNI = Cpu(registers=32, float_lanes=16, has_vnni=True, shuffles_bytes=True)
NEON = Cpu(registers=32, float_lanes=4)
NEON_SDOT = Cpu(registers=32, float_lanes=4, has_sdot=True)

BY_NAME = {
    "x86-64": BASELINE,
    "haswell": AVX2,
    "znver1": HALF_AVX2,
    "alderlake": AVX_VNNI,
    "skylake-avx512": AVX512,
    "znver4": AVX512_VNNI,
}
BY_FEATURES = {
    "-avx2,-avxvnni,+sse2": BASELINE,
    "+ssse3,+sse2": SSSE3,
    "+avx,+avx2,+f16c,+fma,+ssse3": AVX2,
    "+avx2,+avxvnni,-avx512f": AVX_VNNI,
    "+avx2,+avxvnniint8": AVX2,  # another instruction, of a similar name
    "+avx2,+avx512f,-avx512vnni": AVX512,
    "+avx2,+avx512f,+avx512vnni": AVX512_VNNI,
}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_known_cpu_name_decides_the_width(name: str) -> None:
    assert described(X86, name, "") == BY_NAME[name]


@pytest.mark.parametrize("features", BY_FEATURES)
def test_features_decide_the_width_for_an_unknown_cpu_name(features: str) -> None:
    assert described(X86, "tomorrow", features) == BY_FEATURES[features]


def test_a_cpu_that_is_not_x86_has_registers_of_128_bits() -> None:
    assert described("aarch64-unknown-linux-gnu", "cortex-a72", "+neon") == NEON


@pytest.mark.parametrize(("name", "features"), [("neoverse-n1", ""), ("tomorrow", "+dotprod")])
def test_a_name_or_a_feature_says_that_arm64_has_sdot(name: str, features: str) -> None:
    assert described("aarch64-unknown-linux-gnu", name, features) == NEON_SDOT


@pytest.mark.parametrize("cpu", [BASELINE, HALF_AVX2, AVX2, AVX512, NEON, NEON_SDOT, CPU])
def test_a_tile_leaves_room_for_weights_and_products(cpu: Cpu) -> None:
    registers = cpu.panel_lanes // cpu.float_lanes
    assert cpu.tile_rows(cpu.panel_lanes) * registers + registers + 2 <= cpu.registers
    assert cpu.integer_tile_rows >= 1
