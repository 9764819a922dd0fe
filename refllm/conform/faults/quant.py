"""Faults in decoding GGML's blocks: each decodes the case's bytes itself.

n blocks, b values in a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from refllm.conform.case import Case, Json
from refllm.conform.faults.catalog import Faults
from refllm.quant import FORMATS

__all__ = ["K_QUANTS", "QUANT", "answer_of", "super_blocks"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Decode = Callable[[str, Bytes], Floats]

QUANT = Faults("quant")

# How many values lie between the two nibbles of a byte, by format.
HALVES = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"), 16),
    **dict.fromkeys(("Q4_K", "Q5_K"), 32),
}
# What is subtracted from a stored number before the scale.
OFFSETS = {"Q4_0": 8, "Q5_0": 16}
# Where a block's float16 scale begins.
SCALES = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"), 0),
    **{"Q2_K": 80, "Q3_K": 108, "Q4_K": 0, "Q5_K": 0, "Q6_K": 208, "IQ4_XS": 0},
}
K_QUANTS = ("Q4_K", "Q5_K")
# Rounding in another order moves a value by a few units in the last place of the largest term.
FEW_ROUNDINGS = 1e-6


def _right(format_name: str, blocks: Bytes) -> Floats:
    """Decode the blocks [n, bytes] rightly, [n, b]."""
    form = FORMATS[format_name]
    return form.decode(blocks.reshape(1, -1)).reshape(len(blocks), form.block_size)


def answer_of(case: Case, decode: Decode) -> Json:
    """Return what a backend that decodes so answers."""
    name = case.input["format"]
    data = np.frombuffer(bytes.fromhex(case.input["bytes"]), np.uint8)
    with np.errstate(all="ignore"):
        values = decode(name, data.reshape(-1, FORMATS[name].block_bytes))
    return {"values": values.astype(np.float64).ravel()[: case.input["n"]].tolist()}


def wrong_decoder(name: str, cause: str, formats: Iterable[str]) -> Callable[[Decode], Decode]:
    """Decorate a function that decodes wrongly: a fault of each of the formats."""

    def register(decode: Decode) -> Decode:
        for form in formats:

            def answered(case: Case, form: str = form) -> Json | None:
                return answer_of(case, decode) if case.input["format"] == form else None

            QUANT.answering(f"{form} {name}", f"{form}: {cause}", answered, wrong=decode)
        return decode

    return register


@wrong_decoder(
    "nibbles interleaved",
    "the two 4-bit values of a byte are taken for neighbors. The lower one belongs to the first "
    "half of the values and the upper one to the second half.",
    HALVES,
)
def _nibbles_interleaved(format_name: str, blocks: Bytes) -> Floats:
    pairs = _right(format_name, blocks).reshape(len(blocks), -1, 2, HALVES[format_name])
    return pairs.swapaxes(2, 3).reshape(len(blocks), -1)


@wrong_decoder(
    "nibbles swapped",
    "the upper 4 bits of a byte are taken for the first half of the values. The lower bits come "
    "first.",
    HALVES,
)
def _nibbles_swapped(format_name: str, blocks: Bytes) -> Floats:
    pairs = _right(format_name, blocks).reshape(len(blocks), -1, 2, HALVES[format_name])
    return pairs[:, :, ::-1].reshape(len(blocks), -1)


def _float16(blocks: Bytes, first: int) -> Floats:
    """Return the float16 at byte `first` of each block, float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, first : first + 2]).view("<f2").astype(np.float32)


@wrong_decoder(
    "offset not subtracted",
    "the stored numbers are used as they are. Q4_0 subtracts 8 and Q5_0 subtracts 16 before the "
    "scale.",
    OFFSETS,
)
def _offset_not_subtracted(format_name: str, blocks: Bytes) -> Floats:
    scale = _float16(blocks, SCALES[format_name])
    return _right(format_name, blocks) + scale * np.float32(OFFSETS[format_name])


@wrong_decoder("unsigned", "the values are read as unsigned bytes. They are signed.", ("Q8_0",))
def _unsigned(_format_name: str, blocks: Bytes) -> Floats:
    return _float16(blocks, 0) * blocks[:, 2:].astype(np.float32)


def _with_scale(change: Callable[[Bytes], Bytes]) -> Decode:
    """Return a decoder of blocks whose scale's two bytes [n, 2] are changed."""

    def decode(format_name: str, blocks: Bytes) -> Floats:
        first = SCALES[format_name]
        changed = blocks.copy()
        changed[:, first : first + 2] = change(blocks[:, first : first + 2])
        changed.flags.writeable = False  # as a decoder gets blocks
        return _right(format_name, changed)

    return decode


wrong_decoder("scale ignored", "the values are not multiplied by the block's scale.", SCALES)(
    _with_scale(lambda scales: np.broadcast_to(np.array([0x00, 0x3C], np.uint8), scales.shape))
)
wrong_decoder(
    "scale big-endian",
    "the bytes of the block's scale are read in the wrong order. GGUF is little-endian.",
    SCALES,
)(_with_scale(lambda scales: scales[:, ::-1]))


