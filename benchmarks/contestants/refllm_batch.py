"""refllm over files: `refllm batch embed` and `batch infer`, and what they are compared with.

The peers in this program are refllm, too: the same texts by `BertModel.embed`, as the benchmark
`embed` runs it, and the same prompts by eight clients of the server's worker, without HTTP.

N texts, D width of an embedding.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.contestants.serve import memory, serve, timed, versions
from refllm.batch.local import run
from refllm.batch.rows import Embedder, Generator
from refllm.engine import LocalEngine
from refllm.interface import InferencingParams
from refllm.models.prompt_cache import PromptCache
from refllm.server.jobs import Event, Finished, TextJob, TextRequest
from refllm.server.limits import Limits
from refllm.server.worker import Worker

ANSWER = 64  # vectors whose first numbers are sent back
SECONDS = 3600.0  # after which a client's request would be late


class Contestant:
    """One model."""

    def __init__(self) -> None:
        self.engine: LocalEngine
        self.model: Path

    def load(self, model: str, threads: int, numerics: str = "exact") -> Mapping[str, Any]:
        """Load the model, a folder or a GGUF file."""
        self.model = Path(model)
        self.engine = LocalEngine(threads=threads, numerics=numerics)
        seconds, _ = timed(lambda: self.engine.load(self.model))
        return {"seconds": [seconds], "memory": memory(), "versions": _versions()}

    def embed_files(self, files: Sequence[str], to: str) -> Mapping[str, Any]:
        """Write the vector of every row of files, into a folder that is empty before."""
        embedder = Embedder(self.model, on_long="truncate", numerics=self.engine.numerics)
        embedder.use(self.engine)
        shutil.rmtree(to, ignore_errors=True)
        before = memory()
        seconds, summary = timed(lambda: run(embedder, files, Path(to)))
        after = memory()  # before a part is read back
        vectors = pq.read_table(Path(to, "part-00000.parquet"), columns=["embedding"])
        firsts = [vector.as_py()[0] for vector in vectors["embedding"][:ANSWER]]
        return {
            "seconds": [seconds],
            "answer": firsts,
            "n_tokens": summary.n_rows - summary.n_errors,
            "before": before,
            "memory": after,
        }

    def embed_texts(self, file: str) -> Mapping[str, Any]:
        """Embed the texts of a file all at once, as the benchmark `embed` does."""
        texts = _texts_of(file)
        model = self.engine.embedding_model(self.model)
        with self.engine.computing():
            seconds, vectors = timed(lambda: model.embed(texts))
        firsts = vectors[:ANSWER, 0].astype(float).tolist()
        return {"seconds": [seconds], "answer": firsts, "n_tokens": len(texts)}

    def infer_files(self, files: Sequence[str], to: str, max_tokens: int) -> Mapping[str, Any]:
        """Write the continuation of every row of files, into a folder that is empty before."""
        generator = Generator(self.model, params=InferencingParams(max_tokens=max_tokens))
        generator.use(_fresh(self.engine))
        shutil.rmtree(to, ignore_errors=True)
        seconds, _ = timed(lambda: run(generator, files, Path(to)))
        table = pq.read_table(to, columns=["generated_token_ids"])["generated_token_ids"]
        tokens = table.to_pylist()
        return {
            "seconds": [seconds],
            "answer": [sum(ids) for ids in tokens],
            "n_tokens": sum(map(len, tokens)),
        }

    def play_clients(self, files: Sequence[str], max_tokens: int, n: int) -> Mapping[str, Any]:
        """Continue the prompts of files by n clients of the server's worker."""
        prompts = [text for file in files for text in _texts_of(file)]
        worker = Worker(_fresh(self.engine), Limits(max_at_once=n, max_waiting=len(prompts)))
        worker.start()
        params = InferencingParams(max_tokens=max_tokens)
        answers: list[list[int]] = [[] for _ in prompts]
        open_ = iter(range(len(prompts)))
        lock = threading.Lock()

        def play() -> None:
            while True:
                with lock:
                    i = next(open_, None)
                if i is None:
                    return
                done = threading.Event()

                def deliver(events: Sequence[Event], i: int = i, done: Any = done) -> None:
                    tokens = (getattr(event, "step", None) for event in events)
                    answers[i] += [step.token for step in tokens if step is not None]
                    if isinstance(events[-1], Finished | Exception):
                        done.set()

                request = TextRequest(model=self.model, prompt=prompts[i], params=params)  # type: ignore[arg-type]
                deadline = time.monotonic() + SECONDS
                worker.submit(TextJob(request, deliver=deliver, deadline=deadline))
                done.wait()

        def play_all() -> None:
            clients = [threading.Thread(target=play) for _ in range(n)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()

        seconds, _ = timed(play_all)
        worker.close()
        return {
            "seconds": [seconds],
            "answer": [sum(ids) for ids in answers],
            "n_tokens": sum(map(len, answers)),
        }


def _fresh(engine: LocalEngine) -> LocalEngine:
    """Return the engine, with an empty prompt cache: no turn finds prompts of the turn before."""
    engine.prompt_cache = PromptCache()
    return engine


def _texts_of(file: str) -> list[str]:
    texts: list[str] = pq.read_table(file)["text"].to_pylist()
    return texts


def _versions() -> dict[str, str]:
    return versions("refllm", "numpy", "numba", "llvmlite", "tokenizers", "pyarrow")


if __name__ == "__main__":
    contestant = Contestant()
    serve(
        {
            "load": contestant.load,
            "embed_files": contestant.embed_files,
            "embed_texts": contestant.embed_texts,
            "infer_files": contestant.infer_files,
            "play_clients": contestant.play_clients,
        }
    )
