"""Hold back the messages of native code on standard error while a library reads a file.

A library in Rust or C++ reports a damaged file twice: as an exception, which refllm turns into an
error that names the file, and before that as text on file descriptor 2, past `sys.stderr`. For the
time of the call that descriptor is redirected to a file in memory. The library's text and warnings
go to the logger "refllm" at level DEBUG; all other text, such as the lines of other threads, goes
on to standard error when the last running call has ended, or half a second after the first began.

Text in memory is lost when native code ends the process, so a call should be short. A process that
another thread starts meanwhile inherits the file in memory as its standard error by default.

Nothing is held back without such a descriptor, on Windows (where native code asks the system for
its standard error), or if no file can be opened.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hold_native_messages"]

STANDARD_ERROR = 2
MAX_HOLD_SECONDS = 0.5  # seconds: of calls in several threads, one may always be running
MAX_KEPT = 2**20  # bytes that have gone on to standard error
MAX_LOGGED = 4000  # characters
# A panic in the standard library of Rust, and the logs of sentencepiece and protobuf. A message of
# several lines is known from the exception.
PANIC = (
    r"\n?thread '[^'\n]*'(?: \(\d+\))? panicked at [^\n]*\n(?:{message}|[^\n]*)(?:\n|\Z)"
    r"(?:stack backtrace:\n(?: +[^\n]*\n)*)?(?:note: [^\n]*\n)*"
)
LOG_LINE = (
    r"^(?:WARNING: All log messages before absl::InitializeLog[^\n]*|\[libprotobuf [^\n]*"
    r"|(?:[A-Z]\d{{4}} [^\n]* )?[\w./-]+\.(?:cc|h)[:(]\d+[^\n]*)\n"
)

logger = logging.getLogger("refllm")


@contextmanager
def hold_native_messages() -> Iterator[None]:
    """Hold back messages of native code on standard error within the block.

    Blocks may be nested, and run in several threads at the same time.
    """
    _held.begin()
    message: str | None = None
    try:
        yield
    except BaseException as error:
        message = str(error)
        raise
    finally:
        _held.end(message)


class _Held:
    """The file that descriptor 2 is redirected to while any block runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._real = -1  # a copy of the descriptor as it was, -1 while nothing is held back
        self._file = -1
        self._n_passed_on = 0  # bytes of the file
        self._since = 0.0  # when the descriptor was redirected, or what is in the file passed on
        self._messages: list[str] = []  # of the exceptions of the blocks that failed

    def begin(self) -> None:
        with self._lock:
            if self._blocks == 0 and sys.platform != "win32":
                self._redirect()
            self._blocks += 1

    def end(self, message: str | None) -> None:
        native = ""
        with self._lock:
            if message is not None:
                self._messages.append(message)
            self._blocks -= 1
            if self._blocks == 0:
                native = self._restore()
            elif time.monotonic() - self._since > MAX_HOLD_SECONDS and self._real >= 0:
                native = self._pass_on()
                if self._n_passed_on > MAX_KEPT:  # a new file, so that this one gives its memory
                    native += self._restore()
                    self._redirect()
        if native:
            logger.debug("native code wrote on standard error: %.*s", MAX_LOGGED, native)

    def _redirect(self) -> None:
        try:
            self._real = os.dup(STANDARD_ERROR)
        except OSError:  # it is closed, or there are no more descriptors
            return
        try:
            if hasattr(os, "memfd_create"):
                self._file = os.memfd_create("refllm-standard-error")
            else:
                with tempfile.TemporaryFile() as file:  # it vanishes when it is closed
                    self._file = os.dup(file.fileno())
            self._n_passed_on, self._since = 0, time.monotonic()
            os.dup2(self._file, STANDARD_ERROR)
        except OSError:
            self._close()

    def _restore(self) -> str:
        """Undo the redirection, pass on the held text, and return the native part of it."""
        if self._real < 0:
            self._messages = []
            return ""
        with contextlib.suppress(OSError):
            # Another thread may have redirected it.
            if os.path.sameopenfile(STANDARD_ERROR, self._file):
                os.dup2(self._real, STANDARD_ERROR)
        native = self._pass_on()
        self._close()
        return native

    def _pass_on(self) -> str:
        """Write the held text that is not native, and return the native part."""
        messages, self._messages = self._messages, []
        self._since = time.monotonic()
        n_bytes = os.fstat(self._file).st_size - self._n_passed_on
        if not n_bytes:
            return ""
        text = os.pread(self._file, n_bytes, self._n_passed_on)
        self._n_passed_on += n_bytes
        native, text = _split(text, messages)
        with contextlib.suppress(OSError):  # as of Python's own lines when nothing reads them
            while text:
                text = text[os.write(self._real, text) :]
        return native

    def _close(self) -> None:
        for descriptor in (self._real, self._file):
            if descriptor >= 0:
                os.close(descriptor)
        self._real = self._file = -1


def _split(text: bytes, messages: list[str]) -> tuple[str, bytes]:
    """Return native code's part of the text, and the rest."""
    whole = text.decode("utf-8", "surrogateescape")
    known = "|".join(map(re.escape, sorted(filter(None, messages), key=len, reverse=True)))
    pattern = re.compile(f"{PANIC}|{LOG_LINE}".format(message=known or "(?!)"), re.MULTILINE)
    native = "".join(found[0] for found in pattern.finditer(whole))
    rest = pattern.sub("", whole).encode("utf-8", "surrogateescape")
    return native.strip().encode("utf-8", "replace").decode(), rest


_held = _Held()
