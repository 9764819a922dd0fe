"""Synthetic llamas at real shapes: random weights, a real file, the work of a real model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from benchmarks.peer import contestant

__all__ = ["QUANTIZED_TYPES", "QUICK_SHAPE", "SHAPES", "SIZES", "TYPES", "Shape", "model_file"]

QUANTIZED_TYPES = ("Q8_0", "Q4_0", "Q4_K_M")
TYPES = ("F16", *QUANTIZED_TYPES)


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
    """Write one matrix after the other: the largest is all that memory holds."""
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

    n_embd, n_ff, n_vocab = shape.n_embd, shape.n_ff, shape.n_vocab
    n_kv = n_embd // shape.n_heads * shape.n_kv_heads
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (n_embd,),
        "attn_q": (n_embd, n_embd),
        "attn_k": (n_kv, n_embd),
        "attn_v": (n_kv, n_embd),
        "attn_output": (n_embd, n_embd),
        "ffn_norm": (n_embd,),
        "ffn_gate": (n_ff, n_embd),
        "ffn_up": (n_ff, n_embd),
        "ffn_down": (n_embd, n_ff),
    }
    tensors: dict[str, tuple[int, ...]] = {"token_embd": (n_vocab, n_embd)}
    tensors |= {f"blk.{i}.{name}": layer[name] for i in range(shape.n_layers) for name in layer}
    tensors |= {"output_norm": (n_embd,), "output": (n_vocab, n_embd)}
    for name, dims in tensors.items():
        dtype = np.dtype(np.float32 if len(dims) == 1 else np.float16)
        n_bytes = int(np.prod(dims)) * dtype.itemsize
        writer.add_tensor_info(f"{name}.weight", dims, dtype, n_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for dims in tensors.values():
        if len(dims) == 1:
            writer.write_tensor_data(np.ones(dims, np.float32))
        else:
            weights = rng.standard_normal(dims, np.float32)  # [rows, columns]
            weights *= np.float32(dims[1] ** -0.5)
            writer.write_tensor_data(weights.astype(np.float16))
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
