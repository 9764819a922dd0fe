"""The report as files. Whether they can be written is checked before the run, which takes long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from refllm.conform.report import Report
from refllm.conform.report.badge import badge_of
from refllm.conform.report.html import html_of
from refllm.conform.report.json import json_of
from refllm.conform.report.junit import junit_of
from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.files.whole import require_whole_file, whole_file

__all__ = ["require_writable", "write_reports"]

# By the name of the command's option.
KINDS: Mapping[str, Callable[[Report], str]] = {
    "badge": badge_of,
    "html": html_of,
    "json": json_of,
    "junit": junit_of,
}


def require_writable(files: Mapping[str, Path]) -> None:
    """Raise unless `write_reports` could write every file; leave everything as it is.

    Args:
        files: By the kind of report.

    Raises:
        InvalidInput: Naming the option and the file.
    """
    for kind, path in files.items():
        try:
            require_whole_file(path, parents=True)
        except LlmRuntimeError as error:
            raise InvalidInput(
                f"--{kind} {error}; name a file in a folder that you may write to"
            ) from error


def write_reports(report: Report, files: Mapping[str, Path]) -> None:
    """Write each kind of report to its file, whole or not at all.

    Folders are made where they are absent. Where a file cannot be written, the others are.

    Raises:
        LlmRuntimeError: With a line for each file that cannot be written.
    """
    problems: list[str] = []
    for kind, path in files.items():
        try:
            with whole_file(path, parents=True) as unfinished:
                unfinished.write_text(KINDS[kind](report), encoding="utf-8", newline="\n")
        except LlmRuntimeError as error:
            problems += map(str, error.args)
    if problems:
        raise LlmRuntimeError(*problems)
