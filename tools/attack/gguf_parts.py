"""A GGUF file in parts that can be wrong one by one, and small models in this form.

Types of values, as the format numbers them: 4 u32, 5 i32, 6 f32, 7 bool, 8 string, 9 array,
10 u64, 11 i64, 12 f64.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType

from refllm.quant import FORMATS
from tools.attack.models import (
    BYTE_LEVEL,
    PIECES,
    WORDPIECES,
    bert_arrays,
    llama_arrays,
    random_blocks,
)

__all__ = ["ALIGNMENT", "Gguf", "Key", "StoredTensor", "bases", "packed_value"]

ALIGNMENT = 32
LAYOUTS: Mapping[int, str] = dict(
    zip(
        (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12),
        ("B", "b", "H", "h", "I", "i", "f", "?", "Q", "q", "d"),
        strict=True,
    )
)
PLAIN = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "F64")
SUPER = (
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_XS",
    "Q8_K",
    "Q1_0",
    "IQ2_XS",
    "IQ3_S",
    "TQ1_0",
)


class Key(NamedTuple):
    """A metadata key: its name, the value in Python, and the value's type and bytes."""

    name: bytes
    value: object
    packed: bytes


class StoredTensor(NamedTuple):
    """A tensor: name, sizes with the fastest first, type's number, bytes; the offset if it lies."""

    name: bytes
    sizes: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None


@dataclass(slots=True)
class Gguf:
    """A file in parts."""

    keys: list[Key]
    tensors: list[StoredTensor]
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = ALIGNMENT

    def copy(self) -> Gguf:
        """The same parts, in lists of their own."""
        return replace(self, keys=[*self.keys], tensors=[*self.tensors])

    def to_bytes(self) -> bytes:
        """The file."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        parts = [self.magic, struct.pack("<IQQ", self.version, n_tensors % 2**64, n_keys % 2**64)]
        parts += [part for key in self.keys for part in (_string(key.name), key.packed)]
        offset = 0
        contents = []
        for tensor in self.tensors:
            given = offset if tensor.offset is None else tensor.offset
            numbers = (*(size % 2**64 for size in tensor.sizes), tensor.kind % 2**32, given % 2**64)
            parts.append(_string(tensor.name))
            parts.append(struct.pack(f"<I{len(tensor.sizes)}QIQ", len(tensor.sizes), *numbers))
            padding = bytes(-len(tensor.data) % self.alignment)
            contents += [tensor.data, padding]
            offset += len(tensor.data) + len(padding)
        head = b"".join(parts)
        return b"".join([head, bytes(-len(head) % self.alignment), *contents])


def packed_value(value: object, kind: int | None = None) -> bytes:
    """A value's type and bytes; of a whole number, as the type of this number where it fits."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        if kind is None:
            kind = 4 if 0 <= value < 2**32 else 11 if -(2**63) <= value < 2**63 else 10
        n_bytes = struct.calcsize(LAYOUTS[kind])
        return struct.pack("<I", kind) + (value % 2 ** (8 * n_bytes)).to_bytes(n_bytes, "little")
    if isinstance(value, float):
        if kind == 12:
            return struct.pack("<Id", 12, value)
        with np.errstate(all="ignore"):
            return struct.pack("<I", 6) + np.float32(value).tobytes()
    if isinstance(value, str | bytes):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, Sequence):
        return struct.pack("<I", 9) + _array(value)
    return struct.pack("<IQ", 8, 0)


def _array(values: Sequence[object]) -> bytes:
    if any(isinstance(value, str | bytes) for value in values):
        texts = (
            value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
            for value in values
        )
        return struct.pack("<IQ", 8, len(values)) + b"".join(map(_string, texts))
    if any(isinstance(value, list) for value in values):
        items = b"".join(_array(value) for value in values if isinstance(value, list))
        return struct.pack("<IQ", 9, len(values)) + items
    if any(isinstance(value, float) for value in values):
        numbers = [
            float(value) if isinstance(value, int | float) and abs(value) < 1e308 else 0.0
            for value in values
        ]
        with np.errstate(all="ignore"):
            return struct.pack("<IQ", 6, len(values)) + np.array(numbers, "<f4").tobytes()
    whole = [int(value) % 2**32 for value in values if isinstance(value, int)]
    return struct.pack("<IQ", 5, len(whole)) + np.array(whole, "<u4").tobytes()


