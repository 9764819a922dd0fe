"""jco, its shim and Node, which run components of WASI 0.3: fetched once, into the tests' cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from refllm.wasm.jco import HOW_TO_GET_JCO
from tests.conftest import CACHE

__all__ = ["add_jco"]

PACKAGES = CACHE / "jco"
MINUTES = 60


def add_jco(folder: Path) -> Path:
    """Give a folder the packages that `HOW_TO_GET_JCO` names; skip the test without them."""
    (folder / "node_modules").symlink_to(_packages() / "node_modules")
    return folder


def _packages() -> Path:
    if sys.platform != "linux":
        pytest.skip("components of WASI 0.3 run on Linux only")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed; it fetches jco")
    PACKAGES.mkdir(parents=True, exist_ok=True)
    with FileLock(PACKAGES.with_suffix(".lock"), timeout=15 * MINUTES):
        finished = PACKAGES / "finished"
        if not finished.exists():
            (PACKAGES / "package.json").write_text('{"private": true}')
            command = HOW_TO_GET_JCO.partition(": npm ")[2].split()
            done = subprocess.run(
                [npm, *command, "--no-audit", "--no-fund", "--silent"],
                cwd=PACKAGES,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                pytest.skip(f"jco cannot be had: {done.stderr.strip()[-500:]}")
            finished.touch()
    return PACKAGES
