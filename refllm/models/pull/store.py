"""Storing a fetched model, whole or not at all; shared by all sources of models."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from refllm.errors import LlmRuntimeError
from refllm.files.whole import sync
from refllm.models.find import pulled_models_root

__all__ = ["is_disk_error", "reason", "sha256_of", "store_model"]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
DISK_ERRORS = (*NO_SPACE, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.EROFS)


def store_model(
    name: str,
    root: Path | None,
    *,
    existing: Callable[[Path], Path | None],
    fetch: Callable[[Path], Path],
) -> Path:
    """Return the model's path in a root, fetched unless it is there already.

    Args:
        name: The model's name; it becomes `<root>/<name>` for a folder, `<root>/<name>.gguf` for a
            file.
        root: The root; None is `pulled_models_root()`.
        existing: Returns the model's path in the root, or None.
        fetch: Fetches the model into the folder that it is called with, and returns its path there.
            The folder stays after an interruption, so that the next call can continue.

    Raises:
        LlmRuntimeError: If the disk fails, or another pull of this name is under way.
    """
    root = pulled_models_root() if root is None else root
    partial, lock = root / f".partial-{name}", root / f".partial-{name}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            target = existing(root)
            if target is None:
                partial.mkdir(exist_ok=True)
                fetched = fetch(partial)
                target = root / (name if fetched.is_dir() else f"{name}.gguf")
                sync(fetched)
                fetched.replace(target)
            shutil.rmtree(partial, ignore_errors=True)
            # A process that opened the lock before this finds the model. Windows cannot remove an
            # open file; there FileLock removes it.
            with contextlib.suppress(OSError):
                lock.unlink()
    except Timeout as error:
        raise LlmRuntimeError(
            f"{name}: another pull of it is under way (it holds {lock}); wait until it is done"
        ) from error
    except OSError as error:
        raise LlmRuntimeError(f"{name}: cannot be stored in {root}: {reason(error)}") from error
    return target


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_disk_error(error: Exception) -> bool:
    """Return whether the disk failed, and not the network."""
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def reason(error: Exception) -> str:
    """Return why something failed, as a clause of a message."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return "the disk is full; make room and pull again to continue"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
