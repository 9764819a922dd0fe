"""Writes that do not end well: a process killed at a known point, and a disk that is full."""

from __future__ import annotations

import multiprocessing
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import pytest

from tests.conftest import HUNG_SECONDS
from tests.support.exports import names_in

__all__ = ["full_disk", "hidden_in", "killed_at", "needs_kill", "paused_at"]

needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and a fork server")


# Imported once, and not by each process.
PRELOADED = [
    *(
        "tests.support.interrupted",
        "refllm.conform.report.files",
        "refllm.conform.models",
        "refllm.models.pull.hub",
    ),
    *("huggingface_hub.hf_api", "huggingface_hub.file_download"),
]


@contextmanager
def paused_at(
    point: str, action: Callable[..., object], *arguments: object, call: int = 1
) -> Iterator[None]:
    """Have a process run `action`, and keep it where it calls `point`, a dotted name.

    It is killed when the `with` block ends. `call` counts the calls of `point`, from 1.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(there, point, call, action, arguments))
    process.start()
    there.close()
    try:
        assert here.poll(HUNG_SECONDS)
        reached = here.recv()
        assert reached == point, reached
        yield
    finally:
        process.kill()
        process.join()
        here.close()


def killed_at(point: str, action: Callable[..., object], *arguments: object, call: int = 1) -> None:
    """Run `action` in a process, and kill that when it calls `point`: see `paused_at`."""
    with paused_at(point, action, *arguments, call=call):
        pass


def _run(
    parent: Connection,
    point: str,
    call: int,
    action: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    original: Callable[..., object] = pkgutil.resolve_name(point)
    calls = 0

    def pause(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls < call:
            return original(*args, **options)
        parent.send(point)
        time.sleep(HUNG_SECONDS)
        raise AssertionError("the process was to be killed")

    with mock.patch(point, pause):
        action(*arguments)
    parent.send(f"{point} was called {calls} times")


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `n_bytes`, as on a disk with so much room.

    The error is EFBIG instead of ENOSPC; it comes in the same place.
    """
    resource = pytest.importorskip("resource", reason="needs limits of resources, as Unix has them")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def hidden_in(folder: Path) -> list[str]:
    """The names of what is hidden in `folder`."""
    return [name for name in names_in(folder) if name.startswith(".")]
