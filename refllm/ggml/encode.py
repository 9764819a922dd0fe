"""Floats → GGML blocks: what `llama-quantize` does to a matrix.

The `gguf` package encodes plain numbers and blocks of 32, with ggml's own rounding. It has no
encoder for Q4_K; this module has one, after `make_qkx2_quants` and `quantize_row_q4_K_ref` in
ggml's ggml-quants.c. Rounding to the nearest level is half of the task. The other half is the
choice of the levels, for which ggml tries twenty-one.

B blocks of 256, N rows, D columns; other letters as drawn in `refllm.ggml.superblocks`.
"""

from __future__ import annotations

import gguf
import numpy as np
from gguf import quants
from numpy.typing import NDArray

from refllm.jit.buffers import Bytes, Floats

__all__ = ["QUANTIZABLE", "encode"]

QUANTIZABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K")

SUPER_BLOCK, SUB_BLOCK = 256, 32
MAX_LEVEL = 15  # of four bits
MAX_SCALE = 63  # of six bits
# By how many levels the highest level is beyond the largest weight, or short of it.
TRIED = np.arange(21, dtype=np.float32) * np.float32(0.1) - np.float32(1.0)


def encode(rows: Floats, type_name: str) -> Bytes:
    """Return rows [N, D] as blocks of one of `QUANTIZABLE`: uint8 [N, bytes of a row]."""
    if type_name == "Q4_K":
        return _q4_k(rows)
    blocks = quants.quantize(rows, gguf.GGMLQuantizationType[type_name])
    return np.ascontiguousarray(blocks).view(np.uint8).reshape(len(rows), -1)


def _q4_k(rows: Floats) -> Bytes:
    """[N, D] → [N, D / 256 · 144]: each weight becomes d·sc·q − dmin·mn."""
    x = rows.reshape(-1, SUPER_BLOCK // SUB_BLOCK, SUB_BLOCK)  # [B, 8, 32]
    scales, minima = (part.reshape(-1, 8) for part in _levels(x.reshape(-1, SUB_BLOCK)))  # [B, 8]
    d, sc = _six_bits(scales)
    dmin, mn = _six_bits(minima)
    step = d.astype(np.float32) * sc  # [B, 8]
    floor = dmin.astype(np.float32) * mn
    divisor = np.where(step == 0, np.float32(1), step)[..., None]
    q = np.rint((x + floor[..., None]) / divisor).clip(0, MAX_LEVEL).astype(np.uint8)
    pairs = q.reshape(-1, 4, 2, SUB_BLOCK)  # sub-blocks 0 and 1, 2 and 3, …: [B, 4, 2, 32]
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, SUPER_BLOCK // 2)
    halves = np.concatenate([d, dmin], axis=1).view(np.uint8)  # [B, 4]
    return np.concatenate([halves, _packed(sc, mn), nibbles], axis=1).reshape(len(rows), -1)


def _levels(x: Floats) -> tuple[Floats, Floats]:
    """Return (scale, minimum) of sub-blocks [sub-blocks, 32]: x ≈ scale·q − minimum, 0 ≤ q ≤ 15.

    For each of the tried reaches the numbers are rounded to levels, and scale and minimum are
    fitted to these levels by least squares. The fit with the smallest error is returned. Numbers
    far from zero count more in the error.
    """
    mean_square = np.mean(x * x, axis=1, keepdims=True)  # [sub-blocks, 1]
    importance = np.sqrt(mean_square) + np.abs(x)  # [sub-blocks, 32]
    largest = x.max(axis=1, keepdims=True)  # [sub-blocks, 1]
    least = np.minimum(x.min(axis=1, keepdims=True), 0)
    reach = largest - least
    is_flat = reach == 0
    reach = np.where(is_flat, np.float32(1), reach)

    def error(scale: Floats, start: Floats, q: Floats) -> Floats:
        total: Floats = np.sum(importance * (scale * q + start - x) ** 2, axis=1, keepdims=True)
        return total

    def nearest(levels: Floats) -> Floats:
        return np.rint(levels).clip(0, MAX_LEVEL).astype(np.float32)

    scale = (reach / np.float32(MAX_LEVEL)).astype(np.float32)
    start = least.astype(np.float32)
    best = error(scale, start, nearest((x - least) / scale))
    sum_w = importance.sum(axis=1, keepdims=True)
    sum_x = (importance * x).sum(axis=1, keepdims=True)
    for extra in TRIED:
        # From the best start so far, as in ggml.
        reach = np.where(largest > start, largest - start, np.float32(1))
        q = nearest((MAX_LEVEL + extra) / reach * (x - start))
        sum_q = (importance * q).sum(axis=1, keepdims=True)
        sum_q2 = (importance * q * q).sum(axis=1, keepdims=True)
        sum_qx = (importance * q * x).sum(axis=1, keepdims=True)
        determinant = sum_w * sum_q2 - sum_q * sum_q
        is_solvable = determinant > 0
        determinant = np.where(is_solvable, determinant, np.float32(1))
        new_scale = (sum_w * sum_qx - sum_x * sum_q) / determinant
        new_start = (sum_q2 * sum_x - sum_q * sum_qx) / determinant
        # A minimum must not be negative; the levels then begin at zero.
        is_above = new_start > 0
        from_zero = sum_qx / np.where(sum_q2 == 0, np.float32(1), sum_q2)
        new_scale = np.where(is_above, from_zero, new_scale)
        new_start = np.where(is_above, np.float32(0), new_start)
        new_error = error(new_scale, new_start, q)
        is_better = is_solvable & (new_error < best)
        scale = np.where(is_better, new_scale, scale)
        start = np.where(is_better, new_start, start)
        best = np.where(is_better, new_error, best)
    scale = np.where(is_flat, np.float32(0), scale)
    return scale[:, 0].astype(np.float32), (-start[:, 0]).astype(np.float32)


def _six_bits(numbers: Floats) -> tuple[NDArray[np.float16], Bytes]:
    """Return a float16 for each block [B, 1], and integers up to 63 to multiply it with [B, 8]."""
    largest = numbers.max(axis=1, keepdims=True)  # [B, 1]
    inverse = np.where(largest > 0, MAX_SCALE / np.where(largest > 0, largest, 1), 0)
    whole = np.rint(inverse * numbers).clip(0, MAX_SCALE).astype(np.uint8)
    return (np.maximum(largest, 0) / MAX_SCALE).astype(np.float16), whole


def _packed(sc: Bytes, mn: Bytes) -> Bytes:
    """Return scales and minima of six bits, [B, 8] each, as the a[0..11] of `Q4_K`, [B, 12]."""
    upper_sc, upper_mn = sc[:, 4:] >> 4 << 6, mn[:, 4:] >> 4 << 6
    lower = (sc[:, 4:] & 15) | (mn[:, 4:] & 15) << 4
    return np.concatenate([sc[:, :4] | upper_sc, mn[:, :4] | upper_mn, lower], axis=1)
