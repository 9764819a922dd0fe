"""The driver's end of the protocol: a contestant in a process of its own, asked to run something.

The protocol is described in `benchmarks.contestants.serve`.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["LONGEST_REASON", "PROJECT", "Contestant", "Unavailable", "contestant"]

PROJECT = Path(__file__).resolve().parent.parent
LONGEST_REASON = 300  # characters
ENDING_SECONDS = 20.0  # for a program to end what it started, such as a cluster
# So that no library starts more threads than it is told to; each is told once more by its own
# interface. RAYON is the tokenizers library's.
THREAD_VARIABLES = tuple(
    f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "RAYON", "NUMBA")
)

# How threads wait is left to each library, whatever the user's shell has set.
WAITING_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class Unavailable(Exception):
    """A contestant that cannot take part; the message says why."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program that waits for requests."""

    program: str
    requests: IO[str]
    replies: IO[str]
    errors: IO[str]
    process_id: int

    def run(self, action: str, **arguments: object) -> dict[str, Any]:
        """What the contestant answers. Errors: `Unavailable` if it fails, or is not there."""
        try:
            self.requests.write(json.dumps({"run": action, "with": arguments}) + "\n")
            self.requests.flush()
            line = self.replies.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Unavailable(f"{self.program}: {self._last_words()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise Unavailable(f"{self.program}: {reply['error'][:LONGEST_REASON]}")
        return reply

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or ["it ended without a word"]
        return lines[-1][:LONGEST_REASON]


@contextmanager
def contestant(
    program: str, *, python: Path, threads: int, environment: Mapping[str, str] | None = None
) -> Iterator[Contestant]:
    """`python -m benchmarks.contestants.<program>`, until the `with` ends.

    `environment` has variables beside those that tell libraries their number of threads. The
    caller's own variables are there, too, except those that tell threads how to wait.

    Errors: `Unavailable` if the interpreter is not there. What the program lacks shows at the
    first request.
    """
    variables = {name: os.environ[name] for name in os.environ if name not in WAITING_VARIABLES}
    variables |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", **(environment or {})}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            process = subprocess.Popen(
                [python, "-m", f"benchmarks.contestants.{program}"],
                cwd=PROJECT,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
            )
        except OSError as error:
            raise Unavailable(f"{program}: {python} cannot be run: {error.strerror}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Contestant(program, process.stdin, process.stdout, errors, process.pid)
        finally:
            try:
                process.communicate(timeout=ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
