"""Small models that are right, in memory: what the targets of model files damage.

Letters: V vocabulary, D model width, F feed-forward width, H heads, E head width.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.checkpoints.names import hugging_face_name
from refllm.quant import FORMATS

__all__ = [
    "BYTE_LEVEL",
    "PIECES",
    "ROPE_SCALINGS",
    "SPECIAL_FILES",
    "WORDPIECES",
    "Safetensors",
    "added_token",
    "bert_arrays",
    "config_of",
    "folder_of",
    "llama_arrays",
    "protobuf",
    "random_blocks",
    "safetensors",
    "safetensors_file",
    "sentencepiece_file",
    "sentencepiece_model",
    "stored_folder",
    "template_processing",
    "tokenizer_json",
    "write_files",
]

Array = NDArray[np.float32]
Json = dict[str, Any]
Files = Mapping[str, bytes]
Field = tuple[int, int, Any]  # of a protobuf message: number, wire type, value

# Of bytes up to this one every half, bfloat16 and float32 is finite, and below a tenth.
MAX_BYTE = 0x2B

# The pieces of a SentencePiece vocabulary behind its three special ones, without bytes.
PIECES = (*"▁ethoacnsrd.", "▁t", "he", "▁the", "▁a", "in", "▁cat", "at", "é")
WORDPIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"thecasondm.,é", "the", "cat", "##s")


def _byte_level() -> tuple[str, ...]:
    """The characters that stand for the 256 bytes: GPT-2's `bytes_to_unicode`."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(0x100 + number) for number, byte in enumerate(others)}
    return tuple(characters[byte] for byte in range(256))


BYTE_LEVEL = (*_byte_level(), "he", "Ġt", "Ġthe", "Ġc", "at")


# Tensors


def llama_arrays(
    *, n_vocab: int, width: int = 32, n_ff: int = 32, n_layers: int = 1, biases: bool = False
) -> dict[str, Array]:
    """A llama's tensors under GGUF's names: two heads that share one key/value head."""
    half = width // 2
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, width)}
    for i in range(n_layers):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (width,),
            f"blk.{i}.attn_q.weight": (width, width),
            f"blk.{i}.attn_k.weight": (half, width),
            f"blk.{i}.attn_v.weight": (half, width),
            f"blk.{i}.attn_output.weight": (width, width),
            f"blk.{i}.ffn_norm.weight": (width,),
            f"blk.{i}.ffn_gate.weight": (n_ff, width),
            f"blk.{i}.ffn_up.weight": (n_ff, width),
            f"blk.{i}.ffn_down.weight": (width, n_ff),
        }
        if biases:
            shapes[f"blk.{i}.attn_q.bias"] = (width,)
            shapes[f"blk.{i}.ffn_down.bias"] = (width,)
    shapes |= {"output_norm.weight": (width,), "output.weight": (n_vocab, width)}
    return _arrays(shapes)


def bert_arrays(
    *, n_vocab: int, width: int = 32, n_ff: int = 32, n_positions: int = 24, family: str = "bert"
) -> dict[str, Array]:
    """The tensors of a BERT of one layer and four heads, or of one of its family."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, width),
        "token_types.weight": (2, width),
        "position_embd.weight": (n_positions, width),
        "token_embd_norm.weight": (width,),
        "token_embd_norm.bias": (width,),
        "attn_rel_b.weight": (32, 4),
    }
    for name, (rows, columns) in {
        **{f"attn_{part}": (width, width) for part in ("q", "k", "v", "output")},
        "ffn_up": (n_ff, width),
        "ffn_down": (width, n_ff),
    }.items():
        shapes[f"blk.0.{name}.weight"] = (rows, columns)
        shapes[f"blk.0.{name}.bias"] = (rows,)
    for name in ("attn_output_norm", "layer_output_norm"):
        shapes |= {f"blk.0.{name}.{part}": (width,) for part in ("weight", "bias")}
    if family != "mpnet":
        del shapes["attn_rel_b.weight"]
    if family in ("distilbert", "mpnet"):
        del shapes["token_types.weight"]
    return _arrays(shapes)


def _arrays(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    random = np.random.default_rng(16)
    return {
        name: np.asarray(
            random.standard_normal(shape) / np.sqrt(shape[-1])
            if len(shape) > 1
            else random.standard_normal(shape) * 0.1 + name.endswith("norm.weight"),
            np.float32,
        )
        for name, shape in shapes.items()
    }


def random_blocks(shape: Sequence[int], type_name: str) -> bytes:
    """The bytes of a matrix in a GGML type, whose scales are finite wherever in a block they are.

    No quantizer is needed: see `MAX_BYTE`.
    """
    stored_as = FORMATS[type_name]
    n_bytes = int(np.prod(shape)) // stored_as.block_size * stored_as.block_bytes
    return np.random.default_rng(n_bytes).integers(0, MAX_BYTE, n_bytes, np.uint8, True).tobytes()


# Vocabularies


def sentencepiece_model(
    *, kind: int = 2, bytes_too: bool = False, normalizer: Sequence[Field] = ()
) -> list[Field]:
    """The fields of a `ModelProto`: pieces, trainer_spec, normalizer_spec."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    if bytes_too:
        pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(piece, -float(rank), 1) for rank, piece in enumerate(PIECES)]
    fields: list[Field] = [
        (1, 2, [(1, 2, text.encode()), (2, 5, struct.pack("<f", score)), (3, 0, number)])
        for text, score, number in pieces
    ]
    trainer: list[Field] = [(3, 0, kind), (4, 0, len(pieces)), (35, 0, int(bytes_too))]
    trainer += [(40, 0, 0), (41, 0, 1), (42, 0, 2)]
    spec = [*normalizer] or [(1, 2, b"identity"), (3, 0, 1), (4, 0, 0)]
    return [*fields, (2, 2, trainer), (3, 2, spec)]


