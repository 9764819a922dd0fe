"""sentence-transformers on torch: `encode`, which sorts by length and pads by itself.

N texts, B texts of a batch, S tokens of its longest, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from benchmarks.contestants.embedder import embed_sorted, serve_embedder
from benchmarks.contestants.serve import versions

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class SentenceTransformers:
    """An `Embedder`; `load` comes first."""

    model: Any

    def load(self, folder: str, threads: int, work: str) -> Mapping[str, str]:
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

    def embed_tokens(self, texts: Sequence[Sequence[int]], batch_size: int) -> Floats:
        """Token ids → [N, D]."""
        return embed_sorted(self._embed, texts, batch_size)

    def _embed(self, token_ids: Ints, mask: Ints) -> Floats:
        """[B, S] and its mask → [B, D]."""
        features = {
            "input_ids": torch.from_numpy(token_ids),
            "attention_mask": torch.from_numpy(mask),
            "token_type_ids": torch.zeros(token_ids.shape, dtype=torch.int64),
        }
        with torch.inference_mode():
            embeddings: Floats = self.model(features)["sentence_embedding"].numpy()
        return embeddings


if __name__ == "__main__":
    serve_embedder(SentenceTransformers())
