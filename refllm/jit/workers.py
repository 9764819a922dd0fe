"""Processes that compile kernels, side by side, while the caller does something else.

Each process has the whole list, largest first, and takes the first kernel that is neither on disk
nor being compiled by another process. A lock on a file beside the kernel marks one that is being
compiled; the system releases it however the process ends. So processes of several commands that run
at once share the work as well.

    <cache>/kernels-2f1c9ab0d4e8773165d0/
        linear.Q8_0_gemv_serial-8d0c51….nbc
        linear.Q8_0_gemv_serial-8d0c51….claim       empty; locked while a process compiles it

The processes survive the one that starts them, so a short command does not wait for them and the
next one finds more kernels. They have no terminal, and end with their work, after `TIME_LIMIT`
seconds, or when the folder is removed.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from refllm.files.interrupts import interrupts_later
from refllm.jit.threads import available_cpus

if TYPE_CHECKING:
    from refllm.jit.compile import Missing

__all__ = [
    "COMPILE_HERE",
    "Workers",
    "compile_all",
    "largest_first",
    "may_start_workers",
    "stop_workers",
]

TIME_LIMIT = 600.0  # seconds; all kernels of a model take about a minute of one CPU
BACKGROUND_NICENESS = 10  # a tenth of the time of a process that computes
POLL_SECONDS = 0.02
MAX_WORKERS = 8  # each takes about 200 MB
CLAIM = ".claim"
COMPILE_HERE = "here"  # the value of REFLLM_COMPILE that forbids other processes

# Seconds to compile, by a part of the name; the first that fits counts. Only the order matters.
SECONDS: Mapping[str, float] = {
    "attention": 5.0,
    "_texts": 5.0,
    "gemm": 2.0,
    "_turn": 1.2,
    "rms_norm": 1.0,
    "layer_norm": 1.0,
    "gemv": 0.9,
    "small_batch": 0.9,
    "softmax": 0.8,
    "_rope": 0.6,
    "_append": 0.6,
}
OTHER_SECONDS = 0.4

# Runs in each process. The path of modules is this process's: `-m` would put the current folder
# before it, and a file in it called json.py would be imported.
PROGRAM = """
import importlib, json, sys
task = json.loads(sys.argv[1])
sys.path[:] = task["path"]
module, _, function = task["function"].partition(":")
getattr(importlib.import_module(module), function)(**task["arguments"])
"""

_started: list[Workers] = []
_starting_or_stopping = threading.Lock()

logger = logging.getLogger("refllm.kernels")


class Workers:
    """Processes that were started; see the module's documentation."""

    def __init__(
        self,
        function: str,
        arguments: Mapping[str, Any],
        *,
        n_kernels: int,
        is_in_background: bool = False,
    ) -> None:
        """Start the processes, one for each CPU that this process may use.

        Args:
            function: "module:function", which the processes call.
            arguments: Its arguments, as JSON.
            n_kernels: The number of kernels to compile; there are no more processes than that.
            is_in_background: Whether this process computes meanwhile, and needs a CPU, too.

        Raises:
            OSError: No process can be started.
        """
        task = {"function": function, "arguments": dict(arguments), "path": sys.path}
        command = [sys.executable, "-P", "-c", PROGRAM, json.dumps(task)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._have_ended = threading.Event()
        n_cpus = max(1, available_cpus() - is_in_background)
        try:
            # `stop_workers` in another thread waits for the lock, and then ends all of them.
            with interrupts_later(), _starting_or_stopping:
                for _ in range(min(n_cpus, n_kernels, MAX_WORKERS)):
                    self._processes.append(
                        subprocess.Popen(
                            command,
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL,
                            start_new_session=True,  # Ctrl-C reaches the starting process only
                        )
                    )
                # Without a wait an ended process stays in the system's table until this one ends.
                threading.Thread(target=self._wait, daemon=True).start()
                _started.append(self)
        except BaseException:
            with interrupts_later(), _starting_or_stopping:
                for process in self._processes:
                    process.kill()
                self._wait()
                if self in _started:
                    _started.remove(self)
            raise

    def __len__(self) -> int:
        """The number of processes."""
        return len(self._processes)

    def are_running(self) -> bool:
        """Return whether a process has not ended."""
        # One thread alone waits: an interrupted `Popen.poll` can keep the lock of `Popen.wait`.
        return not self._have_ended.is_set()

    def wait_for(
        self, kernels: Collection[Missing], progress: Callable[[int], object] | None = None
    ) -> bool:
        """Wait until the kernels are on disk or all processes have ended; return the former.

        Args:
            kernels: What to wait for.
            progress: Called repeatedly with the number of kernels that are on disk.
        """
        while True:
            is_running = self.are_running()
            n_kept = sum(each.is_kept for each in kernels)
            if progress is not None:
                progress(n_kept)
            if n_kept == len(kernels) or not is_running:
                return n_kept == len(kernels)
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End the processes at once, also stopped ones; each kernel's file is whole or absent."""
        for process in self._processes:
            process.kill()
        self._have_ended.wait()

    def _wait(self) -> None:
        for process in self._processes:
            process.wait()
        self._have_ended.set()


def stop_workers() -> None:
    """End all processes that this one has started, as for Ctrl-C."""
    with interrupts_later(), _starting_or_stopping:
        for workers in _started:
            workers.stop()
        _started.clear()


def may_start_workers(kernels: Iterable[Missing], environment: Mapping[str, str]) -> bool:
    """Return whether other processes can compile the kernels for this one.

    They cannot without a folder to write to, and `REFLLM_COMPILE=here` in the environment forbids
    them: then each kernel is compiled at its first call, by the calling process.
    """
    folders = {each.path.parent for each in kernels}
    is_allowed = environment.get("REFLLM_COMPILE") != COMPILE_HERE
    return is_allowed and bool(folders) and all(os.access(each, os.W_OK) for each in folders)


def largest_first(kernels: Iterable[Missing]) -> list[Missing]:
    """Return the kernels by the time that they take to compile, the longest first."""

    def seconds(kernel: Missing) -> float:
        name = kernel.name.rpartition(".")[2]
        return next((SECONDS[part] for part in SECONDS if part in name), OTHER_SECONDS)

    return sorted(kernels, key=seconds, reverse=True)


def compile_all(kernels: Sequence[Missing], *, is_in_background: bool) -> None:
    """Compile kernels in this order, sharing the work with processes that do the same.

    Returns when all are on disk, and ends the process after `TIME_LIMIT`.

    Args:
        kernels: The kernels.
        is_in_background: Whether the process leaves CPU time to others.
    """
    limit = threading.Timer(TIME_LIMIT, os._exit, [1])
    limit.daemon = True
    limit.start()
    if is_in_background and hasattr(os, "nice"):
        os.nice(BACKGROUND_NICENESS)
    # Those that another process compiles are looked at again: it may have been ended.
    for is_waiting in (False, True):
        for kernel in kernels:
            if not kernel.path.parent.exists():
                return
            if not kernel.is_kept:
                _compile_claimed(kernel, is_waiting=is_waiting)
    limit.cancel()


def _compile_claimed(kernel: Missing, *, is_waiting: bool) -> None:
    """Compile a kernel, unless another process does."""
    import filelock  # loaded in these processes only

    claim = kernel.path.with_suffix(CLAIM)
    lock = filelock.FileLock(claim, timeout=-1 if is_waiting else 0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return
    except (OSError, NotImplementedError) as error:
        # Without the lock another process may compile the kernel as well, and write the same file.
        logger.debug("refllm: %s cannot be locked: %s", claim, error)
    try:
        if not kernel.is_kept:
            kernel.compile()
    finally:
        lock.release()
