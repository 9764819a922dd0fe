"""Environments as readers of the documentation make them: without this checkout.

    wheel, then a new virtual environment with it       refllm, as pip installs it
    a virtual environment for each requirements file    clients, which need no refllm

An environment of clients is kept in the tests' cache (REFLLM_TEST_CACHE), by a hash of its file.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tests.conftest import CACHE, HUNG_SECONDS, PROJECT

__all__ = ["Environment", "environment_of", "fresh_environment"]

BIN = "Scripts" if sys.platform == "win32" else "bin"
# Variables of a test run that a reader's shell does not have.
OURS = ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST")


@dataclass(frozen=True, slots=True)
class Done:
    """What a command that has ended printed."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment, and an empty folder in which its commands run."""

    root: Path
    folder: Path

    def variables(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the variables of a shell in which the environment is active."""
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        ours = str(Path(sys.executable).parent)
        elsewhere = [path for path in os.environ["PATH"].split(os.pathsep) if path != ours]
        path = os.pathsep.join([str(self.root / BIN), *elsewhere])
        return {**inherited, "REFLLM_HOME": str(self.folder), "PATH": path, **(more or {})}

    def run(self, *command: str | Path, more: Mapping[str, str] | None = None) -> Done:
        """Run a command to its end, whatever its exit status."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.variables(more),
            capture_output=True,
            text=True,
            check=False,
            timeout=HUNG_SECONDS,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def output(self, *command: str | Path, more: Mapping[str, str] | None = None) -> str:
        """Return what a command that succeeds prints."""
        done = self.run(*command, more=more)
        assert done.status == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def serving(self, *command: str | Path) -> Iterator[str]:
        """Yield the address of a server, from the first line that it prints."""
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.variables(), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            address = re.search(r"http://[\d.:]+", process.stdout.readline())
            assert address is not None
            yield address[0]
        finally:
            process.terminate()
            process.wait(timeout=HUNG_SECONDS)
            process.stdout.close()


def fresh_environment(folder: Path) -> Environment:
    """Return a new environment in `folder` that has the wheel of this checkout, and pytest."""
    made = Environment(folder / "environment", folder / "work")
    made.folder.mkdir()
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(folder), str(PROJECT))
    (wheel,) = folder.glob("refllm-*.whl")
    venv.create(made.root, with_pip=True)
    _install(made.root, f"refllm[server] @ {wheel.as_uri()}", "pytest")
    return made


def environment_of(requirements: Path, folder: Path) -> Environment:
    """Return an environment with the packages of a requirements file, to be used in `folder`."""
    contents = requirements.read_bytes() + sys.version.encode()
    root = CACHE / "roles" / hashlib.sha256(contents).hexdigest()[:16]
    finished = root / "finished"
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_suffix(".lock")):
        if not finished.exists():
            venv.create(root, clear=True, with_pip=True)
            _install(root, "-r", str(requirements))
            finished.touch()
    return Environment(root, folder)


def _install(root: Path, *arguments: str) -> None:
    _run(str(root / BIN / "python"), "-m", "pip", "install", "--no-compile", *arguments)


def _run(*command: str) -> None:
    variables = {name: value for name, value in os.environ.items() if name not in OURS}
    quiet: Sequence[str] = (*command, "-q")
    done = subprocess.run(quiet, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
