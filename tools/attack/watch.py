"""The child process that reads hostile inputs, and the watch over it.

A child tells of each input as it ends. One that says nothing for `SILENCE` seconds, that takes
`MAX_BYTES` of memory or that ends by itself was stopped by the input after the last one it told
of: that is a fault, and another child goes on behind it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from tools.attack.judge import Verdict, verdict_of
from tools.attack.target import Target
from tools.attack.targets import TARGETS

__all__ = ["verdicts"]

SILENCE = 30.0  # seconds: far beyond any target's bound, because the machine may be busy
START_SECONDS = 900.0  # a target's kernels are compiled where no process of this machine has yet
MAX_BYTES = 6 * 2**30
POLL_SECONDS = 0.2
LONGEST_PRINT = 500  # characters
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
IN_MEMORY = Path("/dev/shm")  # noqa: S108 - files of an input lie there for a moment


def verdicts(
    name: str,
    seed: int,
    numbers: Sequence[int],
    *,
    targets: Mapping[str, Target] = TARGETS,
    silence: float = SILENCE,
) -> Iterator[Verdict]:
    """Judge the inputs of one target with these numbers, in their order."""
    context = multiprocessing.get_context("spawn")
    n_done = 0
    while n_done < len(numbers):
        here, there = context.Pipe(duplex=False)
        rest = numbers[n_done:]
        child = context.Process(target=_child, args=(targets[name], seed, rest, there), daemon=True)
        child.start()
        there.close()
        try:
            for verdict in _told(child, here, silence):
                yield verdict
                n_done += 1
            child.join()
            if n_done < len(numbers):
                what = f"the process ended with {child.exitcode}"
                yield Verdict(numbers[n_done], "the process ended", 0.0, 0, what)
                n_done += 1
        except _StoppedError as stopped:
            yield Verdict(numbers[n_done], str(stopped), silence, 0, str(stopped))
            n_done += 1
        finally:
            child.kill()
            child.join()


class _StoppedError(Exception):
    """The watch ended the child."""


def _told(child: BaseProcess, connection: Connection, silence: float) -> Iterator[Verdict]:
    """What the child tells, until it ends."""
    until = time.monotonic() + START_SECONDS
    is_ready = False
    while True:
        if connection.poll(POLL_SECONDS):
            try:
                told = connection.recv()
            except EOFError:
                if not is_ready:  # nor would another child be
                    raise RuntimeError("the target cannot be prepared; see above") from None
                return
            until = time.monotonic() + silence
            is_ready = True
            if told is not None:
                yield told
        elif time.monotonic() > until:
            raise _StoppedError("no end")
        elif _resident(child) > MAX_BYTES:
            raise _StoppedError("memory without end")


def _resident(child: BaseProcess) -> int:
    try:
        return int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _child(target: Target, seed: int, numbers: Sequence[int], connection: Connection) -> None:
    logging.getLogger().addHandler(logging.NullHandler())  # else warnings go to standard error
    place = str(IN_MEMORY) if os.access(IN_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder, tempfile.TemporaryFile() as printed:
        work = Path(folder, "input")
        work.mkdir()
        target.prepare(work)
        connection.send(None)  # ready
        os.dup2(printed.fileno(), 2)  # what native code prints, too
        for number in numbers:
            verdict = verdict_of(target, seed, number, work)
            if n_printed := os.fstat(printed.fileno()).st_size:
                text = os.pread(printed.fileno(), LONGEST_PRINT, 0).decode("utf-8", "replace")
                os.ftruncate(printed.fileno(), 0)
                os.lseek(printed.fileno(), 0, os.SEEK_SET)
                if not verdict.note:
                    what = f"{n_printed} bytes: {text}"
                    verdict = Verdict(number, "printed", verdict.seconds, verdict.n_bytes, what)
            connection.send(verdict)
    connection.close()
