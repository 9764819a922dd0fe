"""`startup`: the whole `refllm infer`, with an empty cache and a warm one, and decoding at its end.

stories260K is so small that nothing but start-up and overhead is seen. tiny-chat is what a new user
runs first: of its first run ever, with its default length, the first word and the end are timed.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from benchmarks.compare import Bench
from benchmarks.llamas import compare_llamas, decode
from benchmarks.results import REFLLM, Figure

__all__ = ["CACHE_VARIABLES", "empty_cache", "measure_startup"]

PROMPT = "Once upon a time"
N_TOKENS = 20
FIRST_MODEL = "tiny-chat"
FIRST_RUNS = 3
# Each names a folder for compiled kernels; see `refllm.jit.disk_cache`.
CACHE_VARIABLES = ("REFLLM_CACHE_DIR", "NUMBA_CACHE_DIR")
IDLE_SECONDS = 2.0  # between two kernels of a process, and while it starts


def measure_startup(bench: Bench, model: Path) -> None:
    """Seconds of the whole process, first run and later ones; tokens per second of `decode`."""
    is_quick = bench.options.is_quick
    labels = {"work": "refllm infer", "model": model.stem}
    short = ("--max-tokens", str(N_TOKENS))
    _infer_seconds(bench, str(model.absolute()), *short)
    warm = [
        _infer_seconds(bench, str(model.absolute()), *short)[1] for _ in range(bench.options.rounds)
    ]
    bench.add(Figure(labels={**labels, "cache": "warm"}, unit="s", samples={REFLLM: warm}))
    if not is_quick:
        empty = [_first_run(bench, str(model.absolute()), *short)[1] for _ in range(FIRST_RUNS)]
        bench.add(Figure(labels={**labels, "cache": "empty"}, unit="s", samples={REFLLM: empty}))
        runs = [_first_run(bench, FIRST_MODEL) for _ in range(FIRST_RUNS)]
        for part, samples in zip(
            ("first word", "whole process"), zip(*runs, strict=True), strict=True
        ):
            first = {"work": f"first run ever, {part}", "model": FIRST_MODEL, "cache": "empty"}
            bench.add(Figure(labels=first, unit="s", samples={REFLLM: list(samples)}))
    work = decode(8, 8) if is_quick else decode(8, 400)
    compare_llamas(bench, model, work, {"work": "decode", "shape": model.stem, "type": "F32"})


def _infer_seconds(
    bench: Bench, model: str, *arguments: str, cache: Path | None = None
) -> tuple[float, float]:
    """Return the seconds until the first byte of the text, and until the process has ended."""
    options = bench.options
    command = [str(options.python), "-m", "refllm", "infer", model, PROMPT, *arguments]
    command += ["--threads", str(options.threads)]
    variables = {} if cache is None else dict.fromkeys(CACHE_VARIABLES, str(cache))
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | variables, bufsize=0
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        until_first = time.perf_counter() - start
        process.stdout.read()
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return until_first, time.perf_counter() - start


def _first_run(bench: Bench, model: str, *arguments: str) -> tuple[float, float]:
    """Return `_infer_seconds` with an empty cache, when its processes have ended, too."""
    with empty_cache() as cache:
        return _infer_seconds(bench, model, *arguments, cache=cache)


@contextmanager
def empty_cache() -> Iterator[Path]:
    """Yield an empty folder; at the end, wait for the processes that compile into it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        cache = Path(name)
        yield cache
        n_before = -1
        while n_before != len(claims := list(cache.rglob("*.claim"))):
            n_before = len(claims)
            for claim in claims:
                with FileLock(claim):  # free when no process compiles that kernel
                    pass
            time.sleep(IDLE_SECONDS)
