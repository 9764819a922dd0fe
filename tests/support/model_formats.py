"""Writers of model files: the formats' own packages, or a format's description taken literally.

    write_gguf, write_safetensors          any metadata, any tensors
    read_llama2c, write_hf_llama_from_bin  llama2.c's stories260K.bin, and as a Hugging Face folder
    write_tokenizer_model                  a GGUF's SPM vocabulary as a tokenizer.model

Complete small models made with these are in tests/support/model_files.py.

Letters: V vocabulary, D model width, H heads, E head width, F feed-forward width, L layers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quant_shape_to_byte_shape, quants
from numpy.typing import NDArray

__all__ = [
    "GgufTensor",
    "Llama2c",
    "SafetensorsTensor",
    "hf_llama_name",
    "matrices_stored_as",
    "random_matrix",
    "random_vector",
    "read_llama2c",
    "safetensors_tensor",
    "write_config",
    "write_gguf",
    "write_hf_llama",
    "write_hf_llama_from_bin",
    "write_safetensors",
    "write_tokenizer_model",
]

Array = NDArray[np.float32]
GgufTensor = NDArray[Any] | tuple[bytes, GGMLQuantizationType, tuple[int, ...]]
SafetensorsTensor = tuple[str, tuple[int, ...], bytes]  # dtype, shape, bytes

HF_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_gguf(
    path: Path, metadata: Mapping[str, object], tensors: Mapping[str, GgufTensor] | None = None
) -> Path:
    """Write a GGUF v3 file and return `path`.

    Metadata are Python values (a whole number becomes u32 where it fits, a float f32), NumPy
    scalars (their own type), or lists; a value of None is left out. A tensor is an array, or its
    bytes, GGML type and shape in NumPy's order.
    """
    writer = GGUFWriter(None, arch="")
    writer.kv_data[0].clear()  # general.architecture is there only if `metadata` says so
    for key, value in metadata.items():
        if value is not None:
            writer.add_key_value(key, value, _value_type(value))
    for name, tensor in (tensors or {}).items():
        if isinstance(tensor, tuple):
            data, ggml_type, shape = tensor
            raw = np.frombuffer(data, np.uint8)
            byte_shape = quant_shape_to_byte_shape(shape, ggml_type)
            writer.add_tensor(name, raw.reshape(byte_shape), raw_dtype=ggml_type)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _value_type(value: object) -> GGUFValueType:
    if isinstance(value, np.generic):
        return GGUFValueType[value.dtype.name.upper()]
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            return GGUFValueType.INT64
        return GGUFValueType.UINT32 if value < 2**32 else GGUFValueType.UINT64
    return GGUFValueType.get_type(value)


def safetensors_tensor(array: Array, dtype: str = "F32") -> SafetensorsTensor:
    """The array as F32, F16 or BF16, ready for `write_safetensors`."""
    stored = quants.quantize(array, GGMLQuantizationType[dtype])
    return dtype, array.shape, stored.tobytes()


def write_safetensors(
    path: Path,
    tensors: Mapping[str, SafetensorsTensor],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a safetensors file, header padded with spaces to 8 bytes, and return `path`."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    stop = 0
    for name, (dtype, shape, data) in tensors.items():
        start, stop = stop, stop + len(data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    contents = (data for _, _, data in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(contents))
    return path


def hf_llama_name(name: str) -> str:
    """Hugging Face's name for GGUF's: "blk.0.attn_q.weight" → that of layers.0's q_proj."""
    module, _, suffix = name.rpartition(".")
    if module.startswith("blk."):
        _, layer, module = module.split(".")
        return f"model.layers.{layer}.{HF_LLAMA[module]}.{suffix}"
    return f"{HF_LLAMA[module]}.{suffix}"


def write_hf_llama(
    folder: Path,
    tensors: Mapping[str, Array],
    config: Mapping[str, object],
    *,
    dtype: str = "F32",
    shards: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a llama folder as Hugging Face's own tools do, and return it.

    `tensors` have GGUF's names and row order; they are renamed, and query and key rows, weights
    and biases, go into the half-split order. A config value of None is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    heads = {"attn_q": config.get("num_attention_heads"), "attn_k": config["num_key_value_heads"]}
    stored: dict[str, SafetensorsTensor] = {}
    for name, tensor in tensors.items():
        n_heads = heads.get(name.split(".")[-2])
        array = half_split(tensor, n_heads) if isinstance(n_heads, int) else tensor
        stored[hf_llama_name(name)] = safetensors_tensor(array, dtype)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", stored, metadata)
    else:
        _write_shards(folder, stored, shards, metadata)
    return folder


def half_split(tensor: Array, n_heads: int) -> Array:
    """Rows 2i and 2i+1 of each head moved to i and i + E/2: `permute` of Hugging Face's script."""
    rows = tensor.reshape(n_heads, len(tensor) // n_heads // 2, 2, -1)
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3)).reshape(tensor.shape)


