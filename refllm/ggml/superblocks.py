"""Formats that store 256 values in a super-block: small scales, themselves scaled by `d`.

A super-block is cut into groups of 16 or 32 values. A group has a small integer scale `sc` (and
in some formats a small integer minimum `mn`), which the super-block's `d` (and `dmin`) turn into
numbers; so a group's scale costs 4 to 8 bits instead of 16.

In the drawings `y` is the super-block's values, `d` and `dmin` are float16, read exactly. Every
product and every difference is rounded to float32, in the order written.
Letters: n blocks; in a block `g` a group of 16 values, `s` a sub-block of 32, `j` a value in it.
Source of the layouts: ggml, `ggml-common.h` (the blocks) and `ggml-quants.c` (the formulas).
"""

from __future__ import annotations

import numpy as np

from refllm.ggml.blocks import IQ4_VALUES
from refllm.ggml.format import Format, half_at
from refllm.jit.buffers import Bytes, Floats
from refllm.jit.compile import jit

__all__ = ["IQ4_XS", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"]


class Q2_K(Format):
    """2 bits a value, in 16 groups of 16, each with a 4-bit scale and a 4-bit minimum.

    byte   0            15    16          79    80    81    82    83
         +------+-----+------+------+---+-----+-----------+-----------+
         | a[0] | ... | a[15]| q[0] |...|q[63]|     d     |   dmin    |
         +------+-----+------+------+---+-----+-----------+-----------+
    a[g], bits 3..0  ->  sc of group g                 g = 0..15
          bits 7..4  ->  mn of group g
    q[j],      bits 1..0, 3..2, 5..4, 7..6  ->  y[j], y[j + 32], y[j + 64], y[j + 96]
    q[j + 32], likewise                     ->  y[j + 128], ..., y[j + 224]           j = 0..31

    y[16*g ..] = (d * sc) * two bits - dmin * mn
    """

    name = "Q2_K"
    block_size = 256
    block_bytes = 84

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 80)
            dmin = half_at(blocks, b, 82)
            for g in range(16):
                a = int(blocks[b, g])
                scale = d * np.float32(a & 15)
                minimum = dmin * np.float32(a >> 4)
                first = 16 + 32 * (g >> 3) + 16 * (g & 1)
                shift = 2 * ((g >> 1) & 3)
                for j in range(16):
                    q = (int(blocks[b, first + j]) >> shift) & 3
                    out[b, 16 * g + j] = scale * np.float32(q) - minimum


class Q3_K(Format):
    """3 bits a value, in 16 groups of 16, each with a 6-bit scale.

    byte   0            31    32          95    96           107   108   109
         +------+-----+------+------+---+-----+------+-----+------+-----------+
         | h[0] | ... | h[31]| q[0] |...|q[63]| a[0] | ... | a[11]|     d     |
         +------+-----+------+------+---+-----+------+-----+------+-----------+
    h[j], bit k  ->  y[j + 32*k], the third bit        j = 0..31, k = 0..7
    q[j],      bits 1..0, 3..2, 5..4, 7..6  ->  y[j], y[j + 32], y[j + 64], y[j + 96]
    q[j + 32], likewise                     ->  y[j + 128], ..., y[j + 224]
    a[i], bits 3..0  ->  sc of group i, its lower four bits           i = 0..7
          bits 7..4  ->  sc of group i + 8, its lower four bits
    a[8 + i], bits 1..0, 3..2, 5..4, 7..6
                     ->  sc of groups i, i + 4, i + 8, i + 12, their upper two bits   i = 0..3

    y[16*g ..] = (d * (sc - 32)) * ((4 * third + two bits) - 4)
    """

    name = "Q3_K"
    block_size = 256
    block_bytes = 110

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 108)
            for g in range(16):
                low = (int(blocks[b, 96 + (g & 7)]) >> (4 * (g >> 3))) & 15
                high = (int(blocks[b, 104 + (g & 3)]) >> (2 * (g >> 2))) & 3
                scale = d * np.float32((low | high << 4) - 32)
                half = 16 * (g & 1)
                first = 32 + 32 * (g >> 3) + half
                shift = 2 * ((g >> 1) & 3)
                for j in range(16):
                    q = (int(blocks[b, first + j]) >> shift) & 3
                    third = (int(blocks[b, half + j]) >> (g >> 1)) & 1
                    out[b, 16 * g + j] = scale * np.float32((q | third << 2) - 4)


