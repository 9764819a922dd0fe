"""Model files → named tensors: one naming and one RoPE layout, whatever the files are.

    stories.gguf                       "blk.0.attn_q.weight"                     ─┐
                                                                                  ├─> Weights
    a folder: config.json,             "model.layers.0.self_attn.q_proj.weight"  ─┘
    model.safetensors or shards

The canonical names are GGUF's, as llama.cpp writes them. Tensors stay in the files: each is a view
into a memory map, except the query and key rows of a folder, which `rope_layout.interleaved`
reorders.

    mapped_file.py   opening a file, checking a shape
    gguf.py          GGUF
    safetensors.py   safetensors, single or sharded
    names.py         the names of tensors
    rope_layout.py   the two orders of query and key rows

Letters: H heads, E head width (head_dim), N rows, K columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from refllm.checkpoints import rope_layout
from refllm.checkpoints.gguf import GgufContents, read_gguf
from refllm.checkpoints.mapped_file import SPLIT_PART, read_json_object, release
from refllm.checkpoints.names import CLASSES, FAMILIES, canonical_name
from refllm.checkpoints.safetensors import INDEX, SINGLE, StoredTensor, read_safetensors
from refllm.errors import LlmRuntimeError, ModelNotSupported
from refllm.quant import Tensor

__all__ = [
    "Weights",
    "open_gguf",
    "open_safetensors",
    "open_weights",
]

ADAPTER = "adapter_config.json"  # transformers loads the adapter beside a model with it
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5")

MAX_HEADS = 2**16
MAX_WIDTH = 2**20

ARCHITECTURES = ("llama", "bert")


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's tensors and what its files say about them.

    `tensors` are under GGUF's names, bytes and types checked, llama's query and key rows in the
    interleaved layout; which names a network needs, it must check itself. `hparams` are the GGUF
    metadata or the content of config.json, untouched, and `source` says which of the two.
    `others` are tensors that no network can ask for, by the file's own names: the name is not one
    of the architecture's, or the shape or type is none that is computed with; the value says what
    the tensor is ("I64 [1, 512]"). `stored_names` are the file's names where they differ. `family`
    is a key of `HUGGING_FACE_NAMES`: a folder's architecture "bert" is of the family "bert",
    "roberta", "distilbert" or "mpnet", and that of a GGUF file is its architecture.
    """

    path: Path
    architecture: str  # "llama" or "bert"
    hparams: Mapping[str, Any]
    source: Literal["gguf", "hf"]
    tensors: Mapping[str, Tensor]
    others: Mapping[str, str] = field(default_factory=dict)
    stored_names: Mapping[str, str] = field(default_factory=dict)
    family: str = ""

    def __post_init__(self) -> None:
        if not self.family:
            object.__setattr__(self, "family", self.architecture)

    def stored_name(self, name: str) -> str:
        """Return what the file calls the tensor `name`."""
        return self.stored_names.get(name, name)


def open_weights(path: Path) -> Weights:
    """The weights at `path`: a GGUF file, or a folder with safetensors files or one GGUF file.

    Errors: as `open_gguf` and `open_safetensors`; `LlmRuntimeError` for a path that is neither.
    """
    try:
        return _open_file_or_folder(path)
    except OSError as error:
        raise LlmRuntimeError(f"{path}: cannot be read: {error.strerror}") from error


def _open_file_or_folder(path: Path) -> Weights:
    if not path.is_dir():
        return open_gguf(path)
    if (path / ADAPTER).exists():
        raise ModelNotSupported(
            f"{path / ADAPTER}: the folder holds a LoRA adapter; merge it into its base model "
            "first (merge_and_unload of the peft package)"
        )
    if (path / SINGLE).exists() or (path / INDEX).exists():
        return open_safetensors(path)
    gguf_files = sorted(path.glob("*.gguf"))
    parts = {match[1] for file in gguf_files if (match := SPLIT_PART.fullmatch(file.name))}
    are_one = len(parts) == 1 and all(SPLIT_PART.fullmatch(file.name) for file in gguf_files)
    if len(gguf_files) == 1 or are_one:
        return open_gguf(gguf_files[0])
    found = f"{len(gguf_files)} .gguf files: name one" if gguf_files else "no .gguf file"
    module = next((each.name for each in sorted(path.glob("0_*")) if each.is_dir()), None)
    if module is not None:
        raise ModelNotSupported(
            f"{path}: a sentence-transformers model whose first module is in the folder {module}; "
            "of a Transformer, move that folder's files up beside modules.json"
        )
    pickled = next((name for name in PICKLED if (path / name).exists()), None)
    if pickled is not None:
        found += f"; {pickled} must be converted to safetensors first (save_pretrained)"
    raise LlmRuntimeError(f"{path}: has neither {SINGLE} nor {INDEX}, and {found}")


