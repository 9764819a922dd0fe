"""Ctrl-C that takes effect where nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["interrupts_later"]


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Handle a Ctrl-C during the `with` block at its end.

    So the block leaves no process that it started and no hidden file that it made.

    Example:
        >>> with interrupts_later():
        ...     print("done")
        done
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # no exception is raised in this thread
        return
    arrived: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda *arguments: arrived.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if arrived:
            handler(*arrived[0])
