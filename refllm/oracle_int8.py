"""The rule of the numerics "int8" in plain NumPy: `refllm.kernels.int8` equals it bit by bit.

T rows of x, N outputs (rows of w), D columns of both, B blocks of D/B numbers in a row of either.

ggml, llama.cpp's library, multiplies quantized weights on a CPU in this way: it quantizes the
activations, too, multiplies integers, and scales the sums. This rule fixes one order of additions;
ggml's order depends on the CPU. All floats are float32, and every operation is rounded, an `fma`
as one operation.

**1. Activations** become integers a and a scale d_x, block by block. Round means to the nearest
integer.

- For weights in blocks of 32, ggml's Q8_0: with `amax` the largest magnitude in the block,

      d = amax / 127        a = round(x · (1 / d)), ties away from zero        d_x = float16(d)

  and for Q4_1 and Q5_1, which have a minimum, Q8_1: the same, and s_x = float16(float(Σa) · d).

- For weights in super-blocks of 256, ggml's Q8_K: with `max` the first of the values that have the
  largest magnitude,

      f = −127 / max        a = round(f · x), ties to even        d_x = 1 / f

  So the largest becomes −127. (ggml limits a to 127; as |f · x| ≤ 127 but for rounding, it is.)

- Where 1 / d or f is infinite, because the block is zero or almost zero, a = 0 and d_x = 0 (in
  Q8_0: d_x = float16(d), which is 0, too). ggml defines this for zero; for almost zero its C code
  has undefined behaviour. A block with an infinity or a NaN, undefined in C as well, has a = 0 and
  d_x = s_x = NaN.

**2. Weights** are integers already. Every format means d_w · w − m_w · v or (Q4_1, Q5_1)
d_w · w + m_w, with integers w and v for each weight and floats d_w and m_w for each block. In a
super-block the small integer scales and minima are part of w and v.

**3. A block** of one row of w and one row of x gives two integers, which are exact and below 2^31:
W = Σ w·a and V = Σ v·a.

**4. The sum** starts at +0.0, and the blocks are added from left to right:

    all formats         sum = fma(d_w · d_x, float(W), sum)
    Q4_1, Q5_1          and then sum = fma(m_w, s_x, sum)
    Q2_K, Q4_K, Q5_K    and then sum = fma(−(m_w · d_x), float(V), sum)

where fma(a, b, c) is a·b + c, rounded once.

Sources: ggml, `ggml-quants.c` (`quantize_row_q8_0_ref`, `quantize_row_q8_1_ref`,
`quantize_row_q8_K_ref`) and `ggml-cpu/quants.c` (`ggml_vec_dot_*_generic`), from which the
operations of a block and their order are taken; that a scaled sum is added by one fma is taken from
ggml's code for AVX2 (`ggml-cpu/arch/x86/quants.c`). ggml's portable code differs from this: it
rounds products before it adds them, its functions for Q3_K to Q6_K scale eight partial sums of W
and add those at the end, and that for IQ4_XS scales each sub-block of 32. ggml's code for a
specific CPU adds in other orders, and on x86 computes 127 / amax instead of 1 / d and rounds ties
to even. So llama.cpp is close, but not equal, to this rule and to itself on other CPUs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refllm.jit.buffers import Floats, Ints
from refllm.oracle import fma
from refllm.quant import Tensor

__all__ = ["Activations", "Weights", "integer_weights", "matmul", "quantize_q8_0", "quantize_q8_k"]

NAN = np.float32(np.nan)

# Where d and m begin in a block, for formats where d is not at 0 and for formats with m.
D_AT = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}
M_AT = {"Q4_1": 2, "Q5_1": 2, "Q2_K": 82, "Q4_K": 2, "Q5_K": 2}


class Activations(NamedTuple):
    """x ≈ d · a; s is float16(d · Σa), for blocks of 32."""

    a: Ints  # [T, B, D/B]
    d: Floats  # [T, B]
    s: Floats  # [T, B]


class Weights(NamedTuple):
    """d · w − m · v, or d · w + m."""

    w: Ints  # [N, B, D/B]
    v: Ints  # [N, B, D/B]
    d: Floats  # [N, B]
    m: Floats  # [N, B]


# 1. Activations


def quantize_q8_0(x: Floats) -> Activations:
    """Return the rows of x [T, D] in blocks of 32: a and d as ggml's Q8_0, s as its Q8_1."""
    blocks = x.reshape(len(x), -1, 32)  # [T, B, 32]
    amax = np.abs(blocks).max(axis=2)  # [T, B], NaN where one is
    defined = np.isfinite(amax)
    with np.errstate(all="ignore"):
        d = amax / np.float32(127)
        inverse = np.float32(1) / d
        scaled = blocks * np.where(np.isfinite(inverse), inverse, 0)[..., None]
        wide = np.where(defined[..., None], scaled, 0).astype(np.float64)
        # The nearest integers, ties away from zero; adding a half is exact in float64.
        a = np.copysign(np.floor(np.abs(wide) + 0.5), wide).astype(np.int64)
        s = _rounded_to_half(a.sum(axis=2).astype(np.float32) * d)
        return Activations(
            a, np.where(defined, _rounded_to_half(d), NAN), np.where(defined, s, NAN)
        )


