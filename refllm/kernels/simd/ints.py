"""Integer dot products in the lanes of a vector: four products of bytes at once.

A lane of an `I32` (`refllm.kernels.simd.lanes`) is four bytes wide, so it holds four small numbers
of its row, a *quad*:

    lane              0                    1            …            15
    weights    w[0, k … k+3]        w[1, k … k+3]             w[15, k … k+3]     unsigned, 0 … 255
    a          a[k … k+3]           a[k … k+3]                a[k … k+3]         signed, −127 … 127
    total      += their four products      …                         …           int32

`dot_quads` is that step. On CPUs with AVX-512 VNNI or AVX-VNNI it is one instruction, `vpdpbusd`,
and the reason why one side is unsigned; `refllm.kernels.int8.blocks` makes signed weights unsigned
without changing the result. ARM64 has `sdot`, for signed bytes on both sides. On other CPUs even
and odd bytes are spread to 16 bits and multiplied there (`pmaddwd`): *words*, for many rows both
sides once (`even_bytes`, `odd_bytes`). None of them rounds or saturates, so the integers are the
same.

AVX2 without VNNI has half of the step (`vpmaddubsw`): the lane's first two products are added up
in its lower 16 bits, the other two in its upper 16 bits, a *pair* of sums. Where weights are small,
so that 16 bits are enough, several quads' products are added up there (`add_products`), and
`dot_pairs` brings the sums to 32 bits, multiplied with a scale on the way. Weights that need all
eight bits are passed with their sign (`add_signed_products`): 2·128·127 is less than 2^15. The sign
moves to the activation, because `psignb` makes −128 of −(−128); no activation is −128.

Many rows of activations are taken several at a time (`refllm.kernels.simd.rows`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from refllm.jit.cpu import CPU
from refllm.kernels.simd.lanes import (
    BYTE,
    I32,
    INT,
    INTS,
    REGISTERS,
    WIDTH,
    WORD,
    Build,
    Kind,
    address,
    as_value,
    constant,
    declared,
    in_every_lane,
    operation,
    zeros_of,
)

__all__ = [
    "add_products",
    "add_signed_products",
    "byte_table",
    "dot_pairs",
    "dot_quads",
    "even_bytes",
    "less_halves",
    "odd_bytes",
    "splat_bytes",
    "times_halves",
    "zero_int",
]

# A register as halves and as bytes.
HALVES = ir.VectorType(WORD, 2 * WIDTH)
BYTES = ir.VectorType(BYTE, 4 * WIDTH)

# LLVM's names of instructions on registers with so many lanes.
DOT_PRODUCTS = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}
SIGNED_DOT_PRODUCT = "llvm.aarch64.neon.sdot.v4i32.v16i8"
PAIR_PRODUCTS = {8: "llvm.x86.avx2.pmadd.ub.sw", 4: "llvm.x86.ssse3.pmadd.ub.sw.128"}
SIGNS = {8: "llvm.x86.avx2.psign.b", 4: "llvm.x86.ssse3.psign.b.128"}
SHUFFLES = {
    16: "llvm.x86.avx512.pshuf.b.512",
    8: "llvm.x86.avx2.pshuf.b",
    4: "llvm.x86.ssse3.pshuf.b.128",
}


# Moving

zero_int = zeros_of("i32")


def _splat_bytes(_typing: Any, array: types.Array, _offset: Any) -> Any:
    """The four bytes at a byte offset, in every lane."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        place = address(context, builder, signature.args[0], values[0], values[1], INT)
        register = in_every_lane(builder, builder.load(place, align=1), INTS)
        return as_value(builder, [register] * REGISTERS)

    return I32(array, types.intp), emit


splat_bytes: Any = intrinsic(_splat_bytes)


# Dot products: a register of totals + the products of the parts of each lane


