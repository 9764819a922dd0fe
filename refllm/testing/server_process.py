"""`refllm serve` as a process of its own, for tests: on a free port, stopped at the end."""

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
MAX_LOG_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that accepts requests.

    Attributes:
        url: Its address, such as http://127.0.0.1:40001.
        process: Its process.
        errors: The file that its standard error goes to.
    """

    url: str
    process: subprocess.Popen[str]
    errors: IO[bytes]

    def log(self) -> str:
        """Return its standard error so far, on POSIX systems.

        The file's position, which it shares with the server, does not move.
        """
        return os.pread(self.errors.fileno(), MAX_LOG_BYTES, 0).decode("utf-8", "replace")


@contextmanager
def running_server(
    arguments: Sequence[str] = (),
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """Run a server, and stop it at the end of the block.

    Args:
        arguments: Of `refllm serve`.
        folder: Its working directory.
        environment: Its environment variables, instead of this process's.

    Raises:
        LlmRuntimeError: With its standard error, if it does not start.
    """
    # A file, because a pipe that is not read fills up and blocks the server.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "refllm", "serve", "--port", "0", *arguments],
            cwd=folder,
            env=dict(os.environ if environment is None else environment),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        try:
            listening = LISTENING.match(process.stdout.readline())
            if listening is None:
                _stop(process)
                errors.seek(0)
                log = errors.read().decode("utf-8", "replace").strip()
                raise LlmRuntimeError(f"refllm serve does not start: {log}")
            yield RunningServer(listening[1], process, errors)
        finally:
            _stop(process)
            process.stdout.close()


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
