"""The features of the CPU that kernels are compiled for; they decide how wide panels and tiles are.

Only speed depends on them. A wider register computes more outputs side by side, and more registers
hold more sums at a time; each sum is the same operations in the same order (rule 2 of SPEC.md).

numba has LLVM's name of the CPU. For this machine's CPU it has a list of features as well; for
another one (`NUMBA_CPU_NAME`) there is only the name.
"""

from __future__ import annotations

from dataclasses import dataclass

from numba.core.registry import cpu_target

__all__ = ["CPU", "FEATURES", "NAME", "SDOT_CPUS", "TRIPLE", "Cpu", "described"]

# CPUs with these instructions, by LLVM's name, for when there is no list of features.
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
# These execute AVX2 by half registers, and some instructions slower than SSE2's halves.
HALF_AVX2_CPUS = frozenset({"znver1"})
# ARM64 CPUs with `sdot`.
SDOT_CPUS = frozenset(
    {
        *("cortex-a55", "cortex-a75", "cortex-a76", "cortex-a77", "cortex-a78", "cortex-x1"),
        *("neoverse-n1", "neoverse-n2", "neoverse-n3", "neoverse-v1", "neoverse-v2", "neoverse-v3"),
        *("ampere1", "ampere1a", "ampere1b", "grace"),
        *("apple-a13", "apple-m1", "apple-m2", "apple-m3", "apple-m4"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """A CPU's vector registers, and the instructions that kernels call by name.

    Attributes:
        registers: The number of vector registers.
        float_lanes: The float32 numbers in a register.
        has_vnni: It adds up products of unsigned and signed bytes in one instruction, `vpdpbusd`.
        has_sdot: It adds up products of signed bytes in one instruction, `sdot`.
        shuffles_bytes: It has SSSE3 or its successors.
        converts_halves: It has an instruction that converts halves to floats.
        fuses: It has an instruction that multiplies and adds and rounds once.
    """

    registers: int
    float_lanes: int
    has_vnni: bool = False
    has_sdot: bool = False
    shuffles_bytes: bool = False
    converts_halves: bool = True
    fuses: bool = True

    @property
    def panel_lanes(self) -> int:
        """How many rows of a matrix are side by side: one cache line of bytes, or of floats."""
        return 64 if self.float_lanes == 16 else 16

    def tile_rows(self, lanes: int) -> int:
        """Return how many rows of activations a tile of sums has, for vectors of so many lanes.

        Their sums leave registers for a vector of weights and two more, to broadcast. 24 sums hide
        the latency of an addition, so more would not be faster.

        With AVX2 (znver3's code on an Intel Xeon, weights in the first cache) 6 rows by 16 lanes
        are as fast as two fused multiply-adds a cycle: 56.8 G MAC/s; with a line prefetched each
        step, too. 5 by 16 gave 52.0, 3 by 24 52.2, 12 by 8 48.3, 4 by 16 47.9; of 4 by 24 and 3 by
        32 the sums leave no register to broadcast into: 34.2.
        """
        vector = lanes // self.float_lanes
        return min(24 // vector, (self.registers - vector - 2) // vector)

    @property
    def integer_tile_rows(self) -> int:
        """The same for integer sums, which become floats block by block.

        CPUs with wide registers have enough of them for both kinds of sums.
        """
        if self.float_lanes == 16:
            return 3
        return min(4, (self.registers - 8) // (self.panel_lanes // self.float_lanes))

    @property
    def multiplies_bytes_by_pairs(self) -> bool:
        """Whether sums of two products of bytes, in 16 bits, are its fastest dot product."""
        return self.shuffles_bytes and not self.has_vnni and self.float_lanes < 16


def described(triple: str, name: str, features: str) -> Cpu:
    """Return a CPU's features, from LLVM's triple, CPU name and list of features."""
    if not triple.startswith(("x86", "i686")):
        has_sdot = "+dotprod" in features.split(",") or name in SDOT_CPUS
        return Cpu(registers=32, float_lanes=4, has_sdot=has_sdot)
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
        fuses=has_avx2 or "+fma" in has,
    )


TRIPLE, NAME, FEATURES = cpu_target.target_context.codegen().magic_tuple()
CPU = described(TRIPLE, NAME, FEATURES)
