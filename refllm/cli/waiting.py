"""The engine of a command, and what a terminal is told while it waits for it.

Three things take time: importing, compiling (on the first run), reading a large model. Only who
looks at a terminal is told; a script's standard error stays empty.
"""

from __future__ import annotations

import atexit
import gc
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from refllm.engine import LocalEngine
    from refllm.loading import Progress

__all__ = ["answered_by", "engine_of", "loading_bar"]

PATIENCE_SECONDS = 1.0


def engine_of(
    *,
    threads: int | None,
    seed: int = 0,
    profile: str = "contract",
    numerics: str = "exact",
    stand_ins: bool = False,
    progress: Progress | None = None,
) -> LocalEngine:
    """The engine that a command uses; a terminal is told when it has to wait for the compiler.

    Without `stand_ins` the environment decides about them.

    Importing it takes most of a short command's time, so only commands that compute do. What is
    imported stays, so the garbage collector is kept from looking through it again and again, and
    once more when the process ends: together a quarter of that time.
    """
    gc.disable()
    from refllm.engine import LocalEngine

    gc.freeze()
    gc.enable()
    atexit.register(gc.freeze)
    if _is_watched():
        kernels = logging.getLogger("refllm.kernels")
        kernels.setLevel(logging.INFO)
        kernels.addHandler(_FirstCompilation())
    return LocalEngine(
        seed=seed,
        profile=profile,
        numerics=numerics,
        threads=threads,
        stand_ins=stand_ins or None,
        progress=progress,
    )


def answered_by(engine: LocalEngine, model: str | Path) -> dict[str, str]:
    """Which model answers where `model` is asked for, for a JSON object."""
    if isinstance(model, Path):
        return {"model": str(model)}
    answering = engine.answering_model(model)
    stands_in = {} if answering == model else {"stands_in_for": model}
    return {"model": answering, **stands_in}


class _FirstCompilation(logging.Handler):
    """Says why nothing is said, once: there are many kernels, and all are compiled in one run."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo("refllm: compiling kernels for this machine (first run only) …", err=True)
        logging.getLogger(record.name).removeHandler(self)


@contextmanager
def loading_bar() -> Iterator[Progress | None]:
    """What to tell how far loading is: a bar on standard error, None where nobody sees it.

    It appears when loading has taken a second, and is gone when the model is there.
    """
    if not _is_watched():
        yield None
        return
    bar = _LoadingBar()
    try:
        yield bar.show
    finally:
        bar.close()


class _LoadingBar:
    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._bars: Bars | None = None

    def show(self, done: int, total: int) -> None:
        if done == total:
            self.close()
        elif time.monotonic() - self._begin >= PATIENCE_SECONDS:
            self._bars = self._bars or _started_bars(total)
            self._bars.update(self._bars.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()


def _started_bars(total: int) -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    bars.add_task("loading", total=total)
    bars.start()
    return bars


def _is_watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
