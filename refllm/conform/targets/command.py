"""A target that is a command: a harness in any language, asked in JSON lines.

    CommandTarget("node docs/harnesses/harness.js")

A fault of the harness is never counted as one of the backend. Where the process ends, is silent or
prints what the protocol does not have, the reply is `HarnessError`: the process is ended with all
that it started, and the next case begins with a new one. A command that does not start again is not
tried any more.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Any

from refllm.conform.case import Case
from refllm.conform.reply import (
    MAX_ANSWER_BYTES,
    HarnessError,
    Implementation,
    NotApplicable,
    Reply,
    TargetError,
)
from refllm.conform.targets.protocol import (
    VERSION,
    ProtocolError,
    implementation_of,
    line_of,
    message_of,
    reply_of,
    run_message,
    unaskable,
)

__all__ = ["CommandTarget"]

LINES_SHOWN = 20  # of a harness's standard error
MAX_LINE_SHOWN = 500
CHUNK_BYTES = 1 << 16  # of standard error, read at a time
PIPE_SECONDS = 1.0  # for the threads to read what an ended process has written


class CommandTarget:
    """A harness behind a command."""

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        start_seconds: float = 60.0,
        run_seconds: float = 120.0,
        end_seconds: float = 5.0,
    ) -> None:
        """Create a target; the command runs from `start` on, without a shell.

        Args:
            command: Its words, or one text that is split as a POSIX shell does.
            start_seconds: How long it may take to answer the start.
            run_seconds: How long it may take to answer a case.
            end_seconds: How long it may take to end after the stop message.
        """
        self._command = command
        self._start_seconds = start_seconds
        self._run_seconds = run_seconds
        self._end_seconds = end_seconds
        self._running: _Running | None = None
        self._does_not_start = ""  # once it has broken: why

    def start(self) -> Implementation:
        """Start the command, and return its answer.

        Raises:
            TargetError: With the end of the command's standard error.
        """
        running = self._running = _Running(_arguments(self._command))
        try:
            message, _ = running.ask({"cmd": "start", "version": VERSION}, self._start_seconds)
            return implementation_of(message)
        except ProtocolError as error:
            raise TargetError(self._give_up(running, error)) from None

    def not_applicable(self, case: Case) -> NotApplicable | None:
        """Return why no harness can be asked the case, None where one can."""
        return unaskable(case)

    def run(self, case: Case) -> Reply:
        """Return the harness's reply; `HarnessError` has what it did instead, and what to do."""
        not_applicable = unaskable(case)
        if not_applicable is not None:
            return not_applicable
        if self._running is None and not self._does_not_start:
            try:
                self.start()
            except TargetError as error:
                self._does_not_start = str(error)
        running = self._running
        if running is None:
            return HarnessError(
                f"the harness did not start again after a failure: {self._does_not_start}",
                is_lost=True,
            )
        try:
            message, n_bytes = running.ask(run_message(case), self._run_seconds)
            return reply_of(message, case.id, n_bytes=n_bytes)
        except ProtocolError as error:
            return HarnessError(self._give_up(running, error), is_lost=True)

    def stop(self) -> None:
        """Send the stop message, and end the process if it does not end by itself."""
        running, self._running = self._running, None
        if running is not None:
            running.end(self._end_seconds, last={"cmd": "stop"})

    def _give_up(self, running: _Running, error: ProtocolError) -> str:
        """End the process, and return what it did wrong with the end of its standard error."""
        self._running = None
        running.end(self._end_seconds)
        lines = "".join(f"\n  {line}" for line in running.last_errors())
        return f"the harness {error}" + (f"\nIts standard error ends with:{lines}" if lines else "")