def quantize_q8_k(x: Floats) -> Activations:
    """Return the rows of x [T, D] in blocks of 256, as ggml's Q8_K; it has no s."""
    blocks = x.reshape(len(x), -1, 256)  # [T, B, 256]
    defined = np.isfinite(blocks).all(axis=2)  # [T, B]
    place = np.abs(blocks).argmax(axis=2)  # [T, B], the first of several
    largest = np.take_along_axis(blocks, place[..., None], axis=2)[..., 0]
    with np.errstate(all="ignore"):
        f = np.float32(-127) / largest
        usable = defined & np.isfinite(f)
        scaled = blocks * f[..., None]
        a = np.rint(np.where(usable[..., None], scaled, 0)).astype(np.int64)
        d = np.where(usable, np.float32(1) / f, np.float32(0))
    return Activations(a, np.where(defined, d, NAN), np.full_like(d, NAN))


def _rounded_to_half(x: Floats) -> Floats:
    return x.astype(np.float16).astype(np.float32)


# 2. Weights


def integer_weights(weight: Tensor) -> Weights:
    """Return the integers and floats of which the rows of weight [N, D] are made.

    w are the decoded numbers with d = 1 and m = 0. −v are those of a super-block with d = 0 and
    m = 1; in Q4_1 and Q5_1, m itself is added.
    """
    fmt = weight.format
    blocks = weight.data.reshape(len(weight.data), -1, fmt.block_bytes)  # [N, B, bytes]
    d_at, m_at = D_AT.get(fmt.name, 0), M_AT.get(fmt.name, -1)
    d = _half_at(blocks, d_at).astype(np.float32)  # [N, B]
    m = _half_at(blocks, m_at).astype(np.float32) if m_at >= 0 else np.zeros_like(d)

    def decoded_with(new_d: float, new_m: float) -> Ints:
        changed = blocks.copy()
        _half_at(changed, d_at)[...] = new_d
        if m_at >= 0:
            _half_at(changed, m_at)[...] = new_m
        rows = fmt.decode(changed.reshape(weight.data.shape))  # [N, D]
        return rows.reshape(*d.shape, fmt.block_size).astype(np.int64)

    return Weights(decoded_with(1, 0), -decoded_with(0, 1), d, m)


def _half_at(blocks: NDArray[np.uint8], byte: int) -> NDArray[np.float16]:
    """Return the halves that begin at that byte of each block, a view."""
    return blocks[..., byte : byte + 2].view("<f2")[..., 0]


# 3. and 4. Blocks and their sum


def matmul(x: Floats, weight: Tensor) -> Floats:
    """Return x [T, D], quantized, times the rows of weight [N, D]: float32 [T, N]."""
    name = weight.format.name
    x_ = quantize_q8_0(x) if weight.format.block_size == 32 else quantize_q8_k(x)
    w_ = integer_weights(weight)
    total = np.zeros((len(x), len(w_.d)), np.float32)  # [T, N]
    with np.errstate(all="ignore"):
        for b in range(x_.d.shape[1]):
            w_a = (x_.a[:, b] @ w_.w[:, b].T).astype(np.float32)  # [T, N], of exact integers
            v_a = (x_.a[:, b] @ w_.v[:, b].T).astype(np.float32)
            d_x, s_x = x_.d[:, b, None], x_.s[:, b, None]  # [T, 1]
            d_w, m_w = w_.d[:, b], w_.m[:, b]  # [N]
            total = fma(d_w * d_x, w_a, total)
            if name in ("Q4_1", "Q5_1"):
                total = fma(m_w, s_x, total)
            elif name in ("Q2_K", "Q4_K", "Q5_K"):
                total = fma(-(m_w * d_x), v_a, total)
    return total