def open_gguf(path: Path) -> Weights:
    """The weights in the GGUF file at `path`, or in all parts of a split one.

    A model that `llama-gguf-split` wrote has the parts NAME-00001-of-0000N.gguf; each of their
    names opens it. The first part has the metadata.
    Errors: `LlmRuntimeError` for a damaged file, or a part that is missing; `ModelNotSupported`
    when `general.architecture` is neither "llama" nor "bert".
    """
    contents = read_gguf(path)
    if contents.metadata.get("split.count", 1) not in (0, 1):
        path, contents = _joined(path, contents)
    hparams = contents.metadata
    architecture = hparams.get("general.architecture")
    if not isinstance(architecture, str):
        raise LlmRuntimeError(
            f"{path}: general.architecture must be a string, is {architecture!r:.80}"
        )
    if architecture not in ARCHITECTURES:
        raise ModelNotSupported(
            f"{path}: general.architecture is {architecture!r:.80}; "
            f"supported are {' and '.join(ARCHITECTURES)}"
        )
    return Weights(path, architecture, hparams, "gguf", contents.tensors, contents.others)


def _joined(path: Path, part: GgufContents) -> tuple[Path, GgufContents]:
    """The first part's path, and what all parts of the split model that `part` belongs to hold."""
    match = SPLIT_PART.fullmatch(path.name)
    count = part.metadata["split.count"]
    if match is None or int(match[3]) != count:
        raise LlmRuntimeError(
            f"{path}: one of {count!s:.80} parts (split.count), so its name must end in "
            "-00001-of-0000N.gguf, with the number of the part and how many there are"
        )
    paths = [
        path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf")
        for number in range(1, int(match[3]) + 1)
    ]
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    first: GgufContents | None = None
    for number, each in enumerate(paths):
        contents = part if each == path else read_gguf(each)
        if contents.metadata.get("split.no") != number:
            raise LlmRuntimeError(
                f"{each}: split.no is {contents.metadata.get('split.no')!r:.80}, and its name "
                f"says part {number + 1} of {len(paths)}"
            )
        twice = next((name for name in contents.tensors if name in tensors), None)
        if twice is not None:
            raise LlmRuntimeError(f"{each}: the tensor {twice!r:.80} is in another part, too")
        first = first or contents
        tensors |= contents.tensors
        others |= contents.others
    assert first is not None
    expected = first.metadata.get("split.tensors.count", len(tensors) + len(others))
    if len(tensors) + len(others) != expected:
        raise LlmRuntimeError(
            f"{paths[0]}: split.tensors.count is {expected!s:.80}, and the parts hold "
            f"{len(tensors) + len(others)} tensors"
        )
    return paths[0], GgufContents(first.metadata, tensors, others)


def open_safetensors(folder: Path) -> Weights:
    """The weights in `folder`: config.json, and model.safetensors or an index and its shards.

    Of a BERT, config.json may be absent; `hparams` is empty then. A stored tensor whose name is
    none of the architecture's is among the `others`.
    Errors: `LlmRuntimeError` for a missing or damaged file or an impossible value in config.json;
    `ModelNotSupported` when `model_type` is none of `FAMILIES`, or the weights are quantized.
    """
    config_path = folder / "config.json"
    config = read_json_object(config_path) if config_path.exists() else {}
    _refuse_quantized(config_path, config)
    stored = read_safetensors(folder)
    family = _hf_family(config_path, config, stored)
    architecture = "llama" if family == "llama" else "bert"
    named = _canonically_named(family, stored)
    if architecture == "llama":
        named = _with_tied_embedding(named, config_path, config)
    tensors = {name: tensor.named(name) for name, tensor in named.items()}
    if architecture == "llama":
        tensors = _all_interleaved(tensors, config_path, config)
    used = {tensor.name for tensor in named.values()}
    return Weights(
        folder,
        architecture,
        config,
        "hf",
        tensors,
        others={
            name: f"{tensor.dtype} {list(tensor.shape)}"
            for name, tensor in stored.items()
            if name not in used
        },
        stored_names={name: tensor.name for name, tensor in named.items()},
        family=family,
    )


def _refuse_quantized(path: Path, config: Mapping[str, Any]) -> None:
    """Name how the weights are quantized, which says more than the dtype of a tensor."""
    for key in ("quantization_config", "compression_config"):
        said = config.get(key)
        if said:
            method = said.get("quant_method", said) if isinstance(said, Mapping) else said
            raise ModelNotSupported(
                f"{path}: {key} says that the weights are quantized by {method!r:.80}, which is "
                "not supported; take the unquantized model, or a GGUF file"
            )


# Naming


