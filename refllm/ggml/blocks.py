"""Formats that store 32 values (Q1_0: 128) in a block under one scale `d`.

In the drawings `y` is the block's values and `q` its bytes from the drawn place on; `d` and `m`
are float16, read exactly. Every product and every sum is rounded to float32, in the order written.
Letters: n blocks.
Source of the layouts: ggml, `ggml-common.h` (the blocks) and `ggml-quants.c` (the formulas).
"""

from __future__ import annotations

import numpy as np

from refllm.ggml.format import Format, half_at
from refllm.jit.buffers import Bytes, Floats
from refllm.jit.compile import jit

__all__ = ["IQ4_NL", "IQ4_VALUES", "Q1_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1"]

# The sixteen levels of the "non-linear" 4-bit formats: denser near zero, as weights are.
IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


class Q1_0(Format):
    """1 bit a value: its sign.

    byte   0     1     2                      17
         +-----------+------+------+-----+-------+
         |     d     | q[0] | q[1] | ... | q[15] |
         +-----------+------+------+-----+-------+
    q[j], bit i  ->  y[8*j + i]            i = 0..7

    y = d where the bit is 1, -d where it is 0
    """

    name = "Q1_0"
    block_size = 128
    block_bytes = 18

    @staticmethod
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        d = blocks[:, :2].view("<f2").astype(np.float32)  # [n, 1]
        bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")  # [n, 128]
        out[...] = np.where(bits, d, -d)


class Q4_0(Format):
    """4 bits a value, symmetric.

    byte   0     1     2      3            17
         +-----------+------+------+-----+-------+
         |     d     | q[0] | q[1] | ... | q[15] |
         +-----------+------+------+-----+-------+
    q[j], bits 3..0  ->  y[j]              j = 0..15
          bits 7..4  ->  y[j + 16]

    y = d * (nibble - 8)
    """

    name = "Q4_0"
    block_size = 32
    block_bytes = 18

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 0)
            for j in range(16):
                q = int(blocks[b, 2 + j])
                out[b, j] = d * np.float32((q & 15) - 8)
                out[b, j + 16] = d * np.float32((q >> 4) - 8)


class Q4_1(Format):
    """4 bits a value, with a minimum.

    byte   0     1     2     3     4             19
         +-----------+-----------+------+-----+-------+
         |     d     |     m     | q[0] | ... | q[15] |
         +-----------+-----------+------+-----+-------+
    q[j], bits 3..0  ->  y[j]              j = 0..15
          bits 7..4  ->  y[j + 16]

    y = d * nibble + m
    """

    name = "Q4_1"
    block_size = 32
    block_bytes = 20

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 0)
            m = half_at(blocks, b, 2)
            for j in range(16):
                q = int(blocks[b, 4 + j])
                out[b, j] = d * np.float32(q & 15) + m
                out[b, j + 16] = d * np.float32(q >> 4) + m


@jit
def _fifth_bit(blocks: Bytes, b: int, byte: int, j: int) -> int:
    """Return 16 if bit `j` of the 32 bits from `byte` on is set, else 0: the fifth bit."""
    return ((int(blocks[b, byte + (j >> 3)]) >> (j & 7)) & 1) << 4


class Q5_0(Format):
    """5 bits a value, symmetric; the fifth bits are together in h.

    byte   0     1     2            5     6             21
         +-----------+------+-----+------+------+-----+-------+
         |     d     | h[0] | ... | h[3] | q[0] | ... | q[15] |
         +-----------+------+-----+------+------+-----+-------+
    h[i], bit k      ->  y[8*i + k], the fifth bit
    q[j], bits 3..0  ->  y[j], the lower four          j = 0..15
          bits 7..4  ->  y[j + 16], the lower four

    y = d * ((16 * fifth + nibble) - 16)
    """

    name = "Q5_0"
    block_size = 32
    block_bytes = 22

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 0)
            for j in range(16):
                q = int(blocks[b, 6 + j])
                low = (q & 15) | _fifth_bit(blocks, b, 2, j)
                high = (q >> 4) | _fifth_bit(blocks, b, 2, j + 16)
                out[b, j] = d * np.float32(low - 16)
                out[b, j + 16] = d * np.float32(high - 16)


class Q5_1(Format):
    """5 bits a value, with a minimum; the fifth bits are together in h.

    byte   0     1     2     3     4            7     8             23
         +-----------+-----------+------+-----+------+------+-----+-------+
         |     d     |     m     | h[0] | ... | h[3] | q[0] | ... | q[15] |
         +-----------+-----------+------+-----+------+------+-----+-------+
    h[i], bit k      ->  y[8*i + k], the fifth bit
    q[j], bits 3..0  ->  y[j], the lower four          j = 0..15
          bits 7..4  ->  y[j + 16], the lower four

    y = d * (16 * fifth + nibble) + m
    """

    name = "Q5_1"
    block_size = 32
    block_bytes = 24

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 0)
            m = half_at(blocks, b, 2)
            for j in range(16):
                q = int(blocks[b, 8 + j])
                low = (q & 15) | _fifth_bit(blocks, b, 4, j)
                high = (q >> 4) | _fifth_bit(blocks, b, 4, j + 16)
                out[b, j] = d * np.float32(low) + m
                out[b, j + 16] = d * np.float32(high) + m


class Q8_0(Format):
    """8 bits a value, symmetric.

    byte   0     1     2             33
         +-----------+------+-----+-------+
         |     d     | q[0] | ... | q[31] |     q: int8
         +-----------+------+-----+-------+
    q[j]  ->  y[j]                         j = 0..31

    y = d * q
    """

    name = "Q8_0"
    block_size = 32
    block_bytes = 34

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 0)
            for j in range(32):
                q = (int(blocks[b, 2 + j]) ^ 128) - 128  # uint8 -> int8
                out[b, j] = d * np.float32(q)


class Q8_1(Format):
    """8 bits a value, and their sum, which a dot product with Q4_1 needs and decoding does not.

    byte   0     1     2     3     4             35
         +-----------+-----------+------+-----+-------+
         |     d     |     s     | q[0] | ... | q[31] |     q: int8, s = d * (sum of q), float16
         +-----------+-----------+------+-----+-------+
    q[j]  ->  y[j]                         j = 0..31

    y = d * q

    ggml quantizes activations to it; no tool writes it to a file. (The `gguf` package counts 40
    bytes: `d` and `s` were float32 once.)
    """

    name = "Q8_1"
    block_size = 32
    block_bytes = 36

    @staticmethod
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        d = blocks[:, :2].view("<f2").astype(np.float32)  # [n, 1]
        with np.errstate(invalid="ignore"):  # the file may have an infinite or NaN scale
            np.multiply(d, blocks[:, 4:].view(np.int8), out=out)  # [n, 32]


class IQ4_NL(Format):
    """4 bits a value, which choose one of sixteen levels (IQ4_VALUES).

    byte   0     1     2      3            17
         +-----------+------+------+-----+-------+
         |     d     | q[0] | q[1] | ... | q[15] |
         +-----------+------+------+-----+-------+
    q[j], bits 3..0  ->  y[j]              j = 0..15
          bits 7..4  ->  y[j + 16]

    y = d * IQ4_VALUES[nibble]
    """

    name = "IQ4_NL"
    block_size = 32
    block_bytes = 18

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 0)
            for j in range(16):
                q = int(blocks[b, 2 + j])
                out[b, j] = d * IQ4_VALUES[q & 15]
                out[b, j + 16] = d * IQ4_VALUES[q >> 4]
