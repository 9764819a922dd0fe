"""`refllm serve` as a process of its own, for tests: on a free port, gone at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from refllm.errors import LlmRuntimeError

__all__ = ["RunningServer", "running_server"]

LISTENING = re.compile(r"# listening on (\S+);")
SECONDS_TO_END = 60
MOST_LOG_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers: its address, such as http://127.0.0.1:40001, and its process.

    `complaints` is what it writes to its standard error.
    """

    url: str
    process: subprocess.Popen[str]
    complaints: IO[bytes]

    def log(self) -> str:
        """Return what it has written to its standard error so far, where the system is POSIX.

        It reads without moving the place in the file, which is the server's, too.
        """
        return os.pread(self.complaints.fileno(), MOST_LOG_BYTES, 0).decode("utf-8", "replace")


@contextmanager
def running_server(
    arguments: Sequence[str] = (),
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """A server with these arguments of `refllm serve`, in that folder; it has ended afterwards.

    Errors: `LlmRuntimeError` with what it said if it does not start.
    """
    # Not into a pipe: nobody reads what a server that runs for long complains about.
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", "refllm", "serve", "--port", "0", *arguments],
            cwd=folder,
            env=dict(os.environ if environment is None else environment),
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
        assert process.stdout is not None
        try:
            listening = LISTENING.match(process.stdout.readline())
            if listening is None:
                _end(process)
                complaints.seek(0)
                said = complaints.read().decode("utf-8", "replace").strip()
                raise LlmRuntimeError(f"refllm serve does not start: {said}")
            yield RunningServer(listening[1], process, complaints)
        finally:
            _end(process)
            process.stdout.close()


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
