"""Files of rows on Ray Data by sentence-transformers, as its users run it.

`read_parquet`, `map_batches` with an actor for each thread, `write_parquet`, on a cluster of this
machine. The time includes the start of the actors, and not that of the cluster.

N texts, D width of an embedding.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.contestants.serve import memory, serve, timed, versions

ANSWER = 64  # vectors whose first numbers are sent back
ROWS_OF_A_BATCH = 256


class Encode:
    """An actor with a model; it gets and returns batches of NumPy."""

    def __init__(self, folder: str, batch_size: int) -> None:
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
    """A cluster of this machine."""

    def __init__(self) -> None:
        self._model: str
        self._threads: int

    def load(self, model: str, threads: int) -> Mapping[str, Any]:
        """Start the cluster for the model in a folder."""
        self._model, self._threads = model, threads
        # One more than the actors take: tasks that read and write would wait for a CPU without end.
        n_cpus = threads + 1
        options: Any = {"address": "local", "num_cpus": n_cpus, "include_dashboard": False}
        seconds, _ = timed(lambda: ray.init(**options, log_to_driver=False))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        names = ("sentence-transformers", "torch", "transformers", "ray", "pyarrow")
        return {"seconds": [seconds], "memory": memory(), "versions": versions(*names)}

    def embed_files(self, files: Sequence[str], to: str, batch_size: int) -> Mapping[str, Any]:
        """Write the vector of every row, into a folder that is empty before."""
        shutil.rmtree(to, ignore_errors=True)
        rows = ray.data.read_parquet(list(files), columns=["text"])
        vectors = rows.map_batches(
            Encode,
            fn_constructor_args=(self._model, batch_size),
            compute=ray.data.ActorPoolStrategy(size=self._threads),
            num_cpus=1,
            batch_size=ROWS_OF_A_BATCH,
        )
        seconds, _ = timed(lambda: vectors.write_parquet(to))
        found = pq.read_table(min(Path(to).glob("*.parquet")), columns=["embedding"])["embedding"]
        answer = [float(vector.as_py()[0]) for vector in found[:ANSWER]]
        return {"seconds": [seconds], "answer": answer, "n_tokens": len(pq.read_table(to))}


if __name__ == "__main__":
    contestant = Contestant()
    serve({"load": contestant.load, "embed_files": contestant.embed_files})