def _write_shards(
    folder: Path,
    stored: Mapping[str, SafetensorsTensor],
    shards: int,
    metadata: Mapping[str, str] | None,
) -> None:
    names = list(stored)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        here = {name: stored[name] for name in names[i::shards]}
        write_safetensors(folder / file, here, metadata)
        weight_map |= dict.fromkeys(here, file)
    total_size = sum(len(data) for _, _, data in stored.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@dataclass(frozen=True, slots=True)
class Llama2c:
    """A llama2.c checkpoint: its header, and float32 tensors under GGUF's names."""

    n_embd: int
    n_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int
    n_ctx: int
    tensors: dict[str, Array]


def read_llama2c(path: Path) -> Llama2c:
    """The checkpoint at `path`, as `memory_map_weights` of llama2.c's run.c reads it.

    Seven int32, then float32 tensors, each kind for all layers before the next kind. A negative
    vocabulary size says that the output is not the embedding but comes last.
    """
    data = path.read_bytes()
    D, F, L, H, n_kv_heads, vocab, n_ctx = struct.unpack_from("<7i", data)
    V, KV = abs(vocab), D // H * n_kv_heads
    values = np.frombuffer(data, "<f4", offset=28)
    position = 0

    def take(*shape: int) -> Array:
        nonlocal position
        start, position = position, position + int(np.prod(shape))
        return values[start:position].reshape(shape)

    tensors = {"token_embd.weight": take(V, D)}
    for module, shape in (
        *(("attn_norm", (D,)), ("attn_q", (D, D)), ("attn_k", (KV, D)), ("attn_v", (KV, D))),
        *(("attn_output", (D, D)), ("ffn_norm", (D,))),
        *(("ffn_gate", (F, D)), ("ffn_down", (D, F)), ("ffn_up", (F, D))),
    ):
        for i, array in enumerate(take(L, *shape)):
            tensors[f"blk.{i}.{module}.weight"] = array
    tensors["output_norm.weight"] = take(D)
    take(n_ctx, D // H)  # cosines and sines that run.c recomputes
    tensors["output.weight"] = take(V, D) if vocab < 0 else tensors["token_embd.weight"]
    if position != len(values):
        raise ValueError(f"{path}: {len(values)} values, {position} read")
    return Llama2c(D, F, L, H, n_kv_heads, V, n_ctx, tensors)


def write_hf_llama_from_bin(
    bin_path: Path, folder: Path, *, dtype: str = "F32", shards: int = 1
) -> Path:
    """Write a llama2.c checkpoint as a Hugging Face folder without tokenizer, and return it."""
    model = read_llama2c(bin_path)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": model.n_embd,
        "intermediate_size": model.n_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "vocab_size": model.n_vocab,
        "max_position_embeddings": model.n_ctx,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return write_hf_llama(folder, model.tensors, config, dtype=dtype, shards=shards)


def write_tokenizer_model(path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write the SPM vocabulary of a GGUF's metadata as a SentencePiece model, and return `path`."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(metadata["tokenizer.ggml.tokens"])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    for piece, score, kind in zip(
        metadata["tokenizer.ggml.tokens"],
        metadata["tokenizer.ggml.scores"],
        metadata["tokenizer.ggml.token_type"],
        strict=True,
    ):
        model.pieces.add(piece=piece, score=score, type=kind)
    path.write_bytes(model.SerializeToString())
    return path


def write_config(folder: Path, config: Mapping[str, object]) -> None:
    """Write config.json; a value of None is left out."""
    message = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(message))


def random_matrix(random: np.random.Generator, rows: int, columns: int) -> Array:
    """Rows that map values around 1 to values around 1."""
    return np.asarray(random.standard_normal((rows, columns)) / np.sqrt(columns), np.float32)


def random_vector(random: np.random.Generator, n: int) -> Array:
    """Values around 0, a tenth wide."""
    return (random.standard_normal(n) * 0.1).astype(np.float32)


def matrices_stored_as(
    arrays: Mapping[str, Array],
    ggml_type: str,
    replaced: Mapping[str, GgufTensor | None] | None,
) -> dict[str, GgufTensor]:
    """Matrices as `ggml_type` and vectors as F32, the way llama.cpp does it; then replacements."""
    wanted = GGMLQuantizationType[ggml_type]
    stored: dict[str, GgufTensor | None] = {}
    for name, array in arrays.items():
        is_matrix = array.ndim == 2 and name not in {"token_types.weight", "position_embd.weight"}
        if is_matrix:
            stored[name] = (quants.quantize(array, wanted).tobytes(), wanted, array.shape)
        else:
            stored[name] = array
    stored |= dict(replaced or {})
    return {name: tensor for name, tensor in stored.items() if tensor is not None}
