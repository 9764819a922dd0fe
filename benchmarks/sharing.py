"""`sharing`: the same work on a machine that does nothing else, and on one that does.

Each way to run threads is a process of its own, and all take turns: as refllm does by itself, and
as numba's thread pool can be told to. Beside them nothing runs, or processes that only count, or
the contestant's control group gets half a CPU. What waits actively wins where there is a CPU for
each thread, and costs many times the work's own time where there is not.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.compare import Bench, Entrant, Options, alternate, figure_of
from benchmarks.embed import minilm_folder
from benchmarks.peer import Unavailable, contestant
from benchmarks.results import REFLLM
from benchmarks.synthetic import model_file
from refllm.export import quantize
from refllm.models.bundled import ROOT

__all__ = ["IDLE", "QUICK_SITUATIONS", "SETTINGS", "SITUATIONS", "measure_sharing"]

IDLE = "idle"
SITUATIONS = (IDLE, "one busy process", "two busy processes", "half a CPU")
QUICK_SITUATIONS = (IDLE, "one busy process", "half a CPU")
QUICK_SETTINGS = (REFLLM, "one thread")
N_BUSY: Mapping[str, int] = {"one busy process": 1, "two busy processes": 2}
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:  # a benchmark that is killed leaves nothing behind
    for _ in range(1_000_000):
        pass
"""
SECONDS = 0.4  # of one turn: short ones alternate before the machine has changed
TEXTS = tuple(
    f"The quick brown fox number {i} jumps over{' the very' * (i % 12)} lazy dogs."
    for i in range(32)
)
QUOTA_US, PERIOD_US = 50_000, 100_000
GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to run threads: their number (None leaves it to refllm), and the environment."""

    threads: int | None
    environment: Mapping[str, str] = field(default_factory=dict)


def _settings(n_cpus: int) -> Mapping[str, Setting]:
    return {
        REFLLM: Setting(None),
        "all CPUs": Setting(n_cpus),
        "waiting passively": Setting(n_cpus, {"OMP_WAIT_POLICY": "passive"}),
        "1000 spins": Setting(n_cpus, {"GOMP_SPINCOUNT": "1000"}),
        "20000 spins": Setting(n_cpus, {"GOMP_SPINCOUNT": "20000"}),
        "workqueue": Setting(n_cpus, {"NUMBA_THREADING_LAYER": "workqueue"}),
        "one thread": Setting(1),
    }


SETTINGS = tuple(name for name in _settings(1) if name != REFLLM)


@dataclass(frozen=True, slots=True)
class Work:
    """What a model is asked for: a text to be continued by `n_tokens`, or texts to be embedded."""

    model: Path
    texts: Sequence[str]
    n_tokens: int = 0


def measure_sharing(bench: Bench, stories: Path) -> None:
    """ms of one work of each model, by each setting in each situation."""
    for name, work in _works(bench, stories).items():
        for situation in QUICK_SITUATIONS if bench.options.is_quick else SITUATIONS:
            with ExitStack() as stack:
                try:
                    group = stack.enter_context(_half_a_cpu()) if "half" in situation else None
                except Unavailable as error:
                    bench.skip(situation, error)
                    continue
                for _ in range(N_BUSY.get(situation, 0)):
                    stack.enter_context(_busy_process(bench.options.python))
                labels = {"work": name, "beside": situation}
                entrants = list(_entrants(bench, work, group, stack))
                outcomes = alternate(entrants, rounds=bench.options.rounds, bench=bench)
                bench.add(figure_of(labels, outcomes, unit="ms", amount=1))


def _works(bench: Bench, stories: Path) -> Mapping[str, Work]:
    options = bench.options
    prompt = ("Once upon a time",)
    works = {"tiny-chat": Work(ROOT / "llama" / "tiny-chat.gguf", prompt, 48)}
    if not options.is_quick:
        minilm = minilm_folder(options.work)
        works |= {
            "stories260K": Work(stories, prompt, 48),
            "MiniLM, one text": Work(minilm, TEXTS[:1]),
            "MiniLM, 32 texts": Work(minilm, TEXTS),
            "1.1B in Q8_0": Work(_big_model(options), prompt, 4),
        }
    return works


def _big_model(options: Options) -> Path:
    """The 1.1B in Q8_0 as refllm quantizes it: every setting's process has its own copy."""
    target = options.work / "1.1B-Q8_0-by-refllm.gguf"
    if not target.exists():
        source = model_file(options.work, "1.1B", "F16", peer_python=options.peer_python)
        quantize(source, target, type_name="Q8_0")
    return target


def _entrants(bench: Bench, work: Work, group: Path | None, stack: ExitStack) -> Iterator[Entrant]:
    """A process for each setting, which has its model and waits."""
    options = bench.options
    for name, setting in _settings(options.threads).items():
        if options.is_quick and name not in QUICK_SETTINGS:
            continue
        runner = stack.enter_context(
            contestant(
                "refllm_sharing",
                python=options.python,
                threads=options.threads,
                environment=setting.environment,
            )
        )
        if group is not None:  # before it loads: then refllm counts its CPUs
            (group / "cgroup.procs").write_text(str(runner.process_id))
        reply = runner.run(
            "load",
            model=str(work.model.absolute()),
            threads=setting.threads,
            texts=work.texts,
            n_tokens=work.n_tokens,
        )
        bench.versions[REFLLM] = reply["versions"]
        seconds = 0.0 if options.is_quick else SECONDS
        yield Entrant(name, runner, "work_for", {"seconds": seconds})


@contextmanager
def _busy_process(python: Path) -> Iterator[None]:
    """A process that uses one CPU as long as the `with` lasts."""
    process = subprocess.Popen([python, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _half_a_cpu() -> Iterator[Path]:
    """A control group whose processes get half a CPU together.

    Errors: `Unavailable` where this process may make none.
    """
    of_version_2 = GROUPS / "cgroup.controllers"
    group = (GROUPS if of_version_2.exists() else GROUPS / "cpu") / f"refllm-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Unavailable(f"no control group can be made: {error.strerror}") from error
    try:
        if of_version_2.exists():
            (group / "cpu.max").write_text(f"{QUOTA_US} {PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(QUOTA_US))
        yield group
    except OSError as error:
        raise Unavailable(f"no quota can be set: {error.strerror}") from error
    finally:
        group.rmdir()
