"""Mistakes in reading GGML's blocks: each decodes the case's bytes itself.

n blocks, K values in a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from refllm.conform.case import Case, Json
from refllm.conform.faults.symptom import Symptom, answering, seen
from refllm.quant import FORMATS

__all__ = ["K_QUANTS", "QUANT", "answer_of", "super_blocks"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Decode = Callable[[str, Bytes], Floats]

# How many values lie between the two nibbles of a byte, by format.
HALVES: Final[Mapping[str, int]] = {
    "Q4_0": 16,
    "Q4_1": 16,
    "Q5_0": 16,
    "Q5_1": 16,
    "IQ4_NL": 16,
    "IQ4_XS": 16,
    "Q4_K": 32,
    "Q5_K": 32,
}
# What is subtracted from a stored number before the scale.
OFFSETS: Final[Mapping[str, int]] = {"Q4_0": 8, "Q5_0": 16}
# Where a block's float16 scale begins.
SCALES: Final[Mapping[str, int]] = {
    "Q4_0": 0,
    "Q4_1": 0,
    "Q5_0": 0,
    "Q5_1": 0,
    "Q8_0": 0,
    "IQ4_NL": 0,
    "Q2_K": 80,
    "Q3_K": 108,
    "Q4_K": 0,
    "Q5_K": 0,
    "Q6_K": 208,
    "IQ4_XS": 0,
}
# Rounding in another order moves a value by a few units in the last place of the largest term.
FEW_ROUNDINGS: Final = 1e-6


def _right(format_name: str, blocks: Bytes) -> Floats:
    """The values that the blocks [n, bytes] mean, [n, K]."""
    form = FORMATS[format_name]
    return form.decode(blocks.reshape(1, -1)).reshape(len(blocks), form.block_size)


def _interleaved(format_name: str, blocks: Bytes) -> Floats:
    half = HALVES[format_name]
    pairs = _right(format_name, blocks).reshape(len(blocks), -1, 2, half)
    return pairs.swapaxes(2, 3).reshape(len(blocks), -1)


def _nibbles_swapped(format_name: str, blocks: Bytes) -> Floats:
    half = HALVES[format_name]
    pairs = _right(format_name, blocks).reshape(len(blocks), -1, 2, half)
    return pairs[:, :, ::-1].reshape(len(blocks), -1)


def _scale(format_name: str, blocks: Bytes) -> Floats:
    """The blocks' scales, float32 [n, 1]."""
    first = SCALES[format_name]
    return np.ascontiguousarray(blocks[:, first : first + 2]).view("<f2").astype(np.float32)


def _no_offset(format_name: str, blocks: Bytes) -> Floats:
    offset = np.float32(OFFSETS[format_name])
    return _right(format_name, blocks) + _scale(format_name, blocks) * offset


def _unsigned(format_name: str, blocks: Bytes) -> Floats:
    return _scale(format_name, blocks) * blocks[:, 2:].astype(np.float32)


def _with_scale(change: Callable[[Bytes], Bytes]) -> Decode:
    """Decoded from blocks whose scale's two bytes [n, 2] are changed."""

    def decode(format_name: str, blocks: Bytes) -> Floats:
        first = SCALES[format_name]
        changed = blocks.copy()
        changed[:, first : first + 2] = change(blocks[:, first : first + 2])
        return _right(format_name, changed)

    return decode


def _one(scales: Bytes) -> Bytes:
    return np.broadcast_to(np.frombuffer(np.float16(1.0).tobytes(), np.uint8), scales.shape)


def _flushed(scales: Bytes) -> Bytes:
    is_subnormal = (scales[:, 1:] & 0x7C) == 0
    return np.where(is_subnormal, scales & np.array([0x00, 0x80], np.uint8), scales)


def _as_bfloat16(format_name: str, blocks: Bytes) -> Floats:
    wide = np.zeros((len(blocks), 4), np.uint8)
    wide[:, 2:] = blocks[:, :2]
    return wide.view("<f4") * blocks[:, 2:].view(np.int8)


# Q4_K and Q5_K: 8 sub-blocks with a 6-bit scale and a 6-bit minimum in twelve bytes


Unpack = Callable[[Bytes], tuple[Bytes, Bytes]]


def _unpacked(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Scales and minimums, each [n, 8], of packed [n, 12]."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack([low & 63, (high & 15) | (low >> 6) << 4])
    minimums = np.hstack([middle & 63, (high >> 4) | (middle >> 6) << 4])
    return scales, minimums


def _without_upper_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return np.hstack([low & 63, high & 15]), np.hstack([middle & 63, high >> 4])


def _with_upper_bits_in_place(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The two upper bits left where they were in their byte, not shifted to where they belong."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack([low & 63, (high & 15) | (low & 0xC0)])
    minimums = np.hstack([middle & 63, (high >> 4) | (middle & 0xC0)])
    return scales, minimums


def _unmasked(packed: Bytes) -> tuple[Bytes, Bytes]:
    scales, minimums = _unpacked(packed)
    return np.hstack([packed[:, :4], scales[:, 4:]]), np.hstack([packed[:, 4:8], minimums[:, 4:]])


def _exchanged(packed: Bytes) -> tuple[Bytes, Bytes]:
    scales, minimums = _unpacked(packed)
    return minimums, scales


def _one_after_another(packed: Bytes) -> tuple[Bytes, Bytes]:
    """As if the twelve bytes were sixteen 6-bit numbers in a row."""
    bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), 16, 6)
    values = np.packbits(bits, axis=2, bitorder="little")[..., 0]
    return values[:, :8], values[:, 8:]


