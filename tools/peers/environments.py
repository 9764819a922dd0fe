"""Environments of engines: made once, from fixed versions, and kept in a cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tools.peers.catalog import Environment

__all__ = ["installed", "made", "program"]

# What pip or npm was asked for; written last, so that an interrupted installation is repeated.
STAMP = "installed.json"
VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


def made(environment: Environment, cache: Path) -> Path:
    """Return the folder of an environment; install it where the cache does not have it.

    Raises:
        subprocess.CalledProcessError: If pip or npm fails.
    """
    folder = cache / environment.name
    wanted = json.dumps(environment.packages)
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"installing {', '.join(environment.packages)} in {folder}", file=sys.stderr)
    if environment.kind == "npm":
        (folder / "package.json").write_text('{"private": true}\n', "utf-8")
        # Prebuilt programs come as packages of their own; scripts would look for compilers.
        options = ("--ignore-scripts", "--no-fund", "--no-audit", "--silent")
        subprocess.run(["npm", "install", *options, *environment.packages], cwd=folder, check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [program(environment, folder), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *environment.packages], check=True)
    stamp.write_text(wanted, "utf-8")
    return folder


def program(environment: Environment, folder: Path) -> str:
    """Return the program that runs a harness of an environment."""
    return "node" if environment.kind == "npm" else str(folder / "bin" / "python")


def installed(environment: Environment, python: str) -> Mapping[str, str]:
    """Return the versions of an environment's packages.

    Args:
        environment: Its packages.
        python: The interpreter that has them.
    """
    if environment.kind == "npm":  # npm installs what it is asked for, or fails
        return dict(each.rsplit("@", 1) for each in environment.packages)
    names = [each.partition("==")[0].partition("[")[0] for each in environment.packages]
    printed = subprocess.run(
        [python, "-c", VERSIONS, *names], check=True, capture_output=True, text=True
    ).stdout
    return dict(json.loads(printed))
