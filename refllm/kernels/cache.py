"""Machine code on disk, so that only the first run on a machine waits for the compiler.

numba can keep machine code by itself, but it decides by a file's own text whether what it kept is
still good: a change in `blocks.py` would leave the old code of `linear.py` in use, which has the
blocks compiled into it. Here the code of all kernels depends on the sources of all kernels:

    <cache>/kernels-2f1c9ab0d4e8773165d0/       hash of sources and of the compiler's versions
        linear.Q8_0_row_parallel-8d0c51….nbc    hash of CPU, argument types and Python's version

A file never changes once it is written. It appears whole, under its name, by a rename, so
processes can write and read at the same time; and it carries a checksum, so what a full disk or a
lost write left behind is compiled again instead of run.

The cache is the first of these that can be used: `$REFLLM_CACHE_DIR`, `$NUMBA_CACHE_DIR/refllm`,
the user's cache folder `/refllm` (Linux: `$XDG_CACHE_HOME` or `~/.cache`, macOS:
`~/Library/Caches`, Windows: `%LOCALAPPDATA%`), a private folder among the temporary files. Where
none can be, everything is compiled by each process.

Whoever shows messages to people should show those of the logger "refllm.kernels": one is sent
before each compilation.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import shutil
import stat
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.compiler import CompileResult
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps

__all__ = ["KernelCache", "cache_folder", "kernel_sources", "stamp"]

SUFFIX = ".nbc"
UNUSED_DAYS = 90
SECONDS_PER_DAY = 86400
CHECKSUM_BYTES = 20

logger = logging.getLogger("refllm.kernels")


class KernelCache:
    """What numba asks for compiled versions of one function, and gives new ones to."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"

    @property
    def cache_path(self) -> str | None:
        """The folder, for numba's statistics; None where there is none."""
        folder = _folder()
        return None if folder is None else str(folder)

    def load_overload(self, signature: Any, target: Any) -> Any:  # noqa: ANN401
        """The compiled version for arguments of these types, None where it is to be compiled.

        numba's own cache first loads all that a compiler needs to know about Python and NumPy,
        a tenth of a second. Finished code needs its runtime only; the compiler loads the rest.
        """
        rtsys.initialize(target)
        path = self._path(signature, target)
        contents = None if path is None else _read(path)
        if contents is None:
            logger.info("compiling %s for this machine (first run only)", self._name)
            return None
        # The folder is as trustworthy as the folder of the package itself.
        parts = pickle.loads(contents)  # noqa: S301
        return CompileResult._rebuild(target, *parts)  # type: ignore[no-untyped-call]

    def save_overload(self, signature: Any, compiled: Any) -> None:  # noqa: ANN401
        """Keep a version that has just been compiled, if that is possible."""
        if compiled.library.has_dynamic_globals:
            warnings.warn(f"{self._name} cannot be kept: it holds an address", stacklevel=2)
            return
        path = self._path(signature, compiled.target_context)
        if path is not None:
            # A kernel that cannot be kept still runs: a full disk only makes the next start slow.
            with contextlib.suppress(OSError):
                _write(path, dumps(compiled._reduce()))  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Forget every version of this function."""
        folder = _folder()
        if folder is not None:
            for path in folder.glob(f"{self._name}-*{SUFFIX}"):
                path.unlink(missing_ok=True)

    def _path(self, signature: Any, target: Any) -> Path | None:  # noqa: ANN401
        folder = _folder()
        if folder is None:
            return None
        cpu = target.codegen().magic_tuple()
        key = f"{sys.implementation.cache_tag} {sys.abiflags} {cpu} {signature}"
        return folder / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}{SUFFIX}"


# --- Which code is still good --------------------------------------------------------------------


def kernel_sources() -> list[Path]:
    """The files whose text decides what a kernel computes; none where Python runs without them."""
    here = Path(__file__).parent
    return sorted([*here.glob("*.py"), *here.parent.glob("quant*.py")])


def stamp(sources: Iterable[Path]) -> str:
    """A hash of the texts and of the versions of what compiles them, 20 hexadecimal digits."""
    versions = f"{numba.__version__} {llvmlite.__version__} {np.__version__}"
    digest = hashlib.sha256(versions.encode())
    for path in sources:
        digest.update(f"\n{path.name} ".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:20]


# --- Where it is ---------------------------------------------------------------------------------


def cache_folder(environment: Mapping[str, str], sources: Iterable[Path]) -> Path | None:
    """The folder for the machine code of these sources, made if need be; None where none can be.

    A folder that is complete and cannot be written to is used too: an image with a read-only disk
    may bring one.
    """
    sources = list(sources)
    if not sources:
        return None
    name = f"kernels-{stamp(sources)}"
    folders = (root / name for root in _roots(environment))
    return next((folder for folder in folders if _is_usable(folder)), None)


@cache
def _folder() -> Path | None:
    return cache_folder(os.environ, kernel_sources())


def _roots(environment: Mapping[str, str]) -> Iterator[Path]:
    """Where the cache may be, best first."""
    if environment.get("REFLLM_CACHE_DIR"):
        yield Path(environment["REFLLM_CACHE_DIR"])
    if environment.get("NUMBA_CACHE_DIR"):
        yield Path(environment["NUMBA_CACHE_DIR"], "refllm")
    with contextlib.suppress(RuntimeError):  # Path.home, of a user without one
        if environment.get("XDG_CACHE_HOME"):
            yield Path(environment["XDG_CACHE_HOME"], "refllm")
        elif sys.platform == "darwin":
            yield Path.home() / "Library" / "Caches" / "refllm"
        elif sys.platform == "win32" and environment.get("LOCALAPPDATA"):
            yield Path(environment["LOCALAPPDATA"], "refllm")
        else:
            yield Path.home() / ".cache" / "refllm"
    shared = Path(tempfile.gettempdir(), f"refllm-{_user()}")
    if _is_private(shared):
        yield shared


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _is_private(folder: Path) -> bool:
    """Whether nobody else could have put code there for us to run; makes the folder."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    is_ours = os.name == "nt" or (status.st_uid == _user() and not others_write)
    return stat.S_ISDIR(status.st_mode) and is_ours


def _is_usable(folder: Path) -> bool:
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _remove_unused(folder.parent)
        if os.access(folder, os.W_OK):
            os.utime(folder)  # says that it is used
            return True
        return any(folder.glob(f"*{SUFFIX}"))
    except OSError:
        return False


def _remove_unused(root: Path) -> None:
    """Remove what other versions kept and no process has used for a long time."""
    oldest = time.time() - UNUSED_DAYS * SECONDS_PER_DAY
    for folder in root.glob("kernels-*"):
        if folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)


# --- One file ------------------------------------------------------------------------------------


def _read(path: Path) -> bytes | None:
    """What `_write` wrote there, None where there is nothing or something else."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    checksum, contents = stored[:CHECKSUM_BYTES], stored[CHECKSUM_BYTES:]
    return contents if checksum == _checksum(contents) else None


def _write(path: Path, contents: bytes) -> None:
    """Let the file appear whole or not at all."""
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(_checksum(contents) + contents)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _checksum(contents: bytes) -> bytes:
    return hashlib.sha256(contents).digest()[:CHECKSUM_BYTES]
