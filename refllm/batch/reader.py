"""Files of rows as a stream: Parquet, Arrow, JSON lines, CSV, plain text.

    docs/*.parquet        row groups, and of them the needed columns, in pieces of some rows
    docs.arrow            record batches; .feather (version 2) and IPC streams, too
    docs.jsonl.zst        an object on each line; compressed as pyarrow reads it: .gz, .bz2, .zst …
    docs.csv, docs.tsv    a header, and fields that may be quoted
    notes.txt             a row on each line: the column `text`

    files -- pieces of some rows -- windows of some thousand rows -- parts of a fixed number of rows

A piece, a window and a part never depend on how much was computed before. What is in memory is
limited by bytes, too: a piece of long texts has few rows.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from refllm.batch.columns import NotText, is_text, listed, values_of
from refllm.batch.rows import WINDOW_ROWS
from refllm.errors import InvalidInput, LlmRuntimeError

__all__ = [
    "FORMATS",
    "Input",
    "InputFile",
    "Window",
    "columns_in",
    "default_column",
    "find_files",
    "fingerprint",
    "id_type_of",
]

FORMATS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "parquet": (".parquet", ".pq"),
        "arrow": (".arrow", ".feather", ".ipc", ".arrows"),
        "jsonl": (".jsonl", ".ndjson", ".json"),
        "csv": (".csv",),
        "tsv": (".tsv", ".tab"),
        "text": (".txt", ".text"),
    }
)
"""The endings of files' names by format."""

COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".br")
TEXT = "text"  # the column of plain text, and the default
PIECE_ROWS = 256
PIECE_BYTES = 2**22
WINDOW_CHARACTERS = 2**23
LOOKED_AT = 100  # objects of a file of JSON lines, for its columns
BUFFER_BYTES = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ARROW_FILE = b"ARROW1"  # the beginning of the file format; a stream begins otherwise
MAX_FIELD = 2**31 - 1  # bytes of a field of CSV

BYTES = (
    *(pa.types.is_binary, pa.types.is_large_binary),
    *(pa.types.is_binary_view, pa.types.is_fixed_size_binary),
)

IsWanted = Callable[[int, int], bool]
Piece = tuple[int, Mapping[str, Sequence[object]] | None]
"""A number of rows, and their columns; None for rows that are not wanted."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of rows.

    Attributes:
        path: The file; absolute, since pyarrow takes a relative path with a colon for a URI.
        name: Its path as the user gave it, with slashes: the beginning of its rows' ids. A byte
            that is not UTF-8 is written in hexadecimal.
        format: A key of `FORMATS`.
        stamp: As `_stamp` returned it when the file was found.
    """

    path: Path
    name: str
    format: str
    stamp: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Consecutive rows of one part.

    Attributes:
        part: The number of the part.
        ids: Of each row.
        columns: By name.
        is_last: Whether the part ends with it; not known of the last window of all, if no row
            follows that makes it full.
    """

    part: int
    ids: list[object]
    columns: Mapping[str, list[object]]
    is_last: bool


# --- Files ---------------------------------------------------------------------------------------


def find_files(
    inputs: Sequence[str], *, kind: str | None = None, outside: Path | None = None
) -> tuple[InputFile, ...]:
    """Return the files of paths, folders and patterns, each once, in the order of the inputs.

    The files of a folder (with those of its folders) and of a pattern are sorted by name. In a
    folder, names that begin with a dot or an underscore and unknown endings are left out.

    Args:
        inputs: Paths of files and folders, and patterns with `*`, `?`, `[…]` and `**`.
        kind: The format of every file, in place of the one that its name's ending means.
        outside: A folder that is left out: the one that is written to.

    Raises:
        InvalidInput: For an input without a file, a pipe, and a file of an unknown format.
    """
    if kind is not None and kind not in FORMATS:
        raise InvalidInput(f"format must be one of {', '.join(FORMATS)}; got {kind!r:.80}")
    found: dict[Path, InputFile] = {}
    left_out = None if outside is None else outside.resolve()
    for each in inputs:
        path = Path(each)
        if path.is_dir():
            files = [
                file
                for file in sorted(path.rglob("*"), key=lambda file: file.as_posix())
                if file.is_file()
                and not any(part[0] in "._" for part in file.relative_to(path).parts)
                and (kind is not None or _format_of(file) is not None)
            ]
        elif path.is_file():
            files = [path]
        elif path.exists():
            raise InvalidInput(
                f"{each} is a pipe or a device, and input is read several times: write it to a file"
            )
        elif glob.has_magic(each):
            matches = sorted(glob.glob(each, recursive=True))  # noqa: PTH207 - absolute ones, too
            files = [Path(file) for file in matches]
            files = [file for file in files if file.is_file()]
        else:
            raise InvalidInput(f"there is no file, folder or match at {each}")
        n_found = len(files)
        if left_out is not None:
            files = [file for file in files if left_out not in file.resolve().parents]
        if n_found and not files:
            raise InvalidInput(
                f"all files of {each} are in {outside}, the folder to write; name another by --to"
            )
        if not files:
            endings = ", ".join(ending for endings in FORMATS.values() for ending in endings)
            raise InvalidInput(
                f"{each} has no file of rows" if path.is_dir() else f"no file matches {each}",
                *([f"names of such files end in {endings}"] if path.is_dir() else []),
            )
        for file in files:
            data = file.as_posix().encode("utf-8", "surrogateescape")
            name = data.decode("utf-8", "backslashreplace")
            format_ = kind or _format_of(file)
            if format_ is None:
                raise InvalidInput(
                    f"{name}: the format of this file is unknown by its name's ending; name it, as "
                    f"one of {', '.join(FORMATS)}, by --format"
                )
            path = file.absolute()
            found.setdefault(path, InputFile(path, name, format_, _stamp(path)))
    return tuple(found.values())


def _stamp(file: Path) -> tuple[int, int]:
    """Return the size of a file and its time of modification in ns."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _format_of(file: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    for name, endings in FORMATS.items():
        if suffixes and suffixes[-1] in endings:
            return name
    return None


