"""What the tests of exports share: models of every kind, and what is in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

from refllm.export import Layout, export
from refllm.models.load import LlamaModel, load_path
from refllm.rope import Llama3Scaling
from tests.support.model_files import (
    tiny_bert_folder,
    tiny_llama_folder,
    tiny_llama_gguf,
)

PROMPT = [1, 20, 300, 259, 7, 33, 301, 17]
TEXTS = ["the cat sat on the mat.", "Hello world"]
LAYOUTS: tuple[Layout, ...] = ("spin", "hf", "gguf")

LLAMA3 = Llama3Scaling(8.0, 1.0, 4.0, 8192).factors(base=10000.0, rope_dim=8)
HF_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def result(path: Path) -> NDArray[np.float32]:
    """What the model at `path` computes: logits or embeddings."""
    model = load_path(path)
    return model.forward(PROMPT) if isinstance(model, LlamaModel) else model.embed(TEXTS)


def exported(model: Path, to: Path, layout: Layout, type_name: str | None = None) -> Path:
    return export(model, to=to / "exported", name="tiny", layout=layout, type_name=type_name)


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Name to type and bytes, as the gguf package reads them."""
    tensors = GGUFReader(path).tensors
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in tensors}


def keys_of(path: Path) -> dict[str, object]:
    """The metadata, as the gguf package reads them."""
    fields = GGUFReader(path).fields.items()
    return {key: (field.types, field.contents()) for key, field in fields if key[:5] != "GGUF."}


LLAMAS: Mapping[str, Callable[[Path], Path]] = {
    "F32": tiny_llama_gguf,
    "F16": lambda path: tiny_llama_gguf(path, type="F16"),
    "BF16": lambda path: tiny_llama_gguf(path, type="BF16"),
    "Q8_0": lambda path: tiny_llama_gguf(path, type="Q8_0"),
    "tied": lambda path: tiny_llama_gguf(path, tied=True),
    "biases": lambda path: tiny_llama_gguf(path, biases=True),
    "linear": lambda path: tiny_llama_gguf(
        path, metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    ),
    "llama3": lambda path: tiny_llama_gguf(
        path, tensors={"rope_freqs.weight": np.array(LLAMA3, np.float32)}
    ),
    "wide heads": lambda path: tiny_llama_gguf(path, head_dim=16),
}
FOLDERS: Mapping[str, Callable[[Path], Path]] = {
    "F32": tiny_llama_folder,
    "F16": lambda path: tiny_llama_folder(path, dtype="F16"),
    "BF16": lambda path: tiny_llama_folder(path, dtype="BF16"),
    "shards": lambda path: tiny_llama_folder(path, shards=3),
    "tied": lambda path: tiny_llama_folder(path, tied=True),
    "biases": lambda path: tiny_llama_folder(path, biases=True),
    "linear": lambda path: tiny_llama_folder(
        path, config={"rope_scaling": {"type": "linear", "factor": 2.0}}
    ),
    "llama3": lambda path: tiny_llama_folder(path, config={"rope_scaling": HF_LLAMA3}),
    "transformers 5": lambda path: tiny_llama_folder(
        path,
        config={"rope_theta": None, "rope_parameters": {"rope_theta": 5000.0, **HF_LLAMA3}},
    ),
    "BERT": tiny_bert_folder,
    "BERT in F16": lambda path: tiny_bert_folder(path, dtype="F16", prefix="bert."),
}


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
