"""A SIMD vector as a value that numba understands: 64 numbers, one for each row of a panel.

Sums must run from left to right, which forbids the usual way to be fast: splitting one sum over
the lanes of a SIMD register. But outputs do not depend on each other, so every lane can hold
another *output* and add up its own sum in order:

    lane          0            1            2        …      63
    sum     +=  x·w[0, k]    x·w[1, k]    x·w[2, k]  …   x·w[63, k]        for k = 0, 1, 2, …

A compiler seldom finds this by itself, and may never be told to reorder. So the vector is a type:
`F32` is LLVM's `<64 x float>`, `I32` is `<64 x i32>`. LLVM splits them into whatever registers
the CPU has: four AVX-512 registers, eight of AVX2, sixteen of NEON or SSE2. The same source, the
same IEEE operations in each lane, hence the same bits, on all of them.

In a kernel they look like numbers:

    total = zeros()
    for k in range(x.size):
        total = total + load_f32(panel, k * ROW) * splat(x[k])
    store_f32(out, 0, total)

How it is done: a numba *type* (`Vector`) gets a *data model*, which says what it is for LLVM, and
*intrinsics*, functions that say which LLVM instructions they become. `+`, `-`, `*`, `&`, `|`,
`<<` and `>>` are overloaded with intrinsics. Multiplication and addition stay two instructions:
LLVM fuses them only when asked to, and nothing here asks.

Addresses are byte offsets into a one-dimensional array, whatever its element type, because a
panel of quantized weights mixes halves, bytes and nibbles.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

__all__ = [
    "F32",
    "I32",
    "LANES",
    "Vector",
    "load_bf16",
    "load_f16",
    "load_f32",
    "load_i8",
    "load_i32",
    "load_u8",
    "lookup_table",
    "prefetch",
    "splat",
    "splat_int",
    "store_f32",
    "to_float",
    "zeros",
]

LANES = 64

BYTE = ir.IntType(8)
WORD = ir.IntType(16)
INT = ir.IntType(32)
HALF = ir.HalfType()
FLOAT = ir.FloatType()
INTS = ir.VectorType(INT, LANES)
FLOATS = ir.VectorType(FLOAT, LANES)

# CPUs, by LLVM's name, that have these instructions although their name comes without a list.
F16C_CPUS = ("haswell", "skylake-avx512", "x86-64-v3", "x86-64-v4")
AVX512_CPUS = ("skylake-avx512", "x86-64-v4")


class Vector(types.Type):
    """The numba type of a vector of 64 floats or ints."""

    def __init__(self, name: str, llvm_type: ir.VectorType) -> None:
        self.llvm_type = llvm_type
        super().__init__(name=name)


F32 = Vector("f32x64", FLOATS)
I32 = Vector("i32x64", INTS)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A vector is passed and kept as the LLVM vector that it is."""

    def __init__(self, manager: Any, vector: Vector) -> None:  # noqa: ANN401
        super().__init__(manager, vector, vector.llvm_type)  # type: ignore[no-untyped-call]


Build = Callable[..., ir.Value]


