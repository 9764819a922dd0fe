"""Safetensors files: a folder's tensors, under the names the files use, as views into memory maps.

A safetensors file:

    header length u64, little-endian | header, JSON | the tensors' bytes, without gaps

    {"model.norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}, ...,
     "__metadata__": {"format": "pt"}}

A model is `model.safetensors`, or shards and a `model.safetensors.index.json` with the file of
each tensor: {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}.

Source: https://huggingface.co/docs/safetensors. The `safetensors` package checks each header; it
returns tensors only as copies and not as bfloat16, so the bytes are mapped here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from refllm.checkpoints.mapped_file import SPLIT_PART, map_file, row_layout
from refllm.errors import LlmRuntimeError, ModelNotSupported
from refllm.files.reading import (
    MAX_JSON_BYTES,
    check_json_values,
    parse_json_object,
    read_json_object,
)
from refllm.quant import FORMATS, Tensor

__all__ = ["INDEX", "SINGLE", "StoredTensor", "read_safetensors"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
METADATA = "__metadata__"
DTYPES = ("F32", "F16", "BF16")
MAX_HEADER_VALUES = 2**18  # ten for each tensor; of all shards DeepSeek-V3 has 92,000 tensors
SEPARATORS = frozenset("/\\:")  # of the parts of a path, on any system


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as its file has it: any dtype, any shape, `data` uint8 [bytes]."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def named(self, name: str) -> Tensor:
        """Return the same bytes as the `Tensor` called `name`, uint8 [rows, row_bytes].

        Raises:
            ModelNotSupported: for a dtype other than F32, F16 and BF16.
            LlmRuntimeError: for a shape without axes or of more than four.
        """
        where = f"{self.path}: tensor {self.name!r:.80}"
        if self.dtype not in DTYPES:
            raise ModelNotSupported(
                f"{where} has dtype {self.dtype}; {', '.join(DTYPES)} can be read, so take the "
                "unquantized model, or a GGUF file"
            )
        fmt = FORMATS[self.dtype]
        rows = row_layout(self.shape, fmt, where=where)
        return Tensor(name, fmt, self.shape, self.data.reshape(rows))


def read_safetensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of the model in `folder` by stored name, aliases included.

    Of tensors that share memory, a writer keeps one and writes `{dropped: kept}` into
    `__metadata__`; both names then give the same bytes.

    Raises:
        LlmRuntimeError: naming the file, and the tensor, if a file is missing, truncated, not
            safetensors, or lacks a tensor of the index.
    """
    if (folder / SINGLE).exists():
        tensors, metadata = _read_file(folder / SINGLE)
    elif (folder / INDEX).exists():
        tensors, metadata = _read_shards(folder)
    else:
        raise LlmRuntimeError(f"{folder}: has neither {SINGLE} nor {INDEX}")
    aliases = {
        dropped: tensors[kept]
        for dropped, kept in metadata.items()
        if kept in tensors and dropped not in tensors
    }
    return tensors | aliases


def _read_shards(folder: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return all tensors of the files that the index names, and every file's `__metadata__`.

    A tensor that is in a file and not in the index belongs to the model, as in transformers.
    """
    weight_map = _weight_map(folder / INDEX)
    files = set(weight_map.values())
    shards = {file: _read_file(folder / file) for file in sorted(files)}
    models = {(match[1], match[3]) for file in files if (match := SPLIT_PART.fullmatch(file))}
    for path in sorted(folder.glob("*.safetensors")):
        match = SPLIT_PART.fullmatch(path.name)
        if match and (match[1], match[3]) in models and path.name not in files:
            raise LlmRuntimeError(
                f"{path}: {INDEX} names no tensor of this shard; fetch the index again"
            )
    tensors: dict[str, StoredTensor] = {}
    for file, (found, _) in shards.items():
        for name, stored in found.items():
            if name in tensors and weight_map.get(name) != file:
                continue
            tensors[name] = stored
    for name, file in weight_map.items():
        if name not in shards[file][0]:
            raise LlmRuntimeError(
                f"{folder / file}: has no tensor {name!r:.80}, which {INDEX} says is there"
            )
    return tensors, {
        key: value for _, metadata in shards.values() for key, value in metadata.items()
    }


def _weight_map(path: Path) -> dict[str, str]:
    """Return the index's map from tensor name to the name of a file beside the index."""
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise LlmRuntimeError(f"{path}: weight_map must be an object")
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or not file.isprintable()
            or file in {"", ".", ".."}
            or SEPARATORS.intersection(file)
        ):
            raise LlmRuntimeError(
                f"{path}: weight_map says {name!r:.80} is in {file!r:.80}, "
                "which is not the name of a file in the same folder"
            )
    return weight_map


def _read_file(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors and the `__metadata__` of one safetensors file."""
    data = map_file(path)
    data_start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    n_bytes = data[8:data_start].size
    if n_bytes > MAX_JSON_BYTES:
        raise LlmRuntimeError(
            f"{path}: not a whole safetensors file: a header of {n_bytes} bytes, and none needs "
            f"more than {MAX_JSON_BYTES}; fetch it again"
        )
    text = data[8:data_start].tobytes()
    # Before the package makes objects of them.
    check_json_values(text, path=path, max_values=MAX_HEADER_VALUES)
    # The package checks that the tensors' bytes cover the rest of the file without gap or overlap,
    # that each range is as long as shape and dtype need, and the types of the header's values.
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise LlmRuntimeError(
            f"{path}: not a whole safetensors file: {error}; fetch it again"
        ) from error
    header = parse_json_object(text, path=path)
    metadata = header.pop(METADATA, None) or {}
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        bytes_of_tensor = data[data_start:][start:stop]
        tensors[name] = StoredTensor(
            path, name, entry["dtype"], tuple(entry["shape"]), bytes_of_tensor
        )
    return tensors, metadata
