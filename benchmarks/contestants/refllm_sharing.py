"""One model's work, again and again, on as many threads as refllm chooses or is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.contestants.serve import serve, versions
from refllm.api import InferencingParams
from refllm.engine import LocalEngine

PARAMS = InferencingParams(temperature=0.0)


class Contestant:
    """An engine, and what it is asked for."""

    work: Callable[[], object]

    def load(self, model: str, threads: int | None, texts: Sequence[str], n_tokens: int) -> Any:
        """Load the model, and do the work once.

        Args:
            model: The path of a llama, which continues `texts[0]` by `n_tokens` tokens, or of an
                encoder, which embeds `texts`.
            threads: Of each kernel; None leaves the number to refllm.
            texts: What is computed.
            n_tokens: 0 for an encoder.
        """
        engine, path = LocalEngine(threads=threads), Path(model)
        params = InferencingParams(max_tokens=n_tokens, temperature=0.0)
        if n_tokens:
            self.work = lambda: engine.infer(path, texts[0], params)
        else:
            self.work = lambda: engine.generate_embeddings(path, texts)
        self.work()
        return {"versions": versions("refllm", "numpy", "numba", "llvmlite")}

    def work_for(self, seconds: float) -> Mapping[str, Any]:
        """Do the work until the time is up, at least once; the mean time of one."""
        start = perf_counter()
        n_done = 0
        while not n_done or perf_counter() - start < seconds:
            self.work()
            n_done += 1
        return {"seconds": [(perf_counter() - start) / n_done]}


if __name__ == "__main__":
    contestant = Contestant()
    serve({"load": contestant.load, "work_for": contestant.work_for})
