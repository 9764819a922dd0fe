"""Files of rows on Ray Data: by `refllm batch embed --ray local`, and by sentence-transformers.

Both read the same Parquet and write Parquet, on a cluster of this machine, with one actor for each
thread that they are given. The time includes neither the start of the cluster nor the installation
of a model, but the start of the actors: that is what a run costs.

N texts, D width of an embedding.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.contestants.serve import memory, serve, timed, versions

ANSWER = 64  # vectors whose first numbers are sent back
ROWS_OF_A_BATCH = 256


class Encode:
    """An actor with a model of sentence-transformers; it gets and returns batches of NumPy."""

    def __init__(self, folder: str, batch_size: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)
        self._batch_size = batch_size
        self._model: Any = SentenceTransformer(folder, device="cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the vectors [N, D] of a batch."""
        batch["embedding"] = self._model.encode(
            batch["text"].tolist(),
            batch_size=self._batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=True,
        )
        return batch


class Contestant:
    """A cluster of this machine, for both programs."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._cluster: Any
        self._model: str
        self._threads: int

    def load(self, model: str, threads: int) -> Mapping[str, Any]:
        """Start the cluster for a model, a folder or a GGUF file."""
        from refllm.batch.ray import connected

        self._model, self._threads = model, threads
        start = connected("local", threads=1)
        seconds, self._cluster = timed(lambda: self._open.enter_context(start))
        names = ("refllm", "ray", "pyarrow", "numpy")
        return {"seconds": [seconds], "memory": memory(), "versions": versions(*names)}

    def embed_files(self, files: Sequence[str], to: str) -> Mapping[str, Any]:
        """Write the vector of every row by refllm, into a folder that is empty before."""
        from refllm.batch.local import run
        from refllm.batch.rows import Embedder

        embedder = Embedder(Path(self._model), on_long="truncate")
        shutil.rmtree(to, ignore_errors=True)
        seconds, summary = timed(
            lambda: run(embedder, files, Path(to), computed=self._cluster.computed)
        )
        n_done = summary.n_rows - summary.n_errors
        return {"seconds": [seconds], "answer": _answer(to), "n_tokens": n_done}

    def encode_files(self, files: Sequence[str], to: str, batch_size: int) -> Mapping[str, Any]:
        """Write the vector of every row by sentence-transformers, into the same kind of folder."""
        import ray

        shutil.rmtree(to, ignore_errors=True)
        context = ray.data.DataContext.get_current()
        context.target_max_block_size = 2**27
        context.execution_options.preserve_order = True
        rows = ray.data.read_parquet(list(files), columns=["text"])
        vectors = rows.map_batches(
            Encode,
            fn_constructor_args=(self._model, batch_size),
            compute=ray.data.ActorPoolStrategy(size=self._threads),
            num_cpus=1,
            batch_size=ROWS_OF_A_BATCH,
        )
        seconds, _ = timed(lambda: vectors.write_parquet(to))
        answer = _answer(to)
        return {"seconds": [seconds], "answer": answer, "n_tokens": len(pq.read_table(to))}


def _answer(to: str) -> list[float]:
    file = min(Path(to).glob("*.parquet"))
    vectors = pq.read_table(file, columns=["embedding"])["embedding"][:ANSWER]
    return [vector.as_py()[0] for vector in vectors]


if __name__ == "__main__":
    contestant = Contestant()
    serve(
        {
            "load": contestant.load,
            "embed_files": contestant.embed_files,
            "encode_files": contestant.encode_files,
        }
    )
