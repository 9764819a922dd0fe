"""Parts of Parquet, and the manifest by which the same command resumes a run.

    DIR/part-00000.parquet    rows 0 … of the input, in its order; each part appears whole
        part-00001.parquet
        _manifest.json        what the run is, and which parts are finished
        .lock                 held by the process that writes

Readers of Parquet folders leave out names that begin with a dot or an underscore. A part that is
finished is never written again, and what determines its rows is in the manifest and in the metadata
of its schema: the model's hash, the options, the input, the version. A process that is killed loses
the part in work.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from refllm.checkpoints.mapped_file import SPLIT_PART
from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.files.interrupts import interrupts_later
from refllm.files.whole import require_whole_file, whole_file

__all__ = [
    "LOCK",
    "MANIFEST",
    "METADATA_KEY",
    "Manifest",
    "Part",
    "PartWriter",
    "locked_folder",
    "model_files",
    "model_sha256",
]

MANIFEST = "_manifest.json"
LOCK = ".lock"
FORMAT = 1  # of the manifest
METADATA_KEY = b"refllm"
PART_NAME = re.compile(r"part-[0-9]{5,}\.parquet")  # Spark's names have more
NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
# The files of a model's folder that determine what it computes.
MODEL_ENDINGS = (".gguf", ".safetensors", ".json", ".model", ".txt", ".jinja")


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part.

    Attributes:
        file: The file's name.
        rows: The number of rows.
        errors: How many of them have an error.
        bytes: The file's size.
    """

    file: str
    rows: int
    errors: int
    bytes: int


class Manifest:
    """What a run is, and its finished parts by number.

    Attributes:
        identity: What determines the rows: a JSON object. A run with another identity is another
            run.
        parts: The finished parts.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.identity = identity
        self.parts: dict[int, Part] = {}
        self._folder = folder

    @classmethod
    def opened(cls, folder: Path, identity: Mapping[str, Any], *, force: bool) -> Self:
        """Return the manifest of a folder: of the run to resume, or a new one.

        Args:
            folder: The folder.
            identity: What the run is now.
            force: Whether to delete the parts of another run instead of refusing the folder.

        Raises:
            InvalidInput: For a folder with another run, or with other files.
            LlmRuntimeError: If the folder cannot be read or written.
        """
        manifest = cls(folder, identity)
        file = folder / MANIFEST
        require_whole_file(file)
        try:
            if not file.exists():
                others = [each.name for each in sorted(folder.iterdir()) if each.name[0] != "."]
                if others and not force:
                    parts = [name for name in others if PART_NAME.fullmatch(name)]
                    raise InvalidInput(
                        f"{folder} is not empty and has no run to resume: "
                        f"{[*parts, *others][0]!r} is there",
                        "name another folder by --to, or "
                        + (
                            f"delete {parts[0]} and all parts with --force"
                            if parts
                            else "write beside these files with --force"
                        ),
                    )
                manifest._delete_parts()
                return manifest
            differing = manifest._read(file)
            if differing and not force:
                raise InvalidInput(
                    f"{folder} has another run: {differing}",
                    "name another folder by --to, or delete its parts and begin again with --force",
                )
            if differing:
                manifest.parts = {}
                manifest._delete_parts()
        except OSError as error:
            raise LlmRuntimeError(f"{folder}: cannot be used: {error}") from error
        return manifest

    def add(self, number: int, part: Part) -> None:
        """Store that a part is finished."""
        self.parts[number] = part
        self.write()

    def write(self, *, is_finished: bool = False) -> None:
        """Write the file, whole or not at all."""
        content = {
            "format": FORMAT,
            **self.identity,
            "parts": [asdict(self.parts[number]) for number in sorted(self.parts)],
            "is_finished": is_finished,
        }
        with interrupts_later(), whole_file(self._folder / MANIFEST) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1) + "\n", "utf-8")

    def _read(self, file: Path) -> str:
        """Read the finished parts that are there whole; return how the run differs, or ""."""
        try:
            content = json.loads(file.read_bytes())
            parts = [Part(**part) for part in content["parts"]]
            numbers = [int(part.file.removeprefix("part-").partition(".")[0]) for part in parts]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{MANIFEST} is damaged ({error})"
        for number, part in zip(numbers, parts, strict=True):
            path = self._folder / part.file
            if path.exists() and path.stat().st_size == part.bytes:
                self.parts[number] = part
        return _difference(content, {"format": FORMAT, **self.identity})

    def _delete_parts(self) -> None:
        (self._folder / MANIFEST).unlink(missing_ok=True)
        for file in self._folder.iterdir():
            if PART_NAME.fullmatch(file.name):
                file.unlink()


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the first difference of two identities in words, or ""."""
    for key, value in new.items():
        before = old.get(key)
        if before == value:
            continue
        if key == "input":
            return _difference_of_inputs(before if isinstance(before, list) else [], value)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            for name in [*value, *before]:
                # A model may have another path: its hash identifies it.
                if before.get(name) != value.get(name) and (key, name) != ("model", "name"):
                    was, is_ = before.get(name), value.get(name)
                    return f"{key}: {name} was {_short(was)} and is {_short(is_)}"
            continue
        return f"{key} was {_short(before)} and is {_short(value)}"
    return ""


