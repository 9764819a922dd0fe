"""The server's process: started, killed, started again, and looked at from outside."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tools.soak.questions import Question

__all__ = ["Answer", "Sample", "Server", "asked"]

LISTENING = re.compile(r"# listening on http://127\.0\.0\.1:(\d+);")
SECONDS = 120.0  # until an answer counts as missing
PAGE = os.sysconf("SC_PAGE_SIZE")
N_QUIET_SAMPLES = 10
OPTIONS = (
    *("--max-models-mib", "8"),  # of the five models, one or two
    *("--prompt-cache-mib", "4"),
    *("--max-waiting", "32"),
    *("--max-arrival-seconds", "5"),
    *("--threads", "1"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers in lower case, and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """The process at a moment, `at` seconds after the first clients came.

    `descriptors` are what its file descriptors refer to: paths, "socket:[…]", "anon_inode:…".
    """

    at: float
    process: int
    n_bytes: int
    n_threads: int
    descriptors: tuple[str, ...]


class Server:
    """`refllm serve` on a port that stays the same.

    `is_up` is set while clients may ask; `n_ends` counts the processes that were killed, so that a
    client knows whether that was why it got no answer.
    """

    def __init__(self, home: Path, log: Path, warming: Sequence[Question]) -> None:
        """`home` has the models, in its ai-models; `warming` are requests that a process is asked
        before its clients come, one of each kind and model.
        """
        self.port = 0
        self.is_up = threading.Event()
        self.n_ends = 0
        self.seconds_to_answer: list[float] = []
        self.baseline = Sample(0.0, 0, 0, 0, ())
        self._environment = {**os.environ, "REFLLM_HOME": str(home)}
        self._home = home
        self._log = log
        self._warming = warming
        self._process: subprocess.Popen[str]
        self._began = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The process is there, and has ended afterwards."""
        with self._log.open("ab") as log:
            self._start(log)
            try:
                self._began = time.monotonic()
                yield
            finally:
                self.is_up.clear()
                self._process.terminate()
                self._end()

    def restart(self) -> None:
        """Kill the process, and start another."""
        begin = time.monotonic()
        self.is_up.clear()
        self.n_ends += 1
        self._process.kill()
        self._end()
        with self._log.open("ab") as log:
            self._start(log)
        self.seconds_to_answer.append(time.monotonic() - begin)

    def sample(self) -> Sample:
        """What the process has now. Errors: `OSError` while there is none."""
        process = Path("/proc") / str(self._process.pid)
        return Sample(
            at=time.monotonic() - self._began,
            process=self._process.pid,
            n_bytes=int((process / "statm").read_text().split()[1]) * PAGE,
            n_threads=sum(1 for _ in (process / "task").iterdir()),
            descriptors=tuple(_targets(process / "fd")),
        )

    def settle(self, seconds: float) -> Sample:
        """Return the process after an idle time, in which idle threads end.

        The server closes the connection of a request a moment after the client has its answer, so
        this is the sample with the fewest descriptors of a second.
        """
        time.sleep(seconds)
        asked(self.port, "/healthz")
        return self._quiet_sample()

    def _quiet_sample(self) -> Sample:
        samples = []
        for _ in range(N_QUIET_SAMPLES):
            time.sleep(1.0 / N_QUIET_SAMPLES)
            samples.append(self.sample())
        return min(samples, key=lambda sample: len(sample.descriptors))

    def _start(self, log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "refllm", "serve", "--port", str(self.port), *OPTIONS],
            cwd=self._home,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert self._process.stdout is not None
        listening = LISTENING.match(self._process.stdout.readline())
        if listening is None:
            self._process.kill()
            raise SystemExit(f"refllm serve does not start: {self._log.read_text()}")
        self.port = int(listening[1])
        asked(self.port, "/healthz")
        for question in self._warming:
            asked(self.port, question.path, question.body)
        self.baseline = self._quiet_sample()
        self.is_up.set()

    def _end(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=60)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def _targets(folder: Path) -> Iterator[str]:
    for descriptor in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield str(descriptor.readlink())


def asked(port: int, path: str, body: object = None) -> Answer:
    """The answer to one request; a body that is not bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request("GET" if data is None else "POST", path, data)
        response = connection.getresponse()
        lower = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, lower, response.read())
    finally:
        connection.close()
