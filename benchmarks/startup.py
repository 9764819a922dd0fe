"""`startup`: the whole `refllm infer`, with an empty cache and a warm one, and decoding at its end.

The model is stories260K: so small that nothing but start-up and overhead is seen.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.compare import Bench
from benchmarks.llamas import compare_llamas, decode
from benchmarks.results import REFLLM, Figure

__all__ = ["measure_startup"]

PROMPT = "Once upon a time"
N_TOKENS = 20
FIRST_RUNS = 3  # each takes as long as compiling everything
# Each names a folder for compiled kernels; see `refllm.jit.disk_cache`.
CACHE_VARIABLES = ("REFLLM_CACHE_DIR", "NUMBA_CACHE_DIR")


def measure_startup(bench: Bench, model: Path) -> None:
    """Seconds of the whole process, first run and later ones; tokens per second of `decode`."""
    is_quick = bench.options.is_quick
    labels = {"work": "refllm infer", "model": model.stem}
    _infer_seconds(bench, model)
    warm = [_infer_seconds(bench, model) for _ in range(bench.options.rounds)]
    bench.add(Figure(labels={**labels, "cache": "warm"}, unit="s", samples={REFLLM: warm}))
    if not is_quick:
        empty = [_first_run_seconds(bench, model) for _ in range(FIRST_RUNS)]
        bench.add(Figure(labels={**labels, "cache": "empty"}, unit="s", samples={REFLLM: empty}))
    work = decode(8, 8) if is_quick else decode(8, 400)
    compare_llamas(bench, model, work, {"work": "decode", "shape": model.stem, "type": "F32"})


def _infer_seconds(bench: Bench, model: Path, *, cache: Path | None = None) -> float:
    options = bench.options
    command = [str(options.python), "-m", "refllm", "infer", str(model.absolute()), PROMPT]
    command += ["--max-tokens", str(N_TOKENS), "--threads", str(options.threads)]
    variables = {} if cache is None else dict.fromkeys(CACHE_VARIABLES, str(cache))
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | variables)
    return time.perf_counter() - start


def _first_run_seconds(bench: Bench, model: Path) -> float:
    with tempfile.TemporaryDirectory() as cache:
        return _infer_seconds(bench, model, cache=Path(cache))
