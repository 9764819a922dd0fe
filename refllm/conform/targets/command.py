"""A target that is a command: a harness in any language, asked in JSON lines.

    CommandTarget("node docs/harnesses/harness.js")

What a harness does wrong never reaches the backend's account. It has ended, keeps silent, says what
the protocol does not have: the case is `Broken`, the process is ended with all that it started, and
the next case begins with a new one. One that does not start again is not tried any more.
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
    MOST_ANSWER_BYTES,
    Broken,
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

LINES_SHOWN = 20  # of what a harness said on standard error
LONGEST_LINE_SHOWN = 500
PIECE = 1 << 16  # bytes of standard error read at a time
SECONDS_FOR_LAST_WORDS = 1.0


class CommandTarget:
    """A harness behind a command; `start_seconds` and `run_seconds` are how long it may think."""

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        start_seconds: float = 60.0,
        run_seconds: float = 120.0,
        end_seconds: float = 5.0,
    ) -> None:
        """`command` is split as a POSIX shell does where it is one text, and run without a shell.

        `end_seconds` are those that the process has to end by itself, once it is told to.
        """
        self._command = command
        self._start_seconds = start_seconds
        self._run_seconds = run_seconds
        self._end_seconds = end_seconds
        self._running: _Running | None = None
        self._does_not_start = ""  # once it has broken: why

    def start(self) -> Implementation:
        """Start the command. Errors: `TargetError` with what it said on standard error."""
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
        """The harness's reply to the case; `Broken` says what it did instead, and what to do."""
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
            return Broken(
                f"the harness did not start again after a failure: {self._does_not_start}",
                is_lost=True,
            )
        try:
            message, n_bytes = running.ask(run_message(case), self._run_seconds)
            return reply_of(message, case.id, n_bytes=n_bytes)
        except ProtocolError as error:
            return Broken(self._give_up(running, error), is_lost=True)

    def stop(self) -> None:
        """Tell the harness to end, and end it if it does not."""
        running, self._running = self._running, None
        if running is not None:
            running.end(self._end_seconds, last={"cmd": "stop"})

    def _give_up(self, running: _Running, error: ProtocolError) -> str:
        """End the process; what is to be said about it."""
        self._running = None
        running.end(self._end_seconds)
        said = "".join(f"\n  {line}" for line in running.last_words())
        return f"the harness {error}" + (f"\nIts standard error ends with:{said}" if said else "")


class _Running:
    """A process that is asked one line at a time.

    Three threads keep its pipes moving, so that nothing here waits longer than it wants to, even
    for a process that reads nothing. Of standard output they read one line ahead, of standard
    error they keep the end, so a process that prints without end fills no memory but waits.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Errors: `TargetError` if there is no such program."""
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
        self._asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answered: queue.Queue[bytes | None] = queue.Queue(maxsize=1)
        self._is_over = threading.Event()
        self._said: deque[str] = deque(maxlen=LINES_SHOWN)
        self._threads = [
            threading.Thread(target=target, args=arguments, daemon=True)
            for target, arguments in (
                (_write, (self._process.stdin, self._asked)),
                (_read, (self._process.stdout, self._answered, self._is_over)),
                (_keep, (self._process.stderr, self._said)),
            )
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, message: Mapping[str, Any], seconds: float) -> tuple[Mapping[str, Any], int]:
        """The message that it answers, and the length of its line. Errors: `ProtocolError`."""
        self._asked.put(line_of(message))
        try:
            line = self._answered.get(timeout=seconds)
        except queue.Empty:
            raise ProtocolError(
                f"did not answer {message['cmd']} within {seconds:g} seconds; let it skip what "
                "takes longer, or allow more with --seconds"
            ) from None
        if line is None:
            raise ProtocolError(f"{self._ending()} instead of answering {message['cmd']}")
        if len(line) > MOST_ANSWER_BYTES:
            raise ProtocolError(f"printed a line of more than {MOST_ANSWER_BYTES} bytes")
        return message_of(line), len(line)

    def end(self, seconds: float, *, last: Mapping[str, Any] | None = None) -> None:
        """End the process and those that it started, the hard way if it takes longer than that.

        With a `last` message it first has a chance to end by itself.
        """
        if last is not None:
            self._asked.put(line_of(last))
        self._asked.put(None)
        if last is None or not self._has_ended(seconds):
            self._signal(signal.SIGTERM)
            self._has_ended(seconds)
        self._signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        self._has_ended(seconds)
        self._is_over.set()
        with contextlib.suppress(queue.Empty):  # for which the thread that reads may wait
            self._answered.get_nowait()
        for thread in self._threads:
            thread.join(SECONDS_FOR_LAST_WORDS)

    def last_words(self) -> list[str]:
        """The end of what it said on standard error."""
        return list(self._said)

    def _ending(self) -> str:
        if not self._has_ended(SECONDS_FOR_LAST_WORDS):
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
        # The group outlives its first process while another of it runs.
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


def _write(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    # A process that has ended is noticed where its answers are read.
    with contextlib.suppress(OSError, ValueError), stream:
        for line in iter(lines.get, None):
            stream.write(line)
            stream.flush()


def _read(stream: IO[bytes], lines: queue.Queue[bytes | None], is_over: threading.Event) -> None:
    with stream:
        for line in iter(lambda: stream.readline(MOST_ANSWER_BYTES + 1), b""):
            lines.put(line)
            if is_over.is_set():
                return
    lines.put(None)


def _keep(stream: IO[bytes], said: deque[str]) -> None:
    begins_a_line = True
    with stream:
        for piece in iter(lambda: stream.readline(PIECE), b""):
            if begins_a_line:
                said.append(piece.decode("utf-8", "replace").rstrip()[:LONGEST_LINE_SHOWN])
            begins_a_line = piece.endswith(b"\n")
