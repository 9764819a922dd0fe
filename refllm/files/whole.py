"""Write files and folders that appear whole or not at all, whatever ends the writing process.

    DIR/report.json                                      the target: old until the rename, then new
    DIR/.report.json.1f0c64a09be2d357.unfinished/        private to one write
        report.json                                      what is being written
        lock                                             locked while its process lives

The hidden folder is beside the target, on the same file system, so a rename publishes its content.
A process that is killed leaves the folder behind, and the kernel releases the lock: the next write
of the same target removes every such folder whose lock it can take.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from refllm.errors import InvalidInput, LlmRuntimeError

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["clear_leftovers", "require_whole_file", "sync", "whole_file", "whole_folder"]

LOCK = "lock"
SUFFIX = ".unfinished"
HIDDEN = re.compile(rf"(?:^|[/\\])\.[^/\\]*{re.escape(SUFFIX)}(?:$|[/\\])")  # a folder in a path
# Characters of the target's name in the hidden folder's: at most 4 bytes each, and 29 for the rest,
# they fit into the 255 bytes that file systems allow.
MAX_PREFIX = 50
# Another write of the same target can take a new folder for a leftover in the instant before it is
# locked; losing that race this often means something else.
ATTEMPTS = 10
NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
# These name what a process has open: a rename beside them would replace a file under its feet.
OPEN_FILES = ("/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")


@contextmanager
def whole_file(
    path: Path, *, parents: bool = False, overwrite: bool = True, durable: bool = True
) -> Iterator[Path]:
    """Yield a path to write to, in the `with` block; when the block ends, `path` is that file.

    Until then, and if the block raises, `path` stays as it was. An existing file keeps its
    permissions, and a symbolic link stays one: the file that it leads to is replaced. A path that
    is no regular file (a pipe, a device, /dev/stdout) is yielded itself.

    Args:
        path: The file to write.
        parents: Whether to make the folders above it where they are absent.
        overwrite: Whether to replace what exists.
        durable: Whether the disk must have stored the file before it becomes visible. A reader that
            checks a hash does not need it.

    Raises:
        InvalidInput: without `overwrite`, where `path` exists, before the block or after it.
        LlmRuntimeError: "PATH: cannot be written: …", for every `OSError`, those of the block
            included. A `BrokenPipeError` stays what it is.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     report = Path(folder, "report.json")
        ...     with whole_file(report) as unfinished:
        ...         _ = unfinished.write_text("{}")
        ...     report.read_text()
        '{}'
    """
    with _named_errors(path):
        if overwrite and _is_written_in_place(path):
            _require_writable(path)
            yield path
            return
        with _published(path, parents=parents, overwrite=overwrite, durable=durable) as unfinished:
            yield unfinished


@contextmanager
def whole_folder(path: Path, *, parents: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill, in the `with` block; when the block ends, it is `path`.

    Until then, and if the block raises, there is no `path`.

    Args:
        path: The folder to make.
        parents: Whether to make the folders above it where they are absent.

    Raises:
        InvalidInput: if `path` exists, before the block or after it.
        LlmRuntimeError: as `whole_file`.
    """
    with (
        _named_errors(path),
        _published(path, parents=parents, overwrite=False, durable=True) as unfinished,
    ):
        unfinished.mkdir()
        yield unfinished


def require_whole_file(path: Path, *, parents: bool = False) -> None:
    """Raise the errors of `whole_file` before the work whose result is to be written.

    No file is left behind or changed.

    Raises:
        LlmRuntimeError: as `whole_file`.
    """
    with _named_errors(path):
        if _is_written_in_place(path):
            _require_writable(path)  # opening a pipe could block, or end what its reader reads
            return
        target = Path(os.path.realpath(path))
        _status_of_writable(target)
        folder = target.parent
        if parents:
            folder = next(each for each in target.parents if each.exists())
        with _hidden_folder(folder / target.name):
            pass


def clear_leftovers(path: Path) -> None:
    """Remove the unfinished files of `path` that killed processes left.

    A file that another process is writing stays, and so does one that cannot be removed or locked.
    """
    leftover = re.compile(
        rf"\.{re.escape(path.name[:MAX_PREFIX])}\.[0-9a-f]{{16}}{re.escape(SUFFIX)}"
    )
    try:
        folders = [each for each in path.parent.iterdir() if leftover.fullmatch(each.name)]
    except OSError:
        return
    for folder in folders:
        with contextlib.suppress(OSError, NotImplementedError):
            lock = _lock_in(folder)
            lock.acquire()
            # Under the lock: a process that made the folder just now does not get it.
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()
            folder.rmdir()  # on Windows, where the lock file was open


