"""Load and store rows of vectors (`refllm.kernels.simd.lanes`).

The rows of a matrix are a fixed number of bytes apart, their *distance*. There is an intrinsic for
each number of rows, because that decides how many registers they take:

    totals = load_rows(sums, 0, width)
    for k in range(n):
        totals = totals + splat_rows(x, 4 * k, distance) * load_f32(panel, k * ROW)
    store_rows(sums, 0, width, totals)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from refllm.kernels.simd.lanes import (
    FLOATS,
    REGISTERS,
    Kind,
    Vector,
    address,
    as_value,
    in_every_lane,
    places_of,
    registers_of,
)

__all__ = ["load_rows_of", "splat_rows_of", "store_rows"]


def load_rows_of(count: int, registers: int = REGISTERS) -> Any:
    """Return an intrinsic (array, byte offset, distance) → rows of floats."""

    def typed(_typing: Any, array: types.Array, _offset: Any, _distance: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            firsts = _firsts(context, builder, signature.args[0], values, FLOATS, count)
            places = [place for first in firsts for place in places_of(builder, first, registers)]
            return as_value(builder, [builder.load(place, align=4) for place in places])

        return Vector("f32", count, registers)(array, types.intp, types.intp), emit

    return intrinsic(typed)


def _store_rows(
    _typing: Any,
    array: types.Array,
    _offset: Any,
    _distance: Any,
    rows: Vector,
) -> Any:
    """An intrinsic (array, byte offset, distance, rows): write rows of floats."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        kind = signature.args[0]
        firsts = _firsts(context, builder, kind, values[:3], FLOATS, rows.rows)
        n = rows.registers
        places = [place for first in firsts for place in places_of(builder, first, n)]
        for register, place in zip(registers_of(builder, values[3]), places, strict=True):
            builder.store(register, place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, rows), emit


store_rows: Any = intrinsic(_store_rows)


def splat_rows_of(kind: Kind, count: int, registers: int = REGISTERS) -> Any:
    """Return an intrinsic (array, byte offset, distance) → rows, their four bytes in every lane."""
    rows = Vector(kind, count, registers)

    def typed(_typing: Any, array: types.Array, _offset: Any, _distance: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            element = rows.register.element
            places = _firsts(context, builder, signature.args[0], values, element, count)
            loaded = [builder.load(place, align=1) for place in places]
            splats = [in_every_lane(builder, value, rows.register) for value in loaded]
            return as_value(builder, [splat for splat in splats for _ in range(registers)])

        return rows(array, types.intp, types.intp), emit

    return intrinsic(typed)


def _firsts(
    context: Any,
    builder: ir.IRBuilder,
    array_type: types.Array,
    place: Sequence[ir.Value],
    target: ir.Type,
    count: int,
) -> list[ir.Value]:
    """Return pointers to each row's beginning; place: array, byte offset, distance."""
    array, offset, distance = place
    pointers = []
    for _ in range(count):
        pointers.append(address(context, builder, array_type, array, offset, target))
        offset = builder.add(offset, distance)
    return pointers
