"""A trained tiny-embed as a GGUF file, matrices in Q8_0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import PoolingType
from numpy.typing import NDArray

from tools.gguf_files import add_metadata, add_tensors, new_file
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
    writer = new_file(path, "bert", shape, name=NAME, description=description)
    writer.add_layer_norm_eps(shape.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)
    add_metadata(writer, as_metadata(pieces))
    add_tensors(writer, tensors)
