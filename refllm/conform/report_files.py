"""The report as files: whether one can be written is asked before a run, which takes its time."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from refllm.api import InvalidInput
from refllm.conform.report import Report
from refllm.conform.report_badge import badge_of
from refllm.conform.report_html import html_of
from refllm.conform.report_json import json_of
from refllm.conform.report_junit import junit_of

__all__ = ["require_writable", "write_reports"]

# By the name of the option that asks for one.
KINDS: Mapping[str, Callable[[Report], str]] = {
    "badge": badge_of,
    "html": html_of,
    "json": json_of,
    "junit": junit_of,
}


def require_writable(files: Mapping[str, Path]) -> None:
    """Raise `InvalidInput` for a file, by the kind of report, that `write_reports` could not write.

    Nothing is left behind, and what is there stays as it is.
    """
    for kind, path in files.items():
        try:
            _try(path)
        except OSError as error:
            raise InvalidInput(
                f"--{kind} {path}: cannot be written: {error.strerror or error}; name a file in a "
                "folder that you may write to"
            ) from error


def write_reports(report: Report, files: Mapping[str, Path]) -> None:
    """Write each kind of report to its file; folders are made where they are not there.

    Errors: `OSError`.
    """
    for kind, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(KINDS[kind](report), encoding="utf-8", newline="\n")


def _try(path: Path) -> None:
    """Errors: `OSError` as `write_reports` would meet it."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        folder = next(each for each in path.parents if each.exists())
        with tempfile.TemporaryFile(dir=folder):  # what could be made in it can be made there
            return
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # Opening what is there could block, or tell a pipe's reader that this was all.
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
