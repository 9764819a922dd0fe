"""Guests for tests: real components, built from the folders here with the SDKs that Spin has.

    component("python_3")    -> the path of the component, built once and kept

What is kept is named after a hash of the sources and of the recipe, in a folder of the tests' cache
(REFLLM_TEST_CACHE). Versions of spin-sdk cannot live together, so each recipe has an environment of
its own. A test is skipped where the tools cannot be had; sources that do not build are an error.
Built for the first time, a guest takes one CPU 25 to 45 seconds, the later ones in Rust 15: cargo's
dependencies are kept, in 400 MB.

    python -m tests.guests.build              builds every guest
    python -m tests.guests.build rust_5       builds one, and prints its path, bytes and seconds
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import tomllib
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
    """Built by componentize-py, with these arguments, in an environment with these packages.

    `also` are files of other guests, each of which is copied to its place in this one.
    """

    packages: tuple[str, ...]
    arguments: tuple[str, ...]
    also: tuple[str, ...] = field(default=(), repr=False)  # the hash has the files themselves

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
    """Built by npm, as the folder's package.json says; `also` as `Python`."""

    also: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ("install", "--no-audit", "--no-fund", "--silent")

    def build(self, folder: Path) -> None:
        """Build the component in `folder`, which has the sources."""
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed; it builds the guests in JavaScript")
        _run_or_skip([npm, *self.arguments], folder)
        _run([npm, "run", "build"], folder)


@dataclass(frozen=True, slots=True)
class Rust:
    """Built by cargo for wasm32-wasip2, whose linker makes a component; `also` as `Python`."""

    also: tuple[str, ...] = ()

    def build(self, folder: Path) -> None:
        """Build the component in `folder`, which has the sources."""
        cargo = _cargo()
        target = KEPT / "cargo"  # keeps the dependencies
        _run_or_skip([cargo, "fetch", "--locked", "--target", RUST_TARGET], folder)
        with _turn(target):
            build = ("build", "--release", "--locked", "--target", RUST_TARGET)
            _run([cargo, *build], folder, {"CARGO_TARGET_DIR": str(target)})
            name = tomllib.loads((folder / "Cargo.toml").read_text())["package"]["name"]
            made = target / RUST_TARGET / "release" / f"{name.replace('-', '_')}.wasm"
            shutil.copy(made, folder / COMPONENT)


BIN = "Scripts" if sys.platform == "win32" else "bin"
RUST_TARGET = "wasm32-wasip2"
SPIN_SDK_3 = ("spin-sdk==3.4.1", "componentize-py==0.17.2")
SPIN_SDK_5 = ("spin-sdk==5.0.0", "componentize-py==0.25.1")

GUESTS: Mapping[str, Python | JavaScript | Rust] = {
    "python_3": Python(SPIN_SDK_3, ("-q", "-w", "spin-http", "componentize")),
    "remote": Python(SPIN_SDK_3, ("-q", "-w", "spin-http", "componentize")),
    "probe": Python(SPIN_SDK_3, ("-q", "-w", "spin-http", "componentize")),
    "python_5": Python(
        SPIN_SDK_5, ("-q", "componentize", "-m", "spin_sdk=fermyon:spin/http-trigger@2.0.0")
    ),
    "python_5_async": Python(
        *(SPIN_SDK_5, ("-q", "-w", "spin:up/http-trigger@4.1.0", "componentize")),
        also=("python_3/call.py",),
    ),
    "wasi_3": Python(SPIN_SDK_5, ("-q", "-w", "spin:up/http-trigger@4.1.0", "componentize")),
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
    "fermyon_2": JavaScript(also=("javascript/src/call.js",)),
    "rust_5": Rust(),
    "rust_6": Rust(also=("rust_5/src/call.rs",)),
    "rust_7": Rust(also=("rust_6/src/lib.rs", "rust_6/src/example.rs", "rust_5/src/call.rs")),
}


def component(guest: str) -> Path:
    """The guest's component; built if it has never been, or its sources have changed since."""
    sources = HERE / guest
    recipe = GUESTS[guest]
    also = [HERE / path for path in recipe.also]
    texts = [*_contents(sources), *(path.read_bytes() for path in also)]
    kept = KEPT / f"{guest}-{_hash(repr(recipe).encode(), *texts)}.wasm"
    with _turn(kept):
        if not kept.exists():
            with TemporaryDirectory(dir=KEPT, ignore_cleanup_errors=True) as folder:
                unwanted = shutil.ignore_patterns("__pycache__")
                shutil.copytree(sources, folder, dirs_exist_ok=True, ignore=unwanted)
                for path in also:  # javascript/src/call.js as src/call.js
                    copy = Path(folder, *path.relative_to(HERE).parts[1:])
                    copy.parent.mkdir(exist_ok=True)
                    shutil.copy(path, copy)
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


def _cargo() -> str:
    cargo, rustc = shutil.which("cargo"), shutil.which("rustc")
    if cargo is None or rustc is None:
        pytest.skip("cargo is not installed; it builds the guests in Rust")
    library = subprocess.run(
        [rustc, "--print", "target-libdir", "--target", RUST_TARGET],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if not any(Path(library or "missing").glob("libstd-*.rlib")):
        pytest.skip(f"the guests in Rust need: rustup target add {RUST_TARGET}")
    return cargo


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


if __name__ == "__main__":
    for name in sys.argv[1:] or GUESTS:
        begin = time.perf_counter()
        try:
            path = component(name)
        except pytest.skip.Exception as skipped:
            print(f"{name}\tcannot be built: {skipped}")
            continue
        print(f"{name}\t{path}\t{path.stat().st_size}\t{time.perf_counter() - begin:.1f}")