@contextmanager
def _published(path: Path, *, parents: bool, overwrite: bool, durable: bool) -> Iterator[Path]:
    """Yield a path in a hidden folder; rename it to `path` when the block ends."""
    target = Path(os.path.realpath(path)) if overwrite else path
    clear_leftovers(target)
    if not overwrite:
        _refuse_existing(path)
    replaced = _status_of_writable(target)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    with _hidden_folder(target) as folder:
        unfinished = folder / target.name
        yield unfinished
        if durable:
            sync(unfinished)
        if replaced is not None:
            if hasattr(os, "chown") and (replaced.st_uid, replaced.st_gid) != (
                os.geteuid(),
                os.getegid(),
            ):
                with contextlib.suppress(PermissionError):
                    os.chown(unfinished, replaced.st_uid, replaced.st_gid)
            unfinished.chmod(stat.S_IMODE(replaced.st_mode))
        if overwrite:
            _replace(unfinished, target)
        else:
            _rename_to_new(unfinished, target)
    if durable:
        with contextlib.suppress(OSError):  # the contents are stored, only the name may be lost
            _sync_one(target.parent)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # a reader that has read enough
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        named = error.filename2 or error.filename  # a failed copy names its source, then its target
        is_another = isinstance(named, str) and Path(named).name != path.name
        if is_another and not HIDDEN.search(os.fspath(named)):
            reason = f"{named}: {reason}"
        raise LlmRuntimeError(f"{path}: cannot be written: {reason}") from error


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise InvalidInput(f"{path} exists already; choose another place, or delete it first")


# --- The target ----------------------------------------------------------------------------------


def _is_written_in_place(path: Path) -> bool:
    """Return whether no file could replace `path`, as of a folder.

    Raises:
        OSError: if nothing can be at `path`.
    """
    if str(path.absolute()).startswith(OPEN_FILES):
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _status_of_writable(target: Path) -> os.stat_result | None:
    """Return the status of the file to replace, or None; raise as `_require_writable`."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    _require_writable(target)
    return status


def _require_writable(path: Path) -> None:
    """Raise the `OSError` that opening an existing file for writing would raise."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _replace(unfinished: Path, target: Path) -> None:
    try:
        unfinished.replace(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # A mount point, as a single file in a container is, can be written and not replaced.
        shutil.copyfile(unfinished, target)


def _rename_to_new(unfinished: Path, target: Path) -> None:
    """Rename a file or folder; raise `InvalidInput` if `target` exists by now."""
    try:
        os.link(unfinished, target)  # refuses what exists, which a rename replaces
    except FileExistsError:
        _refuse_existing(target)
    except OSError:  # folders have no links, nor has every file system
        _refuse_existing(target)
        unfinished.rename(target)


# --- The hidden folder ---------------------------------------------------------------------------


@contextmanager
def _hidden_folder(target: Path) -> Iterator[Path]:
    """Make the folder of one write, hold its lock in the `with` block, and remove it."""
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        if lock is not None:
            lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(target: Path) -> tuple[Path, BaseFileLock | None]:
    """Return a new folder with its lock, or with None on file systems without locks."""
    from filelock import Timeout

    for _ in range(ATTEMPTS):
        folder = target.parent / f".{target.name[:MAX_PREFIX]}.{secrets.token_hex(8)}{SUFFIX}"
        try:
            folder.mkdir(mode=0o700)
            lock = _lock_in(folder)
            try:
                lock.acquire()
            except NotImplementedError:
                return folder, None
            except (Timeout, FileNotFoundError, FileExistsError):  # the folder is being removed
                shutil.rmtree(folder, ignore_errors=True)
                continue
            except OSError as error:
                if error.errno in NO_LOCKS_HERE:
                    return folder, None
                raise
            if (folder / LOCK).exists():
                return folder, lock
            lock.release()
        except BaseException:  # an interrupt, too
            shutil.rmtree(folder, ignore_errors=True)
            raise
    raise BlockingIOError(errno.EAGAIN, "another process removes each unfinished file of it")


def _lock_in(folder: Path) -> BaseFileLock:
    """Return the lock of a hidden folder, which is taken at once or not at all."""
    from filelock import FileLock  # takes long to import, and few commands write

    return FileLock(folder / LOCK, timeout=0)


# --- The disk ------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Flush a file, or a folder and its content, to the disk."""
    if path.is_dir():
        for each in path.iterdir():
            sync(each)
        with contextlib.suppress(OSError):
            _sync_one(path)
    else:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # no folder can be opened there
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
