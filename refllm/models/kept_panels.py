"""Packed weights on disk, so that the next process maps them instead of packing them again.

    <cache>/packed/4be0a1….panels         hash of what the panels depend on, `_identity`

    bytes           contents
    0 … 63          MAGIC, where the header begins and how many bytes it has, its SHA-256
    4096·k …        the panels of one matrix, as they are in memory
    …
    header          JSON: the identity; of each matrix its name, place, shape and checksum

where <cache> is the folder that `refllm.jit.disk_cache` finds, for this user alone. The panels have
the bytes of the model's files in another order, so no bit of a result depends on them.

Three checks decide whether a file is used:

    Is it of this model?       The model's files are the same on the disk: device, inode, size,
                               times of the last change, and the first MiB of each; so are the
                               names, types and shapes of all tensors. A path is no part of it.
    Is it packed as here?      The numerics, the lanes of a panel, and the sources of the kernels.
    Is it what was written?    The checksum of the header, and of each matrix, before the first
                               matrix is used (`refllm.kernels.packed.checksum`).

A file that fails a check is written again. It never changes once it is written: it appears whole,
by a rename, so several processes can use one file and write it at once. Beyond the size that the
caller allows, the least recently used files are removed; the system keeps a removed file on the
disk as long as a process has it in memory.

The map is private to the process and may be written to, because kernels for arrays that are only
read would be compiled a second time. No kernel writes to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refllm.checkpoints.mapped_file import SPLIT_PART
from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.files.private import NotPrivateError, open_kept, private_folder
from refllm.files.whole import clear_leftovers, whole_file
from refllm.jit.buffers import Bytes
from refllm.jit.disk_cache import cache_folder, kernel_sources, warn_of
from refllm.kernels.linear import Matrix
from refllm.kernels.packed.checksum import checksums
from refllm.kernels.packed.panels import Panels
from refllm.kernels.simd.lanes import LANES
from refllm.quant import FORMATS, Tensor

__all__ = [
    "FOLDER",
    "SUFFIX",
    "VARIABLE",
    "KeptPanels",
    "ModelFiles",
    "bytes_to_keep",
    "find_kept_panels",
    "model_files",
]

VARIABLE = "REFLLM_KEEP_PACKED_MIB"
FOLDER = "packed"
SUFFIX = ".panels"
MAGIC = b"refllm panels 1\n"
START = struct.Struct("<16sQQ32s")
PAGE = 4096
HEAD_BYTES = 1 << 20
MEBIBYTE = 1 << 20
UNFINISHED = re.compile(rf"\.(.+{re.escape(SUFFIX)})\.[0-9a-f]{{16}}\.unfinished")
CUT_SHORT = (OSError, ValueError, KeyError, TypeError)  # of a file that is no file of panels

ModelFiles = list[list[int | str]]

logger = logging.getLogger("refllm")


def bytes_to_keep(environment: Mapping[str, str]) -> int:
    """Return the bytes that REFLLM_KEEP_PACKED_MIB allows, 0 without it.

    Raises:
        InvalidInput: If it is no whole number of MiB.
    """
    mebibytes = environment.get(VARIABLE, "").strip() or "0"
    if not mebibytes.isdecimal():
        raise InvalidInput(
            f"{VARIABLE} must be a number of MiB, such as 8192, or 0; it is {mebibytes!r:.80}"
        )
    return int(mebibytes) * MEBIBYTE


def model_files(path: Path) -> ModelFiles:
    """Return what tells the files of the model at `path` from changed ones, except their names.

    Of each file: its device, inode, size, and times of the last change, which any write changes,
    and a hash of its first MiB.

    Raises:
        OSError: A file cannot be read.
    """
    if path.is_dir():
        weights = {".gguf", ".safetensors"}
        files = [each for each in path.iterdir() if each.suffix in weights and each.is_file()]
        files += [each for each in (path / "config.json",) if each.is_file()]
    elif match := SPLIT_PART.fullmatch(path.name):
        files = list(path.parent.glob(f"{_literal(match[1])}-?????-of-{match[3]}.gguf"))
    else:
        files = [path]
    return [_identity_of(each) for each in sorted(files)]


def _literal(name: str) -> str:
    """Return a name as a pattern of `glob` that only this name matches."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _identity_of(file: Path) -> list[int | str]:
    if not file.is_file():  # opening a pipe could block
        raise FileNotFoundError(f"{file} is no file")
    with file.open("rb") as stream:
        status = os.fstat(stream.fileno())
        head = hashlib.sha256(stream.read(HEAD_BYTES)).hexdigest()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return [status.st_dev, status.st_ino, status.st_size, *times, head]


