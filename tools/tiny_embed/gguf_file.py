"""A trained tiny-embed as a GGUF file, matrices in Q8_0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf import PoolingType
from numpy.typing import NDArray

from refllm.tokenizer.gguf_keys import MAX_LENGTH
from tools.gguf_files import add_metadata, add_tensors, new_file
from tools.tiny_embed.network import Shape
from tools.tiny_embed.vocabulary import as_metadata

__all__ = ["write_tiny_embed"]

NAME = "tiny-embed"
# all-MiniLM-L6-v2 has so many positions, and its tokenizer.json cuts texts at so many tokens; its
# stand-in takes the same texts. Training reads at most `Shape.n_ctx` tokens of a text, so the rows
# of the positions beyond are not learned: they are zeros.
N_POSITIONS = 512
TEXT_LIMIT = 128


def write_tiny_embed(
    path: Path,
    shape: Shape,
    tensors: Mapping[str, NDArray[np.float32]],
    pieces: Sequence[str],
    *,
    description: str,
) -> None:
    """Write the model: vectors in F32, matrices in Q8_0."""
    name = "position_embd.weight"
    beyond = np.zeros((N_POSITIONS - shape.n_ctx, shape.n_embd), np.float32)
    positions = np.concatenate([tensors[name], beyond])  # [C, D]
    shape = replace(shape, n_ctx=N_POSITIONS)
    writer = new_file(path, "bert", shape, name=NAME, description=description)
    writer.add_layer_norm_eps(shape.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)
    add_metadata(writer, {**as_metadata(pieces), MAX_LENGTH: TEXT_LIMIT})
    add_tensors(writer, {**tensors, name: positions})
