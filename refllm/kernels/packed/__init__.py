"""Weights as panels, W rows side by side, and how a panel's blocks are decoded.

Start with `panels`, the layout, and its `fields`; `decode_blocks` and `decode_superblocks` decode a
block of W rows in registers, `tile` is the inner loop of products with many rows, `checksum` checks
panels that come from a file.

Imports `refllm.kernels.simd`, `refllm.quant`, `refllm.ggml` and `refllm.jit`.
"""
