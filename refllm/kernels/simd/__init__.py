"""Vectors whose lanes are outputs, as values in numba's functions.

Start with `lanes`, the vector type and its operations; `rows` has vectors of several rows, `ints`
integer dot products, `transpose` the transposition of small squares of bytes.

Imports `refllm.jit` only.
"""
