"""Transpose small squares of bytes: rows of memory become columns.

A square is 16 bytes of each of some rows: 16 bytes of 16 rows, or 8 halves of 8 rows, or 4 words
of 4 rows. It is transposed in registers by interleaving ("perfect shuffles"), as many times as its
side can be halved. Of four rows of words a, b, c, d:

    a0 a1 a2 a3                  a0 c0 a1 c1                    a0 b0 c0 d0
    b0 b1 b2 b3    interleave    a2 c2 a3 c3     interleave     a1 b1 c1 d1
    c0 c1 c2 c3    a with c,     b0 d0 b1 d1     1st with 3rd,  a2 b2 c2 d2
    d0 d1 d2 d3    b with d  →   b2 d2 b3 d3     2nd, 4th  →    a3 b3 c3 d3

Copied one by one, every byte would be a load and a store, from rows that are often a power of two
apart and so share few sets of the CPU's cache.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = [
    "SQUARE_BYTES",
    "copy_half",
    "copy_word",
    "transpose_bytes",
    "transpose_halves",
    "transpose_words",
]

SQUARE_BYTES = 16  # of each row: what every CPU's vector registers hold

BYTE = ir.IntType(8)
INDEX = ir.IntType(32)


def _transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Return the columns of a square of vectors."""
    side = len(rows)
    half = side // 2
    mask = ir.VectorType(INDEX, side)
    pairs = [place for i in range(side) for place in (i, i + side)]
    interleave = (ir.Constant(mask, pairs[:side]), ir.Constant(mask, pairs[side:]))
    rounds = side.bit_length() - 1
    for _ in range(rounds):
        rows = [
            builder.shuffle_vector(rows[i], rows[i + half], places)
            for i in range(half)
            for places in interleave
        ]
    return rows


def _transpose(unit_bytes: int) -> Any:
    """An intrinsic (source, at, stride, target, to, target stride): transpose one square.

    Row i of the square begins `at + i * stride` bytes into the array `source`; column j is written
    `to + j * target_stride` bytes into `target`.
    """
    side = SQUARE_BYTES // unit_bytes
    vector = ir.VectorType(ir.IntType(8 * unit_bytes), side)

    def typed(
        _typing: Any,
        source: Any,
        _at: Any,
        _stride: Any,
        target: Any,
        _to: Any,
        _target_stride: Any,
    ) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            def pointer(array: int, i: int) -> ir.Value:
                """To row i of the source (argument 0) or column i of the target (argument 3)."""
                data = context.make_array(signature.args[array])(context, builder, values[array])
                start, stride = values[array + 1], values[array + 2]
                offset = builder.add(start, builder.mul(stride, ir.Constant(stride.type, i)))
                place = builder.gep(builder.bitcast(data.data, BYTE.as_pointer()), [offset])
                return builder.bitcast(place, vector.as_pointer())

            rows = [builder.load(pointer(0, i), align=1) for i in range(side)]
            for j, column in enumerate(_transposed(builder, rows)):
                builder.store(column, pointer(3, j), align=1)
            return context.get_dummy_value()

        index = types.intp
        return types.void(source, index, index, target, index, index), emit

    return intrinsic(typed)


transpose_bytes = _transpose(1)
transpose_halves = _transpose(2)
transpose_words = _transpose(4)


def _copy(unit_bytes: int) -> Any:
    """An intrinsic (source, at, target, to): copy so many bytes, which need not be aligned."""
    unit = ir.IntType(8 * unit_bytes)

    def typed(_typing: Any, source: Any, _at: Any, target: Any, _to: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            def pointer(array: int) -> ir.Value:
                data = context.make_array(signature.args[array])(context, builder, values[array])
                place = builder.gep(
                    builder.bitcast(data.data, BYTE.as_pointer()), [values[array + 1]]
                )
                return builder.bitcast(place, unit.as_pointer())

            builder.store(builder.load(pointer(0), align=1), pointer(2), align=1)
            return context.get_dummy_value()

        return types.void(source, types.intp, target, types.intp), emit

    return intrinsic(typed)


copy_half = _copy(2)
copy_word = _copy(4)