def find_kept_panels(
    path: Path,
    files: ModelFiles,
    tensors: Mapping[str, Tensor],
    *,
    numerics: str,
    max_bytes: int,
    read: Callable[[int], object] = lambda _: None,
) -> KeptPanels | None:
    """Return the kept panels of a model, none yet if they are to be written; None without a folder.

    Args:
        path: The model's path.
        files: What `model_files` returned for it before it was opened.
        tensors: The model's tensors.
        numerics: How its matrices are packed.
        max_bytes: The limit of all files of panels.
        read: Called with numbers of bytes that have been read and checked.
    """
    kernels = cache_folder(os.environ, kernel_sources())
    if kernels is None:
        logger.warning("refllm: no folder keeps packed weights; `refllm doctor` has the reason")
        return None
    try:
        folder = private_folder(kernels.parent / FOLDER)
    except NotPrivateError as error:
        warn_of(error)
        return None
    except OSError as error:
        logger.warning("refllm: no folder keeps packed weights: %s", error)
        return None
    described = [[name, each.format.name, *each.shape] for name, each in tensors.items()]
    identity: dict[str, Any] = {
        "files": files,
        "tensors": hashlib.sha256(json.dumps(described).encode()).hexdigest(),
        "numerics": numerics,
        "lanes": LANES,
        "sources": kernels.name,
    }
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    kept = folder / f"{name}{SUFFIX}"
    matrices = _read(kept, identity, read)
    if matrices is not None:
        with contextlib.suppress(OSError):  # of a read-only folder
            os.utime(kept)  # `_make_room` looks at it
        _make_room(folder, max_bytes)
    return KeptPanels(path, kept, identity, max_bytes, matrices)


class KeptPanels:
    """The panels of one model: those of its file, or those that will be written to it."""

    def __init__(
        self,
        model: Path,
        path: Path,
        identity: Mapping[str, Any],
        max_bytes: int,
        found: Mapping[str, Matrix] | None,
    ) -> None:
        self._model = model
        self._path = path
        self._identity = identity
        self._max_bytes = max_bytes
        self._found = found
        self._packed: dict[str, Matrix] = {}

    def get(self, name: str) -> Matrix | None:
        """Return the matrix of this name if it was kept."""
        return None if self._found is None else self._found.get(name)

    def add(self, matrix: Matrix) -> None:
        """Have `write` write a matrix that has been packed."""
        self._packed[matrix.name] = matrix

    def write(self) -> None:
        """Write the matrices that were added, if the file was not there.

        Without room for them, or if the model's files have changed, a warning is logged.
        """
        if self._found is not None or not self._packed:
            return
        n_bytes = sum(_rounded(matrix.data.nbytes) for matrix in self._packed.values())
        reason = self._obstacle(n_bytes)
        if reason is None:
            logger.info("refllm: keeping %d MiB of packed weights", n_bytes // MEBIBYTE)
            try:
                with whole_file(self._path, durable=False) as unfinished:
                    _write(unfinished, self._identity, self._packed)
            except LlmRuntimeError as error:
                reason = str(error)
        if reason is not None:
            logger.warning("refllm: %s: packed weights are not kept: %s", self._model, reason)

    def _obstacle(self, n_bytes: int) -> str | None:
        """Return why panels of this size cannot be kept; make room for them if they can."""
        folder = self._path.parent
        try:
            if model_files(self._model) != self._identity["files"]:
                return "the model's files have changed while it was loaded"
            if n_bytes > self._max_bytes:
                return (
                    f"they take {-(-n_bytes // MEBIBYTE)} MiB, and --keep-packed-mib or {VARIABLE} "
                    f"allows {self._max_bytes // MEBIBYTE}"
                )
            if not os.access(folder, os.W_OK):
                return f"{folder} cannot be written to"
            _make_room(folder, self._max_bytes - n_bytes)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            return str(error)
        if n_bytes > free:
            return f"{folder} has {free // MEBIBYTE} MiB left, they take {n_bytes // MEBIBYTE}"
        return None


# --- The file ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A matrix in the header: its name and numbers, and where its panels are."""

    name: str
    is_int8: bool
    format: str
    n_rows: int
    n_columns: int
    at: int
    shape: tuple[int, int]
    checksum: str

    def matrix(self, file: Bytes) -> Matrix:
        """Return the matrix in the mapped file. Raises `ValueError` if it is not in there."""
        n_panels, panel_bytes = self.shape
        data = file[self.at : self.at + n_panels * panel_bytes].reshape(n_panels, panel_bytes)
        kind: Any = Panels
        if self.is_int8:
            # Imported here so that exact numerics do not load the int8 kernels.
            from refllm.kernels.int8.product import Int8Panels

            kind = Int8Panels
        matrix: Matrix = kind(self.name, FORMATS[self.format], self.n_rows, self.n_columns, data)
        return matrix


def _write(path: Path, identity: Mapping[str, Any], matrices: Mapping[str, Matrix]) -> None:
    sections = []
    at = PAGE
    sums = checksums([matrix.data for matrix in matrices.values()])
    mode = getattr(os, "O_BINARY", 0) | os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, mode, 0o644), "wb") as stream:  # never the group's, by any umask
        for matrix, checksum in zip(matrices.values(), sums, strict=True):
            stream.seek(at)
            stream.write(matrix.data.reshape(-1).data)
            section = {
                "name": matrix.name,
                "is_int8": not isinstance(matrix, Panels),
                "format": matrix.format.name,
                "n_rows": matrix.n_rows,
                "n_columns": matrix.n_columns,
                "at": at,
                "shape": matrix.data.shape,
                "checksum": checksum,
            }
            sections.append(section)
            at += _rounded(matrix.data.nbytes)
        header = json.dumps({"identity": identity, "sections": sections}).encode()
        stream.seek(at)
        stream.write(header)
        stream.seek(0)
        stream.write(START.pack(MAGIC, at, len(header), hashlib.sha256(header).digest()))


