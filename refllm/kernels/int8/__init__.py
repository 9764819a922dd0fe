"""The matrix product with quantized activations, as llama.cpp defines it: numerics "int8".

Start with the rule in `refllm.oracle_int8`, then `product`. `quantize` has the activations,
`blocks` the formats as integers, `inner` the inner loops.

Imports `refllm.kernels.packed`, `refllm.kernels.simd`, `refllm.quant`, `refllm.ggml`, `refllm.jit`.
"""
