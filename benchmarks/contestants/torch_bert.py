"""sentence-transformers on torch: `encode`, which sorts by length and pads by itself.

N texts, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from benchmarks.contestants.embedder import serve_embedder
from benchmarks.contestants.serve import versions

Floats = NDArray[np.float32]


class SentenceTransformers:
    """An `Embedder`; `load` comes first."""

    model: Any

    def load(self, folder: str, threads: int, work: str, **_: str) -> Mapping[str, str]:
        """Load the model in `folder`; nothing is written into `work`."""
        del work
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        self.model = SentenceTransformer(folder, device="cpu")
        return versions("sentence-transformers", "torch", "transformers", "tokenizers")

    def embed(self, texts: Sequence[str], batch_size: int) -> Floats:
        """Texts → [N, D]."""
        embeddings: Floats = self.model.encode(
            texts,
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=True,
        )
        return embeddings


if __name__ == "__main__":
    serve_embedder(SentenceTransformers())