def super_blocks(*, unpack: Unpack = _unpacked, sign: int = -1) -> Decode:
    """Q4_K and Q5_K with another way to unpack, or another sign (or none) of the minimum."""

    def decode(format_name: str, blocks: Bytes) -> Floats:
        d, dmin = (
            np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)
            for at in (0, 2)
        )
        scales, minimums = unpack(blocks[:, 4:16])
        low = blocks[:, -128:].reshape(-1, 4, 1, 32)
        values = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 8, 32)
        if format_name == "Q5_K":
            fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
            values = values | fifth << 4
        scale = (d * scales.astype(np.float32))[..., None]
        minimum = (dmin * minimums.astype(np.float32))[..., None]
        decoded: Floats = scale * values.astype(np.float32) + np.float32(sign) * minimum
        return decoded.reshape(len(blocks), -1)

    return decode


def answer_of(case: Case, decode: Decode) -> Json:
    """What a backend that decodes so answers."""
    name = case.input["format"]
    data = np.frombuffer(bytes.fromhex(case.input["bytes"]), np.uint8)
    with np.errstate(all="ignore"):
        values = decode(name, data.reshape(-1, FORMATS[name].block_bytes))
    return {"values": values.astype(np.float64).ravel()[: case.input["n"]].tolist()}


def _of_format(name: str, decode: Decode) -> Callable[[Case], Json | None]:
    return lambda case: answer_of(case, decode) if case.input["format"] == name else None


def _is_rounded_otherwise(case: Case, got: Json) -> bool:
    """Whether every value is right up to a few roundings."""
    try:
        found = np.array([float(value) for value in got["values"]])
    except (KeyError, TypeError, ValueError):
        return False
    wanted = np.array(case.expected["values"], np.float64)
    if found.shape != wanted.shape or not np.isfinite(wanted).all():
        return False
    apart = np.abs(found - wanted)
    return bool((apart <= FEW_ROUNDINGS * np.abs(wanted).max(initial=0.0)).all())


K_QUANTS = ("Q4_K", "Q5_K")
# Name, cause, the formats that it can happen to, and what it decodes.
MISTAKES: tuple[tuple[str, str, Iterable[str], Decode], ...] = (
    (
        "nibbles interleaved",
        "the two 4-bit values of a byte are taken for neighbors. The lower one belongs to the "
        "first half of the values and the upper one to the second half.",
        HALVES,
        _interleaved,
    ),
    (
        "nibbles swapped",
        "the upper 4 bits of a byte are taken for the first half of the values. The lower bits "
        "come first.",
        HALVES,
        _nibbles_swapped,
    ),
    (
        "offset not subtracted",
        "the stored numbers are used as they are. Q4_0 subtracts 8 and Q5_0 subtracts 16 before "
        "the scale.",
        OFFSETS,
        _no_offset,
    ),
    (
        "unsigned",
        "the values are read as unsigned bytes. They are signed.",
        ("Q8_0",),
        _unsigned,
    ),
    (
        "scale ignored",
        "the values are not multiplied by the block's scale.",
        SCALES,
        _with_scale(_one),
    ),
    (
        "scale big-endian",
        "the bytes of the block's scale are read in the wrong order. GGUF is little-endian.",
        SCALES,
        _with_scale(lambda scales: scales[:, ::-1]),
    ),
    (
        "scale as bfloat16",
        "the block's scale is read as bfloat16. It is a float16.",
        ("Q8_0",),
        _as_bfloat16,
    ),
    (
        "subnormal scale flushed",
        "a subnormal float16 scale is taken for 0. Convert it exactly.",
        SCALES,
        _with_scale(_flushed),
    ),
    (
        "minimum added",
        "the minimum is added. Subtract it.",
        K_QUANTS,
        super_blocks(sign=1),
    ),
    (
        "minimum ignored",
        "the minimum is left out. Subtract it.",
        K_QUANTS,
        super_blocks(sign=0),
    ),
    (
        "6-bit scales without upper bits",
        "the scales of sub-blocks 4 to 7 lack their upper two bits, which lie in bits 6 and 7 of "
        "the first eight of the twelve bytes.",
        K_QUANTS,
        super_blocks(unpack=_without_upper_bits),
    ),
    (
        "6-bit scales not shifted",
        "the upper two bits of the scales of sub-blocks 4 to 7 stay in bits 6 and 7. Shift them to "
        "bits 4 and 5.",
        K_QUANTS,
        super_blocks(unpack=_with_upper_bits_in_place),
    ),
    (
        "6-bit scales not masked",
        "the scales of sub-blocks 0 to 3 are read with all 8 bits of their bytes. The upper two "
        "belong to other sub-blocks.",
        K_QUANTS,
        super_blocks(unpack=_unmasked),
    ),
    (
        "6-bit scales in a row",
        "the twelve bytes of scales are read as 6-bit numbers in a row. Their order is another "
        "one.",
        K_QUANTS,
        super_blocks(unpack=_one_after_another),
    ),
    (
        "scales and minimums exchanged",
        "the scales and the minimums of the sub-blocks are exchanged.",
        K_QUANTS,
        super_blocks(unpack=_exchanged),
    ),
)

QUANT: tuple[Symptom, ...] = (
    *(
        answering(f"{form} {name}", f"{form}: {cause}", "quant", _of_format(form, decode))
        for name, cause, formats, decode in MISTAKES
        for form in formats
    ),
    seen(
        "decoded with other roundings",
        "The values are right up to rounding: round every product and every sum to float32, "
        "in the order of the format's formula, without fused multiply-add.",
        "quant",
        _is_rounded_otherwise,
        is_vague=True,
    ),
)
