"""Sixteen float64 numbers side by side: the sums of rule 3 of SPEC.md, and elementary functions.

One sum must wait for each of its additions: four cycles a number. So a row's sum is sixteen, on
every CPU, the first of the numbers 0, 16, 32, …, the next of 1, 17, 33, …; at the end the upper
half is added to the lower one until one number is left:

    s[0 … 7] + s[8 … 15]  →  s[0 … 3] + s[4 … 7]  →  s[0, 1] + s[2, 3]  →  s[0] + s[1]

Sixteen are two registers of AVX-512, four of AVX2, eight of NEON or SSE2. As with
`refllm.kernels.simd.lanes`, the value is a numba type, whose operations emit LLVM instructions for
each register:

    sums = no_sums()
    for first in range(0, row.size - SUMS + 1, SUMS):
        sums = sums + load(row, first)
    total = add_halves(sums)

`+`, `-` and `*` take sixteen numbers or one on either side. The functions at the end of this module
are for one number as well, so that `refllm.kernels.math` has each formula once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from refllm.kernels.simd.lanes import (
    FLOAT,
    INT,
    WIDTH,
    as_value,
    constant,
    declared,
    in_every_lane,
    registers_of,
)

__all__ = [
    "SUMS",
    "add_halves",
    "at_least",
    "largest_of",
    "load",
    "load_some",
    "no_sums",
    "store",
    "times_power",
]

SUMS = 16
MANTISSA_BITS = 52
DOUBLE = ir.DoubleType()
LONG = ir.IntType(64)
DOUBLES_WIDTH = WIDTH // 2  # of a register
DOUBLES = ir.VectorType(DOUBLE, DOUBLES_WIDTH)
LONGS = ir.VectorType(LONG, DOUBLES_WIDTH)
REGISTERS = SUMS // DOUBLES_WIDTH


class Doubles(types.Type):
    """The numba type of sixteen float64 numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"f64x{SUMS}")


F64 = Doubles()


@register_model(Doubles)
class DoublesModel(models.PrimitiveModel):
    """An array of registers."""

    def __init__(self, manager: Any, doubles: Doubles) -> None:
        registers = ir.ArrayType(DOUBLES, REGISTERS)
        super().__init__(manager, doubles, registers)  # type: ignore[no-untyped-call]


def _no_sums(_typing: Any) -> Any:
    """An intrinsic: sixteen zeros."""

    def emit(_context: Any, _builder: Any, _signature: Any, _values: Any) -> ir.Value:
        return ir.Constant(ir.ArrayType(DOUBLES, REGISTERS), None)

    return F64(), emit


no_sums: Any = intrinsic(_no_sums)


Build = Callable[..., ir.Value]


def _operation(build: Build) -> Any:
    """An intrinsic on two times sixteen numbers; `build(builder, x, y)` emits it for a register.

    An argument that is one float64 is in every lane.
    """

    def typed(_typing: Any, a: types.Type, b: types.Type) -> Any:
        def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
            columns = [
                registers_of(builder, value)
                if isinstance(value.type, ir.ArrayType)
                else [in_every_lane(builder, value, DOUBLES)] * REGISTERS
                for value in values
            ]
            return as_value(builder, [build(builder, *row) for row in zip(*columns, strict=True)])

        return F64(a, b), emit

    return intrinsic(typed)


def _operator(symbol: Callable[..., object], build: Build) -> None:
    """Let `a symbol b` be one LLVM instruction for each register."""
    of_doubles = _operation(build)

    @overload(symbol, inline="always")
    def overloaded(a: object, b: object) -> Callable[..., object] | None:
        def implementation(a: object, b: object) -> object:
            return of_doubles(a, b)

        kinds = {type(a), type(b)}
        return implementation if Doubles in kinds and kinds <= {Doubles, types.Float} else None


_operator(operator.add, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, lambda b, x, y: b.fmul(x, y))


# Memory: contiguous arrays of float32 or float64 numbers; a place counts numbers in row-major order


def _registers_at(builder: ir.IRBuilder, first: ir.Value) -> ir.Value:
    """Return the sixteen floats or doubles from `first` on, as doubles."""
    element = first.type.pointee
    stored = ir.VectorType(element, DOUBLES_WIDTH)
    place = builder.bitcast(first, stored.as_pointer())
    loaded = [
        builder.load(builder.gep(place, [ir.Constant(INT, i)]), align=4 if element == FLOAT else 8)
        for i in range(REGISTERS)
    ]
    if element == FLOAT:
        loaded = [builder.fpext(register, DOUBLES) for register in loaded]
    return as_value(builder, loaded)


def _place(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, first: Any) -> ir.Value:
    """Return a pointer to a number of a contiguous array."""
    if kind.layout != "C":
        raise TypeError(f"an array that is not contiguous has no sixteen numbers in a row: {kind}")
    return builder.gep(context.make_array(kind)(context, builder, array).data, [first])


