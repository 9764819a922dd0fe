"""A matrix times a vector, from a loop to sixteen lanes: seven rungs, equal in every bit.

    y[n] = ((0 + x[0]·w[n, 0]) + x[1]·w[n, 1]) + x[2]·w[n, 2] + …

in float32, where each step, a product and its sum, is rounded once: a fused multiply-add, `fma`.
This is refllm's rule for a matrix product: the order of the additions is part of the result. Each
rung adds the same sums in the same order and is faster for a reason that its docstring gives.
`another_order` is not a rung: it adds in an order that SIMD code often chooses, and its bits
differ. docs/learn/ladder.md explains one rung at a time.

N outputs, the rows of w; D columns; W = 16 lanes; P = ⌈N/W⌉ panels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import float32, prange
from numba.extending import intrinsic
from numpy.typing import NDArray

from refllm.kernels.linear import linear
from refllm.kernels.packed.panels import pack
from refllm.oracle import fma
from refllm.quant import FORMATS, Tensor

__all__ = [
    "another_order",
    "columns",
    "compiled",
    "loop",
    "panels",
    "q8_0",
    "refllm_does",
    "threads",
]

Array = NDArray[Any]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
F = TypeVar("F")

W = 16  # rows of a panel
BLOCK = 32  # values of a Q8_0 block

# No `fastmath`: the compiler must keep the order of the additions, and fuses a product with a sum
# only where the code says so. error_model="numpy" makes x/0 an IEEE value instead of an exception.
jit: Callable[[F], F] = cast("Any", numba.njit(error_model="numpy"))
parallel_jit: Callable[[F], F] = cast("Any", numba.njit(error_model="numpy", parallel=True))


# --- 1: a loop -----------------------------------------------------------------------------------


def loop(x: Floats, w: Floats) -> Floats:
    """Return y [N] from x [D] and w [N, D]: the rule itself.

    One step at a time: y[n] + x[d] · w[n, d], rounded once to float32.
    """
    y = np.zeros(len(w), np.float32)
    for n in range(len(w)):
        for d in range(len(x)):
            y[n] = fma(x[d], w[n, d], y[n])
    return y


# --- 2: columns ----------------------------------------------------------------------------------


def columns(x: Floats, w: Floats) -> Floats:
    """Return y [N] from x [D] and w [N, D]: the two loops of rung 1 change places.

    All N sums take their next step together. Outputs do not depend on each
    other, so each of them is still added from left to right; NumPy computes
    a whole column of w per instruction of Python.
    """
    y = np.zeros(len(w), np.float32)
    for d in range(len(x)):
        y = fma(x[d], w[:, d], y)
    return y


# --- 3: machine code -----------------------------------------------------------------------------


def _fused(_typing: Any, _a: Any, _b: Any, _c: Any) -> Any:
    """The types and the code of `fused`: LLVM's operation `llvm.fma.f32`."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return float32(float32, float32, float32), build


fused: Any = intrinsic(_fused)
"""`fma` of three numbers, for compiled code: numba has none of its own."""


@jit
def compiled(x: Floats, w: Floats) -> Floats:
    """Return y [N] from x [D] and w [N, D]: rung 1, compiled.

    On x86 with FMA a step is one `vfmadd…ss`: a SIMD register of which one
    lane is used. The compiler may not split a sum over the lanes, because
    that would be another order.
    """
    y = np.zeros(w.shape[0], np.float32)
    for n in range(w.shape[0]):
        for d in range(x.size):
            y[n] = fused(x[d], w[n, d], y[n])
    return y


# --- 4: panels -----------------------------------------------------------------------------------