def _difference_of_inputs(old: list[Any], new: list[Any]) -> str:
    before = {each.get("name"): each for each in old if isinstance(each, Mapping)}
    now = {each["name"]: each for each in new}
    for name, each in now.items():
        if name not in before:
            return f"the input {name} is new"
        if each != before[name]:
            return f"the input {name} has changed"
    for name in before:
        if name not in now:
            return f"the input {name} was there and is not"
    return "the inputs are in another order"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"


# --- Parts ---------------------------------------------------------------------------------------


class PartWriter:
    """Writes windows of results as parts, and enters each finished part in the manifest.

    As a context manager: an error or an interrupt drops the part in work. An interrupt never leaves
    a hidden file: while one is made or renamed it is handled later.
    """

    def __init__(self, folder: Path, schema: pa.Schema, manifest: Manifest) -> None:
        self._folder = folder
        self._schema = schema.with_metadata({METADATA_KEY: json.dumps(manifest.identity)})
        self._manifest = manifest
        self._open = ExitStack()
        self._number = -1
        self._rows = self._errors = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        with interrupts_later():
            if kind is None:
                self._finish()
            else:
                self._open.__exit__(kind, *error)

    def write(self, number: int, rows: pa.RecordBatch, *, is_last: bool) -> None:
        """Append rows to the part of this number, which ends the one before.

        Args:
            number: The part.
            rows: The rows.
            is_last: Whether the part ends with them.

        Raises:
            LlmRuntimeError: If the part cannot be written.
        """
        with interrupts_later():
            if number != self._number:
                self._finish()
                self._begin(number)
            self._writer.write_batch(rows.cast(self._schema))
            self._rows += len(rows)
            self._errors += len(rows) - rows.column("error").null_count
            if is_last:
                self._finish()

    def _begin(self, number: int) -> None:
        self._number = number
        self._rows = self._errors = 0
        unfinished = self._open.enter_context(whole_file(self._path))
        stream = self._open.enter_context(unfinished.open("wb"))
        dictionaries = [name for name in ("finish_reason", "error") if name in self._schema.names]
        self._writer = self._open.enter_context(
            pq.ParquetWriter(stream, self._schema, compression="zstd", use_dictionary=dictionaries)
        )

    def _finish(self) -> None:
        if self._number < 0:
            return
        self._open.close()
        path, number, self._number = self._path, self._number, -1
        part = Part(path.name, self._rows, self._errors, path.stat().st_size)
        self._manifest.add(number, part)

    @property
    def _path(self) -> Path:
        return self._folder / f"part-{self._number:05}.parquet"


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder where it is absent, and hold its lock in the `with` block.

    Raises:
        InvalidInput: If another process holds the lock.
        LlmRuntimeError: If the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            with suppress(NotImplementedError):  # a file system without locks
                lock.acquire()
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE or isinstance(error, Timeout):
                raise
    except Timeout as error:
        raise InvalidInput(
            f"another run writes into {folder}; end it first, or name another folder by --to"
        ) from error
    except OSError as error:
        raise LlmRuntimeError(f"{folder}: cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


def model_files(path: Path) -> dict[str, Path]:
    """Return the files of a model by name, sorted: a file, all parts of it, or those of a folder.

    Raises:
        OSError: If the folder cannot be read.
    """
    if path.is_dir():
        files = {
            file.relative_to(path).as_posix(): file
            for file in path.rglob("*")
            if file.suffix in MODEL_ENDINGS and file.is_file()
        }
    elif match := SPLIT_PART.fullmatch(path.name):
        files = {
            file.name: file
            for file in path.parent.iterdir()
            if (part := SPLIT_PART.fullmatch(file.name)) and part[1] == match[1]
        }
    else:
        files = {path.name: path}
    return dict(sorted(files.items()))


def model_sha256(path: Path) -> str:
    """Return what identifies a model's files: the SHA-256 of its file.

    Of a folder or of a file in parts, that of the lines "SHA-256, two spaces, name" of all files,
    sorted by name, as `sha256sum` prints them.

    Raises:
        LlmRuntimeError: If a file cannot be read.
    """
    try:
        files = model_files(path)
        if not path.is_dir() and not SPLIT_PART.fullmatch(path.name):
            return _sha256(path)
        lines = [f"{_sha256(file)}  {name}\n" for name, file in files.items()]
    except OSError as error:
        raise LlmRuntimeError(f"{path}: cannot be read: {error.strerror or error}") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
