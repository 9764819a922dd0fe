"""What the CPU that kernels are compiled for has: it decides how wide panels and tiles are.

Only speed depends on it. A wider register computes more outputs side by side, and more registers
hold more sums at a time; each sum is the same operations in the same order (rule 2 of SPEC.md).

numba names a CPU as LLVM does. If it is this machine's own, a list of features comes with the name;
if somebody chose another (`NUMBA_CPU_NAME`), the name alone has to tell.
"""

from __future__ import annotations

from dataclasses import dataclass

from numba.core.registry import cpu_target

__all__ = ["CPU", "NAME", "Cpu", "described"]

# CPUs, by LLVM's name, that have these instructions although no list of features says so.
AVX512_VNNI_CPUS = frozenset(
    {
        *("cascadelake", "cooperlake", "icelake-client", "icelake-server", "rocketlake"),
        *("tigerlake", "sapphirerapids", "emeraldrapids", "graniterapids", "znver4", "znver5"),
    }
)
AVX512_CPUS = AVX512_VNNI_CPUS | {"skylake-avx512", "x86-64-v4"}
AVX_VNNI_CPUS = frozenset(
    {"alderlake", "raptorlake", "meteorlake", "arrowlake", "lunarlake", "sierraforest"}
)
AVX2_CPUS = AVX_VNNI_CPUS | {"haswell", "x86-64-v3", "znver1", "znver2", "znver3"}
# They do what AVX2 says, half a register at a time, and some of it slower than by halves.
HALF_AVX2_CPUS = frozenset({"znver1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """A CPU's vector registers, and the instructions that kernels ask for by name.

    `float_lanes` are the float32 in a register. `has_vnni`: it adds up products of bytes in one
    instruction, `vpdpbusd`. `shuffles_bytes`: it has SSSE3 and what followed. `converts_halves`: it
    turns halves into floats by itself.
    """

    registers: int
    float_lanes: int
    has_vnni: bool = False
    shuffles_bytes: bool = False
    converts_halves: bool = True

    @property
    def panel_lanes(self) -> int:
        """How many rows of a matrix lie side by side: one cache line of bytes, or of floats."""
        return 64 if self.float_lanes == 16 else 16

    @property
    def tile_rows(self) -> int:
        """How many rows of activations a tile of sums has.

        Their sums leave room for a vector of weights, and two registers to broadcast and multiply.
        More than six rows would win nothing, because six hide an addition's delay.
        """
        vector = self.panel_lanes // self.float_lanes
        return min(6, (self.registers - vector - 2) // vector)

    @property
    def integer_tile_rows(self) -> int:
        """The same for integer sums, which become floats block by block.

        Where registers are wide there are enough of them to keep both.
        """
        if self.float_lanes == 16:
            return 3
        return min(4, (self.registers - 8) // (self.panel_lanes // self.float_lanes))

    @property
    def multiplies_bytes_by_pairs(self) -> bool:
        """Whether sums of two products of bytes, in 16 bits, are the best that it has."""
        return self.shuffles_bytes and not self.has_vnni and self.float_lanes < 16


def described(triple: str, name: str, features: str) -> Cpu:
    """What a CPU has, from numba's names for its kind, its model and its features."""
    if not triple.startswith(("x86", "i686")):
        return Cpu(registers=32, float_lanes=4)
    has = set(features.split(","))
    if "+avx512f" in has or name in AVX512_CPUS:
        has_vnni = "+avx512vnni" in has or name in AVX512_VNNI_CPUS
        return Cpu(registers=32, float_lanes=16, has_vnni=has_vnni, shuffles_bytes=has_vnni)
    has_avx2 = "+avx2" in has or name in AVX2_CPUS
    return Cpu(
        registers=16,
        float_lanes=8 if has_avx2 and name not in HALF_AVX2_CPUS else 4,
        has_vnni="+avxvnni" in has or name in AVX_VNNI_CPUS,
        shuffles_bytes=has_avx2 or "+ssse3" in has,
        converts_halves=has_avx2 or "+f16c" in has,
    )


TRIPLE, NAME, FEATURES = cpu_target.target_context.codegen().magic_tuple()
CPU = described(TRIPLE, NAME, FEATURES)
