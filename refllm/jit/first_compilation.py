"""The line that a process writes before it compiles its first kernel, or has it compiled.

With an empty cache a command or a test run takes up to a minute longer, or if it computes without
kernels meanwhile, is slower. The line has the cost, the folder of the compiled kernels, and how a
later run avoids the cost.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Self

__all__ = ["IN_BACKGROUND", "FirstCompilation"]

LOGGER = "refllm.kernels"  # refllm.jit.disk_cache logs there before each compilation

# The attribute of a log record that says whether the process computes meanwhile.
IN_BACKGROUND = "in_background"


class FirstCompilation(logging.Handler):
    """A handler that writes the line at the first compilation and ignores the following ones.

    As a context manager it is attached for a block; `attach` is for the rest of the process.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write
        self._level_before = logging.NOTSET

    def attach(self) -> None:
        """Attach to the logger of the compilations."""
        logger = logging.getLogger(LOGGER)
        self._level_before = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.INFO)

    def detach(self) -> None:
        """Restore the logger, if it still has this handler."""
        logger = logging.getLogger(LOGGER)
        if self in logger.handlers:
            logger.removeHandler(self)
            logger.setLevel(self._level_before)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line once; write every warning."""
        if record.levelno > logging.INFO:
            self._write(f"refllm: {record.getMessage()}")
            return
        self.detach()
        is_in_background = getattr(record, IN_BACKGROUND, False)
        cost = "in the background" if is_in_background else "for 10 to 60 seconds"
        self._write(f"refllm: compiling kernels for this machine, {cost}; {_kept()}")

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def _kept() -> str:
    # Imports numba, which a process that compiles has imported.
    from refllm.jit.disk_cache import cache_folder, kernel_sources

    folder = cache_folder(os.environ, kernel_sources())
    if folder is None:
        return "no folder can keep them for the next run, but REFLLM_CACHE_DIR can name one"
    return (
        f"a run that finds them in {folder.parent} compiles none, so keep that folder between "
        "runs, or name another: REFLLM_CACHE_DIR"
    )
