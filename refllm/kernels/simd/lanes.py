"""A SIMD vector as a value in numba's functions: a number for each row of a panel.

Sums must be added from left to right, which forbids the usual way to be fast, splitting one sum
over the lanes of a SIMD register. But outputs do not depend on each other, so every lane can hold
another *output* and add up its own sum in order:

    lane          0            1            2        …      15
    sum     +=  x·w[0, k]    x·w[1, k]    x·w[2, k]  …   x·w[15, k]        for k = 0, 1, 2, …

A compiler seldom finds this by itself, and permission to reorder would change the sums. So the
vector is a type, W = 16 or 64 lanes wide (`refllm.jit.cpu`), of as many registers as that takes:
four of AVX-512, two of AVX2, four of NEON or SSE2. The same source gives the same IEEE operations
in each lane, hence the same bits, on all of them.

In a kernel they look like numbers:

    total = zeros()
    for k in range(x.size):
        total = fma(splat(x[k]), load_f32(panel, k * ROW), total)
    store(out, 0, total)

The sums of several rows of activations are one value, too: *rows* of vectors, each of which is
combined with the same vector of weights. `Vector("f32", 6)` is the type of six rows, `F32` of one;
`refllm.kernels.simd.rows` loads and stores them. Vectors can be of fewer registers, for matrices
that are narrower than a panel.

How it is done: a numba *type* (`Vector`) has a *data model*, its representation in LLVM: an array
of registers. An *intrinsic* is a function that emits LLVM instructions for one register and is
repeated for all. `+`, `-`, `*`, `&`, `|`, `<<` and `>>` are overloaded with intrinsics. The `fma`
above becomes, with two registers of AVX2,

    %0 = extractvalue [2 x <8 x float>] %total, 0
    %1 = extractvalue [2 x <8 x float>] %weights, 0
    %2 = call <8 x float> @llvm.fma.v8f32(<8 x float> %x, <8 x float> %1, <8 x float> %0)

and the same for register 1. What is written with `*` and `+` stays two instructions, each of which
rounds: LLVM fuses them only with the flag `contract`, which is not set here.

Addresses are byte offsets into a one-dimensional array, whatever its element type, because a
panel of quantized weights mixes halves, bytes and nibbles.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from refllm.jit.cpu import CPU

__all__ = [
    "BYTE",
    "F32",
    "FLOAT",
    "FLOATS",
    "I32",
    "INT",
    "INTS",
    "LANES",
    "REGISTERS",
    "WIDTH",
    "WORD",
    "Build",
    "Kind",
    "Vector",
    "address",
    "as_value",
    "constant",
    "declared",
    "fma",
    "fma_of_exact",
    "in_every_lane",
    "load_bf16",
    "load_f16",
    "load_f32",
    "load_f32_of",
    "load_i8",
    "load_i32",
    "load_u8",
    "lookup_table",
    "negative",
    "operation",
    "places_of",
    "prefetch",
    "prefetch_to_write",
    "registers_of",
    "splat",
    "splat_int",
    "store",
    "to_float",
    "zeros",
    "zeros_of",
]

LANES = CPU.panel_lanes
WIDTH = CPU.float_lanes  # of a register
REGISTERS = LANES // WIDTH  # of a vector

BYTE = ir.IntType(8)
WORD = ir.IntType(16)
INT = ir.IntType(32)
HALF = ir.HalfType()
FLOAT = ir.FloatType()
INTS = ir.VectorType(INT, WIDTH)
FLOATS = ir.VectorType(FLOAT, WIDTH)

Kind = Literal["f32", "i32"]
REGISTER: dict[Kind, ir.VectorType] = {"f32": FLOATS, "i32": INTS}

# LLVM's names of the instruction that picks numbers from a register, by how many it picks.
PERMUTATIONS = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}


class Vector(types.Type):
    """The numba type of vectors of floats or ints, one vector for each of some rows."""

    def __init__(self, kind: Kind, rows: int = 1, registers: int = REGISTERS) -> None:
        self.kind, self.rows, self.registers = kind, rows, registers
        self.register = REGISTER[kind]
        super().__init__(name=f"{rows} of {kind}x{registers * WIDTH}")


F32 = Vector("f32")
I32 = Vector("i32")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A vector is an array of registers; rows of vectors are end to end in it."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        registers = ir.ArrayType(vector.register, vector.registers * vector.rows)
        super().__init__(manager, vector, registers)  # type: ignore[no-untyped-call]


Build = Callable[..., ir.Value]


def as_value(builder: ir.IRBuilder, registers: Sequence[ir.Value]) -> ir.Value:
    """Return registers as one value of numba."""
    nothing = ir.Constant(ir.ArrayType(registers[0].type, len(registers)), ir.Undefined)
    places = range(len(registers))
    return reduce(lambda value, i: builder.insert_value(value, registers[i], i), places, nothing)


def registers_of(builder: ir.IRBuilder, value: ir.Value) -> list[ir.Value]:
    """Return the registers of a value; of a scalar, the scalar."""
    if not isinstance(value.type, ir.ArrayType):
        return [value]
    return [builder.extract_value(value, i) for i in range(value.type.count)]


def operation(result: Kind, arguments: Sequence[Kind], build: Build) -> Any:
    """Return an intrinsic on vectors; `build(builder, *registers)` emits it for one register.

    Arguments may have rows. An argument with one row is then combined with each row.
    """

    def resolve(*given: types.Type) -> Any:
        vectors = [vector for vector in given if isinstance(vector, Vector)]
        if [vector.kind for vector in vectors] != list(arguments):
            return None
        rows, n_registers = max(vector.rows for vector in vectors), vectors[0].registers
        if any(vector.registers != n_registers for vector in vectors):
            return None

        def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
            columns = []
            for value in values:
                registers = registers_of(builder, value)
                columns.append(registers * (rows * n_registers // len(registers)))
            return as_value(builder, [build(builder, *row) for row in zip(*columns, strict=True)])

        return Vector(result, rows, n_registers)(*given), emit

    # numba inspects the parameters, so there is a function for each number of them.
    typed: Sequence[Callable[..., object]] = (
        lambda _typing, a: resolve(a),
        lambda _typing, a, b: resolve(a, b),
        lambda _typing, a, b, c: resolve(a, b, c),
    )
    return intrinsic(typed[len(arguments) - 1])


def constant(vector_type: ir.VectorType, value: float) -> ir.Constant:
    """Return a register with the same number in each lane."""
    return ir.Constant(vector_type, [value] * vector_type.count)


def in_every_lane(builder: ir.IRBuilder, value: ir.Value, vector_type: ir.VectorType) -> ir.Value:
    """Return a register with this value in each lane."""
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INT, 0))
    places = constant(ir.VectorType(INT, vector_type.count), 0)
    return builder.shuffle_vector(first, undefined, places)


# Making vectors, and moving between the two kinds


def zeros_of(kind: Kind, rows: int = 1, registers: int = REGISTERS) -> Any:
    """An intrinsic () → rows of zeros."""

    def typed(_typing: Any) -> Any:
        def emit(_context: Any, _builder: Any, _signature: Any, _values: Any) -> ir.Value:
            return ir.Constant(ir.ArrayType(REGISTER[kind], registers * rows), None)

        return Vector(kind, rows, registers)(), emit

    return intrinsic(typed)


def _splat_of(vector: Vector, scalar: types.Type) -> Any:
    """An intrinsic: scalar → it in every lane."""

    def typed(_typing: Any, _scalar: Any) -> Any:
        def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
            register = in_every_lane(builder, values[0], vector.register)
            return as_value(builder, [register] * REGISTERS)

        return vector(scalar), emit

    return intrinsic(typed)


zeros = zeros_of("f32")
splat = _splat_of(F32, types.float32)
splat_int = _splat_of(I32, types.int32)
to_float = operation("f32", ("i32",), lambda b, x: b.sitofp(x, FLOATS))


# Arithmetic: fma of floats, + - * on both kinds, & | ^ << >> on ints


def _operator(symbol: Callable[..., object], kind: Kind, build: Build) -> None:
    """Let `a symbol b` of two vectors be one LLVM instruction."""
    of_vectors = operation(kind, (kind, kind), build)

    @overload(symbol, inline="always")
    def overloaded(a: object, b: object) -> Callable[..., object] | None:
        def implementation(a: object, b: object) -> object:
            return of_vectors(a, b)

        both = isinstance(a, Vector) and isinstance(b, Vector) and a.kind == b.kind == kind
        return implementation if both else None


def _fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a · b + c, rounded once."""
    if CPU.fuses:
        instruction = declared(builder, f"llvm.fma.v{WIDTH}f32", FLOATS, (FLOATS, FLOATS, FLOATS))
        return builder.call(instruction, [a, b, c])
    return _fma_by_doubles(builder, a, b, c)


