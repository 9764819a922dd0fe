"""Which bytes of a GGML block stay together when rows are laid side by side.

A half or a float is one number, so its bytes stay together. Quants of less than a byte stay
together by fours: one vector of 32-bit words then has four bytes of each row, and shifts move one
quant after the other to the lowest bits. Loading single bytes would need a conversion for each.

    bytes 2 … 5 of the rows' blocks of Q4_0, as words:

    word of row 0:   q[0]₀ q[1]₀ q[2]₀ q[3]₀     each q two nibbles: eight quants of the row
    word of row 1:   q[0]₁ q[1]₁ q[2]₁ q[3]₁
    …

Letters: d, m, dmin, h, q as drawn in `refllm.ggml.blocks` and `refllm.ggml.superblocks`.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["WIDE_FIELDS"]


def _words(first: int, n_bytes: int) -> dict[int, int]:
    """Return `n_bytes` bytes from `first` on, by fours."""
    return dict.fromkeys(range(first, first + n_bytes, 4), 4)


# For each format: where a field begins in the block → how many bytes it has. All other bytes are
# fields of one byte. A format that is not here has no kernel and becomes F32 when it is packed.
WIDE_FIELDS: Mapping[str, Mapping[int, int]] = {
    "F32": {0: 4},
    "F16": {0: 2},
    "BF16": {0: 2},
    "Q4_0": {0: 2, **_words(2, 16)},  # d, q
    "Q4_1": {0: 2, 2: 2, **_words(4, 16)},  # d, m, q
    "Q5_0": {0: 2, **_words(2, 4), **_words(6, 16)},  # d, h, q
    "Q5_1": {0: 2, 2: 2, **_words(4, 4), **_words(8, 16)},  # d, m, h, q
    "Q8_0": {0: 2},  # d; q is a byte anyway
    "IQ4_NL": {0: 2, **_words(2, 16)},  # d, q
    "Q2_K": {**_words(16, 64), 80: 2, 82: 2},  # q, d, dmin
    "Q3_K": {**_words(0, 32), **_words(32, 64), 108: 2},  # h, q, d
    "Q4_K": {0: 2, 2: 2, **_words(16, 128)},  # d, dmin, q
    "Q5_K": {0: 2, 2: 2, **_words(16, 32), **_words(48, 128)},  # d, dmin, h, q
    "Q6_K": {**_words(0, 128), **_words(128, 64), 208: 2},  # q, h, d
    "IQ4_XS": {0: 2, **_words(8, 128)},  # d, q
}
