"""What the programs that embed texts share: actions, and padded batches where they are needed.

N texts, B texts of a batch, S tokens of its longest, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants.serve import memory, serve, timed

__all__ = ["Embedder", "embed_sorted", "serve_embedder"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Embedder(Protocol):
    """A library that embeds texts."""

    def load(self, folder: str, threads: int, work: str, **options: str) -> Mapping[str, str]:
        """Load the model in `folder`, return versions; files to keep may go into `work`.

        `options` are a library's own.
        """

    def embed(self, texts: Sequence[str], batch_size: int) -> Floats:
        """Texts → normalized embeddings [N, D]."""


def serve_embedder(embedder: Embedder) -> None:
    """Answer `load` and `embed`; the answer is each embedding's first number."""

    def load(folder: str, threads: int, work: str, **options: str) -> Mapping[str, Any]:
        seconds, versions = timed(lambda: embedder.load(folder, threads, work, **options))
        return {"seconds": [seconds], "memory": memory(), "versions": versions}

    def embed(texts: Sequence[str], batch_size: int, repeat: int) -> Mapping[str, Any]:
        runs = [timed(lambda: embedder.embed(texts, batch_size)) for _ in range(repeat)]
        return {"seconds": [run[0] for run in runs], "answer": runs[-1][1][:, 0].tolist()}

    serve({"load": load, "embed": embed})


def embed_sorted(
    embed: Callable[[Ints, Ints], Floats], texts: Sequence[Sequence[int]], batch_size: int
) -> Floats:
    """The embeddings [N, D] of token ids, computed longest first in batches.

    `embed` takes token ids [B, S], padded with 0, and the mask [B, S] that is 1 where there is a
    token. Source: what sentence-transformers' `encode` does.
    """
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    pieces = []
    for start in range(0, len(order), batch_size):
        batch = [texts[i] for i in order[start : start + batch_size]]
        token_ids = np.zeros((len(batch), len(batch[0])), np.int64)  # [B, S]
        mask = np.zeros_like(token_ids)
        for row, text in enumerate(batch):
            token_ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        pieces.append(embed(token_ids, mask))
    embeddings = np.concatenate(pieces)  # [N, D], in sorted order
    return embeddings[np.argsort(order)]
