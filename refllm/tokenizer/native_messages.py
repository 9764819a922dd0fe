"""What native code writes on standard error by itself, held back while a library reads a file.

A library in Rust or C++ reports a damaged file twice: as an exception, of which refllm makes an
error that names the file, and before that as text on file descriptor 2, past `sys.stderr`. Here
that descriptor leads to a file in memory for the time of the call. The library's text, its
warnings too, goes to the logger "refllm" at level DEBUG; everything else, such as the lines of
other threads, goes on to standard error when the last call that runs has ended, or half a second
after the first one began.

What is held back when native code ends the process is lost; so this is for the short time in which
a file is read. A process that another thread starts meanwhile inherits the file in memory as its
standard error, unless it is given another one.

Where there is no such descriptor, on Windows (where native code asks the system for its standard
error), or when no file can be opened, nothing is held back.
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
LONGEST_HOLD = 0.5  # seconds: of calls in several threads, one may always be running
MOST_KEPT = 2**20  # bytes that have gone on to standard error
MOST_LOGGED = 4000  # characters
# What the standard library of Rust writes of a panic, and the log of sentencepiece and protobuf.
# A message of several lines is known from the exception.
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
    """Hold back what native code writes on standard error within the block.

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
    """The file that descriptor 2 leads to while any block runs."""

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
            elif time.monotonic() - self._since > LONGEST_HOLD and self._real >= 0:
                native = self._pass_on()
                if self._n_passed_on > MOST_KEPT:  # a new file, so that this one gives its memory
                    native += self._restore()
                    self._redirect()
        if native:
            logger.debug("native code wrote on standard error: %.*s", MOST_LOGGED, native)

    def _redirect(self) -> None:
        try:
            self._real = os.dup(STANDARD_ERROR)
        except OSError:  # it is closed, or there are no more descriptors
            return
        try:
            self._file = _new_file()
            self._n_passed_on, self._since = 0, time.monotonic()
            os.dup2(self._file, STANDARD_ERROR)
        except OSError:
            self._close()

    def _restore(self) -> str:
        """Lead the descriptor to where it did, pass on what is held, and return what is native."""
        if self._real < 0:
            self._messages = []
            return ""
        with contextlib.suppress(OSError):
            # Another thread may have led it elsewhere.
            if os.path.sameopenfile(STANDARD_ERROR, self._file):
                os.dup2(self._real, STANDARD_ERROR)
        native = self._pass_on()
        self._close()
        return native

    def _pass_on(self) -> str:
        """Write what is held and not native, and return what is."""
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


def _new_file() -> int:
    """Return a descriptor of a new file that vanishes when it is closed."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("refllm-standard-error")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _split(text: bytes, messages: list[str]) -> tuple[str, bytes]:
    """Return native code's part of the text, and the rest."""
    whole = text.decode("utf-8", "surrogateescape")
    known = "|".join(map(re.escape, sorted(filter(None, messages), key=len, reverse=True)))
    pattern = re.compile(f"{PANIC}|{LOG_LINE}".format(message=known or "(?!)"), re.MULTILINE)
    native = "".join(found[0] for found in pattern.finditer(whole))
    rest = pattern.sub("", whole).encode("utf-8", "surrogateescape")
    return native.strip().encode("utf-8", "replace").decode(), rest


_held = _Held()
