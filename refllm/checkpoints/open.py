"""Model files → named tensors: one naming and one RoPE layout, whatever the files are.

    stories.gguf                       "blk.0.attn_q.weight"                     ─┐
                                                                                  ├─> Weights
    a folder: config.json,             "model.layers.0.self_attn.q_proj.weight"  ─┘
    model.safetensors or shards

The canonical names are GGUF's, as llama.cpp writes them. Tensors stay in the files: each is a view
into a memory map, except the query and key rows of a folder, which `rope_layout.interleaved`
reorders.

Letters: H heads, E head width (head_dim).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from refllm.checkpoints import rope_layout
from refllm.checkpoints.gguf import GgufContents, read_gguf
from refllm.checkpoints.hyperparameters import MAX_HEADS, MAX_WIDTH
from refllm.checkpoints.mapped_file import SPLIT_PART, release
from refllm.checkpoints.names import CLASSES, FAMILIES, canonical_name
from refllm.checkpoints.safetensors import INDEX, SINGLE, StoredTensor, read_safetensors
from refllm.errors import LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.keys import Keys
from refllm.files.reading import read_json_object
from refllm.quant import Tensor

__all__ = ["Weights", "open_gguf", "open_safetensors", "open_weights"]

ADAPTER = "adapter_config.json"  # transformers loads the adapter beside a model with it
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5")

ARCHITECTURES = ("llama", "bert")


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's tensors and the metadata of its files.

    Attributes:
        path: The GGUF file or the folder.
        architecture: "llama" or "bert".
        hparams: The GGUF metadata or the content of config.json, untouched.
        source: Which of the two `hparams` is.
        tensors: Under GGUF's names, bytes and types checked, a llama's query and key rows in the
            interleaved order. A network checks which names are there.
        others: Tensors that no network can ask for, because the name is none of the
            architecture's, or the shape or type cannot be computed with: the file's own name to
            type and shape ("I64 [1, 512]").
        stored_names: The file's names where they differ from GGUF's.
        family: A key of `refllm.checkpoints.names.HUGGING_FACE_NAMES`; a folder's architecture
            "bert" may be of the family "roberta", "distilbert" or "mpnet".
    """

    path: Path
    architecture: str
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
        """Return the file's name of the tensor `name`."""
        return self.stored_names.get(name, name)


def open_weights(path: Path) -> Weights:
    """Return the weights of a GGUF file, or of a folder with safetensors files or one GGUF file.

    Raises:
        LlmRuntimeError: as `open_gguf` and `open_safetensors`, and for a path that is neither.
        ModelNotSupported: as `open_gguf` and `open_safetensors`, and for an adapter or a model of
            sentence-transformers whose encoder is in a folder of its own.

    Example:
        >>> from refllm.models.find import default_roots, find_model
        >>> weights = open_weights(find_model("tiny-chat", default_roots()))
        >>> weights.tensors["token_embd.weight"].shape  # [V, D]
        (1536, 256)
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
    """Return the weights of a GGUF file, or of all parts of a split one.

    A model that `llama-gguf-split` wrote has the parts NAME-00001-of-0000N.gguf; each of their
    names opens it. The first part has the metadata.

    Raises:
        LlmRuntimeError: for a damaged file or a missing part.
        ModelNotSupported: if `general.architecture` is neither "llama" nor "bert".
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
    """Return the first part's path, and the contents of all parts of the model of `part`."""
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
    """Return the weights of a folder: config.json, and model.safetensors or an index and shards.

    A BERT may lack config.json; `hparams` is empty then.

    Raises:
        LlmRuntimeError: for a missing or damaged file, or an impossible value in config.json.
        ModelNotSupported: if `model_type` is none of `FAMILIES`, or the weights are quantized.
    """
    config_path = folder / "config.json"
    config = read_json_object(config_path) if config_path.exists() else {}
    for key in ("quantization_config", "compression_config"):  # clearer than a tensor's dtype
        if value := config.get(key):
            method = value.get("quant_method", value) if isinstance(value, Mapping) else value
            raise ModelNotSupported(
                f"{config_path}: {key} says that the weights are quantized by {method!r:.80}, "
                "which is not supported; take the unquantized model, or a GGUF file"
            )
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
    """Return the family of a folder's model, by `model_type`, `architectures`, or the tensors."""
    model_type = config.get("model_type")
    if model_type is not None:
        if not isinstance(model_type, str):
            raise LlmRuntimeError(f"{path}: model_type must be a string, is {model_type!r:.80}")
        if model_type not in FAMILIES:
            raise ModelNotSupported(
                f"{path}: model_type is {model_type!r:.80}; supported are {', '.join(FAMILIES)}"
            )
        return FAMILIES[model_type]
    classes = config.get("architectures")
    if classes is not None:
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise LlmRuntimeError(f"{path}: architectures must be strings, is {classes!r:.80}")
        kind = re.fullmatch(f"({'|'.join(CLASSES)})(Model|For[A-Za-z]+)", " ".join(classes))
        if kind is None:
            raise ModelNotSupported(
                f"{path}: architectures is {classes!r:.80}; supported are {', '.join(FAMILIES)}"
            )
        return FAMILIES[CLASSES[kind[1]]]
    if any(canonical_name("bert", name) == "token_embd.weight" for name in stored):
        return "bert"
    if not config:
        raise LlmRuntimeError(f"{path}: missing or empty, and these tensors are not a BERT's")
    raise ModelNotSupported(f"{path}: has neither model_type nor architectures")


def _with_tied_embedding(
    named: dict[str, StoredTensor], config_path: Path, config: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Return `named`; if config.json ties the two and only the output is stored, it is both.

    The reverse needs no change: without an output the network uses the embedding. A stored output
    is used, tied or not, as by transformers 5.24 and llama.cpp.

    Raises:
        LlmRuntimeError: for an lm_head that is missing and not tied; transformers would use random
            numbers.
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
    """Return the tensors with every query and key in GGUF's order of rows."""
    keys = Keys(path, config, where="config.json")
    n_heads = keys.integer("num_attention_heads", maximum=MAX_HEADS)
    n_kv_heads = keys.integer("num_key_value_heads", maximum=MAX_HEADS, default=n_heads)
    head_dim = _head_dim(keys, n_heads)
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


def _head_dim(keys: Keys, n_heads: int) -> int:
    """Return E: `head_dim` if config.json has it, else the model's width divided by the heads."""
    if "head_dim" in keys:
        key, head_dim = "head_dim", keys.integer("head_dim", maximum=MAX_WIDTH)
    else:
        key, width = "hidden_size", keys.integer("hidden_size", maximum=MAX_WIDTH)
        if width % n_heads != 0:
            raise keys.error(key, f"{width} is not a multiple of num_attention_heads {n_heads}")
        key, head_dim = "hidden_size / num_attention_heads", width // n_heads
    if head_dim % 2 != 0:
        raise keys.error(key, f"is {head_dim}, and must be even: RoPE turns pairs")
    return head_dim
