"""What a format is, how a half becomes a float, and the formats that store plain numbers.

Letters: n blocks, N rows, D columns. All stored numbers are little-endian; float16 and bfloat16
are IEEE 754 binary16 and the upper half of a float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from refllm.errors import LlmRuntimeError
from refllm.jit.buffers import Bytes, Floats
from refllm.jit.compile import jit

__all__ = [
    "BF16",
    "F16",
    "F32",
    "F64",
    "I8",
    "I16",
    "I32",
    "I64",
    "Format",
    "f16_to_f32",
    "half_at",
]


class Format(ABC):
    """A way to store float32 values in blocks: every `block_size` values take `block_bytes` bytes.

    Each subclass has a drawing of its block in its docstring and its formula in `_decode_blocks`.
    """

    name: ClassVar[str]
    block_size: ClassVar[int]
    block_bytes: ClassVar[int]

    @staticmethod
    @abstractmethod
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        """Decode blocks; `decode_into` has checked the arrays."""

    def decode_into(self, blocks: Bytes, out: Floats) -> None:
        """Write the values of blocks to `out`.

        Args:
            blocks: uint8 [n, block_bytes].
            out: float32 [n, block_size].

        Raises:
            LlmRuntimeError: The shapes or types do not fit; compiled kernels check no bounds.
        """
        n = len(blocks)
        blocks_fit = blocks.shape == (n, self.block_bytes) and blocks.dtype == np.uint8
        out_fits = out.shape == (n, self.block_size) and out.dtype == np.float32
        if not (blocks_fit and out_fits):
            raise LlmRuntimeError(
                f"{self.name}: cannot decode {blocks.dtype} {list(blocks.shape)} to {out.dtype} "
                f"{list(out.shape)}; blocks are uint8 [n, {self.block_bytes}], values float32 "
                f"[n, {self.block_size}]"
            )
        if n == 0:
            return
        # numba compiles a version for read-only arrays and one for writable arrays. Memory maps are
        # read-only, so with a read-only view for all only one version is compiled.
        blocks = np.ascontiguousarray(blocks).view()
        blocks.flags.writeable = False
        self._decode_blocks(blocks, out)

    def decode(self, data: Bytes) -> Floats:
        """Return the values of rows.

        Args:
            data: uint8 [N, row_bytes].

        Returns:
            float32 [N, D].

        Raises:
            LlmRuntimeError: A row is not a whole number of blocks.
        """
        n_rows, n_bytes = data.shape
        per_row = self._blocks_in(n_bytes)
        out = np.empty((n_rows * per_row, self.block_size), np.float32)  # [n, block_size]
        self.decode_into(data.reshape(n_rows * per_row, self.block_bytes), out)
        return out.reshape(n_rows, per_row * self.block_size)  # [N, D]

    def row_bytes(self, n_columns: int) -> int:
        """Return how many bytes a row of `n_columns` values takes.

        Raises:
            LlmRuntimeError: The row is not a whole number of blocks.
        """
        if n_columns < 0 or n_columns % self.block_size:
            raise LlmRuntimeError(
                f"{self.name} stores values in blocks of {self.block_size}: a row of {n_columns} "
                "columns is not a whole number of blocks"
            )
        return n_columns // self.block_size * self.block_bytes

    def _blocks_in(self, n_bytes: int) -> int:
        if n_bytes % self.block_bytes:
            raise LlmRuntimeError(
                f"{self.name}: a row of {n_bytes} bytes is not a whole number of "
                f"{self.block_bytes}-byte blocks"
            )
        return n_bytes // self.block_bytes


@jit
def f16_to_f32(half: int) -> np.float32:
    """Return the float32 that equals a float16, given as its 16 bits; a NaN stays a NaN.

        bit   15   14..10     9..0
            +----+----------+----------+
            |  s | exponent | fraction |     (-1)^s * 2^(exponent - 15) * (1 + fraction / 1024)
            +----+----------+----------+

    Exponent 0 means (-1)^s * 2^-14 * (fraction / 1024), exponent 31 an infinity or a NaN.
    By integer operations: numba compiles a conversion from float16 to a call of a library function
    that it cannot resolve, unless the CPU has F16C.
    Source: IEEE 754-2019, section 3.4.
    """
    sign = (half & 0x8000) << 16
    exponent = (half >> 10) & 31
    fraction = half & 0x3FF
    if exponent == 0:
        magnitude = np.float32(fraction) * np.float32(2.0**-24)  # exact
        return -magnitude if sign else magnitude
    exponent = 255 if exponent == 31 else exponent - 15 + 127
    return np.uint32(sign | exponent << 23 | fraction << 13).view(np.float32)


@jit
def half_at(blocks: Bytes, b: int, byte: int) -> np.float32:
    """Return the float16 at bytes `byte` and `byte + 1` of block `b` as float32."""
    return f16_to_f32(int(blocks[b, byte]) | int(blocks[b, byte + 1]) << 8)


class F16(Format):
    """float16, two bytes a value.

    byte      0        1
         +--------+--------+
         |   y[0], float16 |
         +--------+--------+
    """

    name = "F16"
    block_size = 1
    block_bytes = 2

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            out[b, 0] = half_at(blocks, b, 0)


class BF16(Format):
    """bfloat16, two bytes a value: the upper half of a float32 whose lower half is zero.

    byte      0        1
         +--------+--------+
         |  y[0], bfloat16 |     bit 15: sign, bits 14..7: exponent, bits 6..0: fraction
         +--------+--------+
    """

    name = "BF16"
    block_size = 1
    block_bytes = 2

    @staticmethod
    @jit
    def _decode_blocks(blocks: Bytes, out: Floats) -> None:
        for b in range(blocks.shape[0]):
            bits = int(blocks[b, 0]) << 16 | int(blocks[b, 1]) << 24
            out[b, 0] = np.uint32(bits).view(np.float32)


class _NumPyNumbers(Format):
    """Numbers that NumPy can read; a number that is no float32 is rounded once."""

    block_size = 1
    stored: ClassVar[str]  # NumPy's name for the stored type

    def decode(self, data: Bytes) -> Floats:
        """Return the values of rows, uint8 [N, row_bytes], as float32 [N, D].

        Of aligned float32 the result is a view, which is read-only if `data` is.

        Raises:
            LlmRuntimeError: A row is not a whole number of values.
        """
        self._blocks_in(data.shape[1])
        values = np.ascontiguousarray(data).view(self.stored)  # [N, D]
        # A float64 beyond float32's range becomes an infinity, as a C cast does, without a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            return np.require(values, np.float32, ["ALIGNED", "ENSUREARRAY"])

    @classmethod
    def _decode_blocks(cls, blocks: Bytes, out: Floats) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = blocks.view(cls.stored)


class F32(_NumPyNumbers):
    """float32 as it is: bytes 0..3 are y[0]. Decoding copies nothing where memory is aligned."""

    name = "F32"
    block_bytes = 4
    stored = "<f4"


class F64(_NumPyNumbers):
    """float64: bytes 0..7, rounded once to the nearest float32 (ties to even)."""

    name = "F64"
    block_bytes = 8
    stored = "<f8"


class I8(_NumPyNumbers):
    """Two's complement integer: byte 0, exact."""

    name = "I8"
    block_bytes = 1
    stored = "<i1"


class I16(_NumPyNumbers):
    """Two's complement integer: bytes 0..1, exact."""

    name = "I16"
    block_bytes = 2
    stored = "<i2"


class I32(_NumPyNumbers):
    """Two's complement integer: bytes 0..3, rounded once to the nearest float32."""

    name = "I32"
    block_bytes = 4
    stored = "<i4"


class I64(_NumPyNumbers):
    """Two's complement integer: bytes 0..7, rounded once to the nearest float32."""

    name = "I64"
    block_bytes = 8
    stored = "<i8"
