"""`wasi:filesystem`: a component's `files`, to read and never to write.

A guest sees one folder, `/`, with the files that spin.toml gives it. A folder is a dictionary of
names, a file is its path on this machine. Nothing else can be reached, because a guest's path is
looked up in the dictionaries and never passed to the operating system.

A function that fails returns a name of WIT's `error-code`.

Source: https://github.com/WebAssembly/wasi-filesystem (0.2), wit/types.wit.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

from wasmtime.component import Record, Variant

from refllm.wasm.guest import Guest
from refllm.wasm.wasi.io import CHUNK_BYTES, NANOSECONDS, InputStream
from refllm.wasm.wit import Interface, Resource, record

__all__ = ["Folder", "Preopens", "Types"]

Folder: TypeAlias = "Mapping[str, Folder | Path]"
Entry: TypeAlias = "Folder | Path"

T = TypeVar("T")

READ_ONLY = "read-only"
PATH_CHARACTERS = 4096  # Linux's PATH_MAX


class Descriptor(Resource):
    """An open file or folder; `path` leads to it from the root, a name for each step."""

    wit = "descriptor"

    def __init__(self, guest: Guest, root: Folder, path: tuple[str, ...]) -> None:
        self._guest = guest
        self._root = root
        self._path = path
        self._entry = _entry(root, path)

    def get_flags(self) -> set[str]:
        return {"read"}

    def get_type(self) -> Variant:
        return Variant("ok", _type(self._entry))

    def stat(self) -> Record | str:
        return _stat(self._entry)

    def stat_at(self, _flags: set[str], path: str) -> Record | str:
        return self._at(path, lambda found: _stat(_entry(self._root, found)))

    def metadata_hash(self) -> Record:
        return _hash(self._path)

    def metadata_hash_at(self, _flags: set[str], path: str) -> Record | str:
        return self._at(path, _hash)

    def is_same_object(self, other: Descriptor) -> bool:
        return self._path == other._path

    def open_at(
        self, _flags: set[str], path: str, open_flags: set[str], flags: set[str]
    ) -> Descriptor | str:
        if "truncate" in open_flags or flags & {"write", "mutate-directory"}:
            return READ_ONLY
        opened = self._at(path, lambda found: Descriptor(self._guest, self._root, found))
        if opened == "no-entry" and "create" in open_flags:
            return READ_ONLY
        if isinstance(opened, Descriptor):
            if "exclusive" in open_flags:
                return "exist"
            if "directory" in open_flags and isinstance(opened._entry, Path):
                return "not-directory"
        return opened

    def read_via_stream(self, offset: int) -> InputStream | str:
        if not isinstance(self._entry, Path):
            return "is-directory"
        try:
            _read(self._entry, 0, 0)
        except OSError:
            return "io"
        return InputStream(self._guest, _Contents(self._entry, offset))

    def read(self, length: int, offset: int) -> tuple[bytes, bool] | str:
        if not isinstance(self._entry, Path):
            return "is-directory"
        try:
            return _read(self._entry, min(length, CHUNK_BYTES), offset)
        except OSError:
            return "io"

    def read_directory(self) -> DirectoryEntryStream | str:
        if isinstance(self._entry, Path):
            return "not-directory"
        return DirectoryEntryStream(self._entry)

    def readlink_at(self, _path: str) -> Variant:
        return Variant("err", "invalid")

    def advise(self, _offset: int, _length: int, _advice: str) -> None:
        return None

    def sync(self) -> None:
        return None

    def sync_data(self) -> None:
        return None

    def write_via_stream(self, _offset: int) -> str:
        return READ_ONLY

    def append_via_stream(self) -> str:
        return READ_ONLY

    def write(self, _buffer: bytes, _offset: int) -> str:
        return READ_ONLY

    def set_size(self, _size: int) -> str:
        return READ_ONLY

    def create_directory_at(self, _path: str) -> str:
        return READ_ONLY

    def remove_directory_at(self, _path: str) -> str:
        return READ_ONLY

    def unlink_file_at(self, _path: str) -> str:
        return READ_ONLY

    def symlink_at(self, _old: str, _new: str) -> str:
        return READ_ONLY

    def rename_at(self, _old: str, _folder: Descriptor, _new: str) -> str:
        return READ_ONLY

    def link_at(self, _flags: set[str], _old: str, _folder: Descriptor, _new: str) -> str:
        return READ_ONLY

    def set_times(self, _accessed: object, _modified: object) -> str:
        return READ_ONLY

    def set_times_at(
        self, _flags: set[str], _path: str, _accessed: object, _modified: object
    ) -> str:
        return READ_ONLY

    def _at(self, path: str, use: Callable[[tuple[str, ...]], T]) -> T | str:
        """Return `use` of the absolute path of `path`, which is relative to this folder."""
        if len(path) > PATH_CHARACTERS:
            return "name-too-long"
        if path.startswith("/"):
            return "not-permitted"
        place = list(self._path)
        for step in path.split("/"):
            if not isinstance(_entry(self._root, tuple(place)), Mapping):
                return "not-directory"
            if step == ".." and not place:
                return "not-permitted"
            if step == "..":
                place.pop()
            elif step not in ("", "."):
                place.append(step)
                try:
                    _entry(self._root, tuple(place))
                except KeyError:
                    return "no-entry"
        return use(tuple(place))


class _Contents:
    """A file from an offset on. It is open only during a read, as open files are limited."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path = path
        self._offset = offset

    def read(self, length: int) -> bytes:
        data, _ = _read(self._path, length, self._offset)
        self._offset += len(data)
        return data

    def close(self) -> None:
        """Do nothing: no file is open."""