def _canonically_named(family: str, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    named: dict[str, StoredTensor] = {}
    for stored_name, tensor in stored.items():
        name = canonical_name(family, stored_name)
        if name is None:
            continue
        if name in named:
            raise LlmRuntimeError(
                f"{tensor.path}: {stored_name!r:.80} and {named[name].name!r:.80} are both {name}"
            )
        named[name] = tensor
    return named


def _hf_family(path: Path, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> str:
    """What kind of model the folder holds: by `model_type`, `architectures`, or the tensors."""
    model_type = config.get("model_type")
    if model_type is not None:
        if not isinstance(model_type, str):
            raise LlmRuntimeError(f"{path}: model_type must be a string, is {model_type!r:.80}")
        if model_type not in FAMILIES:
            raise ModelNotSupported(
                f"{path}: model_type is {model_type!r:.80}; supported are {_listed(FAMILIES)}"
            )
        return FAMILIES[model_type]
    classes = config.get("architectures")
    if classes is not None:
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise LlmRuntimeError(f"{path}: architectures must be strings, is {classes!r:.80}")
        kind = re.fullmatch(f"({'|'.join(CLASSES)})(Model|For[A-Za-z]+)", " ".join(classes))
        if kind is None:
            raise ModelNotSupported(
                f"{path}: architectures is {classes!r:.80}; supported are {_listed(FAMILIES)}"
            )
        return CLASSES[kind[1]]
    if any(canonical_name("bert", name) == "token_embd.weight" for name in stored):
        return "bert"
    if not config:
        raise LlmRuntimeError(f"{path}: missing or empty, and these tensors are not a BERT's")
    raise ModelNotSupported(f"{path}: has neither model_type nor architectures")


def _listed(names: Iterable[str]) -> str:
    """The names as a list in a sentence: "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}"


def _with_tied_embedding(
    named: dict[str, StoredTensor], config_path: Path, config: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """`named`, with the output as the embedding when config.json ties them and only it is stored.

    The reverse needs nothing: without an output the network uses the embedding, and an output that
    is stored is used, tied or not, as by transformers 5.24 and llama.cpp.
    Errors: `LlmRuntimeError` for an lm_head that is missing and not tied, in whose place
    transformers would take random numbers.
    """
    tied = config.get("tie_word_embeddings") or False
    if not isinstance(tied, bool):
        raise LlmRuntimeError(f"{config_path}: tie_word_embeddings must be true or false")
    embedding, output = named.get("token_embd.weight"), named.get("output.weight")
    if not tied and output is None:
        raise LlmRuntimeError(
            f"{config_path.parent}: lm_head.weight is missing, and tie_word_embeddings is not "
            "true; set it to true if the output matrix is the embedding, or fetch the model again"
        )
    if tied and embedding is None and output is not None:
        return {"token_embd.weight": output, **named}
    return named


def _all_interleaved(
    tensors: Mapping[str, Tensor], path: Path, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tensors with every query and key in GGUF's order of rows."""
    n_heads = _positive(path, config, "num_attention_heads", most=MAX_HEADS)
    n_kv_heads = _positive(path, config, "num_key_value_heads", most=MAX_HEADS, default=n_heads)
    head_dim = _head_dim(path, config, n_heads)
    result = dict(tensors)
    for name, tensor in tensors.items():
        match = re.fullmatch(r"blk\.[0-9]+\.attn_([qk])\.(weight|bias)", name)
        if match is None:
            continue
        heads = n_heads if match[1] == "q" else n_kv_heads
        n_rows, n_axes = tensor.shape[0], len(tensor.shape)
        if n_rows != heads * head_dim or n_axes != (2 if match[2] == "weight" else 1):
            raise LlmRuntimeError(
                f"{path.parent}: {name} has shape {list(tensor.shape)}, and config.json says "
                f"{heads} heads of {head_dim} rows each"
            )
        rows = rope_layout.interleaved(tensor.data.reshape(n_rows, -1), n_heads=heads)
        result[name] = replace(tensor, data=rows.reshape(tensor.data.shape))
        release(tensor.data)
    return result


def _head_dim(path: Path, config: Mapping[str, Any], n_heads: int) -> int:
    """E: `head_dim` where config.json has it, else the model's width shared by the heads."""
    if config.get("head_dim") is None:
        width = _positive(path, config, "hidden_size", most=MAX_WIDTH)
        if width % n_heads != 0:
            raise LlmRuntimeError(
                f"{path}: hidden_size {width} is not a multiple of num_attention_heads {n_heads}"
            )
        key, head_dim = "hidden_size / num_attention_heads", width // n_heads
    else:
        key, head_dim = "head_dim", _positive(path, config, "head_dim", most=MAX_WIDTH)
    if head_dim % 2 != 0:
        raise LlmRuntimeError(f"{path}: {key} is {head_dim}, and must be even: RoPE turns pairs")
    return head_dim


def _positive(
    path: Path, config: Mapping[str, Any], key: str, *, most: int, default: int | None = None
) -> int:
    """The whole number that config.json has under `key`; null counts as absent."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise LlmRuntimeError(f"{path}: {key} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise LlmRuntimeError(f"{path}: {key} must be from 1 to {most}, is {value!r:.80}")
    return value
