"""Synthetic llamas at real shapes: random weights, a real file, the work of a real model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from benchmarks.peer import contestant

__all__ = ["QUICK_SHAPE", "SHAPES", "SIZES", "TYPES", "Shape", "model_file"]

TYPES = ("F16", "Q8_0", "Q4_0", "Q4_K_M")


@dataclass(frozen=True, slots=True)
class Shape:
    """A llama's measures."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int = 32000
    n_ctx: int = 4096

    @property
    def n_parameters(self) -> int:
        """The weights of all matrices, the table of embeddings included."""
        n_kv = self.n_embd // self.n_heads * self.n_kv_heads
        layer = self.n_embd * (2 * self.n_embd + 2 * n_kv + 3 * self.n_ff)
        return self.n_layers * layer + 2 * self.n_vocab * self.n_embd


QUICK_SHAPE = "tiny"
SIZES = ("12M", "60M", "290M", "1.1B")  # one model at several sizes
SHAPES: Mapping[str, Shape] = {
    "1.1B": Shape(n_layers=22, n_embd=2048, n_ff=5632, n_heads=32, n_kv_heads=4),  # TinyLlama
    "7B-8-layers": Shape(n_layers=8, n_embd=4096, n_ff=11008, n_heads=32, n_kv_heads=32),
    QUICK_SHAPE: Shape(n_layers=2, n_embd=256, n_ff=512, n_heads=4, n_kv_heads=2, n_vocab=512),
    "12M": Shape(n_layers=4, n_embd=512, n_ff=1280, n_heads=8, n_kv_heads=2, n_vocab=2048),
    "60M": Shape(n_layers=8, n_embd=768, n_ff=2048, n_heads=12, n_kv_heads=4, n_vocab=8192),
    "290M": Shape(n_layers=14, n_embd=1280, n_ff=3584, n_heads=20, n_kv_heads=4, n_vocab=16384),
}


def model_file(folder: Path, shape: str, type_name: str, *, peer_python: Path) -> Path:
    """The file `<shape>-<type>.gguf` in `folder`, written if it is not there yet.

    Only llama.cpp, run by `peer_python`, can quantize as people's files are quantized. Errors:
    `benchmarks.peer.Unavailable` where it is needed and is not there.
    """
    target = folder / f"{shape}-{type_name}.gguf"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    if type_name == "F16":
        _write_f16(partial, SHAPES[shape])
    else:
        source = model_file(folder, shape, "F16", peer_python=peer_python)
        n_threads = len(os.sched_getaffinity(0))
        with contestant("llama_cpp_llama", python=peer_python, threads=n_threads) as llama_cpp:
            paths = {"source": str(source.absolute()), "target": str(partial.absolute())}
            llama_cpp.run("quantize", **paths, type_name=type_name)
    partial.rename(target)
    return target


def _write_f16(path: Path, shape: Shape) -> None:
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_heads)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer, shape.n_vocab)

    def matrix(name: str, n_rows: int, n_columns: int) -> None:
        weights = rng.standard_normal((n_rows, n_columns), np.float32) / np.sqrt(n_columns)
        writer.add_tensor(f"{name}.weight", weights.astype(np.float16))

    def norm(name: str) -> None:
        ones: NDArray[np.float32] = np.ones(shape.n_embd, np.float32)
        writer.add_tensor(f"{name}.weight", ones)

    n_kv = shape.n_embd // shape.n_heads * shape.n_kv_heads
    matrix("token_embd", shape.n_vocab, shape.n_embd)
    for i in range(shape.n_layers):
        norm(f"blk.{i}.attn_norm")
        matrix(f"blk.{i}.attn_q", shape.n_embd, shape.n_embd)
        matrix(f"blk.{i}.attn_k", n_kv, shape.n_embd)
        matrix(f"blk.{i}.attn_v", n_kv, shape.n_embd)
        matrix(f"blk.{i}.attn_output", shape.n_embd, shape.n_embd)
        norm(f"blk.{i}.ffn_norm")
        matrix(f"blk.{i}.ffn_gate", shape.n_ff, shape.n_embd)
        matrix(f"blk.{i}.ffn_up", shape.n_ff, shape.n_embd)
        matrix(f"blk.{i}.ffn_down", shape.n_embd, shape.n_ff)
    norm("output_norm")
    matrix("output", shape.n_vocab, shape.n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """Control tokens, 256 bytes, and as many numbered words as there is room for."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"w{number}" for number in range(n_vocab - 259)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *bytes_, *words])
    writer.add_token_scores([0.0] * 259 + [-float(number) for number in range(len(words))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
