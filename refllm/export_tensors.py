"""A stored tensor in another type, or with its rows in Hugging Face's order.

Letters: H heads, E head width, N rows, K columns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from refllm.quant import FORMATS, Tensor
from refllm.quantize import quantized

__all__ = ["half_split", "recoded"]

# Quantizing needs some dozen arrays of the size of what it quantizes.
NUMBERS_AT_A_TIME = 1 << 22


def recoded(tensor: Tensor, type_name: str) -> Tensor:
    """The tensor with its numbers in one of `refllm.quantize.QUANTIZABLE`; itself if they are.

    Errors: `InvalidInput` as `quantized`.
    """
    if tensor.format.name == type_name:
        return tensor
    n_rows, n_columns = len(tensor.data), tensor.shape[-1]
    step = max(1, NUMBERS_AT_A_TIME // n_columns)
    parts = []
    for start in range(0, n_rows, step):
        values = tensor.rows(start, min(start + step, n_rows))  # [≤ step, K]
        parts.append(quantized(tensor.name, values, type_name).data)
    data = np.concatenate(parts)  # [N, row_bytes]
    return Tensor(tensor.name, FORMATS[type_name], tensor.shape, data)


def half_split(tensor: Tensor, *, n_heads: int) -> Tensor:
    """A query or key with rows 2i and 2i + 1 of each head moved to i and i + E/2.

    That is Hugging Face's order; `refllm.weights.interleaved` draws both, and undoes this. A bias
    is reordered as rows of one element.
    Source: `permute` in Hugging Face's convert_llama_weights_to_hf.py.
    """
    n_rows = tensor.shape[0]
    pairs = np.arange(n_rows).reshape(n_heads, n_rows // n_heads // 2, 2)  # [H, E/2, 2]
    order = pairs.swapaxes(1, 2).reshape(n_rows)
    rows = tensor.data.reshape(n_rows, -1)[order]
    return replace(tensor, data=rows.reshape(tensor.data.shape))
