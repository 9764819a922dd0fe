"""Activations for the integer kernels: int8, with a scale for each block.

T rows, D columns, B blocks in a row. A block has 0, 8 or 16 minima and some runs of quads.

The rule and its sources are in `refllm.oracle_int8`. This is its fast form: the operations on each
number (find the largest, multiply, round, store, add up) are intrinsics on all numbers of a block
or a group; the operations on each block are plain code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from refllm.jit.buffers import Floats
from refllm.jit.compile import inner
from refllm.kernels.simd.lanes import BYTE, FLOAT, INT, address, constant, in_every_lane

__all__ = ["WIDE_ORDER", "Activations", "quantize_q8_0", "quantize_q8_k", "zero_activations"]

Step = Callable[[ir.IRBuilder, ir.Value], ir.Value]

INFINITY = np.int32(0x7F800000)
# The columns of a quad in the order that they have as int16: bytes at even places come first.
WIDE_ORDER = (0, 2, 1, 3)


class Activations(NamedTuple):
    """Rows of x, quantized, and the sums that the kernels need of them.

    A block's rows are side by side, because a kernel multiplies some blocks of all rows, then the
    next blocks.
    """

    q: NDArray[Any]  # [B, T, D / B], int8, or int16 with each quad as columns 0, 2, 1, 3
    d: Floats  # [B, T]
    s: Floats  # [B, T], d times the sum of a block's q, for blocks of 32
    starts: NDArray[np.int32]  # [B, T, runs], −offset times the sum of a run's q
    sums: NDArray[np.int16]  # [B, T, minima], the sums of q that minima are multiplied with


def zero_activations(
    n_rows: int, n_blocks: int, *, block_size: int, runs: int, minima: int, is_wide: bool
) -> Activations:
    """Return rows of zeros, int16 if `is_wide`."""
    return Activations(
        np.zeros((n_blocks, n_rows, block_size), np.int16 if is_wide else np.int8),
        np.zeros((n_blocks, n_rows), np.float32),
        np.zeros((n_blocks, n_rows), np.float32),
        np.zeros((n_blocks, n_rows, runs), np.int32),
        np.zeros((n_blocks, n_rows, minima), np.int16),
    )


# Operations on each number


def _reduced(builder: ir.IRBuilder, operation: str, vector: ir.Value) -> ir.Value:
    """Return the sum ("add") or the maximum ("smax") of a vector's ints."""
    instruction = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module,
        ir.FunctionType(INT, [vector.type]),
        f"llvm.vector.reduce.{operation}.v{vector.type.count}i32",
    )
    return builder.call(instruction, [vector])


