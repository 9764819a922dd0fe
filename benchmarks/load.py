"""`load`: seconds and memory until a model is there, and until its first token is.

Every sample is a new process. llama.cpp maps the file and may put off the work, so the first token
is what compares; memory is what the process holds after it. Peak memory counts pages of the mapped
file, anonymous memory does not.

refllm loads each model twice: plainly, and with packed weights that the round before kept on disk.
Those files are removed when the model has been measured.

All that is in warm rounds: kernels are compiled and the file is in the page cache. One cold round
comes before: the file is read from the disk, and refllm's cache of kernels is empty.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.compare import Bench, forget, read_through
from benchmarks.llamas import PEER, chosen_models, numerics_of
from benchmarks.peer import Unavailable
from benchmarks.results import REFLLM, Figure
from benchmarks.startup import CACHE_VARIABLES, empty_cache
from refllm.jit.disk_cache import cache_folder, kernel_sources
from refllm.models.kept_panels import FOLDER, SUFFIX

__all__ = ["measure_load"]

Sample = Mapping[str, tuple[float, str]]  # quantity → value and unit

KEPT = "packed kept"
COLD = "cold"
ENOUGH = 1 << 40  # bytes of packed weights


def measure_load(bench: Bench, *, shapes: Sequence[str] = (), types: Sequence[str] = ()) -> None:
    """Every synthetic model that was chosen."""
    for shape, type_name, path in chosen_models(bench, shapes=shapes, types=types):
        _compare(bench, path, {"shape": shape, "type": type_name}, numerics_of(type_name))


def _compare(bench: Bench, path: Path, labels: Mapping[str, str], numerics: Sequence[str]) -> None:
    cold = {name: sample for name in (PEER, *numerics) if (sample := _cold(bench, path, name))}
    read_through(path)
    ours = [(name, is_kept) for name in numerics for is_kept in (False, True)]
    contestants = [*ours, (PEER, False)]
    samples: dict[tuple[str, bool], list[Sample]] = {}
    with ExitStack() as stack:
        stack.callback(_remove_but, _kept_files())
        for round_ in range(bench.options.rounds + 1):
            first = round_ % len(contestants)
            for name, is_kept in [*contestants[first:], *contestants[:first]]:
                if name in bench.skipped:
                    continue
                try:
                    sample = _sample(bench, path, name, is_kept=is_kept)
                except Unavailable as error:
                    bench.skip(name, error)
                    continue
                # The first one compiles kernels, and keeps weights.
                if round_ > 0:
                    samples.setdefault((name, is_kept), []).append(sample)
    for name, is_kept in ours:
        if (name, is_kept) in samples:
            kept = {"weights": KEPT} if is_kept else {}
            said = {**labels, "numerics": name, **kept}
            _add(bench, said, samples[name, is_kept], samples.get((PEER, False), []))
        if name in cold and not is_kept:
            peers = [cold[PEER]] if PEER in cold else []
            _add(bench, {**labels, "numerics": name}, [cold[name]], peers, state=COLD)


def _cold(bench: Bench, path: Path, name: str) -> Sample | None:
    """One loading of a file that is not in the page cache, with an empty cache of kernels.

    A quick run uses the kernels that are there. None where the contestant is not there.
    """
    if name in bench.skipped:
        return None
    forget(path)
    with ExitStack() as stack:
        environment = {}
        if name != PEER and not bench.options.is_quick:
            cache = stack.enter_context(empty_cache())
            environment = dict.fromkeys(CACHE_VARIABLES, str(cache))
        try:
            return _sample(bench, path, name, environment=environment)
        except Unavailable as error:
            bench.skip(name, error)
            return None


def _kept_files() -> frozenset[Path]:
    """The files of packed weights in the cache."""
    kernels = cache_folder(os.environ, kernel_sources())
    found = [] if kernels is None else (kernels.parent / FOLDER).glob(f"*{SUFFIX}")
    return frozenset(found)


def _remove_but(before: frozenset[Path]) -> None:
    for file in _kept_files() - before:
        file.unlink(missing_ok=True)


def _sample(
    bench: Bench,
    path: Path,
    name: str,
    *,
    is_kept: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Sample:
    """One loading in a process of its own."""
    is_peer = name == PEER
    program = "llama_cpp_llama" if is_peer else "refllm_llama"
    extra = {} if is_peer else {"numerics": name, "keep_packed_bytes": ENOUGH if is_kept else 0}
    with bench.contestant(program, is_peer=is_peer, environment=environment) as contestant:
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
    bench: Bench,
    labels: Mapping[str, str],
    ours: Sequence[Sample],
    peers: Sequence[Sample],
    *,
    state: str = "",
) -> None:
    """A figure for each quantity, of a machine in a state if one is given."""
    for quantity, (_, unit) in ours[0].items():
        samples = {REFLLM: [sample[quantity][0] for sample in ours]}
        if peers:
            samples[PEER] = [sample[quantity][0] for sample in peers]
        work = f"{state} {quantity}".lstrip()
        bench.add(Figure(labels={"work": work, **labels}, unit=unit, samples=samples))
