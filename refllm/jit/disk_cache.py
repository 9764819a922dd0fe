"""Machine code on disk, so that only the first run on a machine compiles.

numba has a cache, too, but checks only the source file of the cached function: after a change in
`blocks.py` it would use old code of `linear.py`, which has the blocks compiled into it. Here the
code of all kernels depends on the sources of all kernels:

    <cache>/kernels-2f1c9ab0d4e8773165d0/       hash of sources and of the compiler's versions
        linear.Q8_0_row_parallel-8d0c51….nbc    hash of CPU, argument types and Python's version

A file never changes once it is written. It appears whole, under its name, by a rename, so
processes can write and read at the same time. Two checks decide whether it is run:

    Is it what was written?    A checksum, over the contents and over the kernel, the types, the
                               CPU and the sources that they are for. A file that is incomplete or
                               renamed is compiled again.
    Which users can write it?  This user and root only: see `refllm.files.private`. A checksum does
                               not protect against another user, who can write one as well.

The cache is the first of these that can be used: `$REFLLM_CACHE_DIR`, `$NUMBA_CACHE_DIR/refllm`,
the user's cache folder `/refllm` (Linux: `$XDG_CACHE_HOME` or `~/.cache`, macOS:
`~/Library/Caches`, Windows: `%LOCALAPPDATA%`), a folder of this user's among the temporary files.
A folder that another user could write to is skipped, with a warning that has the command to make it
private. A read-only folder with code in it is used, as in the image of a container. Without a
folder each process compiles all that it needs.

The logger "refllm.kernels" gets a message before each compilation, and that warning; a program
with a user interface should show both.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.runtime.nrt import rtsys

from refllm.files.private import NotPrivateError, private_folder, read_kept, write_kept
from refllm.jit.stored import NotStorableError, restored, stored

__all__ = [
    "SUFFIX",
    "KernelCache",
    "cache_folder",
    "find_cache",
    "keeps_kernels",
    "kernel_sources",
    "named_in_vain",
    "stamp",
    "warn_of",
]

SUFFIX = ".nbc"
UNUSED_DAYS = 90
SECONDS_PER_DAY = 86400

logger = logging.getLogger("refllm.kernels")


class KernelCache:
    """numba's interface of a cache for one function's compiled versions."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._module = function.__module__
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"

    @property
    def cache_path(self) -> str | None:
        """The folder, for numba's statistics, or None."""
        folder = _folder()
        return None if folder is None else str(folder)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the compiled version for arguments of these types, None if it must be compiled.

        numba's own cache first loads the compiler's registries of Python and NumPy, a tenth of a
        second. Compiled code needs numba's runtime only; the compiler loads the rest.
        """
        rtsys.initialize(target)
        folder = _folder()
        if folder is not None:
            key = self._key(signature, target)
            contents = read_kept(self._path(folder, key), self._identity(folder, key))
            if contents is not None:
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    return restored(contents, signature, target, self._module)
        logger.info("compiling %s for this machine (first run only)", self._name)
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Write a version that has just been compiled, if that is possible."""
        if compiled.library.has_dynamic_globals:
            warnings.warn(f"{self._name} cannot be kept: it holds an address", stacklevel=2)
            return
        folder = _folder()
        if folder is None:
            return
        try:
            contents = stored(compiled, signature)
        except NotStorableError as error:
            warnings.warn(f"{self._name} cannot be kept: it holds {error}", stacklevel=2)
            return
        key = self._key(signature, compiled.target_context)
        # With a full disk the kernel still runs; only the next start is slow.
        with contextlib.suppress(OSError):
            write_kept(self._path(folder, key), self._identity(folder, key), contents)

    def path_of(self, signature: Any, target: Any) -> Path | None:
        """Return where a version is or will be, None without a folder."""
        folder = _folder()
        return None if folder is None else self._path(folder, self._key(signature, target))

    def flush(self) -> None:
        """Remove every version of this function."""
        folder = _folder()
        if folder is not None:
            for path in folder.glob(f"{self._name}-*{SUFFIX}"):
                path.unlink(missing_ok=True)

    def _key(self, signature: Any, target: Any) -> str:
        """Return what a version depends on besides the sources."""
        cpu = target.codegen().magic_tuple()
        return f"{sys.implementation.cache_tag} {sys.abiflags} {cpu} {signature}"

    def _path(self, folder: Path, key: str) -> Path:
        return folder / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}{SUFFIX}"

    def _identity(self, folder: Path, key: str) -> str:
        return f"{folder.name} {self._module} {self._name} {key}"


