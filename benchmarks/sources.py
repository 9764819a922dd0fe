"""Which refllm was measured: git's name for it, and a hash that sees what git was not told."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from benchmarks.peer import PROJECT

__all__ = ["revision", "sha256_of_sources"]


def revision() -> str:
    """What git calls the sources; empty where there is no git or repository."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def sha256_of_sources(folder: Path = PROJECT / "refllm") -> str:
    """Of the names and contents of all Python files in the folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(hashlib.sha256(str(path.relative_to(folder)).encode()).digest())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
