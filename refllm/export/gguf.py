"""A model as a GGUF file: from another one, whose metadata are kept, or from a folder.

Every matrix gets the requested type, and every other tensor F32, as by `llama-quantize --pure`;
without --pure some matrices would get a larger type. Position and token-type embeddings of a BERT
are no matrices there and here, because they are not multiplied. A type whose blocks do not divide a
row is replaced by the next one that does,

    Q4_K → Q8_0 → F16        Q4_0 → F16

llama.cpp goes from Q4_K to Q5_0 instead, which can be read here and not written: a matrix whose
rows are no multiple of 256 is larger and more exact here than `llama-quantize --pure` makes it. A
quantized matrix can be quantized again, as by llama-quantize --allow-requantize: its errors stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from gguf import GGML_QUANT_VERSION, LlamaFileType

from refllm.bert import BertConfig
from refllm.checkpoints.gguf import DEFAULT_ALIGNMENT
from refllm.checkpoints.gguf_writer import keys_of_file, packed, write_gguf_file
from refllm.checkpoints.hyperparameters import HYPERPARAMETERS
from refllm.export.gguf_vocabulary import missing_keys, vocabulary_keys
from refllm.export.model import Description, refuse_any
from refllm.export.sentence_files import gguf_pooling_type
from refllm.llama import LlamaConfig
from refllm.quant import FORMATS, Tensor
from refllm.rope import YarnScaling

__all__ = [
    "FILE_TYPES",
    "fitting_type",
    "is_for_llama_cpp",
    "requantized_types",
    "unfitting_matrices",
    "write_gguf",
]

# general.file_type for each type of `refllm.ggml.encode`, by the type of most tensors. A file that
# is Q4_K throughout is Q4_K_S in llama.cpp.
FILE_TYPES: Mapping[str, int] = {
    "F32": int(LlamaFileType.ALL_F32),
    "F16": int(LlamaFileType.MOSTLY_F16),
    "BF16": int(LlamaFileType.MOSTLY_BF16),
    "Q8_0": int(LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": int(LlamaFileType.MOSTLY_Q4_0),
    "Q4_K": int(LlamaFileType.MOSTLY_Q4_K_S),
}
NEXT_TYPE = {"Q4_K": "Q8_0", "Q8_0": "F16", "Q4_0": "F16"}
# Added to the embedding as it is stored, as vectors are.
ADDED = "token_types.weight"
NOT_MULTIPLIED = frozenset({"position_embd.weight", "token_types.weight"})


def write_gguf(model: Description, path: Path, *, name: str, type_name: str | None) -> None:
    """Write a model as a GGUF file.

    The metadata of a GGUF file are kept, byte for byte, except general.file_type and
    general.quantization_version if the type changes. Keys are added without which llama.cpp would
    use other special tokens.

    Args:
        model: The model.
        path: The file.
        name: The general.name of a model from a folder.
        type_name: The type of matrices, of `FILE_TYPES`; None for their own.

    Raises:
        InvalidInput: for numbers that the type cannot hold.
        ModelNotSupported: for a tokenizer that GGUF has no keys for.
        LlmRuntimeError: for a damaged file.
    """
    weights = model.weights
    alignment = cast("int", weights.hparams.get("general.alignment", DEFAULT_ALIGNMENT))
    if weights.source == "gguf" and type_name is None:
        same = [(tensor, _own_type(tensor)) for tensor in weights.tensors.values()]
        write_gguf_file(path, _keys(model, name), same, alignment=alignment)
        return
    tensors = [(tensor, stored_type(tensor, type_name)) for tensor in _tensors(model).values()]
    counts: Counter[str] = Counter()
    for tensor, name_of_type in tensors:
        counts[name_of_type] += math.prod(tensor.shape)
    types: dict[str, object] = {
        "general.file_type": FILE_TYPES[counts.most_common(1)[0][0]],
        "general.quantization_version": GGML_QUANT_VERSION,
    }
    changed = {key: packed(key, value) for key, value in types.items()}
    write_gguf_file(path, _keys(model, name) | changed, tensors, alignment=alignment)


def is_for_llama_cpp(model: Description) -> bool:
    """Return whether a copy is an export: a GGUF file that llama.cpp computes as refllm does."""
    weights = model.weights
    if weights.source != "gguf":
        return False
    is_one_file = "split.count" not in weights.hparams
    are_added = all(_own_type(each) == each.format.name for each in weights.tensors.values())
    return is_one_file and are_added and not missing_keys(weights)


def requantized_types(model: Description, type_name: str) -> list[tuple[str, str]]:
    """Return the types, before and after, of quantized matrices that are quantized again.

    Args:
        model: The model.
        type_name: The type that its matrices get where their rows are whole blocks of it.
    """
    found = set()
    for tensor in model.weights.tensors.values():
        before, after = tensor.format.name, stored_type(tensor, type_name)
        if before != after and FORMATS[before].block_size > 1 and FORMATS[after].block_size > 1:
            found.add((before, after))
    return sorted(found)


def unfitting_matrices(model: Description, type_name: str) -> tuple[int, Counter[str]]:
    """Return the number of quantized matrices, and of those by another type than `type_name`."""
    matrices = [
        tensor
        for tensor in model.weights.tensors.values()
        if len(tensor.shape) > 1 and tensor.name not in NOT_MULTIPLIED
    ]
    types = Counter(stored_type(tensor, type_name) for tensor in matrices)
    return len(matrices), Counter({each: n for each, n in types.items() if each != type_name})


def _own_type(tensor: Tensor) -> str:
    """Return its own type, or F32 where llama.cpp ends the process for any other type."""
    return "F32" if len(tensor.shape) < 2 or tensor.name == ADDED else tensor.format.name


def fitting_type(type_name: str, n_columns: int) -> str:
    """Return `type_name`, or the next type whose blocks divide a row of `n_columns` numbers."""
    while n_columns % FORMATS[type_name].block_size != 0:
        type_name = NEXT_TYPE[type_name]
    return type_name


def stored_type(tensor: Tensor, type_name: str | None) -> str:
    """Return the type of a tensor in a file whose matrices get `type_name`, or keep their own."""
    if len(tensor.shape) < 2 or tensor.name in NOT_MULTIPLIED:
        return "F32"
    return fitting_type(type_name or tensor.format.name, tensor.shape[-1])


def _tensors(model: Description) -> Mapping[str, Tensor]:
    """Return the tensors as llama.cpp reads them.

    A llama's RoPE may have divisors, which are a rule in config.json and a tensor here: Llama 3's,
    or those of a YaRN ramp that has no key. An encoder whose positions begin behind the padding
    token, as RoBERTa's do, has a table of positions that begins there, too.
    """
    weights, config = model.weights, model.config
    if weights.source == "gguf":
        return weights.tensors
    if isinstance(config, BertConfig):
        name = "position_embd.weight"
        table = weights.tensors[name]  # [padding_id + 1 + C, D]
        first = 0 if config.padding_id is None else config.padding_id + 1
        cut = Tensor(name, table.format, (config.n_ctx, config.n_embd), table.data[first:])
        return {**weights.tensors, name: cut}
    factors: Sequence[float] | None = config.rope_factors
    if config.rope_yarn is not None and not _is_llama_cpp_s(config.rope_yarn):
        divisors = config.rope_yarn.divisors(base=config.rope_theta, rope_dim=config.rope_dim)
        factors = [float(divisor) for divisor in divisors]
    if factors is None:
        return weights.tensors
    name, data = "rope_freqs.weight", np.array([factors], np.float32).view(np.uint8)
    return {**weights.tensors, name: Tensor(name, FORMATS["F32"], (len(factors),), data)}


def _keys(model: Description, name: str) -> dict[str, bytes]:
    """Return a GGUF file's own metadata and missing keys, or the keys for a folder.

    Each key of a GGUF file that is kept was read, or no result depends on it.
    """
    weights, config = model.weights, model.config
    if weights.source == "gguf":
        added = {key: packed(key, value) for key, value in missing_keys(weights).items()}
        return keys_of_file(weights.path) | added
    # In the order of llama.cpp's converter.
    numbers: dict[str, object] = dict.fromkeys(
        ("context_length", "embedding_length", "block_count")
    )
    for row in HYPERPARAMETERS[weights.architecture]:
        numbers[row.gguf] = getattr(config, row.field)
        if row.field == "head_dim":
            numbers["attention.value_length"] = numbers[row.gguf]
    if isinstance(config, BertConfig):
        numbers |= _bert(model, config)
        n_token_types = config.n_token_types
    else:
        numbers |= _llama(config)
        n_token_types = None
    metadata = {
        "general.architecture": weights.architecture,
        "general.type": "model",
        "general.name": name,
        **{f"{weights.architecture}.{key}": value for key, value in numbers.items()},
        f"{weights.architecture}.vocab_size": model.n_vocab,
        **vocabulary_keys(model.words, n_vocab=model.n_vocab, n_token_types=n_token_types),
    }
    return {key: packed(key, value) for key, value in metadata.items()}


def _llama(c: LlamaConfig) -> dict[str, object]:
    keys: dict[str, object] = {"rope.dimension_count": c.rope_dim, "rope.freq_base": c.rope_theta}
    if c.rope_linear_scale != 1.0:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": c.rope_linear_scale}
    magnitude = c.rope_attention_factor
    if c.rope_yarn is not None and _is_llama_cpp_s(c.rope_yarn):
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": c.rope_yarn.factor,
            "rope.scaling.original_context_length": c.rope_yarn.original_context,
        }
        magnitude /= c.rope_yarn.attention_factor()
    if magnitude != 1.0:
        keys["rope.scaling.attn_factor"] = magnitude
    return keys


def _is_llama_cpp_s(yarn: YarnScaling) -> bool:
    """Return whether llama.cpp computes this ramp: for a llama it has the usual one only.

    Source: `load_arch_hparams` in llama.cpp's src/models/llama.cpp, which reads no yarn_beta_fast.
    """
    return yarn == YarnScaling(yarn.factor, yarn.original_context)


def _bert(model: Description, c: BertConfig) -> dict[str, object]:
    """Return further keys of the architecture "bert", or refuse an encoder of another graph.

    llama.cpp's graph has no bias for the distance of two tokens, and one activation, GELU's
    approximation by tanh, for which the file has no key.
    """
    assert model.sentence is not None
    beyond = {
        "a relative attention bias, as MPNet has it": c.relative_attention,
        f"the activation {c.activation}": c.activation != "gelu",
    }
    refuse_any(
        model,
        beyond,
        "which llama.cpp does not compute in a BERT; use --format hf, or a server that runs "
        "sentence-transformers",
    )
    return {"attention.causal": False, "pooling_type": gguf_pooling_type(model, model.sentence)}
