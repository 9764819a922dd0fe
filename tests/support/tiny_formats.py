"""Small models whose every bit follows from integer arithmetic, so that all machines make the same.

A weight here is 64 random bits of SplitMix64, cut to what its GGML type stores: the bytes of a
block as they come, the scales among them turned into halves that keep a layer's values near 1.
No floating-point random numbers, whose last bit a NumPy version may change, and no quantizer.

Letters: V vocabulary, D model width, H heads, E head width.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from tests.support.model_files import (
    GgufTensor,
    spm_vocabulary,
    tiny_bert_gguf,
    tiny_bert_tensors,
    tiny_llama_gguf,
    tiny_llama_tensors,
    wordpiece_vocabulary,
)

__all__ = ["STORED_AS", "bert_of_bits", "llama_of_bits", "splitmix64"]

Words = NDArray[np.uint64]

# Plain numbers: their type as an unsigned integer, and the bit patterns that magnitudes are taken
# from. Halves go from 0 through all subnormal ones to 2^-3, the others from 2^-13 to 2^-3.
PLAIN: Mapping[str, tuple[str, int, int]] = MappingProxyType(
    {
        "F32": ("<u4", 0x39000000, 0x3E000000),
        "F16": ("<u2", 0x0000, 0x3000),
        "BF16": ("<u2", 0x3900, 0x3E00),
    }
)

# Blocks: where their halves lie, and the bit pattern that each half's magnitude begins at. 1024
# patterns from there are used: up to its double, and where it is subnormal (below 0x0400) beyond.
HALVES: Mapping[str, Mapping[int, int]] = MappingProxyType(
    {
        "Q4_0": {0: 0x2000},  # 2^-7
        "Q4_1": {0: 0x2000, 2: 0x2C00},  # 2^-7, 2^-4
        "Q5_0": {0: 0x1C00},
        "Q5_1": {0: 0x1C00, 2: 0x2C00},
        "Q8_0": {0: 0x1000},  # 2^-11
        "Q2_K": {80: 0x1800, 82: 0x1C00},
        "Q3_K": {108: 0x1000},
        "Q4_K": {0: 0x0800, 2: 0x1400},
        "Q5_K": {0: 0x0400, 2: 0x1400},  # 2^-14, the smallest normal one
        "Q6_K": {208: 0x0200},  # 2^-15
        "IQ4_NL": {0: 0x1000},
        "IQ4_XS": {0: 0x0200},
    }
)

STORED_AS = (*PLAIN, *HALVES)


def splitmix64(seed: int, n: int) -> Words:
    """The first n outputs of SplitMix64 (Steele, Lea, Flood 2014), uint64 [n]."""
    z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, n + 1, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def llama_of_bits(path: Path, type_name: str) -> Path:
    """Write a llama of one layer whose matrices are stored as `type_name`, and return `path`.

    Every row is one or two blocks of 256; two heads share a key/value head; 64 does not divide V.
    """
    shape = {"n_layers": 1, "n_embd": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 128}
    shape["n_ff"] = 512
    tokens = spm_vocabulary()["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    names = tiny_llama_tensors(n_vocab=len(tokens), **shape)  # type: ignore[arg-type]
    tensors = {name: _stored(name, array.shape, type_name) for name, array in names.items()}
    return tiny_llama_gguf(path, tensors=tensors, **shape)  # type: ignore[arg-type]


def bert_of_bits(path: Path) -> Path:
    """Write a BERT of two layers, all F32, and return `path`."""
    names = tiny_bert_tensors(n_vocab=len(wordpiece_vocabulary()))
    tensors = {name: _stored(name, array.shape, "F32") for name, array in names.items()}
    return tiny_bert_gguf(path, tensors=tensors)


def _stored(name: str, shape: tuple[int, ...], type_name: str) -> GgufTensor:
    """A tensor of random bits; the same for the same name, shape and type."""
    if len(shape) == 1:
        return _vector(name, shape[0])
    ggml_type = GGMLQuantizationType[type_name]
    values_in_block, bytes_in_block = GGML_QUANT_SIZES[ggml_type]
    n_blocks = shape[0] * shape[1] // values_in_block
    seed = _seed(f"{name} as {type_name}")
    if type_name in PLAIN:
        return _plain(seed, n_blocks, type_name), ggml_type, shape
    return _blocks(seed, n_blocks, bytes_in_block, HALVES[type_name]), ggml_type, shape


def _vector(name: str, n: int) -> NDArray[np.float32]:
    """Biases within ±1/8, the weights of norms within 1/8 of 1; multiples of 2^-26."""
    whole = (splitmix64(_seed(name), n) >> np.uint64(40)).astype(np.int64) - (1 << 23)  # 24 bits
    around_0 = whole.astype(np.float32) * np.float32(2.0**-26)
    return around_0 + np.float32(1) if name.endswith("norm.weight") else around_0


def _plain(seed: int, n: int, type_name: str) -> bytes:
    """Numbers of random sign whose magnitudes' bit patterns are evenly spread."""
    unsigned, first, end = PLAIN[type_name]
    words = splitmix64(seed, n)
    width = 8 * np.dtype(unsigned).itemsize
    magnitude = np.uint64(first) + words % np.uint64(end - first)
    sign = (words >> np.uint64(63)) << np.uint64(width - 1)
    return (sign | magnitude).astype(unsigned).tobytes()


def _blocks(seed: int, n: int, bytes_in_block: int, halves: Mapping[int, int]) -> bytes:
    """Blocks of random bytes; only their halves are made to measure, with random signs."""
    words = splitmix64(seed, -(-n * bytes_in_block // 8))
    data = words.astype("<u8").view(np.uint8)[: n * bytes_in_block]
    blocks = data.reshape(n, bytes_in_block).copy()
    for place, first in halves.items():
        raw = blocks[:, place : place + 2].copy().view("<u2")  # [n, 1]
        half = (raw & np.uint16(0x8000)) | (np.uint16(first) + (raw & np.uint16(0x03FF)))
        blocks[:, place : place + 2] = half.astype("<u2").view(np.uint8)
    return blocks.tobytes()


def _seed(name: str) -> int:
    """A number that depends on every letter of the name."""
    return zlib.crc32(name.encode())