def _max_bits(n: int, change: Step) -> Any:
    """An intrinsic (x, byte offset) → the largest of n floats' bits, changed, as signed integers.

    Bits of positive floats are ordered as the floats are; then come infinity and the NaNs. Bits of
    negative floats are negative integers: so is the result where no float is positive.
    """

    def typed(_typing: Any, x: types.Array, _offset: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            array, offset = values
            kind = ir.VectorType(INT, n)
            place = address(context, builder, signature.args[0], array, offset, kind)
            return _reduced(builder, "smax", change(builder, builder.load(place, align=4)))

        return types.int32(x, types.intp), emit

    return intrinsic(typed)


def _rounded(n: int, round_: Step) -> Any:
    """An intrinsic (x, byte offset, factor, q, place) → the sum of n numbers q.

    It writes these numbers: x · factor, rounded. The place counts numbers.
    """

    def typed(
        _typing: Any,
        x: types.Array,
        _from: Any,
        _factor: Any,
        q: types.Array,
        _to: Any,
    ) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            x, start, factor, q, target = values
            element = ir.IntType(signature.args[3].dtype.bitwidth)
            floats, stored = ir.VectorType(FLOAT, n), ir.VectorType(element, n)
            source = address(context, builder, signature.args[0], x, start, floats)
            scaled = builder.fmul(
                builder.load(source, align=4), in_every_lane(builder, factor, floats)
            )
            numbers = round_(builder, scaled)
            target = builder.mul(target, ir.Constant(target.type, element.width // 8))
            place = address(context, builder, signature.args[3], q, target, stored)
            narrow = builder.trunc(numbers, stored)
            if element != BYTE:
                order = [quad + column for quad in range(0, n, 4) for column in WIDE_ORDER]
                places = ir.Constant(ir.VectorType(INT, n), order)
                narrow = builder.shuffle_vector(narrow, narrow, places)
            builder.store(narrow, place, align=1)
            return _reduced(builder, "add", numbers)

        return types.int32(x, types.intp, types.float32, q, types.intp), emit

    return intrinsic(typed)


def _half_away(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return the nearest integers, ties away from zero: trunc(x) + trunc(2·(x − trunc(x))).

    Both differences are exact. Adding a half instead would round 0.49999997 up to 1.
    """
    ints = ir.VectorType(INT, x.type.count)
    whole = builder.fptosi(x, ints)
    rest = builder.fsub(x, builder.sitofp(whole, x.type))
    return builder.add(whole, builder.fptosi(builder.fadd(rest, rest), ints))


def _half_to_even(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return the nearest integers, ties to even: floats at 1.5·2^23 are integers."""
    rounder = ir.Constant(x.type, [12582912.0] * x.type.count)
    nearest = builder.fsub(builder.fadd(x, rounder), rounder)
    return builder.fptosi(nearest, ir.VectorType(INT, x.type.count))


# Of the bits without the sign, as they are, and with the sign inverted.
max_magnitude_of_32 = _max_bits(32, lambda b, bits: b.and_(bits, constant(bits.type, 2**31 - 1)))
max_of_256 = _max_bits(256, lambda b, bits: bits)
max_negative_of_256 = _max_bits(256, lambda b, bits: b.xor(bits, constant(bits.type, -(2**31))))
rounded_32 = _rounded(32, _half_away)
rounded_16 = _rounded(16, _half_to_even)


# Operations on each block


@inner
def to_half(x: np.float32) -> np.float32:
    """Return x ≥ 0 rounded to float16, ties to even, as float32.

    By integers, because not every CPU has the instruction: half of the last kept bit is added and
    the bits below it are cleared. Below 2^-14 halves are 2^-24 apart, as floats are from 0.5 to 1,
    so adding 0.5 rounds.
    """
    if x < np.float32(2.0**-14):
        return (x + np.float32(0.5)) - np.float32(0.5)
    bits = np.float32(x).view(np.int32)
    rounded = np.int32((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(np.float32)
    return rounded if rounded < np.float32(65536.0) else np.float32(np.inf)


@inner
def quantize_q8_0(x: Floats, t: int, into: Activations, offset: int, in_pairs: bool) -> None:
    """Quantize row t in blocks of 32: q and d as in Q8_0, s as in Q8_1.

    What is one number for each block is computed for all blocks of the row side by side: the loops
    that call nothing but `to_half` become vector instructions.
    """
    n_blocks, n_rows = into.d.shape
    numbers = np.empty((6, n_blocks), np.float32)  # one allocation
    d, inverse, total, half, s = numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
    largest = numbers[0]
    for b in range(n_blocks):
        bits = np.int32(max_magnitude_of_32(x, 4 * (t * x.shape[1] + 32 * b)))
        largest[b] = bits.view(np.float32)
    for b in range(n_blocks):
        d[b] = largest[b] / np.float32(127.0)
        quotient = np.float32(1.0) / d[b]
        inverse[b] = quotient if quotient < np.float32(np.inf) else np.float32(0.0)
    for b in range(n_blocks):
        place = 4 * (t * x.shape[1] + 32 * b)
        total[b] = rounded_32(x, place, inverse[b], into.q, 32 * (b * n_rows + t))
    for b in range(n_blocks):
        half[b] = to_half(d[b])
        s[b] = np.copysign(to_half(abs(total[b]) * d[b]), total[b])
    for b in range(n_blocks):
        if largest[b] < np.float32(np.inf):
            into.d[b, t], into.s[b, t] = half[b], s[b]
        else:
            into.q[b, t] = 0
            total[b] = 0
            into.d[b, t] = into.s[b, t] = np.float32(np.nan)
        if in_pairs:
            start_pairs(into, b, t, offset)
        else:
            into.starts[b, t, 0] = -offset * np.int32(total[b])


@inner
def quantize_q8_k(x: Floats, t: int, into: Activations, offset: int, in_pairs: bool) -> None:
    """Quantize row t in blocks of 256, as in Q8_K."""
    n_blocks, n_rows = into.d.shape
    runs, minima = into.starts.shape[2], into.sums.shape[2]
    sums = np.empty(16, np.int32)
    for b in range(n_blocks):
        place = 4 * (t * x.shape[1] + 256 * b)
        factor = minus_127_over_largest(x, t, 256 * b)
        if np.isfinite(factor):
            for g in range(16):
                target = 256 * (b * n_rows + t) + 16 * g
                sums[g] = rounded_16(x, place + 64 * g, factor, into.q, target)
            into.d[b, t] = np.float32(1.0) / factor
        else:
            into.q[b, t] = 0
            sums[:] = 0
            into.d[b, t] = np.float32(0.0) if np.isinf(factor) else factor
        if in_pairs:
            start_pairs(into, b, t, offset)
        else:
            for run in range(runs):
                into.starts[b, t, run] = -offset * part_of_sum(sums, run, runs)
        for g in range(minima):
            into.sums[b, t, g] = part_of_sum(sums, g, minima)


@inner
def start_pairs(into: Activations, b: int, t: int, offset: int) -> None:
    """Write the starts of sums in pairs: −offset times the sum of q of each half of the quads.

    The lower 16 bits of a start are for the first two numbers of each quad, the upper 16 bits for
    the other two.
    """
    if offset == 0:
        return
    n_runs = into.starts.shape[2]
    length = into.q.shape[2] // n_runs
    for run in range(n_runs):
        lower = upper = np.int64(0)
        for j in range(run * length, (run + 1) * length, 4):
            lower += np.int64(into.q[b, t, j]) + np.int64(into.q[b, t, j + 1])
            upper += np.int64(into.q[b, t, j + 2]) + np.int64(into.q[b, t, j + 3])
        into.starts[b, t, run] = np.int32((-offset * lower & 0xFFFF) | (-offset * upper << 16))


@inner
def minus_127_over_largest(x: Floats, t: int, first: int) -> np.float32:
    """Return −127 / the value of largest magnitude among 256, the first of several.

    Infinite if all are zero or so small that the quotient overflows; NaN if one is NaN or infinite.
    """
    place = 4 * (t * x.shape[1] + first)
    positive, negative = max_of_256(x, place), max_negative_of_256(x, place)
    if max(positive, negative) >= INFINITY:
        return np.float32(np.nan)
    above, below = np.int32(positive).view(np.float32), np.int32(negative).view(np.float32)
    largest = above if positive > negative else -below
    if positive == negative:
        for j in range(first, first + 256):
            if abs(x[t, j]) == above:
                largest = x[t, j]
                break
    return np.float32(np.float32(-127.0) / largest)


@inner
def part_of_sum(sums: NDArray[np.int32], g: int, groups: int) -> np.int32:
    """Return the sum of group g of `groups`, from the sums of 16 groups."""
    total = np.int32(0)
    for i in range(g * 16 // groups, (g + 1) * 16 // groups):
        total = np.int32(total + sums[i])
    return total