def protobuf(fields: Sequence[Field]) -> bytes:
    """A message: wire type 0 is a varint, 1 and 5 are 8 and 4 bytes, 2 bytes or a message."""
    parts = []
    for number, wire, value in fields:
        parts.append(varint(number << 3 | wire))
        if wire == 0:
            parts.append(varint(value))
        elif wire == 2:
            data = value if isinstance(value, bytes) else protobuf(value)
            parts += [varint(len(data)), data]
        else:
            parts.append(value)
    return b"".join(parts)


def varint(number: int) -> bytes:
    """A whole number, seven bits to a byte."""
    number %= 2**64
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    return bytes([*result, number])


@cache
def sentencepiece_file() -> bytes:
    """A tokenizer.model with the vocabulary of the llamas."""
    return protobuf(sentencepiece_model())


def added_token(token_id: int, content: str, *, special: bool = True) -> Json:
    """An entry of `added_tokens`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **flags, "special": special}


def template_processing(before: Mapping[str, int], after: Mapping[str, int]) -> Json:
    """A post-processor that puts tokens around a text."""
    single = [
        *({"SpecialToken": {"id": token, "type_id": 0}} for token in before),
        {"Sequence": {"id": "A", "type_id": 0}},
        *({"SpecialToken": {"id": token, "type_id": 0}} for token in after),
    ]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            token: {"id": token, "ids": [token_id], "tokens": [token]}
            for token, token_id in {**before, **after}.items()
        },
    }


@cache
def tokenizer_json(kind: str) -> Json:
    """A tokenizer.json: of "WordPiece", "ByteLevel", "BPE" with byte fallback, or "Unigram"."""
    document: Json = {"version": "1.0", "truncation": None, "padding": None}
    if kind == "WordPiece":
        ids = {token: token_id for token_id, token in enumerate(WORDPIECES)}
        return document | {
            "added_tokens": [added_token(i, token) for i, token in enumerate(WORDPIECES[:5])],
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": template_processing({"[CLS]": 2}, {"[SEP]": 3}),
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": ids,
            },
        }
    if kind == "ByteLevel":
        tokens = ("<|begin_of_text|>", "<|end_of_text|>", *BYTE_LEVEL)
        byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return document | {
            "added_tokens": [added_token(i, token) for i, token in enumerate(tokens[:2])],
            "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", **byte_level},
            "post_processor": template_processing({tokens[0]: 0}, {}),
            "decoder": {"type": "ByteLevel", **byte_level},
            "model": {
                **_bpe(tokens, ["h e", "Ġ t", "Ġt he", "Ġ c", "a t"]),
                "byte_fallback": False,
                "unk_token": None,
            },
        }
    special = ("<unk>", "<s>", "</s>")
    document |= {
        "added_tokens": [added_token(i, token) for i, token in enumerate(special)],
        "post_processor": template_processing({"<s>": 1}, {}),
    }
    if kind == "BPE":
        tokens = (*special, *PIECES)
        return document | {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                ],
            },
            "pre_tokenizer": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
            "model": {
                **_bpe(tokens, ["▁ t", "h e", "▁t he", "▁ a", "a t"]),
                "byte_fallback": True,
                "unk_token": "<unk>",
            },
        }
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return document | {
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [[token, -float(rank)] for rank, token in enumerate((*special, *PIECES))],
            "byte_fallback": False,
        },
    }


def _bpe(tokens: Sequence[str], merges: Sequence[str]) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "ignore_merges": False,
        "vocab": {token: token_id for token_id, token in enumerate(tokens)},
        "merges": [*merges],
    }


# Folders

SPECIAL_FILES: Mapping[str, Json] = MappingProxyType(
    {
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": [2],
            "do_sample": True,
            "temperature": 0.6,
            "transformers_version": "4.40.0",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": False,
            "bos_token": "<s>",
            "eos_token": {"content": "</s>", "lstrip": False, "normalized": False},
            "unk_token": "<unk>",
            "pad_token": None,
            "model_max_length": 10**30,
            "additional_special_tokens": ["<s>"],
            "chat_template": "{{ messages[0].content }}",
        },
        "special_tokens_map.json": {
            "bos_token": {"content": "<s>", "single_word": False},
            "eos_token": "</s>",
            "unk_token": "<unk>",
        },
        "added_tokens.json": {"<s>": 1, "</s>": 2},
    }
)
SPECIAL_OF_BERT: Mapping[str, Json] = MappingProxyType(
    {
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            **{f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP")},
            "mask_token": {"content": "[MASK]", "lstrip": True},
            "added_tokens_decoder": {
                "2": {"content": "[CLS]", "special": True},
                "3": {"content": "[SEP]", "special": True},
            },
            "model_max_length": 512,
        },
        "special_tokens_map.json": {"cls_token": "[CLS]", "sep_token": "[SEP]"},
    }
)
ROPE_SCALINGS: Sequence[Json] = (
    {},
    {"rope_scaling": None, "rope_theta": 500000.0},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "attention_factor": 1.0,
            "truncate": True,
            "original_max_position_embeddings": 16,
        }
    },
)


def config_of(family: str, n_vocab: int, variant: int = 0) -> Json:
    """A config.json of "llama" (with one of the kinds of RoPE) or of an encoder's family."""
    config: Json = {"model_type": family, "vocab_size": n_vocab, "torch_dtype": "float32"}
    if family == "llama":
        return config | {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **ROPE_SCALINGS[variant % len(ROPE_SCALINGS)],
        }
    if family == "distilbert":
        return config | {
            "dim": 32,
            "hidden_dim": 32,
            "n_layers": 1,
            "n_heads": 4,
            "max_position_embeddings": 24,
            "activation": "gelu",
            "sinusoidal_pos_embds": False,
            "pad_token_id": 0,
        }
    return config | {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 24,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 1 if family in ("roberta", "mpnet") else 0,
        **({"relative_attention_num_buckets": 32} if family == "mpnet" else {}),
    }


