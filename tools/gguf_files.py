"""What the files of both small models have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants
from numpy.typing import NDArray

__all__ = ["add_metadata", "add_tensors", "new_file"]


class Shape(Protocol):
    """The hyperparameters that every network has."""

    @property
    def n_ctx(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_ff(self) -> int: ...


def new_file(
    path: Path, architecture: str, shape: Shape, *, name: str, description: str
) -> GGUFWriter:
    """A file that says whose it is, and what all architectures say of their shape."""
    writer = GGUFWriter(path, arch=architecture)
    add_metadata(writer, {"general.name": name, "general.description": description})
    writer.add_license("apache-2.0")
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    return writer


def add_metadata(writer: GGUFWriter, metadata: Mapping[str, object]) -> None:
    """Each value by its Python type."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            raise TypeError(f"{key}: {type(value).__name__}")


def add_tensors(writer: GGUFWriter, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Vectors in F32 and matrices in Q8_0; that was all, so the file is written.

    Token types keep the values of Q8_0 in F32: llama.cpp adds them as they are stored, and ends the
    process where they are quantized.
    """
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    for name, array in tensors.items():
        if array.ndim == 1:
            writer.add_tensor(name, array)
            continue
        kind = GGMLQuantizationType.Q8_0
        blocks = quants.quantize(array, kind)
        if name == "token_types.weight":
            writer.add_tensor(name, quants.dequantize(blocks, kind))
        else:
            writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
