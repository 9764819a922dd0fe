"""A cache of files for the next process that no other user could have written.

Machine code from a file runs with all the rights of the process that loads it. A checksum finds a
damaged file, but not a hostile one, whose author writes the checksum too. So a file is read only if

    the file                 is a regular file, of this user or of root, that no other user can
                             write to; a symbolic link, a pipe or a device is not opened
    its folder               is this user's or root's, and no other user can write to it
    each folder above that   likewise, or it is one where a file belongs to its owner alone, as
                             in /tmp (the sticky bit)

Otherwise another user could put a file there, or replace a folder. The checksum also covers the
purpose of the file (`identity`): under another file's name it is read as damaged.

The access control lists of Windows are not checked: a user's own folders are private there unless
the user shares them.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import uuid
from io import BufferedReader
from pathlib import Path

__all__ = [
    "NotPrivateError",
    "open_kept",
    "private_folder",
    "read_kept",
    "write_kept",
    "write_whole",
]

CHECKSUM_BYTES = 32
ROOT_USER = 0
# Readable by all: a container's image may come with the cache of its builder.
FOLDER_MODE = 0o755
FILE_MODE = 0o644
HAS_OWNERS = os.name == "posix"
# A symbolic link fails to open, a pipe does not block; binary mode on Windows.
FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class NotPrivateError(Exception):
    """Another user could put files into a folder.

    Attributes:
        place: The folder with the wrong permissions: this one or one above.
        reason: A clause about it.
        remedy: The command that makes it private, "" if the user has no such command.
    """

    def __init__(self, place: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{place} {reason}")
        self.place = place
        self.reason = reason
        self.remedy = remedy


def private_folder(folder: Path) -> Path:
    """Return the folder by its real path, after making it if it is absent.

    Raises:
        NotPrivateError: if another user could put files into it.
        OSError: if it cannot be made.
    """
    real = Path(os.path.realpath(folder))
    missing = [place for place in (real, *real.parents) if not place.exists()]
    there = missing[-1].parent if missing else real
    _refuse_other_authors(there, is_above=bool(missing))
    for place in reversed(missing):
        place.mkdir(mode=FOLDER_MODE, exist_ok=True)
    if missing:
        _refuse_other_authors(real)
    if not real.is_dir():
        raise NotADirectoryError(f"{real} is not a folder")
    return real


def open_kept(path: Path) -> BufferedReader | None:
    """Return a file of a private folder, opened for reading in binary mode.

    Return None if there is no such regular file, or if another user could have written it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | FLAGS)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or _other_authors(status) is not None:
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


def read_kept(path: Path, identity: str) -> bytes | None:
    """Return the bytes that `write_kept` wrote there for the same `identity`, in a private folder.

    Return None if there is no such file, another user could have written it, or it is damaged.
    """
    stream = open_kept(path)
    if stream is None:
        return None
    try:
        with stream:
            stored = stream.read()
    except OSError:
        return None
    checksum, contents = stored[:CHECKSUM_BYTES], stored[CHECKSUM_BYTES:]
    return contents if checksum == _checksum(identity, contents) else None


def write_kept(path: Path, identity: str, contents: bytes) -> None:
    """Write a file for `read_kept` that appears whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    write_whole(path, _checksum(identity, contents) + contents)


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file that appears whole or not at all, and that other users cannot write to.

    Raises:
        OSError: if it cannot be written.
    """
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS
        with os.fdopen(os.open(unfinished, flags, FILE_MODE), "wb") as stream:
            stream.write(contents)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _refuse_other_authors(folder: Path, *, is_above: bool = False) -> None:
    """Raise `NotPrivateError` if another user could put files into the folder.

    `is_above`: the folder will hold folders only, no files that are read.
    """
    if not HAS_OWNERS:
        return
    for place in (*reversed(folder.parents), folder):
        status = os.lstat(place)
        reason = _other_authors(status, may_be_sticky=is_above or place != folder)
        if reason is not None:
            is_changed_by_us = status.st_uid == os.geteuid()
            remedy = f"chmod go-w {shlex.quote(str(place))}" if is_changed_by_us else ""
            raise NotPrivateError(place, reason, remedy)


def _other_authors(status: os.stat_result, *, may_be_sticky: bool = False) -> str | None:
    """Return which other users can write to a file or folder, as a clause, or None if none can.

    `may_be_sticky`: allow a folder in which other users can make files and not replace any.
    """
    if not HAS_OWNERS:
        return None
    if status.st_uid not in (ROOT_USER, os.geteuid()):
        return f"belongs to another user (user id {status.st_uid})"
    if may_be_sticky and status.st_mode & stat.S_ISVTX:
        return None
    if status.st_mode & stat.S_IWOTH:
        return "can be written to by every user"
    if status.st_mode & stat.S_IWGRP:
        return f"can be written to by its group (group id {status.st_gid})"
    return None


def _checksum(identity: str, contents: bytes) -> bytes:
    name = identity.encode()
    return hashlib.sha256(len(name).to_bytes(8, "little") + name + contents).digest()