def _string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


# Small models


@cache
def bases() -> Sequence[Gguf]:
    """Models of each kind of vocabulary and with matrices of every type."""
    spm = _sentencepiece()
    found = [_llama(spm, plain, PLAIN[i - 1]) for i, plain in enumerate(PLAIN)]
    found += [_llama(spm, "Q8_0", kind) for kind in SUPER]
    found += [_llama(spm, kind, kind, width=256) for kind in ("Q4_K", "Q6_K")]
    found += [
        _llama(_sentencepiece(bytes_too=True), "Q8_0", "F32"),
        _llama(_byte_level(), "Q4_0", "Q8_0"),
        _llama(_unigram(), "F16", "F32"),
    ]
    found += [_bert(plain, down) for plain, down in (("F32", "F16"), ("Q8_0", "Q4_K"))]
    return found


def _llama(vocabulary: Mapping[str, object], plain: str, down: str, width: int = 32) -> Gguf:
    tokens = vocabulary["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    n_ff = 32 if FORMATS[down].block_size <= 32 else 256
    values = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 0,
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": width,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": width // 2,
        "llama.attention.value_length": width // 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": width // 2,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": len(tokens),
    }
    arrays = llama_arrays(n_vocab=len(tokens), width=width, n_ff=n_ff)
    return Gguf(_keys({**values, **vocabulary}), _stored(arrays, plain, down))


def _bert(plain: str, down: str) -> Gguf:
    n_ff = 32 if FORMATS[down].block_size <= 32 else 256
    values = {
        "general.architecture": "bert",
        "bert.block_count": 1,
        "bert.context_length": 24,
        "bert.embedding_length": 32,
        "bert.feed_forward_length": n_ff,
        "bert.attention.head_count": 4,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": 1,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "jina-v2",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": [_marked(token) for token in WORDPIECES],
        "tokenizer.ggml.token_type": [3 if token[0] == "[" else 1 for token in WORDPIECES],
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
    }
    arrays = bert_arrays(n_vocab=len(WORDPIECES), n_ff=n_ff)
    return Gguf(_keys(values), _stored(arrays, plain, down))


def _marked(token: str) -> str:
    """A WordPiece token as llama.cpp writes it: word starts are marked, not continuations."""
    if token[0] == "[":
        return token
    return token[2:] if token.startswith("##") else f"▁{token}"


def _sentencepiece(*, bytes_too: bool = False) -> dict[str, object]:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if bytes_too else []
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *PIECES]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(rank) for rank in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * len(byte_tokens), *[1] * len(PIECES)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
    }


def _byte_level() -> dict[str, object]:
    tokens = ["<|begin_of_text|>", "<|end_of_text|>", *BYTE_LEVEL]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *[1] * len(BYTE_LEVEL)],
        "tokenizer.ggml.merges": ["h e", "Ġ t", "Ġt he", "Ġ c", "a t"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def _unigram() -> dict[str, object]:
    tokens = ["<pad>", "</s>", "<unk>", *PIECES]
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(rank) for rank in range(len(tokens))],
        "tokenizer.ggml.token_type": [3, 3, 2, *[1] * len(PIECES)],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
    }


def _keys(values: Mapping[str, object]) -> list[Key]:
    return [Key(name.encode(), value, packed_value(value)) for name, value in values.items()]


def _stored(arrays: Mapping[str, np.ndarray], plain: str, down: str) -> list[StoredTensor]:
    """Matrices as `plain`, that of ffn_down as `down`, vectors and BERT's two tables as F32."""
    tensors = []
    for name, array in arrays.items():
        is_plain = array.ndim == 1 or name.startswith(("token_types", "position_embd"))
        kind = "F32" if is_plain else down if "ffn_down" in name else plain
        data = array.tobytes() if kind == "F32" else random_blocks(array.shape, kind)
        number = int(GGMLQuantizationType[kind])
        tensors.append(StoredTensor(name.encode(), array.shape[::-1], number, data))
    return tensors
