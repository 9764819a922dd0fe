"""The commands of `refllm`, called in this process."""

from __future__ import annotations

import functools
from pathlib import Path

from typer import testing
from typer.main import get_command
from typer.testing import CliRunner, Result

from refllm.cli import app

__all__ = ["HEEDING", "answer", "refllm", "refllm_conform"]

HEEDING = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('refllm', run_name='__main__', alter_sys=True)"
)
"""The program of `python -m refllm` that heeds Ctrl-C.

A background job, such as a test runner's, starts with SIGINT ignored, and so do its processes.
"""

# Typer makes all commands again for each call of one, which takes longer than most of the calls.
setattr(testing, "_get_command", functools.cache(get_command))  # noqa: B010 - a private name


def refllm(*arguments: str | Path, stdin: bytes | str = "") -> Result:
    """Return exit code and output of `refllm` with these arguments."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def answer(*arguments: str | Path, stdin: bytes | str = "") -> str:
    """Return the standard output of a command that must succeed and print no error."""
    result = refllm(*arguments, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def refllm_conform(*arguments: str | Path) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error of `refllm conform`."""
    result = refllm("conform", *arguments)
    return result.exit_code, result.stdout, result.stderr