@dataclass(frozen=True, slots=True)
class Safetensors:
    """A safetensors file in parts: the header as JSON, and the tensors' bytes."""

    header: Json
    data: bytes

    def to_bytes(self) -> bytes:
        """The whole file."""
        return safetensors_file(json.dumps(self.header).encode(), self.data)


def safetensors_file(header: bytes, data: bytes) -> bytes:
    """A safetensors file with this header, which need be none."""
    return struct.pack("<Q", len(header)) + header + data


def safetensors(arrays: Mapping[str, Array], dtypes: Iterable[str] = ("F32",)) -> Safetensors:
    """The tensors, stored as the dtypes in turn."""
    kinds = [*dtypes]
    header: Json = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    stop = 0
    for number, (name, array) in enumerate(arrays.items()):
        dtype = kinds[number % len(kinds)]
        match dtype:
            case "F16":
                data = array.astype("<f2").tobytes()
            case "BF16":
                data = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
            case _:
                data = array.tobytes()
        start, stop = stop, stop + len(data)
        header[name] = {"dtype": dtype, "shape": [*array.shape], "data_offsets": [start, stop]}
        parts.append(data)
    return Safetensors(header, b"".join(parts))


@cache
def folder_of(family: str) -> tuple[Safetensors, Files]:
    """A model's folder: its tensors, and its other files but for config.json."""
    files: dict[str, bytes] = {}
    if family == "llama":
        arrays = llama_arrays(n_vocab=len(PIECES) + 3)
        files["tokenizer.json"] = json.dumps(tokenizer_json("BPE")).encode()
        special = SPECIAL_FILES
    else:
        arrays = bert_arrays(n_vocab=len(WORDPIECES), family=family)
        files["tokenizer.json"] = json.dumps(tokenizer_json("WordPiece")).encode()
        special = SPECIAL_OF_BERT
    named = {hugging_face_name(family, name): array for name, array in arrays.items()}
    files |= {name: json.dumps(content).encode() for name, content in special.items()}
    return safetensors(named, ("F32", "F16", "BF16")), files


@cache
def stored_folder(family: str, variant: int = 0) -> Files:
    """Every file of a model's folder."""
    tensors, files = folder_of(family)
    n_vocab = len(PIECES) + 3 if family == "llama" else len(WORDPIECES)
    config = json.dumps(config_of(family, n_vocab, variant)).encode()
    return {**files, "config.json": config, "model.safetensors": tensors.to_bytes()}


def write_files(folder: Path, files: Files) -> int:
    """Write the files, in folders where their names have some, and return how large they are."""
    for name, data in files.items():
        if "/" in name:
            (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return sum(map(len, files.values()))
