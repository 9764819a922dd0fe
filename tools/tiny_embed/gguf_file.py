"""A trained tiny-embed as a GGUF file, matrices in Q8_0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType
from numpy.typing import NDArray

from tools.gguf_files import add_metadata, add_tensors
from tools.tiny_embed.network import Shape
from tools.tiny_embed.vocabulary import as_metadata

__all__ = ["write_tiny_embed"]

NAME = "tiny-embed"


def write_tiny_embed(
    path: Path,
    shape: Shape,
    tensors: Mapping[str, NDArray[np.float32]],
    pieces: Sequence[str],
    *,
    description: str,
) -> None:
    """Write the model: vectors in F32, matrices in Q8_0."""
    s = shape
    writer = GGUFWriter(path, arch="bert")
    add_metadata(writer, {"general.name": NAME, "general.description": description})
    writer.add_license("apache-2.0")
    writer.add_block_count(s.n_layers)
    writer.add_context_length(s.n_ctx)
    writer.add_embedding_length(s.n_embd)
    writer.add_feed_forward_length(s.n_ff)
    writer.add_head_count(s.n_heads)
    writer.add_layer_norm_eps(s.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)
    add_metadata(writer, as_metadata(pieces))
    add_tensors(writer, tensors)