@jit
def _scale_6_bits(blocks: Bytes, b: int, s: int) -> int:
    """Return `sc` of sub-block `s`, 0..63, from the twelve bytes that `Q4_K` draws as a[0..11]."""
    if s < 4:
        return int(blocks[b, 4 + s]) & 63
    return (int(blocks[b, 8 + s]) & 15) | (int(blocks[b, s]) >> 6) << 4


@jit
def _minimum_6_bits(blocks: Bytes, b: int, s: int) -> int:
    """Return `mn` of sub-block `s`, 0..63, from the twelve bytes that `Q4_K` draws as a[0..11]."""
    if s < 4:
        return int(blocks[b, 8 + s]) & 63
    return (int(blocks[b, 8 + s]) >> 4) | (int(blocks[b, 4 + s]) >> 6) << 4


class Q4_K(Format):
    """4 bits a value, in 8 sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum.

    byte   0     1     2     3     4            15    16            143
         +-----------+-----------+------+-----+------+------+-----+--------+
         |     d     |   dmin    | a[0] | ... | a[11]| q[0] | ... | q[127] |
         +-----------+-----------+------+-----+------+------+-----+--------+
    a[i],     bits 5..0  ->  sc of sub-block i                                 i = 0..3
              bits 7..6  ->  sc of sub-block i + 4, its upper two bits
    a[4 + i], bits 5..0  ->  mn of sub-block i
              bits 7..6  ->  mn of sub-block i + 4, its upper two bits
    a[8 + i], bits 3..0  ->  sc of sub-block i + 4, its lower four bits
              bits 7..4  ->  mn of sub-block i + 4, its lower four bits
    q[32*p + j], bits 3..0  ->  y[64*p + j]            p = 0..3, j = 0..31
                 bits 7..4  ->  y[64*p + 32 + j]

    y[32*s ..] = (d * sc) * nibble - dmin * mn

    For example, with d = 0.5 and dmin = 0.25, sub-block 0 with sc = 5 and mn = 3, and q[0] = 0x19,
    whose lower nibble is 9:

        y[0] = (0.5 * 5) * 9 - 0.25 * 3 = 22.5 - 0.75 = 21.75
    """

    name = "Q4_K"
    block_size = 256
    block_bytes = 144

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 0)
            dmin = half_at(blocks, b, 2)
            for s in range(8):
                scale = d * np.float32(_scale_6_bits(blocks, b, s))
                minimum = dmin * np.float32(_minimum_6_bits(blocks, b, s))
                first = 16 + 32 * (s >> 1)
                shift = 4 * (s & 1)
                for j in range(32):
                    q = (int(blocks[b, first + j]) >> shift) & 15
                    out[b, 32 * s + j] = scale * np.float32(q) - minimum


class Q5_K(Format):
    """5 bits a value: Q4_K with a fifth bit for each value, in h.

    byte   0     1     2     3     4            15    16          47    48          175
         +-----------+-----------+------+-----+------+------+---+-----+------+---+------+
         |     d     |   dmin    | a[0] | ... | a[11]| h[0] |...|h[31]| q[0] |...|q[127]|
         +-----------+-----------+------+-----+------+------+---+-----+------+---+------+
    a: sc and mn of the eight sub-blocks, as in Q4_K
    h[j], bit s  ->  y[32*s + j], the fifth bit        s = 0..7, j = 0..31
    q[32*p + j], bits 3..0  ->  y[64*p + j], the lower four            p = 0..3
                 bits 7..4  ->  y[64*p + 32 + j], the lower four

    y[32*s ..] = (d * sc) * (16 * fifth + nibble) - dmin * mn
    """

    name = "Q5_K"
    block_size = 256
    block_bytes = 176

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 0)
            dmin = half_at(blocks, b, 2)
            for s in range(8):
                scale = d * np.float32(_scale_6_bits(blocks, b, s))
                minimum = dmin * np.float32(_minimum_6_bits(blocks, b, s))
                first = 48 + 32 * (s >> 1)
                shift = 4 * (s & 1)
                for j in range(32):
                    q = (int(blocks[b, first + j]) >> shift) & 15
                    fifth = (int(blocks[b, 16 + j]) >> s) & 1
                    out[b, 32 * s + j] = scale * np.float32(q | fifth << 4) - minimum