class DirectoryEntryStream(Resource):
    """The entries of a folder, one after the other; None after the last."""

    wit = "directory-entry-stream"

    def __init__(self, folder: Folder) -> None:
        self._entries = iter(folder.items())

    def read_directory_entry(self) -> Record | None:
        name, entry = next(self._entries, ("", None))
        return None if entry is None else record(type=_type(entry), name=name)


class Types(Interface):
    """`wasi:filesystem/types`."""

    wit = "wasi:filesystem/types"
    resources = (Descriptor, DirectoryEntryStream)

    def filesystem_error_code(self, _error: Resource) -> None:
        return None


class Preopens(Interface):
    """`wasi:filesystem/preopens`: the root, where the component has files."""

    wit = "wasi:filesystem/preopens"

    def __init__(self, guest: Guest, files: Folder) -> None:
        self._guest = guest
        self._files = files

    def get_directories(self) -> list[tuple[Descriptor, str]]:
        return [(Descriptor(self._guest, self._files, ()), "/")] if self._files else []


def _entry(root: Folder, path: tuple[str, ...]) -> Entry:
    entry: Entry = root
    for name in path:
        if isinstance(entry, Path):
            raise KeyError(name)
        entry = entry[name]
    return entry


def _read(path: Path, length: int, offset: int) -> tuple[bytes, bool]:
    """Return `length` bytes of a regular file at most, and whether the file ends there.

    By now the path may be another thing, such as a pipe without a writer; hence O_NONBLOCK.
    """

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", buffering=0, opener=opened) as source:
        status = os.fstat(source.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        source.seek(min(offset, status.st_size))
        data = source.read(length)
        return data, source.tell() >= status.st_size


def _type(entry: Entry) -> str:
    return "regular-file" if isinstance(entry, Path) else "directory"


def _stat(entry: Entry) -> Record | str:
    size, modified = 0, None
    if isinstance(entry, Path):
        try:
            status = entry.stat()
        except OSError:
            return "io"
        seconds, nanoseconds = divmod(max(0, status.st_mtime_ns), NANOSECONDS)  # unsigned
        size, modified = status.st_size, record(seconds=seconds, nanoseconds=nanoseconds)
    return record(
        type=_type(entry),
        link_count=1,
        size=size,
        data_access_timestamp=None,
        data_modification_timestamp=modified,
        status_change_timestamp=None,
    )


def _hash(path: tuple[str, ...]) -> Record:
    digest = hashlib.sha256("/".join(path).encode()).digest()
    lower, upper = struct.unpack_from("<QQ", digest)
    return record(lower=lower, upper=upper)