def side_by_side(rows: Array) -> Array:
    """Return rows [N, K] as panels of W rows, [P, K, W].

    The last panel is filled up with zeros.
    """
    n_panels = -(-len(rows) // W)
    padded = np.zeros((n_panels * W, rows.shape[1]), rows.dtype)
    padded[: len(rows)] = rows
    turned = padded.reshape(n_panels, W, -1).swapaxes(1, 2)  # [P, K, W]
    return np.ascontiguousarray(turned)


@jit
def add_panel(x: Floats, panel: Floats, y: Floats) -> None:
    """Add to y [W] the products of x [D] with a panel [D, W].

    The inner loop is one `vfmadd…ps` for several lanes. It ends at y.size
    and not at W, because LLVM unrolls a loop of 16 steps before it looks for
    SIMD, and then finds none.
    """
    for d in range(x.size):
        for lane in range(y.size):
            y[lane] = fused(x[d], panel[d, lane], y[lane])


def panels(x: Floats, w: Floats) -> Floats:
    """Return y [N] from x [D] and w [N, D]: rung 2 for 16 rows side by side.

    A lane holds an *output*, and adds its own sum from left to right. A step
    of 16 sums reads 16 neighbors in memory, where rung 2 jumps from row to
    row.
    """
    packed = side_by_side(w)  # [P, D, W]; a program does this once, when it opens the model
    y = np.zeros((len(packed), W), np.float32)
    for p in range(len(packed)):
        add_panel(x, packed[p], y[p])
    return y.ravel()[: len(w)]


# --- 5: Q8_0 -------------------------------------------------------------------------------------


@jit
def add_q8_0_panel(x: Floats, scales: Floats, quants: Array, y: Floats) -> None:
    """Add to y [W] the products of x [D] with scale · quant.

    scales [D/32, W] and quants int8 [D, W] are a panel of Q8_0 blocks.
    """
    for d in range(x.size):
        for lane in range(y.size):
            weight = scales[d // BLOCK, lane] * np.float32(quants[d, lane])
            y[lane] = fused(x[d], weight, y[lane])


def q8_0_panels(stored: Bytes) -> tuple[Floats, Array]:
    """Return scales [P, D/32, W] and quants [P, D, W] of uint8 [N, D/32 · 34]."""
    blocks = stored.reshape(len(stored), -1, 2 + BLOCK)  # [N, D/32, 34]
    halves = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]
    scales = halves.astype(np.float32)  # exact: every float16 is a float32
    quants = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)  # [N, D/32, 32]
    return side_by_side(scales), side_by_side(quants.reshape(len(stored), -1))


def q8_0(x: Floats, stored: Bytes) -> Floats:
    """Return y [N] from x [D] and N rows of Q8_0 blocks: the load decodes.

    Memory delivers 34 bytes for 32 weights instead of 128. A weight is scale
    · quant, rounded once, as when the whole matrix is decoded first; it is
    used and never stored.
    """
    scales, quants = q8_0_panels(stored)
    y = np.zeros((len(quants), W), np.float32)
    for p in range(len(quants)):
        add_q8_0_panel(x, scales[p], quants[p], y[p])
    return y.ravel()[: len(stored)]


# --- 6: threads ----------------------------------------------------------------------------------


@parallel_jit
def add_all_panels(x: Floats, scales: Floats, quants: Array, y: Floats) -> None:
    """Add to y [P, W] the products of x [D] with each of the P panels."""
    for p in prange(y.shape[0]):
        add_q8_0_panel(x, scales[p], quants[p], y[p])


def threads(x: Floats, stored: Bytes) -> Floats:
    """Return y [N] from x [D] and N rows of Q8_0 blocks: rung 5 on all cores.

    A thread adds whole sums, and writes only to the outputs of its own
    panels. So neither the number of threads nor their speed can change a
    bit.
    """
    scales, quants = q8_0_panels(stored)
    y = np.zeros((len(quants), W), np.float32)
    add_all_panels(x, scales, quants, y)
    return y.ravel()[: len(stored)]


# --- 7: refllm -----------------------------------------------------------------------------------


def refllm_does(x: Floats, stored: Bytes) -> Floats:
    """Return y [N] from x [D] and N rows of Q8_0 blocks: rung 6 as refllm has it.

    `pack` makes the panels, still in the file's encoding. `linear` chooses
    the kernel for the format and the number of rows of x. In a kernel the 16
    sums stay in SIMD registers.
    """
    tensor = Tensor("w", FORMATS["Q8_0"], (len(stored), x.size), stored)
    y: Floats = linear(x[None], pack(tensor))[0]
    return y


# --- Not a rung ----------------------------------------------------------------------------------


def another_order(x: Floats, w: Floats) -> Floats:
    """Return y [N] from x [D] and w [N, D]: as precise, with other bits.

    Each *sum* is split over 16 lanes, and the lanes are added at the end.
    Many fast programs do this. The result then depends on the number of
    lanes, and so on the machine.
    """
    products = (x * w).reshape(len(w), -1, W)  # [N, D/W, W]
    lanes = np.zeros((len(w), W), np.float32)
    for step in range(products.shape[1]):
        lanes = lanes + products[:, step]
    y = np.zeros(len(w), np.float32)
    for lane in range(W):
        y = y + lanes[:, lane]
    return y