class Q6_K(Format):
    """6 bits a value, in 16 groups of 16, each with an 8-bit scale.

    byte   0           127    128         191   192           207   208   209
         +------+---+------+------+---+-----+-------+---+-------+-----------+
         | q[0] |...|q[127]| h[0] |...|h[63]| sc[0] |...| sc[15]|     d     |     sc: int8
         +------+---+------+------+---+-----+-------+---+-------+-----------+
    the first 128 values, j = 0..31 (the other 128 likewise, from q[64] and h[32]):
    q[j],      bits 3..0  ->  y[j],      the lower four      h[j], bits 1..0  ->  the upper two
    q[j + 32], bits 3..0  ->  y[j + 32], the lower four      h[j], bits 3..2  ->  the upper two
    q[j],      bits 7..4  ->  y[j + 64], the lower four      h[j], bits 5..4  ->  the upper two
    q[j + 32], bits 7..4  ->  y[j + 96], the lower four      h[j], bits 7..6  ->  the upper two

    y[16*g ..] = (d * sc[g]) * ((16 * upper + lower) - 32)
    """

    name = "Q6_K"
    block_size = 256
    block_bytes = 210

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 208)
            for g in range(16):
                sc = (int(blocks[b, 192 + g]) ^ 128) - 128  # uint8 -> int8
                scale = d * np.float32(sc)
                quarter = (g >> 1) & 3
                half = 16 * (g & 1)
                first_low = 64 * (g >> 3) + 32 * (quarter & 1) + half
                first_high = 128 + 32 * (g >> 3) + half
                for j in range(16):
                    low = (int(blocks[b, first_low + j]) >> (4 * (quarter >> 1))) & 15
                    high = (int(blocks[b, first_high + j]) >> (2 * quarter)) & 3
                    out[b, 16 * g + j] = scale * np.float32((low | high << 4) - 32)


class Q8_K(Format):
    """8 bits a value, and sums of 16, which dot products need and decoding does not.

    byte   0     3    4           259   260   261         290   291
         +----------+------+---+------+-----------+-----+-----------+
         |    d     | q[0] |...|q[255]|  sum[0]   | ... |  sum[15]  |
         +----------+------+---+------+-----------+-----+-----------+
    d: float32, q: int8, sum[g]: int16, the sum of q[16*g .. 16*g + 15]
    q[j]  ->  y[j]                                     j = 0..255

    y = d * q

    ggml quantizes activations to it; no tool writes it to a file.
    """

    name = "Q8_K"
    block_size = 256
    block_bytes = 292

    @staticmethod
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        d = blocks[:, :4].view("<f4")  # [n, 1]
        q = blocks[:, 4:260].view(np.int8)  # [n, 256]
        with np.errstate(over="ignore", invalid="ignore"):  # the file may have such a scale
            np.multiply(d, q, out=out)


class IQ4_XS(Format):
    """4 bits a value, which choose one of IQ4_VALUES, in 8 sub-blocks of 32 with a 6-bit scale.

    byte   0     1     2     3     4            7     8             135
         +-----------+-----------+------+-----+------+------+-----+--------+
         |     d     |     h     | a[0] | ... | a[3] | q[0] | ... | q[127] |     h: uint16
         +-----------+-----------+------+-----+------+------+-----+--------+
    h, bits 2*s+1 .. 2*s  ->  sc of sub-block s, its upper two bits            s = 0..7
    a[i], bits 3..0       ->  sc of sub-block 2*i, its lower four bits         i = 0..3
          bits 7..4       ->  sc of sub-block 2*i + 1, its lower four bits
    q[16*s + j], bits 3..0  ->  y[32*s + j]            j = 0..15
                 bits 7..4  ->  y[32*s + j + 16]

    y[32*s ..] = (d * (sc - 32)) * IQ4_VALUES[nibble]
    """

    name = "IQ4_XS"
    block_size = 256
    block_bytes = 136

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            d = half_at(blocks, b, 0)
            for s in range(8):
                low = (int(blocks[b, 4 + (s >> 1)]) >> (4 * (s & 1))) & 15
                high = (int(blocks[b, 2 + (s >> 2)]) >> (2 * (s & 3))) & 3
                scale = d * np.float32((low | high << 4) - 32)
                for j in range(16):
                    q = int(blocks[b, 8 + 16 * s + j])
                    out[b, 32 * s + j] = scale * IQ4_VALUES[q & 15]
                    out[b, 32 * s + j + 16] = scale * IQ4_VALUES[q >> 4]