def _instruction(result: types.Type, arguments: Sequence[types.Type], build: Build) -> Any:  # noqa: ANN401
    """An intrinsic on values: `build(builder, *values)` emits its LLVM instructions."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
        return build(builder, *values)

    signature = result(*arguments)
    # numba counts the parameters, so there is a function for each number of them.
    typed: Sequence[Callable[..., object]] = (
        lambda _typing: (signature, emit),
        lambda _typing, _a: (signature, emit),
        lambda _typing, _a, _b: (signature, emit),
    )
    return intrinsic(typed[len(arguments)])


def _constant(vector_type: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector_type, [value] * LANES)


def _in_every_lane(builder: ir.IRBuilder, value: ir.Value, vector_type: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INT, 0))
    return builder.shuffle_vector(first, undefined, _constant(INTS, 0))


# Making vectors, and moving between the two kinds

zeros = _instruction(F32, (), lambda _: _constant(FLOATS, 0.0))
splat = _instruction(F32, (types.float32,), lambda b, x: _in_every_lane(b, x, FLOATS))
splat_int = _instruction(I32, (types.int32,), lambda b, x: _in_every_lane(b, x, INTS))
to_float = _instruction(F32, (I32,), lambda b, x: b.sitofp(x, FLOATS))


# Arithmetic: + - * on both kinds, & | << >> on ints


def _operator(symbol: Callable[..., object], vector: Vector, build: Build) -> None:
    """Let `a symbol b` of two vectors be one LLVM instruction."""
    of_vectors = _instruction(vector, (vector, vector), build)

    @overload(symbol, inline="always")
    def overloaded(a: object, b: object) -> Callable[..., object] | None:
        def implementation(a: object, b: object) -> object:
            return of_vectors(a, b)

        return implementation if a is vector and b is vector else None


_operator(operator.add, F32, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, F32, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, F32, lambda b, x, y: b.fmul(x, y))
_operator(operator.add, I32, lambda b, x, y: b.add(x, y))
_operator(operator.sub, I32, lambda b, x, y: b.sub(x, y))
_operator(operator.mul, I32, lambda b, x, y: b.mul(x, y))
_operator(operator.and_, I32, lambda b, x, y: b.and_(x, y))
_operator(operator.or_, I32, lambda b, x, y: b.or_(x, y))
_operator(operator.lshift, I32, lambda b, x, y: b.shl(x, y))
_operator(operator.rshift, I32, lambda b, x, y: b.lshr(x, y))


def lookup_table(values: Sequence[float]) -> Any:  # noqa: ANN401
    """An intrinsic: each lane's lowest four bits → the number at that place in `values` (16).

    Whatever stands above the four bits is ignored. AVX-512 has an instruction for it. Elsewhere
    consecutive whole numbers are counted up from the first, and among others each of the four
    bits halves the choice.
    """

    def count(builder: ir.IRBuilder, indices: ir.Value) -> ir.Value:
        low = builder.and_(indices, _constant(INTS, 15))
        return builder.sitofp(builder.add(low, _constant(INTS, int(values[0]))), FLOATS)

    def choose(builder: ir.IRBuilder, indices: ir.Value) -> ir.Value:
        left = [_constant(FLOATS, value) for value in values]
        for bit in range(4):
            mask = builder.and_(indices, _constant(INTS, 1 << bit))
            is_set = builder.icmp_unsigned("!=", mask, _constant(INTS, 0))
            pairs = zip(left[0::2], left[1::2], strict=True)
            left = [builder.select(is_set, odd, even) for even, odd in pairs]
        return left[0]

    def permute(builder: ir.IRBuilder, indices: ir.Value) -> ir.Value:
        """Four times `vpermps`, 16 lanes each."""
        quarter = ir.VectorType(FLOAT, 16)
        kind = ir.FunctionType(quarter, [quarter, ir.VectorType(INT, 16)])
        name = "llvm.x86.avx512.permvar.sf.512"
        instruction = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, kind, name
        )
        table = ir.Constant(quarter, list(values))
        parts = [
            builder.call(instruction, [table, _lanes(builder, indices, first, 16)])
            for first in range(0, LANES, 16)
        ]
        halves = [_joined(builder, *parts[:2]), _joined(builder, *parts[2:])]
        return _joined(builder, *halves)

    consecutive = [values[0] + place for place in range(16)]
    elsewhere = count if list(values) == consecutive else choose

    def typed(_typing: Any, _indices: Any) -> Any:  # noqa: ANN401
        def emit(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:  # noqa: ANN401
            if _has_avx512(context):
                return permute(builder, args[0])
            return elsewhere(builder, args[0])

        return F32(I32), emit

    return intrinsic(typed)


def _lanes(builder: ir.IRBuilder, vector: ir.Value, first: int, count: int) -> ir.Value:
    """`count` lanes of a vector from lane `first` on."""
    places = ir.Constant(ir.VectorType(INT, count), list(range(first, first + count)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), places)


def _joined(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    """The lanes of `low`, then those of `high`."""
    count = 2 * low.type.count
    places = ir.Constant(ir.VectorType(INT, count), list(range(count)))
    return builder.shuffle_vector(low, high, places)


def _has_avx512(context: Any) -> bool:  # noqa: ANN401
    """Whether the CPU that is compiled for has 512-bit registers."""
    _, cpu, features = context.codegen().magic_tuple()
    return "+avx512f" in features or cpu in AVX512_CPUS


# Memory


def _address(
    context: Any,  # noqa: ANN401
    builder: ir.IRBuilder,
    array_type: types.Array,
    array: ir.Value,
    offset: ir.Value,
    target: ir.Type,
) -> ir.Value:
    """A pointer to `target` at `offset` bytes behind the array's beginning."""
    data = context.make_array(array_type)(context, builder, array).data
    place = builder.gep(builder.bitcast(data, BYTE.as_pointer()), [offset])
    return builder.bitcast(place, target.as_pointer())


