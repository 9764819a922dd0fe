"""Guests for tests: real components, built from the folders here with the SDKs that Spin has.

    component("python_3")    -> the path of the component, built once and kept

What is kept is named after a hash of the sources and of the recipe, in a folder of the tests' cache
(REFLLM_TEST_CACHE). Versions of spin-sdk cannot live together, so each recipe has an environment of
its own. A test is skipped where the tools cannot be had; sources that do not build are an error.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from filelock import FileLock

from tests.conftest import CACHE

__all__ = ["GUESTS", "component"]

HERE = Path(__file__).parent
KEPT = CACHE / "guests"
MINUTES = 60
COMPONENT = "app.wasm"


@dataclass(frozen=True, slots=True)
class Python:
    """Built by componentize-py, with these arguments, in an environment with these packages."""

    packages: tuple[str, ...]
    arguments: tuple[str, ...]

    def build(self, folder: Path) -> None:
        """Build the component in `folder`, which has the sources."""
        environment = self._environment()
        _run(
            [environment / BIN / "componentize-py", *self.arguments, "app", "-o", COMPONENT],
            folder,
            {"VIRTUAL_ENV": str(environment)},
        )

    def _environment(self) -> Path:
        environment = KEPT / f"environment-{_hash(repr(self.packages).encode())}"
        finished = environment / "finished"
        with _turn(environment):
            if not finished.exists():
                venv.create(environment, clear=True, with_pip=True)
                python = environment / BIN / "python"
                _run_or_skip([python, "-m", "pip", "install", "-q", *self.packages], environment)
                finished.touch()
        return environment


@dataclass(frozen=True, slots=True)
class JavaScript:
    """Built by npm, as the folder's package.json says."""

    arguments: tuple[str, ...] = field(default=("install", "--no-audit", "--no-fund", "--silent"))

    def build(self, folder: Path) -> None:
        """Build the component in `folder`, which has the sources."""
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed; it builds the guest in JavaScript")
        _run_or_skip([npm, *self.arguments], folder)
        _run([npm, "run", "build"], folder)


BIN = "Scripts" if sys.platform == "win32" else "bin"
SPIN_SDK_3 = ("spin-sdk==3.4.1", "componentize-py==0.17.2")
SPIN_SDK_5 = ("spin-sdk==5.0.0", "componentize-py==0.25.1")

GUESTS: Mapping[str, Python | JavaScript] = {
    "python_3": Python(SPIN_SDK_3, ("-q", "-w", "spin-http", "componentize")),
    "remote": Python(SPIN_SDK_3, ("-q", "-w", "spin-http", "componentize")),
    "probe": Python(SPIN_SDK_3, ("-q", "-w", "spin-http", "componentize")),
    "python_5": Python(
        SPIN_SDK_5, ("-q", "componentize", "-m", "spin_sdk=fermyon:spin/http-trigger@2.0.0")
    ),
    "llm_only": Python(
        SPIN_SDK_5,
        (
            *("-q", "-d", "wit", "-w", "refllm:guest/runner@0.1.0", "componentize", "-s"),
            *("-m", "spin_sdk=spin:up/platform@4.1.0", "-i", "refllm:guest/only-llm@0.1.0"),
        ),
    ),
    "llm_unversioned": Python(
        SPIN_SDK_5[1:], ("-q", "-d", "wit", "-w", "only-llm", "componentize", "-s")
    ),
    "javascript": JavaScript(),
}


def component(guest: str) -> Path:
    """The guest's component; built if it has never been, or its sources have changed since."""
    sources = HERE / guest
    recipe = GUESTS[guest]
    kept = KEPT / f"{guest}-{_hash(repr(recipe).encode(), *_contents(sources))}.wasm"
    with _turn(kept):
        if not kept.exists():
            with TemporaryDirectory(dir=KEPT, ignore_cleanup_errors=True) as folder:
                unwanted = shutil.ignore_patterns("__pycache__")
                shutil.copytree(sources, folder, dirs_exist_ok=True, ignore=unwanted)
                recipe.build(Path(folder))
                Path(folder, COMPONENT).replace(kept)
    return kept


def _turn(made: Path) -> FileLock:
    """A lock for what is made: of the processes that need it, one makes it and the others wait."""
    KEPT.mkdir(parents=True, exist_ok=True)
    return FileLock(made.with_suffix(".lock"), timeout=15 * MINUTES)


def _contents(sources: Path) -> list[bytes]:
    found = sources.rglob("*")
    files = sorted(path for path in found if path.is_file() and path.parent.name != "__pycache__")
    return [f"{path.relative_to(sources)}".encode() + path.read_bytes() for path in files]


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _run(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> None:
    process = _finished(command, folder, environment or {})
    assert process.returncode == 0, process.stdout


def _run_or_skip(command: Sequence[str | Path], folder: Path) -> None:
    process = _finished(command, folder, {})
    if process.returncode != 0:
        pytest.skip(f"the tools for a guest cannot be had: {process.stdout.strip()[-500:]}")


def _finished(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=10 * MINUTES,
    )
