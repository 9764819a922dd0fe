"""A trained tiny-chat as a GGUF file, matrices in Q8_0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from tools.gguf_files import add_metadata, add_tensors
from tools.tiny_chat.network import Shape
from tools.tiny_chat.vocabulary import as_metadata

__all__ = ["CHAT_TEMPLATE", "write_tiny_chat"]

NAME = "tiny-chat"

# Llama 2's chat, as `tools.tiny_chat.sample` writes it; <s> is what the tokenizer adds.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + message['content'] "
    "+ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)


def write_tiny_chat(
    path: Path,
    shape: Shape,
    tensors: Mapping[str, NDArray[np.float32]],
    vocabulary: bytes,
    *,
    description: str,
) -> None:
    """Write the model: vectors in F32, matrices in Q8_0."""
    s = shape
    writer = GGUFWriter(path, arch="llama")
    add_metadata(writer, {"general.name": NAME, "general.description": description})
    writer.add_license("apache-2.0")
    writer.add_block_count(s.n_layers)
    writer.add_context_length(s.n_ctx)
    writer.add_embedding_length(s.n_embd)
    writer.add_feed_forward_length(s.n_ff)
    writer.add_head_count(s.n_heads)
    writer.add_head_count_kv(s.n_kv_heads)
    writer.add_layer_norm_rms_eps(s.rms_norm_eps)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_rope_freq_base(s.rope_theta)
    writer.add_vocab_size(s.n_vocab)
    add_metadata(writer, as_metadata(vocabulary))
    writer.add_chat_template(CHAT_TEMPLATE)
    add_tensors(writer, tensors)
