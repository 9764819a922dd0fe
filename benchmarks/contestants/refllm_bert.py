"""refllm's BERT, which chooses its batches itself.

N texts, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants.embedder import serve_embedder
from benchmarks.contestants.serve import versions
from refllm.jit.compile import use_threads
from refllm.models.load import BertModel, load_path

Floats = NDArray[np.float32]


class Refllm:
    """An `Embedder`; `load` comes first."""

    model: BertModel

    def load(self, folder: str, threads: int, work: str, **options: str) -> Mapping[str, str]:
        """Load the model, a folder or a GGUF file, with the option `numerics`; write no file."""
        del work
        use_threads(threads)
        model = load_path(Path(folder), numerics=options.get("numerics", "exact"))
        if not isinstance(model, BertModel):
            raise TypeError(f"{folder} is not a BERT")
        self.model = model
        return versions("refllm", "numpy", "numba", "llvmlite", "tokenizers")

    def embed(self, texts: Sequence[str], batch_size: int) -> Floats:
        """Texts → [N, D]."""
        del batch_size
        return self.model.embed(texts)


if __name__ == "__main__":
    serve_embedder(Refllm())
