"""`load`: seconds and memory until a model is there, and until its first token is.

Every sample is a new process. llama.cpp maps the file and may put off the work, so the first token
is what compares; memory is what the process holds after it. Peak memory counts pages of the mapped
file, anonymous memory does not.

refllm loads each model twice: plainly, and with packed weights that the round before kept on disk.
Those files are removed when the model has been measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.compare import Bench, read_through
from benchmarks.llamas import PEER, chosen_models, numerics_of
from benchmarks.peer import Unavailable
from benchmarks.results import REFLLM, Figure
from refllm.jit.disk_cache import cache_folder, kernel_sources
from refllm.models.kept_panels import FOLDER, SUFFIX

__all__ = ["measure_load"]

Sample = Mapping[str, tuple[float, str]]  # quantity → value and unit

KEPT = "packed kept"
ENOUGH = 1 << 40  # bytes of packed weights


def measure_load(bench: Bench, *, shapes: Sequence[str] = (), types: Sequence[str] = ()) -> None:
    """Every synthetic model that was chosen."""
    for shape, type_name, path in chosen_models(bench, shapes=shapes, types=types):
        _compare(bench, path, {"shape": shape, "type": type_name}, numerics_of(type_name))


def _compare(bench: Bench, path: Path, labels: Mapping[str, str], numerics: Sequence[str]) -> None:
    read_through(path)
    contestants = [(name, is_kept) for name in numerics for is_kept in (False, True)]
    samples: dict[tuple[str, bool], list[Sample]] = {}
    with ExitStack() as stack:
        stack.callback(_remove_but, _kept_files())
        for round_ in range(bench.options.rounds + 1):
            for name, is_kept in (*contestants, (PEER, False)):
                if name in bench.skipped:
                    continue
                try:
                    sample = _sample(bench, path, name, is_kept=is_kept)
                except Unavailable as error:
                    bench.skip(name, error)
                    continue
                # The first one compiles kernels, keeps weights and warms the page cache.
                if round_ > 0:
                    samples.setdefault((name, is_kept), []).append(sample)
    for name, is_kept in contestants:
        if (name, is_kept) in samples:
            kept = {"weights": KEPT} if is_kept else {}
            said = {**labels, "numerics": name, **kept}
            _add(bench, said, samples[name, is_kept], samples.get((PEER, False), []))


def _kept_files() -> frozenset[Path]:
    """The files of packed weights in the cache."""
    kernels = cache_folder(os.environ, kernel_sources())
    found = [] if kernels is None else (kernels.parent / FOLDER).glob(f"*{SUFFIX}")
    return frozenset(found)


def _remove_but(before: frozenset[Path]) -> None:
    for file in _kept_files() - before:
        file.unlink(missing_ok=True)


def _sample(bench: Bench, path: Path, name: str, *, is_kept: bool) -> Sample:
    """One loading in a process of its own."""
    is_peer = name == PEER
    program = "llama_cpp_llama" if is_peer else "refllm_llama"
    extra = {} if is_peer else {"numerics": name, "keep_packed_bytes": ENOUGH if is_kept else 0}
    with bench.contestant(program, is_peer=is_peer) as contestant:
        where = {"path": str(path.absolute()), "threads": bench.options.threads, "n_ctx": 512}
        loaded = contestant.run("load", **where, **extra)
        first = contestant.run("prefill", token_ids=[1])
        bench.versions[PEER if is_peer else REFLLM] = loaded["versions"]
    load, token = loaded["seconds"][0], first["seconds"][0]
    sample = {"load": (load, "s"), "load and first token": (load + token, "s")}
    before, after = loaded["before"], first["memory"]
    if after:
        file_bytes = path.stat().st_size
        peak = after["VmHWM"] - before["VmRSS"]
        anonymous = after["RssAnon"] - before["RssAnon"]
        sample["peak memory"] = (peak / file_bytes, "× file")
        sample["anonymous memory"] = (anonymous / file_bytes, "× file")
    return sample


def _add(
    bench: Bench, labels: Mapping[str, str], ours: Sequence[Sample], peers: Sequence[Sample]
) -> None:
    """A figure for each quantity."""
    for quantity, (_, unit) in ours[0].items():
        samples = {REFLLM: [sample[quantity][0] for sample in ours]}
        if peers:
            samples[PEER] = [sample[quantity][0] for sample in peers]
        bench.add(Figure(labels={"work": quantity, **labels}, unit=unit, samples=samples))
