"""The two orders of a llama's query and key rows, and both ways between them.

RoPE rotates pairs of elements of a head. Meta's weights, and GGUF with them, store the two of a
pair side by side; Hugging Face stores all first ones and then all second ones. Rows of a head with
E = 8, where a and b are the two elements of pair 0, 1, 2, 3:

    Hugging Face, half-split:   a0 a1 a2 a3 b0 b1 b2 b3     pair i = rows i and i + E/2
    GGUF, interleaved:          a0 b0 a1 b1 a2 b2 a3 b3     pair i = rows 2i and 2i + 1

refllm computes with interleaved rows. A query and a key reordered alike have the same dot product,
so no other module depends on the order. Whole rows move, as bytes: no number changes. A bias is
reordered as rows of one element.

H heads, E head width. Source: `permute` in Hugging Face's convert_llama_weights_to_hf.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from refllm.quant import Tensor

__all__ = ["half_split", "interleaved"]


def interleaved(rows: NDArray[np.uint8], *, n_heads: int) -> NDArray[np.uint8]:
    """Return query or key rows in GGUF's order, from Hugging Face's; both uint8 [H·E, row_bytes].

    Example:
        >>> interleaved(np.arange(8, dtype=np.uint8)[:, None], n_heads=1).ravel().tolist()
        [0, 4, 1, 5, 2, 6, 3, 7]
    """
    n_rows = len(rows)
    order = np.arange(n_rows).reshape(n_heads, 2, n_rows // n_heads // 2)  # [H, 2, E/2]
    return rows[order.swapaxes(1, 2).reshape(n_rows)]


def half_split(tensor: Tensor, *, n_heads: int) -> Tensor:
    """Return a query or key tensor in Hugging Face's order, from GGUF's; undoes `interleaved`."""
    n_rows = tensor.shape[0]
    order = np.arange(n_rows).reshape(n_heads, n_rows // n_heads // 2, 2)  # [H, E/2, 2]
    rows = tensor.data.reshape(n_rows, -1)[order.swapaxes(1, 2).reshape(n_rows)]
    return replace(tensor, data=rows.reshape(tensor.data.shape))
