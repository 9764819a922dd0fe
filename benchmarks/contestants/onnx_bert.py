"""onnxruntime, fed with batches sorted by length, on a graph that its own optimizer has fused.

N texts, B texts of a batch, S tokens of its longest, D width of an embedding.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.contestants.embedder import embed_sorted, serve_embedder
from benchmarks.contestants.serve import versions

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class OnnxRuntime:
    """An `Embedder`; `load` comes first."""

    session: Any
    tokenizer: Any

    def load(self, folder: str, threads: int, work: str, **_: str) -> Mapping[str, str]:
        """Load the model in `folder`, from the graph that is kept in `work`."""
        graph = Path(work, Path(folder).name + ".onnx")
        if not graph.exists():
            from benchmarks.contestants.onnx_export import export

            export(Path(folder), graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        self.tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.tokenizer.no_padding()
        return versions("onnxruntime", "tokenizers")

    def embed(self, texts: Sequence[str], batch_size: int) -> Floats:
        """Texts → [N, D]."""
        token_ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        return embed_sorted(self._embed, token_ids, batch_size)

    def _embed(self, token_ids: Ints, mask: Ints) -> Floats:
        """[B, S] and its mask → [B, D]."""
        inputs = {
            "input_ids": token_ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(token_ids),
        }
        embeddings: Floats = self.session.run(["embedding"], inputs)[0]
        return embeddings


if __name__ == "__main__":
    serve_embedder(OnnxRuntime())