def _load(_typing: Any, array: types.Array, _first: Any) -> Any:
    """An intrinsic: the sixteen numbers from place `first` on."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        return _registers_at(builder, _place(context, builder, signature.args[0], *values))

    return F64(array, types.intp), emit


load: Any = intrinsic(_load)


def _load_some(_typing: Any, array: types.Array, _first: Any, _count: Any, _other: Any) -> Any:
    """An intrinsic: `count` ≤ 16 numbers from place `first` on, and `other` in the other lanes."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        array, start, count, other = values
        source = _place(context, builder, signature.args[0], array, start)
        element = source.type.pointee
        stored = ir.VectorType(element, DOUBLES_WIDTH)
        mask = ir.VectorType(ir.IntType(1), DOUBLES_WIDTH)
        pointer = stored.as_pointer()
        name = f"llvm.masked.load.v{DOUBLES_WIDTH}{'f32' if element == FLOAT else 'f64'}.p0"
        load_where = declared(builder, name, stored, (pointer, INT, mask, stored))
        others = in_every_lane(builder, other, DOUBLES)
        if element == FLOAT:
            others = builder.fptrunc(others, stored)
        counts = in_every_lane(builder, count, LONGS)
        alignment = ir.Constant(INT, 4 if element == FLOAT else 8)
        loaded = []
        for first in range(0, SUMS, DOUBLES_WIDTH):
            places = ir.Constant(LONGS, list(range(first, first + DOUBLES_WIDTH)))
            place = builder.gep(source, [ir.Constant(INT, first)])
            is_wanted = builder.icmp_signed("<", places, counts)
            arguments = [builder.bitcast(place, pointer), alignment, is_wanted, others]
            register = builder.call(load_where, arguments)
            loaded.append(builder.fpext(register, DOUBLES) if element == FLOAT else register)
        return as_value(builder, loaded)

    return F64(array, types.intp, types.intp, types.float64), emit


load_some: Any = intrinsic(_load_some)


def _registers_to(builder: ir.IRBuilder, doubles: ir.Value, first: ir.Value) -> None:
    """Write sixteen doubles from `first` on, rounded to floats if it points to floats."""
    element = first.type.pointee
    stored = ir.VectorType(element, DOUBLES_WIDTH)
    place = builder.bitcast(first, stored.as_pointer())
    for i, register in enumerate(registers_of(builder, doubles)):
        rounded = builder.fptrunc(register, stored) if element == FLOAT else register
        target = builder.gep(place, [ir.Constant(INT, i)])
        builder.store(rounded, target, align=4 if element == FLOAT else 8)


def _store(_typing: Any, array: types.Array, _first: Any, _doubles: Any) -> Any:
    """An intrinsic: write sixteen numbers from place `first` on."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        array, first, doubles = values
        _registers_to(builder, doubles, _place(context, builder, signature.args[0], array, first))
        return context.get_dummy_value()

    return types.void(array, types.intp, F64), emit


store: Any = intrinsic(_store)


# From sixteen numbers to one


def _at_least(builder: ir.IRBuilder, x: ir.Value, low: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", low, x), low, x)


def _halving(build: Build) -> Any:
    """An intrinsic: combine the upper half with the lower one, four times, to one number."""

    def typed(_typing: Any, _doubles: Any) -> Any:
        def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
            left = registers_of(builder, values[0])
            while len(left) > 1:
                half = len(left) // 2
                left = [build(builder, left[i], left[i + half]) for i in range(half)]
            [register] = left
            undefined = ir.Constant(DOUBLES, ir.Undefined)
            for width in (8, 4, 2, 1):
                if width < DOUBLES_WIDTH:
                    places = [i + width if i < width else i for i in range(DOUBLES_WIDTH)]
                    upper = ir.Constant(ir.VectorType(INT, DOUBLES_WIDTH), places)
                    shuffled = builder.shuffle_vector(register, undefined, upper)
                    register = build(builder, register, shuffled)
            return builder.extract_element(register, ir.Constant(INT, 0))

        return types.float64(F64), emit

    return intrinsic(typed)


add_halves = _halving(lambda b, x, y: b.fadd(x, y))
largest_of = _halving(_at_least)


# Functions of sixteen numbers, or of one


def _times_power(builder: ir.IRBuilder, x: ir.Value, shifted: ir.Value) -> ir.Value:
    exponent = builder.shl(builder.bitcast(shifted, LONGS), constant(LONGS, MANTISSA_BITS))
    return builder.bitcast(builder.add(builder.bitcast(x, LONGS), exponent), DOUBLES)


def at_least(x: float, y: float) -> float:
    """Return the larger one; a NaN x stays NaN."""
    return y if y > x else x


def times_power(x: float, y: float) -> float:
    """Return x·2**n for y = n + 1.5·2^52, if x and the result are normal numbers.

    The lowest bits of y are n, which is added to the exponent of x. A NaN that was a float32 has
    zeros there, so it does not make a number of a NaN x.
    """
    exponent = np.float64(y).view(np.int64) << MANTISSA_BITS
    total: float = np.int64(np.float64(x).view(np.int64) + exponent).view(np.float64)
    return total


def _for_sixteen(of_one: Callable[[float, float], float], build: Build) -> None:
    """Let kernels call the function of two numbers, and with sixteen of them, too."""
    of_doubles = _operation(build)

    @overload(of_one)
    def chosen(x: float, y: float) -> object:
        def of_sixteen(x: float, y: float) -> float:
            result: float = of_doubles(x, y)
            return result

        return of_sixteen if isinstance(x, Doubles) else of_one


_for_sixteen(at_least, _at_least)
_for_sixteen(times_power, _times_power)
