"""One finding of `refllm doctor`, and the shell commands that remedies are made of."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Finding", "Level", "move_command", "quoted"]

Level = Literal["ok", "warning", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: The check's name for programs; see `refllm.doctor`.
        level: "ok", "warning" or "broken".
        what: What was found.
        remedy: How to fix it, usually a shell command; None where nothing needs fixing.
    """

    check: str
    level: Level
    what: str
    remedy: str | None = None


def quoted(path: Path) -> str:
    """Return the path as one word of a shell command."""
    return shlex.quote(str(path))


def move_command(path: Path, target: Path) -> str:
    """Return the shell command that moves a file or folder to `target`."""
    return f"mkdir -p {quoted(target.parent)} && mv {quoted(path)} {quoted(target)}"
