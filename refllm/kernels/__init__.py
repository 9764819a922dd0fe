"""The compiled functions of the networks; each equals `refllm.oracle` in every bit.

Start with `linear`, the matrix product, which has one case written out. `packed` has the layout
of weights and the block decoders, `simd` the vector type, `int8` the product with quantized
activations. `attention` and `kv_attention`, `elementwise`, `pooling`, `math`, `math64` and `topk`
have the other functions.

Imports `refllm.quant`, `refllm.ggml`, `refllm.jit` and the layers below them.
"""