@wrong_decoder(
    "scale as bfloat16", "the block's scale is read as bfloat16. It is a float16.", ("Q8_0",)
)
def _scale_as_bfloat16(_format_name: str, blocks: Bytes) -> Floats:
    wide = np.zeros((len(blocks), 4), np.uint8)
    wide[:, 2:] = blocks[:, :2]
    return wide.view("<f4") * blocks[:, 2:].view(np.int8)


def _flushed(scales: Bytes) -> Bytes:
    is_subnormal = (scales[:, 1:] & 0x7C) == 0
    return np.where(is_subnormal, scales & np.array([0x00, 0x80], np.uint8), scales)


wrong_decoder(
    "subnormal scale flushed",
    "a subnormal float16 scale is taken for 0. Convert it exactly.",
    SCALES,
)(_with_scale(_flushed))


# Q4_K and Q5_K: 8 sub-blocks with a 6-bit scale and a 6-bit minimum in twelve bytes


Unpack = Callable[[Bytes], tuple[Bytes, Bytes]]


def _unpacked(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Return scales and minimums, each [n, 8], of packed [n, 12]."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack([low & 63, (high & 15) | (low >> 6) << 4])
    minimums = np.hstack([middle & 63, (high >> 4) | (middle >> 6) << 4])
    return scales, minimums


def super_blocks(
    format_name: str, blocks: Bytes, *, unpack: Unpack = _unpacked, sign: int = -1
) -> Floats:
    """Decode Q4_K and Q5_K with another way to unpack, or another sign (or none) of the minimum."""
    scales, minimums = unpack(blocks[:, 4:16])
    low = blocks[:, -128:].reshape(-1, 4, 1, 32)
    values = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 8, 32)
    if format_name == "Q5_K":
        fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
        values = values | fifth << 4
    scale = (_float16(blocks, 0) * scales.astype(np.float32))[..., None]
    minimum = (_float16(blocks, 2) * minimums.astype(np.float32))[..., None]
    decoded: Floats = scale * values.astype(np.float32) + np.float32(sign) * minimum
    return decoded.reshape(len(blocks), -1)


wrong_decoder("minimum added", "the minimum is added. Subtract it.", K_QUANTS)(
    partial(super_blocks, sign=1)
)
wrong_decoder("minimum ignored", "the minimum is left out. Subtract it.", K_QUANTS)(
    partial(super_blocks, sign=0)
)


def wrong_scales(name: str, cause: str) -> Callable[[Unpack], Unpack]:
    """Decorate a function that unpacks the scales and minimums wrongly."""

    def register(unpack: Unpack) -> Unpack:
        wrong_decoder(name, cause, K_QUANTS)(partial(super_blocks, unpack=unpack))
        return unpack

    return register


@wrong_scales(
    "6-bit scales without upper bits",
    "the scales of sub-blocks 4 to 7 lack their upper two bits, which lie in bits 6 and 7 of the "
    "first eight of the twelve bytes.",
)
def _without_upper_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return np.hstack([low & 63, high & 15]), np.hstack([middle & 63, high >> 4])


@wrong_scales(
    "6-bit scales not shifted",
    "the upper two bits of the scales of sub-blocks 4 to 7 stay in bits 6 and 7. Shift them to "
    "bits 4 and 5.",
)
def _upper_bits_in_place(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Leave the upper two bits where they were in their byte."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack([low & 63, (high & 15) | (low & 0xC0)])
    minimums = np.hstack([middle & 63, (high >> 4) | (middle & 0xC0)])
    return scales, minimums


@wrong_scales(
    "6-bit scales not masked",
    "the scales of sub-blocks 0 to 3 are read with all 8 bits of their bytes. The upper two belong "
    "to other sub-blocks.",
)
def _unmasked(packed: Bytes) -> tuple[Bytes, Bytes]:
    scales, minimums = _unpacked(packed)
    return np.hstack([packed[:, :4], scales[:, 4:]]), np.hstack([packed[:, 4:8], minimums[:, 4:]])


@wrong_scales(
    "6-bit scales in a row",
    "the twelve bytes of scales are read as 6-bit numbers in a row. Their order is another one.",
)
def _in_a_row(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Read sixteen 6-bit numbers in a row."""
    bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), 16, 6)
    values = np.packbits(bits, axis=2, bitorder="little")[..., 0]
    return values[:, :8], values[:, 8:]


wrong_scales(
    "scales and minimums exchanged", "the scales and the minimums of the sub-blocks are exchanged."
)(lambda packed: _unpacked(packed)[::-1])


@QUANT.seen(
    "decoded with other roundings",
    "The values are right up to rounding: round every product and every sum to float32, in the "
    "order of the format's formula, without fused multiply-add.",
    is_vague=True,
)
def _decoded_with_other_roundings(case: Case, got: Json) -> bool:
    found = np.array([float(value) for value in got["values"]])
    expected = np.array(case.expected["values"], np.float64)
    if found.shape != expected.shape or not np.isfinite(expected).all():
        return False
    bound = FEW_ROUNDINGS * np.abs(expected).max(initial=0.0)
    return bool((np.abs(found - expected) <= bound).all())