class _Running:
    """A process that is asked one line at a time.

    Three threads write and read its pipes, so that a method here never blocks longer than its time
    limit, even if the process reads nothing. They read one line of standard output ahead and keep
    the end of standard error, so a process that prints without end blocks and fills no memory.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start the process; raise `TargetError` if there is no such program."""
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # so that what it starts can be ended with it
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TargetError(
                f"cannot start {arguments[0]!r}: {reason}; give the command as it is typed in a "
                "shell, or the path of its program"
            ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lines: queue.Queue[bytes | None] = queue.Queue(maxsize=1)
        self._is_finished = threading.Event()
        self._error_lines: deque[str] = deque(maxlen=LINES_SHOWN)
        self._threads = [
            threading.Thread(target=target, args=arguments, daemon=True)
            for target, arguments in (
                (_write_requests, (self._process.stdin, self._requests)),
                (_read_answers, (self._process.stdout, self._lines, self._is_finished)),
                (_keep_errors, (self._process.stderr, self._error_lines)),
            )
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, message: Mapping[str, Any], seconds: float) -> tuple[Mapping[str, Any], int]:
        """Return the answer to a message, and the length of its line; raise `ProtocolError`."""
        self._requests.put(line_of(message))
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise ProtocolError(
                f"did not answer {message['cmd']} within {seconds:g} seconds; let it skip what "
                "takes longer, or allow more with --seconds"
            ) from None
        if line is None:
            raise ProtocolError(f"{self._ending()} instead of answering {message['cmd']}")
        if len(line) > MAX_ANSWER_BYTES:
            raise ProtocolError(f"printed a line of more than {MAX_ANSWER_BYTES} bytes")
        return message_of(line), len(line)

    def end(self, seconds: float, *, last: Mapping[str, Any] | None = None) -> None:
        """End the process and those that it started.

        With a `last` message it has so many seconds to end by itself. After SIGTERM it has them
        again, then it is killed.
        """
        if last is not None:
            self._requests.put(line_of(last))
        self._requests.put(None)
        if last is None or not self._has_ended(seconds):
            self._signal(signal.SIGTERM)
            self._has_ended(seconds)
        self._signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        self._has_ended(seconds)
        self._is_finished.set()
        with contextlib.suppress(queue.Empty):  # the reading thread may wait for room in the queue
            self._lines.get_nowait()
        for thread in self._threads:
            thread.join(PIPE_SECONDS)

    def last_errors(self) -> list[str]:
        """Return the last lines of standard error."""
        return list(self._error_lines)

    def _ending(self) -> str:
        if not self._has_ended(PIPE_SECONDS):
            return "closed its standard output"
        code = self._process.returncode
        if code >= 0:
            return f"ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    def _has_ended(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _signal(self, number: int) -> None:
        # The process group exists until its last process ends, longer than the first one.
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)


def _arguments(command: str | Sequence[str]) -> list[str]:
    if isinstance(command, str):
        try:
            command = shlex.split(command, posix=os.name == "posix")
        except ValueError as error:
            raise TargetError(f"the command {command!r} cannot be read: {error}") from error
    arguments = list(command)
    if not arguments:
        raise TargetError("the command is empty; give the program that is the harness")
    return arguments


def _write_requests(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    # The reader of the answers reports a process that has ended.
    with contextlib.suppress(OSError, ValueError), stream:
        for line in iter(lines.get, None):
            stream.write(line)
            stream.flush()


def _read_answers(
    stream: IO[bytes], lines: queue.Queue[bytes | None], is_finished: threading.Event
) -> None:
    with stream:
        for line in iter(lambda: stream.readline(MAX_ANSWER_BYTES + 1), b""):
            lines.put(line)
            if is_finished.is_set():
                return
    lines.put(None)


def _keep_errors(stream: IO[bytes], lines: deque[str]) -> None:
    begins_a_line = True
    with stream:
        for chunk in iter(lambda: stream.readline(CHUNK_BYTES), b""):
            if begins_a_line:
                lines.append(chunk.decode("utf-8", "replace").rstrip()[:MAX_LINE_SHOWN])
            begins_a_line = chunk.endswith(b"\n")