def _read(
    path: Path, identity: Mapping[str, Any], read: Callable[[int], object]
) -> Mapping[str, Matrix] | None:
    """Return the matrices of a file by name; None if there is no file, or none that can be used."""
    stream = open_kept(path)
    if stream is None:
        if os.path.lexists(path):
            logger.warning("refllm: %s is not private to this user, so it is not used", path)
        return None
    try:
        with stream:
            file = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
        sections = list(_sections(file, identity))
        matrices = {section.name: section.matrix(file) for section in sections}
        sums = checksums([matrix.data for matrix in matrices.values()])
        for section, checksum in zip(sections, sums, strict=True):
            if checksum != section.checksum:
                raise ValueError(f"the checksum of {section.name} is another")
            read(matrices[section.name].data.nbytes)
    except CUT_SHORT as error:
        logger.warning("refllm: %s is damaged, the weights are packed again: %s", path, error)
        return None
    return matrices


def _sections(file: Bytes, identity: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the sections of the header, whose checksum is right.

    Raises:
        ValueError, KeyError, TypeError: It is no header for this identity.
    """
    if file.size < START.size:
        raise ValueError(f"it has only {file.size} bytes")
    magic, at, n_bytes, sha256 = START.unpack(file[: START.size].tobytes())
    header = file[at : at + n_bytes].tobytes()
    if magic != MAGIC or len(header) != n_bytes or hashlib.sha256(header).digest() != sha256:
        raise ValueError("its header is damaged")
    described = json.loads(header)
    if described["identity"] != json.loads(json.dumps(identity)):
        raise ValueError("it is of another model")
    for section in described["sections"]:
        yield Section(**section)


def _rounded(n_bytes: int) -> int:
    return -(-n_bytes // PAGE) * PAGE


# --- Room ----------------------------------------------------------------------------------------


def _make_room(folder: Path, max_bytes: int) -> None:
    """Remove the least recently used files until all together have at most these bytes.

    What killed processes left unfinished is removed, too.
    """
    kept: list[tuple[int, int, Path]] = []  # time of last use, bytes, path
    n_bytes = 0
    with contextlib.suppress(OSError):
        for each in list(folder.iterdir()):
            if match := UNFINISHED.fullmatch(each.name):
                clear_leftovers(folder / match[1])
            elif each.suffix == SUFFIX:
                with contextlib.suppress(OSError):  # another process has just removed it
                    status = each.stat()
                    kept.append((status.st_mtime_ns, status.st_size, each))
                    n_bytes += status.st_size
    for _, size, each in sorted(kept):
        if n_bytes <= max_bytes:
            break
        with contextlib.suppress(OSError):  # removed by another process, or in use on Windows
            each.unlink(missing_ok=True)
            logger.info("refllm: removed %s, packed weights that were not used lately", each)
        n_bytes -= size