def _fma_by_doubles(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """The same for a CPU without the instruction, as `refllm.oracle.fma` does it.

    LLVM would call the C library's `fmaf` for each lane; some of these libraries round twice.
    """
    doubles, longs = ir.VectorType(ir.DoubleType(), WIDTH), ir.VectorType(ir.IntType(64), WIDTH)
    a, b, c = (builder.fpext(each, doubles) for each in (a, b, c))
    product = builder.fmul(a, b)
    total = builder.fadd(product, c)
    bits = builder.bitcast(total, longs)
    # Most sums round the same in one step or in two: those that are not in the middle between two
    # float32, nor so small that a float32 has fewer bits. The words of a double are looked at.
    words = builder.bitcast(total, ir.VectorType(INT, 2 * WIDTH))
    low, high = (
        builder.shuffle_vector(words, words, ir.Constant(INTS, list(range(first, 2 * WIDTH, 2))))
        for first in (0, 1)
    )
    dropped = builder.and_(low, constant(INTS, 0x1FFFFFFF))
    in_the_middle = builder.icmp_unsigned("==", dropped, constant(INTS, 0x10000000))
    magnitude = builder.and_(high, constant(INTS, 0x7FFFFFFF))
    is_small = builder.icmp_signed("<", magnitude, constant(INTS, (1023 - 126) << 20))
    is_hard = builder.bitcast(builder.or_(in_the_middle, is_small), ir.IntType(WIDTH))
    before = builder.block
    with builder.if_then(builder.icmp_unsigned("!=", is_hard, ir.Constant(is_hard.type, 0)), False):
        added = builder.fsub(total, product)
        lost = builder.fsub(product, builder.fsub(total, added))
        error = builder.fadd(lost, builder.fsub(c, added))
        zero = constant(doubles, 0.0)
        is_inexact = builder.fcmp_ordered("!=", error, zero)
        is_beyond = builder.icmp_unsigned(
            "!=", builder.fcmp_ordered(">", error, zero), builder.fcmp_ordered(">", total, zero)
        )
        nearer = builder.sub(bits, builder.zext(is_beyond, longs))
        odd = builder.select(is_inexact, builder.or_(nearer, constant(longs, 1)), bits)
        to_odd = builder.bitcast(odd, doubles)
        hard = builder.block
    result = builder.phi(doubles)
    result.add_incoming(total, before)
    result.add_incoming(to_odd, hard)
    return builder.fptrunc(result, FLOATS)


def _fma_of_exact(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a · b + c of a product that has at most 24 bits: the same number, fused or not."""
    return _fma(builder, a, b, c) if CPU.fuses else builder.fadd(builder.fmul(a, b), c)


fma = operation("f32", ("f32", "f32", "f32"), _fma)
fma_of_exact = operation("f32", ("f32", "f32", "f32"), _fma_of_exact)
negative = operation("f32", ("f32",), lambda b, x: b.fneg(x))

_operator(operator.add, "f32", lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, "f32", lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, "f32", lambda b, x, y: b.fmul(x, y))
_operator(operator.add, "i32", lambda b, x, y: b.add(x, y))
_operator(operator.sub, "i32", lambda b, x, y: b.sub(x, y))
_operator(operator.mul, "i32", lambda b, x, y: b.mul(x, y))
_operator(operator.and_, "i32", lambda b, x, y: b.and_(x, y))
_operator(operator.or_, "i32", lambda b, x, y: b.or_(x, y))
_operator(operator.xor, "i32", lambda b, x, y: b.xor(x, y))
_operator(operator.lshift, "i32", lambda b, x, y: b.shl(x, y))
_operator(operator.rshift, "i32", lambda b, x, y: b.lshr(x, y))


def lookup_table(values: Sequence[float]) -> Any:
    """Return an intrinsic: each lane's lowest four bits → the number at that index of `values`.

    Higher bits are ignored. AVX-512 has an instruction for it, AVX2 one for three bits. Elsewhere
    consecutive integers are computed by an addition, and other numbers by a tree of selections.
    """

    def count(builder: ir.IRBuilder, indices: ir.Value) -> ir.Value:
        low = builder.and_(indices, constant(INTS, 15))
        return builder.sitofp(builder.add(low, constant(INTS, int(values[0]))), FLOATS)

    def halve(builder: ir.IRBuilder, indices: ir.Value) -> ir.Value:
        left = [constant(FLOATS, value) for value in values]
        for bit in range(4):
            mask = builder.and_(indices, constant(INTS, 1 << bit))
            is_set = builder.icmp_unsigned("!=", mask, constant(INTS, 0))
            pairs = zip(left[0::2], left[1::2], strict=True)
            left = [builder.select(is_set, odd, even) for even, odd in pairs]
        return left[0]

    def permute(builder: ir.IRBuilder, indices: ir.Value) -> ir.Value:
        instruction = declared(builder, PERMUTATIONS[WIDTH], FLOATS, (FLOATS, INTS))
        firsts = range(0, 16, WIDTH)
        tables = [ir.Constant(FLOATS, list(values[first : first + WIDTH])) for first in firsts]
        found = [builder.call(instruction, [table, indices]) for table in tables]
        if len(found) == 1:
            return found[0]
        bit_3 = builder.and_(indices, constant(INTS, 8))
        is_set = builder.icmp_unsigned("!=", bit_3, constant(INTS, 0))
        return builder.select(is_set, found[1], found[0])

    is_consecutive = list(values) == [values[0] + place for place in range(16)]
    if WIDTH == 16 or (WIDTH in PERMUTATIONS and not is_consecutive):
        return operation("f32", ("i32",), permute)
    return operation("f32", ("i32",), count if is_consecutive else halve)


def declared(
    builder: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[ir.Type]
) -> ir.Value:
    """Return the function with LLVM's name for an instruction."""
    return cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, ir.FunctionType(result, arguments), name
    )


# Memory


def address(
    context: Any,
    builder: ir.IRBuilder,
    array_type: types.Array,
    array: ir.Value,
    offset: ir.Value,
    target: ir.Type,
) -> ir.Value:
    """Return a pointer to `target` at `offset` bytes from the array's beginning."""
    data = context.make_array(array_type)(context, builder, array).data
    place = builder.gep(builder.bitcast(data, BYTE.as_pointer()), [offset])
    return builder.bitcast(place, target.as_pointer())


def places_of(builder: ir.IRBuilder, first: ir.Value, registers: int) -> list[ir.Value]:
    """Return pointers to each register of the vector that begins at `first`."""
    return [builder.gep(first, [ir.Constant(INT, i)]) for i in range(registers)]


def _load(vector: Vector, element: ir.Type, convert: Build) -> Any:
    """An intrinsic (array, byte offset) → vector: elements side by side, converted."""
    stored = ir.VectorType(element, WIDTH)

    def typed(_typing: Any, array: types.Array, _offset: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            first = address(context, builder, signature.args[0], values[0], values[1], stored)
            places = places_of(builder, first, vector.registers)
            loaded = [builder.load(place, align=1) for place in places]
            return as_value(builder, [convert(builder, register) for register in loaded])

        return vector(array, types.intp), emit

    return intrinsic(typed)


def _half_to_float(builder: ir.IRBuilder, halves: ir.Value) -> ir.Value:
    """Halves, as 16-bit integers, to floats; every half is a float, so nothing rounds.

    With F16C (or on ARM) that is an instruction. Without it LLVM would call a library function
    that numba cannot resolve, so the bits are moved here: exponent and fraction are shifted to
    their places in a float, and a multiplication by 2^112 corrects the exponent's bias, for
    subnormal halves too. An infinity or NaN gets the largest exponent again.
    """
    if CPU.converts_halves:
        half_vector = ir.VectorType(HALF, WIDTH)
        return builder.fpext(builder.bitcast(halves, half_vector), FLOATS)
    wide = builder.zext(halves, INTS)
    sign = builder.shl(builder.and_(wide, constant(INTS, 0x8000)), constant(INTS, 16))
    magnitude = builder.and_(wide, constant(INTS, 0x7FFF))
    placed = builder.bitcast(builder.shl(magnitude, constant(INTS, 13)), FLOATS)
    finite = builder.bitcast(builder.fmul(placed, constant(FLOATS, 2.0**112)), INTS)
    special = builder.icmp_unsigned(">=", magnitude, constant(INTS, 0x7C00))
    endless = builder.or_(finite, constant(INTS, 0x7F800000))
    return builder.bitcast(builder.or_(sign, builder.select(special, endless, finite)), FLOATS)


def _bfloat_to_float(builder: ir.IRBuilder, halves: ir.Value) -> ir.Value:
    """A bfloat16 is the upper half of a float."""
    placed = builder.shl(builder.zext(halves, INTS), constant(INTS, 16))
    return builder.bitcast(placed, FLOATS)


def load_f32_of(registers: int) -> Any:
    """Return an intrinsic (array, byte offset) → a vector of so many registers of floats."""
    return _load(Vector("f32", 1, registers), FLOAT, lambda b, v: v)


load_f32 = load_f32_of(REGISTERS)
load_f16 = _load(F32, WORD, _half_to_float)
load_bf16 = _load(F32, WORD, _bfloat_to_float)
load_u8 = _load(I32, BYTE, lambda b, v: b.zext(v, INTS))
load_i8 = _load(I32, BYTE, lambda b, v: b.sext(v, INTS))
load_i32 = _load(I32, INT, lambda b, v: v)


def _prefetch(_typing: Any, array: types.Array, _offset: Any) -> Any:
    """An intrinsic: prefetch the memory at a byte offset, which may be outside the array."""
    return _prefetch_to(array, 0)


def _prefetch_to_write(_typing: Any, array: types.Array, _offset: Any) -> Any:
    """An intrinsic: `prefetch` memory that is written next."""
    return _prefetch_to(array, 1)


def _prefetch_to(array: types.Array, write: int) -> Any:
    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        place = address(context, builder, signature.args[0], values[0], values[1], BYTE)
        kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), INT, INT, INT])
        function = builder.module.declare_intrinsic("llvm.prefetch", [BYTE.as_pointer()], kind)
        access, keep, data = (ir.Constant(INT, value) for value in (write, 3, 1))
        builder.call(function, [place, access, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


prefetch: Any = intrinsic(_prefetch)
prefetch_to_write: Any = intrinsic(_prefetch_to_write)


def _store(_typing: Any, array: types.Array, _offset: Any, vector: Vector) -> Any:
    """An intrinsic: write a vector at a byte offset."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        kind = signature.args[0]
        first = address(context, builder, kind, values[0], values[1], vector.register)
        registers = registers_of(builder, values[2])
        places = places_of(builder, first, len(registers))
        for register, place in zip(registers, places, strict=True):
            builder.store(register, place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), emit


store: Any = intrinsic(_store)