# --- Which code is still good --------------------------------------------------------------------


def kernel_sources() -> list[Path]:
    """Return the files whose text decides what a kernel computes; none if only bytecode exists."""
    package = Path(__file__).parent.parent
    folders = (package / name for name in ("jit", "ggml", "kernels"))
    return sorted(
        [package / "quant.py", *(path for each in folders for path in each.rglob("*.py"))]
    )


def stamp(sources: Iterable[Path]) -> str:
    """Return a hash of the texts and of the compiler's versions, 20 hexadecimal digits."""
    versions = f"{numba.__version__} {llvmlite.__version__} {np.__version__}"
    digest = hashlib.sha256(versions.encode())
    for path in sources:
        digest.update(f"\n{path.name} ".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:20]


# --- Where it is ---------------------------------------------------------------------------------


def cache_folder(environment: Mapping[str, str], sources: Iterable[Path]) -> Path | None:
    """Return the folder for the machine code of these sources, made if needed; None if impossible.

    A better folder that is not private is logged, once a process, and so is a folder that the
    environment names in vain.
    """
    folder, refused = find_cache(environment, sources)
    for error in refused:
        warn_of(error)
    if folder is not None and not refused and (named := named_in_vain(environment, folder)):
        _warn(f"{named}, so {folder.parent} is used; let REFLLM_CACHE_DIR name another folder")
    return folder


def named_in_vain(environment: Mapping[str, str], folder: Path) -> str | None:
    """Return what is wrong with REFLLM_CACHE_DIR if the kernels' folder is another's; else None."""
    name = environment.get("REFLLM_CACHE_DIR")
    if not name or os.path.realpath(folder.parent) == os.path.realpath(name):
        return None
    return f"no kernel can be kept in {name}, which REFLLM_CACHE_DIR names"


def find_cache(
    environment: Mapping[str, str], sources: Iterable[Path]
) -> tuple[Path | None, tuple[NotPrivateError, ...]]:
    """Return the folder as `cache_folder` does, and an error for each better one that is public.

    A read-only folder with code in it is used, too: a container's image may have one.
    """
    sources = list(sources)
    refused: list[NotPrivateError] = []
    if sources:
        name = f"kernels-{stamp(sources)}"
        for root in _roots(environment):
            try:
                folder = _usable(root / name)
            except NotPrivateError as error:
                refused.append(error)
            except (OSError, ValueError):  # the disk's reasons, or a path with a NUL
                continue
            else:
                if folder is not None:
                    return folder, tuple(refused)
    return None, tuple(refused)


def warn_of(error: NotPrivateError) -> None:
    """Log, once a process, that a folder is not used and how to make it private."""
    remedy = f"{error.remedy}, or " if error.remedy else ""
    _warn(
        f"{error}, so another user could put code there and it is not used; {remedy}name a "
        "private folder in REFLLM_CACHE_DIR"
    )


@cache
def _warn(message: str) -> None:
    logger.warning(message)


def keeps_kernels() -> bool:
    """Return whether there is a folder that has kernels of this process, or can have them."""
    return _folder() is not None


@cache
def _folder() -> Path | None:
    return cache_folder(os.environ, kernel_sources())


def _roots(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the folders that may have the cache, best first."""
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
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    temporary = Path(tempfile.gettempdir(), f"refllm-{user}")
    with contextlib.suppress(OSError):
        temporary.mkdir(mode=0o700, exist_ok=True)
        if not temporary.is_symlink():  # another user may have made one
            yield temporary


def _usable(folder: Path) -> Path | None:
    """Return the folder, made if needed; None if it is empty and cannot be written to.

    Raises:
        OSError: It cannot be made or read.
        NotPrivateError: Another user can write to it.
    """
    was_there = folder.is_dir()
    folder = private_folder(folder)
    if not was_there:
        _remove_unused(folder.parent)
    if os.access(folder, os.W_OK):
        os.utime(folder)  # `_remove_unused` looks at it
        return folder
    return folder if any(folder.glob(f"*{SUFFIX}")) else None


def _remove_unused(root: Path) -> None:
    """Remove folders of other versions that no process has used for a long time."""
    oldest = time.time() - UNUSED_DAYS * SECONDS_PER_DAY
    for folder in root.glob("kernels-*"):
        if folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)
