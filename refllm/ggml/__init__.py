"""GGML's block formats: how weights are stored, and the float32 numbers that they mean.

Start with `blocks`, where Q4_0 and its relatives are drawn byte by byte; `superblocks` has Q4_K and
its relatives, `format` what all formats have in common, `encode` the way from floats to blocks.
`refllm.quant` has the table of all formats.

Imports `refllm.jit` and the layers below it.
"""