def _load(result: Vector, element: ir.Type, align: int, convert: Build) -> Any:  # noqa: ANN401
    """An intrinsic (array, byte offset) → vector: 64 elements side by side, converted."""
    stored = ir.VectorType(element, LANES)

    def typed(_typing: Any, array: types.Array, _offset: Any) -> Any:  # noqa: ANN401
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
            place = _address(context, builder, signature.args[0], values[0], values[1], stored)
            return convert(context, builder, builder.load(place, align=align))

        return result(array, types.intp), emit

    return intrinsic(typed)


def _half_to_float(context: Any, builder: ir.IRBuilder, halves: ir.Value) -> ir.Value:  # noqa: ANN401
    """64 halves, as 16-bit integers, to floats; every half is a float, so nothing rounds.

    With F16C (or on ARM) that is an instruction. Without, LLVM would call a function that a JIT
    cannot find, so the bits are moved by hand: exponent and fraction go to a float's place, and
    a multiplication by 2^112 mends the exponent's bias, for subnormal halves too. What was
    infinite or NaN must be so again.
    """
    if _converts_halves(context):
        half_vector = ir.VectorType(HALF, LANES)
        return builder.fpext(builder.bitcast(halves, half_vector), FLOATS)
    wide = builder.zext(halves, INTS)
    sign = builder.shl(builder.and_(wide, _constant(INTS, 0x8000)), _constant(INTS, 16))
    magnitude = builder.and_(wide, _constant(INTS, 0x7FFF))
    placed = builder.bitcast(builder.shl(magnitude, _constant(INTS, 13)), FLOATS)
    finite = builder.bitcast(builder.fmul(placed, _constant(FLOATS, 2.0**112)), INTS)
    special = builder.icmp_unsigned(">=", magnitude, _constant(INTS, 0x7C00))
    endless = builder.or_(finite, _constant(INTS, 0x7F800000))
    return builder.bitcast(builder.or_(sign, builder.select(special, endless, finite)), FLOATS)


def _converts_halves(context: Any) -> bool:  # noqa: ANN401
    """Whether the CPU that is compiled for has instructions from half to float."""
    triple, cpu, features = context.codegen().magic_tuple()
    return not triple.startswith(("x86", "i686")) or "+f16c" in features or cpu in F16C_CPUS


def _bfloat_to_float(_context: Any, builder: ir.IRBuilder, halves: ir.Value) -> ir.Value:  # noqa: ANN401
    """A bfloat16 is the upper half of a float."""
    placed = builder.shl(builder.zext(halves, INTS), _constant(INTS, 16))
    return builder.bitcast(placed, FLOATS)


load_f32 = _load(F32, FLOAT, 4, lambda _, b, v: v)
load_f16 = _load(F32, WORD, 2, _half_to_float)
load_bf16 = _load(F32, WORD, 2, _bfloat_to_float)
load_u8 = _load(I32, BYTE, 1, lambda _, b, v: b.zext(v, INTS))
load_i8 = _load(I32, BYTE, 1, lambda _, b, v: b.sext(v, INTS))
load_i32 = _load(I32, INT, 4, lambda _, b, v: v)


def _prefetch(_typing: Any, array: types.Array, _offset: Any) -> Any:  # noqa: ANN401
    """Ask for the memory at a byte offset to be on its way; it may lie outside the array."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
        place = _address(context, builder, signature.args[0], values[0], values[1], BYTE)
        kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), INT, INT, INT])
        function = builder.module.declare_intrinsic("llvm.prefetch", [BYTE.as_pointer()], kind)
        to_read, keep, data = (ir.Constant(INT, value) for value in (0, 3, 1))
        builder.call(function, [place, to_read, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


prefetch: Any = intrinsic(_prefetch)


def _store_f32(_typing: Any, array: types.Array, _offset: Any, _vector: Any) -> Any:  # noqa: ANN401
    """Write 64 floats at a byte offset."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:  # noqa: ANN401
        place = _address(context, builder, signature.args[0], values[0], values[1], FLOATS)
        builder.store(values[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, F32), emit


store_f32: Any = intrinsic(_store_f32)