def _add_pairs(builder: ir.IRBuilder, total: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """total + x.low·y.low + x.high·y.high, of signed 16-bit halves; LLVM emits `pmaddwd`."""
    wide = ir.VectorType(INT, 2 * WIDTH)
    products = builder.mul(
        builder.sext(builder.bitcast(x, HALVES), wide),
        builder.sext(builder.bitcast(y, HALVES), wide),
    )
    undefined = ir.Constant(wide, ir.Undefined)
    low, high = (
        builder.shuffle_vector(
            products, undefined, ir.Constant(INTS, list(range(first, 2 * WIDTH, 2)))
        )
        for first in (0, 1)
    )
    return builder.add(total, builder.add(low, high))


def _add_quads(builder: ir.IRBuilder, total: ir.Value, weights: ir.Value, x: ir.Value) -> ir.Value:
    """total + the products of weights' unsigned bytes, signed for `sdot`, with x's signed ones."""
    if CPU.has_vnni:
        instruction = declared(builder, DOT_PRODUCTS[WIDTH], INTS, (INTS, INTS, INTS))
        return builder.call(instruction, [total, weights, x])
    if CPU.has_sdot:
        instruction = declared(builder, SIGNED_DOT_PRODUCT, INTS, (INTS, BYTES, BYTES))
        in_bytes = [builder.bitcast(value, BYTES) for value in (weights, x)]
        return builder.call(instruction, [total, *in_bytes])
    weights, x = builder.bitcast(weights, HALVES), builder.bitcast(x, HALVES)
    eight = constant(HALVES, 8)
    even = (
        builder.and_(weights, constant(HALVES, 255)),
        builder.ashr(builder.shl(x, eight), eight),
    )
    odd = builder.lshr(weights, eight), builder.ashr(x, eight)
    return _add_pairs(builder, _add_pairs(builder, total, *even), *odd)


def _add_products(
    builder: ir.IRBuilder, pairs: ir.Value, weights: ir.Value, x: ir.Value
) -> ir.Value:
    """Pairs + weights' unsigned bytes · x's signed ones, two products in each 16 bits."""
    instruction = declared(builder, PAIR_PRODUCTS[WIDTH], HALVES, (BYTES, BYTES))
    products = builder.call(instruction, [builder.bitcast(value, BYTES) for value in (weights, x)])
    return builder.bitcast(builder.add(builder.bitcast(pairs, HALVES), products), INTS)


def _add_signed_products(
    builder: ir.IRBuilder, pairs: ir.Value, weights: ir.Value, x: ir.Value
) -> ir.Value:
    """The same of weights' signed bytes: magnitudes · (x with the weights' signs)."""
    weights, x = builder.bitcast(weights, BYTES), builder.bitcast(x, BYTES)
    is_negative = builder.icmp_signed("<", weights, constant(BYTES, 0))
    magnitudes = builder.select(is_negative, builder.neg(weights), weights)
    signs = declared(builder, SIGNS[WIDTH], BYTES, (BYTES, BYTES))
    return _add_products(builder, pairs, magnitudes, builder.call(signs, [x, weights]))


def _even_bytes(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Each lane's signed bytes 0 and 2, 16 bits wide."""
    eight = constant(HALVES, 8)
    low = builder.shl(builder.bitcast(x, HALVES), eight)
    return builder.bitcast(builder.ashr(low, eight), INTS)


def _odd_bytes(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Each lane's signed bytes 1 and 3, 16 bits wide."""
    return builder.bitcast(builder.ashr(builder.bitcast(x, HALVES), constant(HALVES, 8)), INTS)


def _in_halves(build: Build) -> Build:
    """Return `build` for the 16-bit halves of a register's lanes."""
    return lambda b, x, y: b.bitcast(build(b, b.bitcast(x, HALVES), b.bitcast(y, HALVES)), INTS)


THREE_INTS: tuple[Kind, ...] = ("i32", "i32", "i32")
dot_pairs = operation("i32", THREE_INTS, _add_pairs)
dot_quads = operation("i32", THREE_INTS, _add_quads)
even_bytes = operation("i32", ("i32",), _even_bytes)
odd_bytes = operation("i32", ("i32",), _odd_bytes)
times_halves = operation("i32", ("i32", "i32"), _in_halves(lambda b, x, y: b.mul(x, y)))
less_halves = operation("i32", ("i32", "i32"), _in_halves(lambda b, x, y: b.sub(x, y)))
add_products = operation("i32", THREE_INTS, _add_products)
add_signed_products = operation("i32", THREE_INTS, _add_signed_products)


# Table of bytes


def byte_table(values: Sequence[int]) -> Any:
    """An intrinsic: each byte 0 … 15 of the lanes → the number at that place in `values`.

    Many CPUs have an instruction for it (`vpshufb`); elsewhere it is a tree of selections.
    """
    in_words = struct.unpack("<4i", bytes(values))

    def shuffle(builder: ir.IRBuilder, indices: ir.Value) -> ir.Value:
        instruction = declared(builder, SHUFFLES[WIDTH], BYTES, (BYTES, BYTES))
        table = builder.bitcast(ir.Constant(INTS, in_words * (WIDTH // 4)), BYTES)
        found = builder.call(instruction, [table, builder.bitcast(indices, BYTES)])
        return builder.bitcast(found, INTS)

    def halve(builder: ir.IRBuilder, indices: ir.Value) -> ir.Value:
        places = builder.bitcast(indices, BYTES)
        left: list[ir.Value] = [constant(BYTES, value) for value in values]
        for bit in range(4):
            masked = builder.and_(places, constant(BYTES, 1 << bit))
            is_set = builder.icmp_unsigned("!=", masked, constant(BYTES, 0))
            pairs = zip(left[0::2], left[1::2], strict=True)
            left = [builder.select(is_set, odd, even) for even, odd in pairs]
        return builder.bitcast(left[0], INTS)

    return operation("i32", ("i32",), shuffle if CPU.shuffles_bytes else halve)
