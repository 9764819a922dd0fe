"""A trained tiny-chat as a GGUF file, matrices in Q8_0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.checkpoints.chat_template import LLAMA_2
from tools.gguf_files import add_metadata, add_tensors, new_file
from tools.tiny_chat.network import Shape
from tools.tiny_chat.vocabulary import as_metadata

__all__ = ["write_tiny_chat"]

NAME = "tiny-chat"


def write_tiny_chat(
    path: Path,
    shape: Shape,
    tensors: Mapping[str, NDArray[np.float32]],
    vocabulary: bytes,
    *,
    description: str,
) -> None:
    """Write the model: vectors in F32, matrices in Q8_0."""
    writer = new_file(path, "llama", shape, name=NAME, description=description)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.n_vocab)
    add_metadata(writer, as_metadata(vocabulary))
    writer.add_chat_template(LLAMA_2)  # as `tools.tiny_chat.sample` writes it
    add_tensors(writer, tensors)
