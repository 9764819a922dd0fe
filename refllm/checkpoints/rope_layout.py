"""The two orders of a llama's query and key rows, and both ways between them.

H heads, E head width, N = H · E rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from refllm.quant import Tensor

__all__ = ["half_split", "interleaved"]


def interleaved(rows: NDArray[np.uint8], *, n_heads: int) -> NDArray[np.uint8]:
    """Query or key rows in Hugging Face's order → GGUF's order; both uint8 [H * E, row_bytes].

    RoPE turns pairs of elements of a head. Meta's weights, and GGUF with them, have the two of a
    pair side by side; Hugging Face has all first ones and then all second ones. Rows of a head
    with E = 8, where a and b are the two elements of pair 0, 1, 2, 3:

        Hugging Face, half-split:   a0 a1 a2 a3 b0 b1 b2 b3     pair i = rows i and i + E/2
        GGUF, interleaved:          a0 b0 a1 b1 a2 b2 a3 b3     pair i = rows 2i and 2i + 1

    Everything in refllm is interleaved; this is the only place that knows the other. A query and a
    key reordered alike have the same dot product, so the order is nobody else's concern. Whole
    rows move, as bytes: no number changes. A bias is reordered as rows of one element.

    Source: `permute` in Hugging Face's convert_llama_weights_to_hf.py, which this undoes.
    """
    n_rows = len(rows)
    half_split = np.arange(n_rows).reshape(n_heads, 2, n_rows // n_heads // 2)  # [H, 2, E/2]
    return rows[half_split.swapaxes(1, 2).reshape(n_rows)]


def half_split(tensor: Tensor, *, n_heads: int) -> Tensor:
    """A query or key with rows 2i and 2i + 1 of each head moved to i and i + E/2.

    That is Hugging Face's order; `interleaved` draws both, and undoes this. A bias
    is reordered as rows of one element.
    Source: `permute` in Hugging Face's convert_llama_weights_to_hf.py.
    """
    n_rows = tensor.shape[0]
    pairs = np.arange(n_rows).reshape(n_heads, n_rows // n_heads // 2, 2)  # [H, E/2, 2]
    order = pairs.swapaxes(1, 2).reshape(n_rows)
    rows = tensor.data.reshape(n_rows, -1)[order]
    return replace(tensor, data=rows.reshape(tensor.data.shape))
