"""The command `refllm`, and `python -m refllm`: Ctrl-C is handled before anything is imported.

In the middle of an import `KeyboardInterrupt` would be printed with a traceback, or be lost: some
packages catch every exception of an import that they can do without.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType

__all__ = ["main"]

IMPORT_SYSTEM = "<frozen importlib"  # how the names of its files begin
INTERRUPTED = 128 + signal.SIGINT  # as a shell reports it


def main() -> None:
    """Run the command of `sys.argv`: the entry point. Raises `SystemExit` with the exit code."""
    # A background job of a shell starts with SIGINT ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from refllm.cli import main as run_command

        run_command()
    except (SystemExit, KeyboardInterrupt) as ended:
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        # Python would end the process by the signal, without this code, if the interrupt was in the
        # text of an `exec`, which dataclasses and numba use. A second Ctrl-C ends it at once.
        signal.signal(signal.SIGINT, lambda *_: _end())
        atexit._run_exitfuncs()
        os._exit(INTERRUPTED)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`, or end the process where it is importing a module."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORT_SYSTEM):
            _end()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end() -> None:
    """End the worker processes and this one, without the functions of `atexit`."""
    workers = sys.modules.get("refllm.jit.workers")
    stop_workers = getattr(workers, "stop_workers", None)  # None while it is imported
    if stop_workers is not None:
        stop_workers()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
