"""A model as a folder with safetensors: Hugging Face's layout, and Spin's, which narrows it.

    config.json  tokenizer.json  tokenizer_config.json  ...
    model.safetensors                                     Hugging Face; Spin's embedding models
    model-00001-of-00001.safetensors                      Spin's llamas, which it finds through
    model.safetensors.index.json                          the index

Names and the order of query and key rows are Hugging Face's.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refllm.bert import BertConfig
from refllm.checkpoints.names import hugging_face_name
from refllm.checkpoints.rope_layout import half_split
from refllm.checkpoints.safetensors import INDEX, SINGLE
from refllm.export.config_json import (
    N_ZERO_TYPES,
    config_json,
    has_biases,
    has_mlp_biases,
    refuse_what_spin_cannot,
)
from refllm.export.model import Description
from refllm.export.sentence_files import refuse_head_that_spin_cannot, sentence_files
from refllm.export.tokenizer_files import json_bytes, tokenizer_files
from refllm.llama import LlamaConfig
from refllm.quant import FORMATS, Tensor, recoded

__all__ = ["write_hf_folder", "write_spin_folder"]

SHARD = "model-00001-of-00001.safetensors"
IN_CONFIG = frozenset({"rope_freqs.weight"})  # Llama 3's divisors are parameters in config.json


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor under Hugging Face's name; `n_heads` where its rows are to be half-split."""

    name: str
    tensor: Tensor
    n_heads: int | None = None


def write_hf_folder(model: Description, folder: Path, *, type_name: str) -> None:
    """Fill `folder` with the files that transformers loads, all tensors in F32, F16 or BF16.

    Raises:
        InvalidInput: for numbers that the type cannot hold.
        ModelNotSupported: for a model that config.json or tokenizer.json cannot describe.
        LlmRuntimeError: for a damaged file.
    """
    _write_metadata(folder, model, config_json(model, type_name=type_name))
    _write_safetensors(folder / SINGLE, _parts(model), type_name)


def write_spin_folder(model: Description, folder: Path, *, type_name: str) -> None:
    """Fill `folder` as Spin loads it: a llama has an index, and its own output matrix.

    Spin computes a llama in F16, whatever the type.

    Raises:
        InvalidInput: as `write_hf_folder`.
        ModelNotSupported: as `write_hf_folder`, and for a model of which Spin would ignore a part.
        LlmRuntimeError: as `write_hf_folder`.
    """
    refuse_what_spin_cannot(model)
    if model.sentence is not None:
        refuse_head_that_spin_cannot(model, model.sentence)
        write_hf_folder(model, folder, type_name=type_name)
        return
    config = config_json(model, type_name=type_name)
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and scaling["rope_type"] == "dynamic":
        # It scales beyond the context, where Spin ends, and Spin's engine refuses such a file.
        del config["rope_scaling"]
    parts = _parts(model)
    if config["tie_word_embeddings"]:
        # Some versions of Spin's engine do not support tied embeddings.
        config["tie_word_embeddings"] = False
        name = hugging_face_name("llama", "output.weight")
        tied = Part(name, model.weights.tensors["token_embd.weight"])
        parts = [*(part for part in parts if part.name != name), tied]
    _write_metadata(folder, model, config)
    _write_safetensors(folder / SHARD, parts, type_name)
    n_bytes = sum(_n_bytes(part, type_name) for part in parts)
    index = {
        "metadata": {"total_size": n_bytes},
        "weight_map": {part.name: SHARD for part in parts},
    }
    (folder / INDEX).write_bytes(json_bytes(index))


def _parts(model: Description) -> list[Part]:
    """Return every tensor in the order of the file, with Hugging Face's name and order of rows."""
    weights, config = model.weights, model.config
    heads: dict[str, int] = {}
    if isinstance(config, BertConfig):
        tensors = _separate_qkv(weights.tensors, config.n_embd, config.n_embd)
        if weights.family == "bert" and not config.n_token_types:
            # A sum with zeros is the same sum, and no program loads a BERT without the table.
            tensors |= _zeros("token_types.weight", N_ZERO_TYPES, config.n_embd)
    else:
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        tensors = _separate_qkv(weights.tensors, queries, keys)
        if has_biases(weights):
            lengths = {"attn_q": queries, "attn_k": keys, "attn_v": keys}
            tensors = _zero_biases(config, lengths | {"attn_output": config.n_embd}) | tensors
        if has_mlp_biases(weights):
            lengths = {"ffn_gate": config.n_ff, "ffn_up": config.n_ff, "ffn_down": config.n_embd}
            tensors = _zero_biases(config, lengths) | tensors
        heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}
    return [
        Part(hugging_face_name(weights.family, name), tensor, heads.get(name.split(".")[-2]))
        for name, tensor in tensors.items()
        if name not in IN_CONFIG
    ]


def _separate_qkv(tensors: Mapping[str, Tensor], queries: int, keys: int) -> dict[str, Tensor]:
    """Return the tensors, with a fused tensor of queries, keys and values split in three.

    `queries` is the number of rows of the queries, and `keys` that of the keys or the values.
    """
    ends = np.cumsum([queries, keys, keys])
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block, module, kind = name.rpartition(".attn_qkv.")
        if not module:
            result[name] = tensor
            continue
        by_row = tensor.data.reshape(tensor.shape[0], -1)  # [(H + 2·Hkv)·E, row_bytes]
        for part, rows in zip("qkv", np.split(by_row, ends[:-1]), strict=True):
            shape = (len(rows), *tensor.shape[1:])
            data = rows if kind == "weight" else rows.reshape(1, -1)
            result[f"{block}.attn_{part}.{kind}"] = Tensor(
                f"{block}.attn_{part}.{kind}", tensor.format, shape, data
            )
    return result


def _zero_biases(config: LlamaConfig, lengths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return a zero bias of each module of each layer: Hugging Face has all of them, or none."""
    return {
        name: tensor
        for layer in range(config.n_layers)
        for module, length in lengths.items()
        for name, tensor in _zeros(f"blk.{layer}.{module}.bias", length).items()
    }


def _zeros(name: str, *shape: int) -> dict[str, Tensor]:
    data = np.zeros((math.prod(shape[:-1]), 4 * shape[-1]), np.uint8)  # [rows, bytes of float32]
    return {name: Tensor(name, FORMATS["F32"], shape, data)}


def _write_metadata(folder: Path, model: Description, config: dict[str, object]) -> None:
    """Write config.json, the files of the tokenizer, and the ones of a text's vector."""
    has_token_types = model.weights.family == "bert"
    words = tokenizer_files(model.words, n_ctx=model.config.n_ctx, has_token_types=has_token_types)
    files = {"config.json": json_bytes(config), **words}
    if model.sentence is not None:
        files |= sentence_files(model, model.sentence)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _write_safetensors(path: Path, parts: Sequence[Part], type_name: str) -> None:
    """Write the file (see `refllm.checkpoints.safetensors`) with one tensor at a time in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for part in parts:
        start, stop = stop, stop + _n_bytes(part, type_name)
        header[part.name] = {
            "dtype": type_name,
            "shape": part.tensor.shape,
            "data_offsets": [start, stop],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            tensor = recoded(part.tensor, type_name)
            if part.n_heads is not None:
                tensor = half_split(tensor, n_heads=part.n_heads)
            file.write(np.ascontiguousarray(tensor.data).data)


def _n_bytes(part: Part, type_name: str) -> int:
    return len(part.tensor.data) * FORMATS[type_name].row_bytes(part.tensor.shape[-1])