def fingerprint(file: InputFile, columns: Sequence[str]) -> dict[str, object]:
    """Return what identifies the content of a file: its size and a SHA-256.

    Of Parquet, the hash is that of the footer and of the needed columns' bytes; else of all bytes.

    Raises:
        LlmRuntimeError: If the file cannot be read.
    """
    with _reading(file), file.path.open("rb") as stream:
        n_bytes = stream.seek(0, io.SEEK_END)
        if file.format == "parquet":
            digest = hashlib.sha256()
            for start, length in _parquet_ranges(stream, n_bytes, columns):
                stream.seek(start)
                for stop in range(0, length, BUFFER_BYTES):
                    digest.update(stream.read(min(BUFFER_BYTES, length - stop)))
        else:
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256")
    return {"name": file.name, "bytes": n_bytes, "sha256": digest.hexdigest()}


def _parquet_ranges(
    stream: BinaryIO, n_bytes: int, columns: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """Yield the places of the footer and of the columns' chunks, as start and length."""
    metadata = pq.read_metadata(stream)
    footer = metadata.serialized_size + 8  # its length and the magic bytes follow it
    yield n_bytes - footer, footer
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for j in range(group.num_columns):
            chunk = group.column(j)
            if chunk.path_in_schema.split(".")[0] in {name.split(".")[0] for name in columns}:
                first = chunk.data_page_offset
                if chunk.has_dictionary_page:
                    first = min(first, chunk.dictionary_page_offset)
                yield first, chunk.total_compressed_size


# --- Columns -------------------------------------------------------------------------------------


def columns_in(file: InputFile) -> dict[str, pa.DataType] | None:
    """Return the types of a file's columns by name; None for a file without a row or header.

    A type of JSON lines is that of the first objects' values; a mixed or unknown one is null. A
    name that several columns have is left out.

    Raises:
        InvalidInput: For JSON lines whose first ones have no object, such as an array.
        LlmRuntimeError: If the file cannot be read.
    """
    with _reading(file):
        if file.format == "parquet":
            with pq.ParquetFile(file.path) as parquet:
                schema = parquet.schema_arrow
        elif file.format == "arrow":
            with pa.memory_map(str(file.path)) as source:
                schema = _open_arrow(source, None).schema
        elif file.format == "text":
            return {TEXT: pa.string()}
        else:
            with _opened(file) as (stream, _):
                if file.format == "jsonl":
                    return _columns_of_json(file, stream)
                names = next(_csv_rows(file, stream), None)
                if names is None:
                    return None
                schema = pa.schema([(name, pa.string()) for name in names])
    return {each.name: each.type for each in schema if schema.names.count(each.name) == 1}


def _columns_of_json(file: InputFile, stream: BinaryIO) -> dict[str, pa.DataType] | None:
    kinds: dict[str, set[type]] = {}
    n_lines = n_objects = 0
    lines = (line.removeprefix(BYTE_ORDER_MARK) for line in stream)
    for line in itertools.islice(filter(bytes.strip, lines), LOOKED_AT):
        n_lines += 1
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            n_objects += 1
            for name, each in value.items():
                kinds.setdefault(name, set()).add(type(each))
    if not n_lines:
        return None
    if not n_objects:
        raise InvalidInput(
            f"{file.name}: none of the first {n_lines} lines is a JSON object",
            'write an object on each line, such as {"text": "A cat."}; of an array, jq -c ".[]" '
            "makes such lines",
        )
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    types |= {list: pa.list_(pa.null()), dict: pa.struct([])}
    found = {}
    for name, seen in kinds.items():
        known = [types[kind] for kind in seen if kind is not type(None)]
        found[name] = known[0] if len(known) == 1 else pa.null()
    return found


def default_column(there: Mapping[str, pa.DataType], file: InputFile) -> str:
    """Return the column of texts for a user who named none: `text`, or the only one of texts.

    Raises:
        InvalidInput: If there is no such column.
    """
    texts = [name for name, kind in there.items() if is_text(kind)]
    if TEXT in there:
        return TEXT
    if len(texts) == 1:
        return texts[0]
    raise InvalidInput(
        f"{file.name} has no column 'text'; choose one of its columns by --column",
        f"columns of texts: {listed(texts)}; all columns: {listed(list(there))}",
    )


def id_type_of(files: Mapping[InputFile, Mapping[str, pa.DataType]], column: str) -> pa.DataType:
    """Return the type of the ids of all files: int64 of whole numbers, string of texts, or theirs.

    Raises:
        InvalidInput: If two files have ids of different types, or a file has none that can be one.
    """
    found: dict[Any, InputFile] = {}
    for file, there in files.items():
        kind = there[column]
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if is_text(kind):
            kind = pa.string()
        elif pa.types.is_integer(kind) and kind != pa.uint64():
            kind = pa.int64()
        elif any(is_bytes(kind) for is_bytes in BYTES):
            kind = pa.binary()
        elif kind != pa.uint64():
            raise InvalidInput(
                f"{file.name}: the ids {column!r} have the type {kind}; ids must be whole numbers, "
                "texts or bytes"
            )
        found.setdefault(kind, file)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise InvalidInput(
            f"the ids {column!r} are of different types: {one} in {first.name}, {other} in "
            f"{second.name}",
            "run these files separately, or give them ids of one type",
        )
    return next(iter(found), pa.string())


# --- Rows ----------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Input:
    """The rows of files, in order.

    Attributes:
        files: The files.
        columns: The columns to read.
        id_column: The column of ids; None for the file's name and the row's number, from 0 on.
        id_type: The type of the ids.
        part_rows: The rows of a part.
        fraction: How much is read, by bytes of the files: from 0 to 1.
        n_rows: The number of rows, if every file has it in its metadata.
    """

    files: Sequence[InputFile]
    columns: Sequence[str]
    id_column: str | None
    id_type: pa.DataType
    part_rows: int
    fraction: float = 0.0
    n_rows: int | None = None

    def windows(self, is_done: Callable[[int], bool] = lambda _part: False) -> Iterator[Window]:
        """Yield windows of rows, none across two parts.

        Args:
            is_done: Whether the part of this number is left out; its rows are read as little as the
                format allows.

        Raises:
            InvalidInput: For a file that does not fit the others, and for an id of another type.
            LlmRuntimeError: If a file cannot be read, or was changed since it was found.
        """

        def is_wanted(first: int, stop: int) -> bool:
            parts = range(first // self.part_rows, (stop - 1) // self.part_rows + 1)
            return not all(map(is_done, parts))

        names = list(dict.fromkeys([*self.columns, *filter(None, [self.id_column])]))
        row = n_characters = 0  # the next row's number, and the characters of the window so far
        ids: list[object] = []
        columns: dict[str, list[object]] = {name: [] for name in self.columns}
        for file, n_before, (n_rows, piece) in self._pieces(names, is_wanted):
            for i in range(n_rows if piece is not None else 0):
                assert piece is not None
                part = (row + i) // self.part_rows
                if not is_done(part):
                    where = f"{file.name}:{row + i - n_before}"
                    ids.append(where if self.id_column is None else self._id(piece, i, where))
                    for name in self.columns:
                        value = piece[name][i]
                        n_characters += len(value) if isinstance(value, str) else 0
                        columns[name].append(value)
                is_end = (row + i + 1) % self.part_rows == 0
                is_full = len(ids) == WINDOW_ROWS or n_characters >= WINDOW_CHARACTERS
                if ids and (is_end or is_full):
                    yield Window(part=part, ids=ids, columns=columns, is_last=is_end)
                    ids, columns, n_characters = [], {name: [] for name in self.columns}, 0
            row += n_rows
        if ids:
            last = (row - 1) // self.part_rows
            yield Window(part=last, ids=ids, columns=columns, is_last=True)

    def _id(self, piece: Mapping[str, Sequence[object]], i: int, where: str) -> object:
        """Return the id of a row; None of a row that cannot be read."""
        assert self.id_column is not None
        value = piece[self.id_column][i]
        wanted = str if self.id_type == pa.string() else int
        if self.id_type == pa.binary() or value is None:
            return value
        if isinstance(value, NotText):
            return None
        try:
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise ValueError  # noqa: TRY301, TRY004 - one message for both
            pa.scalar(value, self.id_type)
        except (ValueError, OverflowError) as error:
            raise InvalidInput(
                f"{where}: the id is {value!r:.80}, and those before it are of the type "
                f"{self.id_type}"
            ) from error
        return value

    def _pieces(
        self, names: Sequence[str], is_wanted: IsWanted
    ) -> Iterator[tuple[InputFile, int, Piece]]:
        """Yield each piece with its file and the number of rows in the files before it."""
        n_bytes = sum(file.stamp[0] for file in self.files) or 1
        n_read = n_rows = 0
        for file in self.files:
            n_before, size = n_rows, file.stamp[0]

            def wanted(first: int, stop: int, n_before: int = n_before) -> bool:
                return is_wanted(n_before + first, n_before + stop)

            with _reading(file):
                for of_file, piece in _READERS[file.format](file, names, wanted):
                    n_rows += piece[0]
                    self.fraction = (n_read + of_file * size) / n_bytes
                    yield file, n_before, piece
                is_same = _stamp(file.path) == file.stamp
            if not is_same:  # its rows may be others than those of the manifest's hash
                raise LlmRuntimeError(f"{file.name} was changed while it was read")
            n_read += size
            self.fraction = n_read / n_bytes


def _parquet_pieces(
    file: InputFile, names: Sequence[str], is_wanted: IsWanted
) -> Iterator[tuple[float, Piece]]:
    # Without `pre_buffer` a column is read page by page instead of whole row groups.
    with pq.ParquetFile(file.path, pre_buffer=False, buffer_size=BUFFER_BYTES) as parquet:
        metadata = parquet.metadata
        n_all, row = max(metadata.num_rows, 1), 0
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            if not is_wanted(row, row + group.num_rows):
                row += group.num_rows
                yield row / n_all, (group.num_rows, None)
                continue
            n_bytes = sum(
                group.column(j).total_uncompressed_size
                for j in range(group.num_columns)
                if group.column(j).path_in_schema.split(".")[0] in names
            )
            batch_rows = PIECE_BYTES * group.num_rows // max(n_bytes, 1)
            for batch in parquet.iter_batches(
                max(1, min(PIECE_ROWS, batch_rows)),
                row_groups=[i],
                columns=list(names),
                use_threads=False,
            ):
                row += len(batch)
                yield row / n_all, (len(batch), _lists_of(batch, names))


def _arrow_pieces(
    file: InputFile, names: Sequence[str], is_wanted: IsWanted
) -> Iterator[tuple[float, Piece]]:
    with pa.memory_map(str(file.path)) as source:
        reader = _open_arrow(source, names)
        is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        row, size = 0, max(source.size(), 1)
        for i, batch in enumerate(batches, 1):
            n_bytes = batch.nbytes or 1
            piece_rows = max(1, min(PIECE_ROWS, PIECE_BYTES * len(batch) // n_bytes))
            done = i / reader.num_record_batches if is_file else source.tell() / size
            for start in range(0, len(batch), piece_rows):
                piece = batch.slice(start, piece_rows)
                wanted = is_wanted(row, row + len(piece))
                row += len(piece)
                yield done, (len(piece), _lists_of(piece, names) if wanted else None)


def _open_arrow(source: Any, names: Sequence[str] | None) -> Any:
    """Return the reader of an IPC file or stream, with only some columns if they are named."""
    is_file = source.read(len(ARROW_FILE)) == ARROW_FILE
    source.seek(0)
    open_ = pa.ipc.open_file if is_file else pa.ipc.open_stream
    if names is None:
        return open_(source)
    there = open_(source).schema.names
    source.seek(0)
    included = sorted(there.index(name) for name in names)
    return open_(source, options=pa.ipc.IpcReadOptions(included_fields=included))


def _json_pieces(
    file: InputFile, names: Sequence[str], is_wanted: IsWanted
) -> Iterator[tuple[float, Piece]]:
    with _opened(file) as (stream, done):
        row = 0
        for line in stream:
            if not line.strip() or (row == 0 and line.strip() == BYTE_ORDER_MARK):
                continue
            if is_wanted(row, row + 1):
                values = _values_of_json(line.removeprefix(BYTE_ORDER_MARK), names)
                yield done(), (1, {name: [value] for name, value in values.items()})
            else:
                yield done(), (1, None)
            row += 1


def _values_of_json(line: bytes, names: Sequence[str]) -> dict[str, object]:
    try:
        value = json.loads(line)
    except RecursionError:
        reason = "in a line of JSON that is nested too deep"
    except ValueError as error:
        reason = f"in a line that is not JSON: {error}"
    else:
        if isinstance(value, dict):
            return {name: value.get(name) for name in names}
        reason = "in a line that is no JSON object"
    return dict.fromkeys(names, NotText(reason))


def _csv_pieces(
    file: InputFile, names: Sequence[str], is_wanted: IsWanted
) -> Iterator[tuple[float, Piece]]:
    with _opened(file) as (stream, done):
        rows = _csv_rows(file, stream)
        header = next(rows, [])
        places = [(name, header.index(name)) for name in names if header]
        for row, fields in enumerate(rows):
            if not is_wanted(row, row + 1):
                yield done(), (1, None)
                continue
            values: dict[str, Sequence[object]]
            if len(fields) == len(header):
                values = {name: [_utf8(fields[place])] for name, place in places}
            else:
                reason = f"in a row of {len(fields)} fields, and the header has {len(header)}"
                values = {name: [NotText(reason)] for name in names}
            yield done(), (1, values)


def _csv_rows(file: InputFile, stream: BinaryIO) -> Iterator[list[str]]:
    """Yield the rows of a table, the header first; bytes that are not UTF-8 become surrogates."""
    csv.field_size_limit(MAX_FIELD)  # of the whole process; Python's default is 128 KiB
    lines = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    first = lines.readline()
    separator = "\t" if file.format == "tsv" else ","
    if separator == "," and ";" in first and "," not in first:
        separator = ";"  # of spreadsheets in locales with a decimal comma
    both = (line for each in ([first], lines) for line in each if line)
    rows = csv.reader(both, delimiter=separator, strict=True)
    try:
        yield from (row for row in rows if row)
    except csv.Error as error:
        raise LlmRuntimeError(f"{file.name}, line {rows.line_num}: {error}") from error
    finally:
        lines.detach()  # or its end would close the stream, which is the caller's


def _text_pieces(
    file: InputFile, names: Sequence[str], is_wanted: IsWanted
) -> Iterator[tuple[float, Piece]]:
    with _opened(file) as (stream, done):
        for row, line in enumerate(stream):
            wanted = is_wanted(row, row + 1)
            data = (line if row else line.removeprefix(BYTE_ORDER_MARK)).removesuffix(b"\n")
            text = _utf8(data.removesuffix(b"\r").decode("utf-8", "surrogateescape"))
            yield done(), (1, {name: [text] for name in names} if wanted else None)


def _utf8(text: str) -> object:
    """Return a text, or a `NotText` where bytes that are not UTF-8 have become surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        n_before = len(text[: error.start].encode())
        return NotText(f"not UTF-8: byte 0x{byte:02X} at index {n_before}")
    return text


_READERS: Mapping[
    str, Callable[[InputFile, Sequence[str], IsWanted], Iterator[tuple[float, Piece]]]
] = MappingProxyType(
    {
        "parquet": _parquet_pieces,
        "arrow": _arrow_pieces,
        "jsonl": _json_pieces,
        "csv": _csv_pieces,
        "tsv": _csv_pieces,
        "text": _text_pieces,
    }
)


def _lists_of(batch: pa.RecordBatch, names: Sequence[str]) -> dict[str, list[object]]:
    return {name: values_of(batch.column(name)) for name in names}


@contextmanager
def _opened(file: InputFile) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """Yield the uncompressed bytes of a file, and what returns how much of it is read."""
    with file.path.open("rb", buffering=0) as raw:
        size = max(file.path.stat().st_size, 1)
        compression = file.path.suffix.lower().removeprefix(".")
        names = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4", "br": "brotli"}
        stream: Any = raw
        if compression in names:
            stream = pa.input_stream(raw, compression=names[compression])
        with io.BufferedReader(stream, BUFFER_BYTES) as buffered:
            yield buffered, lambda: 1.0 if raw.closed else raw.tell() / size


@contextmanager
def _reading(file: InputFile) -> Iterator[None]:
    """Name the file in the errors of reading it."""
    try:
        yield
    except pa.ArrowException as error:
        raise LlmRuntimeError(f"{file.name}: cannot be read as {file.format}: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise LlmRuntimeError(f"{file.name}: cannot be read: {reason}") from error
