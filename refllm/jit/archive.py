"""An archive of compiled kernels, to carry them to another machine with the same CPU.

    refllm-kernels.zip
        manifest.json                               what the kernels are for, and their checksums
        linear.Q8_0_gemv_serial-8d0c51….nbc         the files of the cache, as they are
        …

The manifest has the folder's name, which is a hash of sources and of the compiler's versions, and
LLVM's name and features of the CPU. Kernels of other sources or of another CPU would never be
found, or would not run; an archive with them is refused as a whole.

Machine code runs with all the rights of the process that loads it. The checksums find damage; they
do not show who wrote an archive. So import only archives of your own.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np

from refllm.files.private import write_whole
from refllm.files.whole import whole_file
from refllm.jit.cpu import FEATURES, NAME, TRIPLE
from refllm.jit.disk_cache import SUFFIX

__all__ = ["ArchiveError", "Contents", "export_kernels", "import_kernels", "kernel_files"]

MANIFEST = "manifest.json"
VERSION = 1
# A file of the cache: no folder, no hidden file, no other suffix.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,150}-[0-9a-f]{32}" + re.escape(SUFFIX))
# The largest kernel has less than 1 MB, and all kernels of all formats have less than 100 MB.
MAX_FILE_BYTES = 1 << 24
MAX_FILES = 5000
MAX_MANIFEST_BYTES = 1 << 21
MAX_BYTES = 1 << 29
# What reading a damaged archive raises, or one with a compression or an encryption of other tools.
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError),
)
# The same archive for the same kernels, whenever it is written.
DATE = (1980, 1, 1, 0, 0, 0)


class ArchiveError(Exception):
    """An archive that cannot be imported; the message says why."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What was written: the number of kernels and their bytes."""

    n_kernels: int
    n_bytes: int


def kernel_files(folder: Path) -> list[Path]:
    """Return the kernels in a folder of the cache, by name."""
    return sorted(each for each in folder.glob(f"*{SUFFIX}") if FILE_NAME.fullmatch(each.name))


def export_kernels(folder: Path, path: Path, *, overwrite: bool = False) -> Contents:
    """Write all kernels of a folder of the cache to an archive, which appears whole.

    Args:
        folder: The folder.
        path: The archive to write.
        overwrite: Whether to replace `path` if it exists.

    Raises:
        InvalidInput: Without `overwrite`, where `path` exists.
        LlmRuntimeError: The archive cannot be written.
    """
    kernels = {each.name: each.read_bytes() for each in kernel_files(folder)}
    manifest = {
        **_identity(folder.name),
        "files": {name: hashlib.sha256(code).hexdigest() for name, code in kernels.items()},
    }
    with (
        whole_file(path, overwrite=overwrite) as unfinished,
        zipfile.ZipFile(unfinished, "w") as archive,
    ):
        entries = {MANIFEST: json.dumps(manifest, indent=1).encode(), **kernels}
        for name, contents in entries.items():
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, contents)
    return Contents(len(kernels), sum(map(len, kernels.values())))


def import_kernels(path: Path, folder: Path) -> Contents:
    """Write the kernels of an archive to a folder of the cache, after checking all of them.

    Args:
        path: The archive, from a source that you trust: its contents are machine code.
        folder: The folder, which no other user can write to.

    Raises:
        ArchiveError: It is no archive of kernels, is damaged, or is for other sources or for
            another CPU. Nothing is written.
        OSError: It cannot be read, or a kernel cannot be written.
    """
    with path.open("rb") as stream:
        contents = stream.read(MAX_BYTES)  # so that an impossible place in it is no `OSError`
    try:
        with zipfile.ZipFile(io.BytesIO(contents)) as archive:
            kernels = _checked(archive, folder.name)
    except UNREADABLE as error:
        raise ArchiveError(f"it is no archive of kernels, or it is damaged: {error}") from error
    for name, code in kernels.items():
        write_whole(folder / name, code)
    return Contents(len(kernels), sum(map(len, kernels.values())))


def _checked(archive: zipfile.ZipFile, stamp: str) -> dict[str, bytes]:
    """Return the kernels by name."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if MANIFEST not in entries or entries[MANIFEST].file_size > MAX_MANIFEST_BYTES:
        raise ArchiveError(f"it has no {MANIFEST}, so it is no archive of kernels")
    manifest = json.loads(_read(archive, entries[MANIFEST]))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ArchiveError(f"its {MANIFEST} names no files")
    for key, here in _identity(stamp).items():
        there = manifest.get(key)
        if there != here:
            raise ArchiveError(_difference(key, str(there), str(here)))
    files: dict[str, Any] = manifest["files"]
    if len(entries) != len(archive.infolist()) or {*files, MANIFEST} != {*entries}:
        raise ArchiveError(f"its files are not those that its {MANIFEST} names")
    if len(files) > MAX_FILES or sum(entry.file_size for entry in entries.values()) > MAX_BYTES:
        raise ArchiveError(f"it has more than {MAX_FILES} files or {MAX_BYTES} bytes")
    kernels = {}
    for name, checksum in files.items():
        if FILE_NAME.fullmatch(name) is None:
            raise ArchiveError(f"it has a file {name!r:.80}, which is no kernel's name")
        if entries[name].file_size > MAX_FILE_BYTES:
            raise ArchiveError(f"{name} is larger than {MAX_FILE_BYTES} bytes")
        kernels[name] = _read(archive, entries[name])
        if hashlib.sha256(kernels[name]).hexdigest() != checksum:
            raise ArchiveError(f"{name} is damaged: it has another checksum")
    return kernels


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return an entry's contents, which are no larger than the entry says."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{entry.filename!r:.80} is compressed in another way")
    with archive.open(entry) as stream:
        contents = stream.read(entry.file_size + 1)
    if len(contents) != entry.file_size:
        raise ArchiveError(f"{entry.filename!r:.80} has another size than the archive says")
    return contents


def _identity(stamp: str) -> dict[str, Any]:
    """Return what kernels depend on, in the order in which a difference is reported."""
    return {
        "version": VERSION,
        "python": f"{sys.implementation.cache_tag}{sys.abiflags}",
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "numpy": np.__version__,
        "kernels": stamp,
        "triple": TRIPLE,
        "cpu": NAME,
        "features": FEATURES,
    }


def _difference(key: str, there: str, here: str) -> str:
    """Return why an archive with another value is refused."""
    if key == "kernels":
        return f"its kernels are those of another version of refllm ({there}, here {here})"
    if key == "features":
        lists = (set(there.split(",")), set(here.split(",")))
        more, less = (
            ", ".join(sorted(each for each in one - other if each.startswith("+")))
            for one, other in (lists, lists[::-1])
        )
        return (
            "its kernels are for a CPU of this name with other features: there and not here "
            f"{more or 'none'}, here and not there {less or 'none'}"
        )
    what = {"triple": "system", "cpu": "CPU", "python": "Python"}.get(key, key)
    return f"its kernels are for another {what}: {there!r:.80}, here {here!r}"
