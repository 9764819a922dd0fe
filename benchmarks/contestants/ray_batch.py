"""Files of rows by `refllm batch embed --ray local`.

The time includes the start of the actors, and not that of the cluster.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.contestants.serve import memory, serve, timed, versions
from refllm.batch.local import run
from refllm.batch.ray import connected
from refllm.batch.rows import Embedder

ANSWER = 64  # vectors whose first numbers are sent back


class Contestant:
    """A cluster of this machine."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._cluster: Any
        self._model: Path

    def load(self, model: str, threads: int) -> Mapping[str, Any]:
        """Start the cluster for a model, a folder or a GGUF file."""
        self._model = Path(model)
        cluster = connected("local", threads=threads)
        seconds, self._cluster = timed(lambda: self._open.enter_context(cluster))
        names = ("refllm", "ray", "pyarrow", "numpy")
        return {"seconds": [seconds], "memory": memory(), "versions": versions(*names)}

    def embed_files(self, files: Sequence[str], to: str) -> Mapping[str, Any]:
        """Write the vector of every row, into a folder that is empty before."""
        embedder = Embedder(self._model, on_long="truncate")
        shutil.rmtree(to, ignore_errors=True)
        compute = self._cluster.computed
        seconds, summary = timed(lambda: run(embedder, files, Path(to), computed=compute))
        found = pq.read_table(Path(to, "part-00000.parquet"), columns=["embedding"])["embedding"]
        answer = [vector.as_py()[0] for vector in found[:ANSWER]]
        n_done = summary.n_rows - summary.n_errors
        return {"seconds": [seconds], "answer": answer, "n_tokens": n_done}


if __name__ == "__main__":
    contestant = Contestant()
    serve({"load": contestant.load, "embed_files": contestant.embed_files})
