"""The engine of a command, and messages on standard error while it takes time.

Importing, compiling (on the first run) and reading a large model take time. The bar of loading is
for terminals only. Compiling takes so much longer than a warm run that a script's log has a line
about it, too; with a cache that is kept between runs it appears once.
"""

from __future__ import annotations

import atexit
import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from refllm.cli.common import bytes_of
from refllm.jit.first_compilation import FirstCompilation

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from refllm.engine import LocalEngine
    from refllm.interface import InferencingParams
    from refllm.models.load import Progress

__all__ = [
    "announce_compiling",
    "answered_by",
    "conditions_of",
    "ending_workers",
    "engine_of",
    "loading_bar",
]

PATIENCE_SECONDS = 1.0


def engine_of(
    *,
    threads: int | None,
    seed: int = 0,
    profile: str = "contract",
    numerics: str = "exact",
    stand_ins: bool = False,
    progress: Progress | None = None,
    keep_packed_mib: int | None = None,
    compiles_apart: bool = False,
) -> LocalEngine:
    """Return the engine of a command.

    Without `stand_ins` or `keep_packed_mib` the environment decides about them.

    The import takes most of a short command's time, so only commands that compute call this.
    Freezing the garbage collector saves a quarter of that time: it does not scan the imported
    modules during the imports, nor at exit.
    """
    gc.disable()
    from refllm.engine import LocalEngine

    gc.freeze()
    gc.enable()
    atexit.register(gc.freeze)
    return LocalEngine(
        seed=seed,
        profile=profile,
        numerics=numerics,
        threads=threads,
        stand_ins=stand_ins or None,
        progress=progress,
        keep_packed_bytes=bytes_of(keep_packed_mib),
        compiles_apart=compiles_apart,
    )


def answered_by(engine: LocalEngine, model: str | Path) -> dict[str, str]:
    """Return which model answers for `model`, for a JSON object."""
    if isinstance(model, Path):
        return {"model": str(model)}
    answering = engine.answering_model(model)
    stands_in = {} if answering == model else {"stands_in_for": model}
    return {"model": answering, **stands_in}


def conditions_of(engine: LocalEngine, params: InferencingParams) -> dict[str, object]:
    """Return what determines a text besides model and prompt, for a JSON object."""
    return {
        "params": asdict(params),
        "seed": engine.seed,
        "profile": engine.profile,
        "numerics": engine.numerics,
    }


def announce_compiling() -> None:
    """Write the line of `refllm.jit.first_compilation` on standard error, at the first one."""
    FirstCompilation(lambda line: typer.echo(line, err=True)).attach()


@contextmanager
def ending_workers() -> Iterator[None]:
    """End the processes that compile kernels on Ctrl-C; otherwise they outlive the command."""
    try:
        yield
    except KeyboardInterrupt:
        from refllm.jit.workers import stop_workers

        stop_workers()
        raise


@contextmanager
def loading_bar(what: str = "loading", *, in_bytes: bool = True) -> Iterator[Progress | None]:
    """Yield the callback for the progress of loading; None if standard error is no terminal.

    A bar appears once loading has taken a second, and disappears for good when the model is loaded:
    while it is shown, rich prints what the command writes line by line.

    Args:
        what: The words before the bar.
        in_bytes: Whether the counter behind the bar is of bytes, in MB, or of pieces of work: 3/8.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    bar = _LoadingBar(what, in_bytes)
    try:
        yield bar.show
    finally:
        bar.close()


class _LoadingBar:
    def __init__(self, what: str, in_bytes: bool) -> None:
        self._what = what
        self._in_bytes = in_bytes
        self._begin = time.monotonic()
        self._bars: Bars | None = None
        self._is_closed = False

    def show(self, done: int, total: int) -> None:
        if self._is_closed:  # a llama that answered in NumPy packs its weights between two tokens
            return
        if done == total:
            self.close()
        elif time.monotonic() - self._begin >= PATIENCE_SECONDS:
            self._bars = self._bars or _started_bars(self._what, total, in_bytes=self._in_bytes)
            self._bars.update(self._bars.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        self._is_closed = True
        if self._bars is not None:
            self._bars.stop()


def _started_bars(what: str, total: int, *, in_bytes: bool) -> Bars:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
    )

    counter = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), counter)
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    bars.add_task(what, total=total)
    bars.start()
    return bars
