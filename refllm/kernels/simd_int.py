"""Integer dot products in the lanes of a vector: four products of bytes at once.

A lane of an `I32` (`refllm.kernels.simd`) is four bytes wide, so it holds four small numbers of its
row, a *quad*:

    lane              0                    1            …            63
    weights    w[0, k … k+3]        w[1, k … k+3]             w[63, k … k+3]     unsigned, 0 … 255
    a          a[k … k+3]           a[k … k+3]                a[k … k+3]         signed, −128 … 127
    total      += their four products      …                         …           int32

`dot_quads` is that step. On CPUs with AVX-512 VNNI or AVX-VNNI it is one instruction, `vpdpbusd`,
and the reason why one side is unsigned; how signed weights become unsigned without changing the
result says `refllm.kernels.int8_blocks`. On other CPUs even and odd bytes are spread to 16 bits and
multiplied there (`pmaddwd`). Neither rounds nor saturates, so the integers are the same.

Many rows of activations are taken three at a time: `I32_ROWS` and `F32_ROWS` are three vectors, one
for each row, and behave as numbers in a kernel, as one vector does. A vector of weights that was
loaded once then serves three times. Three, because the integer sums, the float totals and four
registers of weights are 28 of AVX-512's 32 registers.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from refllm.kernels.simd import (
    BYTE,
    F32,
    FLOATS,
    I32,
    INT,
    INTS,
    LANES,
    WORD,
    Build,
    Vector,
    _address,
    _constant,
    _in_every_lane,
    _instruction,
    _joined,
    _lanes,
    _operator,
)

__all__ = [
    "F32_ROWS",
    "I32_ROWS",
    "ROWS",
    "byte_table",
    "dot_pairs",
    "dot_pairs_rows",
    "dot_quads",
    "dot_quads_rows",
    "load_rows",
    "splat_bytes",
    "splat_bytes_rows",
    "splat_rows",
    "store_int",
    "store_rows",
    "to_float_rows",
    "zero_int",
    "zero_rows",
]

ROWS = 3
I32_ROWS = Vector(f"{ROWS} of i32x64", ir.ArrayType(INTS, ROWS))
F32_ROWS = Vector(f"{ROWS} of f32x64", ir.ArrayType(FLOATS, ROWS))

HALVES = ir.VectorType(WORD, 2 * LANES)
BYTES = ir.VectorType(BYTE, 4 * LANES)

# CPUs, by LLVM's name, that have `vpdpbusd` although their name comes without a list of features:
# for 16 lanes and for 8.
VNNI_512_CPUS = (
    *("cascadelake", "cooperlake", "icelake-client", "icelake-server", "rocketlake", "tigerlake"),
    *("sapphirerapids", "emeraldrapids", "graniterapids", "znver4", "znver5"),
)
VNNI_256_CPUS = ("alderlake", "raptorlake", "meteorlake", "arrowlake", "lunarlake", "sierraforest")

# LLVM's names of instructions on so many lanes.
DOT_PRODUCTS = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}
SHUFFLES = {16: "llvm.x86.avx512.pshuf.b.512", 8: "llvm.x86.avx2.pshuf.b"}

# (context, builder, total, x, y) → total + the products of the parts of each lane
Step = Callable[..., ir.Value]


# Moving

zero_int = _instruction(I32, (), lambda _: _constant(INTS, 0))
_operator(operator.xor, I32, lambda b, x, y: b.xor(x, y))


def _store_int(_typing: Any, array: types.Array, _offset: Any, _vector: Any) -> Any:  # noqa: ANN401
    """Write 64 ints at a byte offset."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
        place = _address(context, builder, signature.args[0], values[0], values[1], INTS)
        builder.store(values[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, I32), emit


def _splat_bytes(_typing: Any, array: types.Array, _offset: Any) -> Any:  # noqa: ANN401
    """The four bytes at a byte offset, in every lane."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
        place = _address(context, builder, signature.args[0], values[0], values[1], INT)
        return _in_every_lane(builder, builder.load(place, align=1), INTS)

    return I32(array, types.intp), emit


store_int: Any = intrinsic(_store_int)
splat_bytes: Any = intrinsic(_splat_bytes)


# Dot products


def _add_pairs(
    _context: Any,  # noqa: ANN401
    builder: ir.IRBuilder,
    total: ir.Value,
    x: ir.Value,
    y: ir.Value,
) -> ir.Value:
    """total + x.low·y.low + x.high·y.high, of signed 16-bit halves; LLVM knows it as `pmaddwd`."""
    wide = ir.VectorType(INT, 2 * LANES)
    products = builder.mul(
        builder.sext(builder.bitcast(x, HALVES), wide),
        builder.sext(builder.bitcast(y, HALVES), wide),
    )
    undefined = ir.Constant(wide, ir.Undefined)
    low, high = (
        builder.shuffle_vector(
            products, undefined, ir.Constant(INTS, list(range(first, 2 * LANES, 2)))
        )
        for first in (0, 1)
    )
    return builder.add(total, builder.add(low, high))


def _add_quads(
    context: Any,  # noqa: ANN401
    builder: ir.IRBuilder,
    total: ir.Value,
    weights: ir.Value,
    x: ir.Value,
) -> ir.Value:
    """total + the four products of weights' unsigned bytes with x's signed ones."""
    width = _vnni_lanes(context)
    if width:
        part = ir.VectorType(INT, width)
        return _in_parts(builder, DOT_PRODUCTS[width], part, [total, weights, x])
    eight = ir.Constant(HALVES, [8] * 2 * LANES)
    weights, x = builder.bitcast(weights, HALVES), builder.bitcast(x, HALVES)
    even = (
        builder.and_(weights, ir.Constant(HALVES, [255] * 2 * LANES)),
        builder.ashr(builder.shl(x, eight), eight),
    )
    odd = builder.lshr(weights, eight), builder.ashr(x, eight)
    return _add_pairs(context, builder, _add_pairs(context, builder, total, *even), *odd)


def _in_parts(
    builder: ir.IRBuilder, name: str, part: ir.VectorType, vectors: Sequence[ir.Value]
) -> ir.Value:
    """An instruction on parts of vectors, as often as 64 lanes need it."""
    instruction = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, ir.FunctionType(part, [part] * len(vectors)), name
    )
    width = part.count * part.element.width // INT.width
    results = []
    for first in range(0, LANES, width):
        arguments = [_lanes(builder, vector, first, width) for vector in vectors]
        result = builder.call(instruction, [builder.bitcast(a, part) for a in arguments])
        results.append(builder.bitcast(result, ir.VectorType(INT, width)))
    while len(results) > 1:
        results = [_joined(builder, *results[i : i + 2]) for i in range(0, len(results), 2)]
    return results[0]


def _vnni_lanes(context: Any) -> int:  # noqa: ANN401
    """How many lanes one `vpdpbusd` of the CPU that is compiled for has; 0: it has none."""
    _, cpu, features = context.codegen().magic_tuple()
    if "+avx512vnni" in features or cpu in VNNI_512_CPUS:
        return 16
    return 8 if "+avxvnni" in features or cpu in VNNI_256_CPUS else 0


def _of_one_row(step: Step) -> Any:  # noqa: ANN401
    """An intrinsic (total, x, y) → total + the products."""

    def typed(_typing: Any, _total: Any, _x: Any, _y: Any) -> Any:  # noqa: ANN401
        def emit(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
            return step(context, builder, *values)

        return I32(I32, I32, I32), emit

    return intrinsic(typed)


dot_pairs = _of_one_row(_add_pairs)
dot_quads = _of_one_row(_add_quads)


# Several rows: what is done to one row's vector is done to each


def _as_rows(builder: ir.IRBuilder, kind: Vector, vectors: Sequence[ir.Value]) -> ir.Value:
    nothing = ir.Constant(kind.llvm_type, ir.Undefined)
    return reduce(lambda rows, r: builder.insert_value(rows, vectors[r], r), range(ROWS), nothing)


def _vectors(builder: ir.IRBuilder, value: ir.Value) -> list[ir.Value]:
    """The rows' vectors; one vector is the same for all rows."""
    if isinstance(value.type, ir.VectorType):
        return [value] * ROWS
    return [builder.extract_value(value, r) for r in range(ROWS)]


def _row_by_row(result: Vector, arguments: Sequence[Vector], build: Build) -> Any:  # noqa: ANN401
    """An intrinsic on rows, or rows and a vector: `build(builder, *vectors)` emits one row's."""

    def build_all(builder: ir.IRBuilder, *values: ir.Value) -> ir.Value:
        each = zip(*(_vectors(builder, value) for value in values), strict=True)
        return _as_rows(builder, result, [build(builder, *row) for row in each])

    return _instruction(result, arguments, build_all)


def _operator_of_rows(
    symbol: Callable[..., object], left: Vector, right: Vector, build: Build
) -> None:
    """Let `a symbol b` be one LLVM instruction for each row; the result is of `left`'s type."""
    of_rows = _row_by_row(left, (left, right), build)

    @overload(symbol, inline="always")
    def overloaded(a: object, b: object) -> Callable[..., object] | None:
        def implementation(a: object, b: object) -> object:
            return of_rows(a, b)

        return implementation if a is left and b is right else None


_operator_of_rows(operator.add, I32_ROWS, I32_ROWS, lambda b, x, y: b.add(x, y))
_operator_of_rows(operator.mul, I32_ROWS, I32, lambda b, x, y: b.mul(x, y))
_operator_of_rows(operator.add, F32_ROWS, F32_ROWS, lambda b, x, y: b.fadd(x, y))
_operator_of_rows(operator.sub, F32_ROWS, F32_ROWS, lambda b, x, y: b.fsub(x, y))
_operator_of_rows(operator.mul, F32_ROWS, F32_ROWS, lambda b, x, y: b.fmul(x, y))
_operator_of_rows(operator.mul, F32_ROWS, F32, lambda b, x, y: b.fmul(x, y))

zero_rows = _instruction(I32_ROWS, (), lambda b: _as_rows(b, I32_ROWS, [_constant(INTS, 0)] * ROWS))
to_float_rows = _row_by_row(F32_ROWS, (I32_ROWS,), lambda b, x: b.sitofp(x, FLOATS))


def _splat_each(
    context: Any,  # noqa: ANN401
    builder: ir.IRBuilder,
    array_type: types.Array,
    place: Sequence[ir.Value],
    vector: ir.VectorType,
) -> list[ir.Value]:
    """Four bytes in every lane, for each row; place: array, byte offset, the rows' distance."""
    array, offset, stride = place
    splats = []
    for _ in range(ROWS):
        address = _address(context, builder, array_type, array, offset, vector.element)
        splats.append(_in_every_lane(builder, builder.load(address, align=1), vector))
        offset = builder.add(offset, stride)
    return splats


def _splat_rows(result: Vector, vector: ir.VectorType) -> Any:  # noqa: ANN401
    """An intrinsic (array, byte offset, distance) → rows, each with four bytes in every lane."""

    def typed(_typing: Any, array: types.Array, _offset: Any, _stride: Any) -> Any:  # noqa: ANN401
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
            splats = _splat_each(context, builder, signature.args[0], values, vector)
            return _as_rows(builder, result, splats)

        return result(array, types.intp, types.intp), emit

    return intrinsic(typed)


def _dot_rows(step: Step) -> Any:  # noqa: ANN401
    """An intrinsic (totals, w, array, byte offset, distance) → totals + the products.

    Of the one vector w with each row's four bytes, which are found as by `splat_bytes_rows`.
    """

    def typed(
        _typing: Any,  # noqa: ANN401
        _totals: Any,  # noqa: ANN401
        _w: Any,  # noqa: ANN401
        array: types.Array,
        _offset: Any,  # noqa: ANN401
        _stride: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
            totals, w, *place = values
            splats = _splat_each(context, builder, signature.args[2], place, INTS)
            pairs = zip(_vectors(builder, totals), splats, strict=True)
            sums = [step(context, builder, total, w, a) for total, a in pairs]
            return _as_rows(builder, I32_ROWS, sums)

        return I32_ROWS(I32_ROWS, I32, array, types.intp, types.intp), emit

    return intrinsic(typed)


def _load_rows(_typing: Any, array: types.Array, _offset: Any) -> Any:  # noqa: ANN401
    """Rows of 64 floats that lie one behind the other from a byte offset on."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
        first = _address(context, builder, signature.args[0], values[0], values[1], FLOATS)
        places = [builder.gep(first, [ir.Constant(INT, r)]) for r in range(ROWS)]
        loaded = [builder.load(place, align=4) for place in places]
        return _as_rows(builder, F32_ROWS, loaded)

    return F32_ROWS(array, types.intp), emit


def _store_rows(_typing: Any, array: types.Array, _offset: Any, _rows: Any) -> Any:  # noqa: ANN401
    """Write rows of 64 floats one behind the other from a byte offset on."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
        first = _address(context, builder, signature.args[0], values[0], values[1], FLOATS)
        for r, row in enumerate(_vectors(builder, values[2])):
            builder.store(row, builder.gep(first, [ir.Constant(INT, r)]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, F32_ROWS), emit


splat_bytes_rows = _splat_rows(I32_ROWS, INTS)
splat_rows = _splat_rows(F32_ROWS, FLOATS)
dot_pairs_rows = _dot_rows(_add_pairs)
dot_quads_rows = _dot_rows(_add_quads)
load_rows: Any = intrinsic(_load_rows)
store_rows: Any = intrinsic(_store_rows)


# Table of bytes


def byte_table(values: Sequence[int]) -> Any:  # noqa: ANN401
    """An intrinsic: each byte 0 … 15 of the lanes → the number at that place in `values`.

    CPUs with `vpdpbusd` have an instruction for it, too (`vpshufb`); elsewhere each of the four
    bits halves the choice.
    """
    in_words = struct.unpack("<4i", bytes(values))

    def choose(builder: ir.IRBuilder, indices: ir.Value) -> ir.Value:
        places = builder.bitcast(indices, BYTES)
        left: list[ir.Value] = [_bytes(value) for value in values]
        for bit in range(4):
            masked = builder.and_(places, _bytes(1 << bit))
            is_set = builder.icmp_unsigned("!=", masked, _bytes(0))
            pairs = zip(left[0::2], left[1::2], strict=True)
            left = [builder.select(is_set, odd, even) for even, odd in pairs]
        return builder.bitcast(left[0], INTS)

    def typed(_typing: Any, _indices: Any) -> Any:  # noqa: ANN401
        def emit(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:  # noqa: ANN401
            width = _vnni_lanes(context)
            if not width:
                return choose(builder, args[0])
            table = ir.Constant(INTS, in_words * (LANES // len(in_words)))
            part = ir.VectorType(BYTE, 4 * width)
            return _in_parts(builder, SHUFFLES[width], part, [table, args[0]])

        return I32(I32), emit

    return intrinsic(typed)


def _bytes(value: int) -> ir.Constant:
    return ir.Constant(BYTES, [value] * BYTES.count)
