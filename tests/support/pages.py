"""What the tests of pages share: the blocks of a page, its commands, and running them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import PROJECT

__all__ = ["BLOCK", "COMMAND", "FILE", "blocks", "matches", "run", "user_environment"]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A block's language and text."""
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
"""A command of a console block and the output below it."""
FILE = re.compile(r"^`([\w.]+)`[^`]*?:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""The name before a block, and the block."""


def blocks(kind: str, page: str) -> list[str]:
    """Return the blocks of a language."""
    return [body for found, body in BLOCK.findall(page) if found == kind]


def matches(shown: str, printed: str) -> bool:
    """Return whether the output is as shown, where … stands for anything."""
    pattern = ".*".join(re.escape(part) for part in shown.strip().split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def user_environment(home: Path) -> dict[str, str]:
    """Return the environment of a user with refllm installed and `home` as REFLLM_HOME."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"REFLLM_HOME": str(home), "PATH": path, "PYTHONPATH": str(PROJECT)}


def run(command: list[str] | str, folder: Path, environment: dict[str, str]) -> str:
    """Return the standard output of a command that must succeed; a text is run by the shell."""
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
