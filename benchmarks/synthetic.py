"""Synthetic llamas at real shapes: random weights, a real file, the work of a real model.

    python benchmarks/synthetic.py FOLDER

writes `SHAPE-F16.gguf` with gguf-py and, with llama.cpp's own quantizer (through llama-cpp-python),
`SHAPE-Q8_0.gguf`, `SHAPE-Q4_0.gguf` and `SHAPE-Q4_K_M.gguf`. What is there already is kept.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

__all__ = ["SHAPES", "TYPES", "Shape", "model_path", "write_models"]

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


SHAPES: Mapping[str, Shape] = {
    "1.1B": Shape(n_layers=22, n_embd=2048, n_ff=5632, n_heads=32, n_kv_heads=4),  # TinyLlama
    "7B-8-layers": Shape(n_layers=8, n_embd=4096, n_ff=11008, n_heads=32, n_kv_heads=32),
}


def model_path(folder: Path, shape: str, type_name: str) -> Path:
    """Where `write_models` puts this model."""
    return folder / f"{shape}-{type_name}.gguf"


def write_models(folder: Path, shape: str) -> None:
    """Write the shape's four files, those that are not there yet."""
    source = model_path(folder, shape, "F16")
    if not source.exists():
        _write_f16(source, SHAPES[shape])
    for type_name in TYPES[1:]:
        target = model_path(folder, shape, type_name)
        if not target.exists():
            _quantize(source, target, type_name)


def _write_f16(path: Path, shape: Shape) -> None:
    rng = np.random.default_rng(0)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
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
    partial.rename(path)


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


def _quantize(source: Path, target: Path, type_name: str) -> None:
    import llama_cpp

    numbers = {
        "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
        "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
        "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    }
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = numbers[type_name]
    partial = target.with_suffix(".partial")
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(partial).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise RuntimeError(f"llama.cpp could not quantize {source} to {type_name}")
    partial.rename(target)


if __name__ == "__main__":
    for name in SHAPES:
        write_models(Path(sys.argv[1]), name)
