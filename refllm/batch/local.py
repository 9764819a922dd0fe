"""A run over files on this machine: one process, all its CPUs, memory that does not grow.

The calling thread reads, tokenizes and writes while other threads compute. A run that was ended, by
whatever, is resumed by the same call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refllm import __version__
from refllm.batch.columns import Columns, is_text, listed, require_columns
from refllm.batch.reader import (
    Input,
    InputFile,
    Window,
    columns_in,
    find_files,
    fingerprint,
    id_type_of,
)
from refllm.batch.rows import Embedder, Generator, RowFunction
from refllm.batch.writer import Manifest, PartWriter, locked_folder, model_sha256
from refllm.errors import InvalidInput, LlmError
from refllm.interface import NUMERICS_REVISION

__all__ = ["PART_ROWS", "Computed", "Progress", "Summary", "identity_of", "open_input", "run"]

PART_ROWS: Mapping[type[RowFunction], int] = {Embedder: 16384, Generator: 512}
"""The rows of a part by default: what is lost where a process is killed."""

# Options that no bit of a result depends on, and what the manifest has in another form.
NOT_OPTIONS = frozenset({"model", "numerics", "roots", "stand_ins", "threads", "at_once"})
Computed: TypeAlias = Callable[
    [RowFunction, Input, Mapping[str, Any], AbstractSet[int]],
    Iterator[tuple[Window, pa.RecordBatch]],
]
"""Yields the windows of all parts but the given ones, with their results. The windows of a part are
yielded one after the other, in order; the parts are in any order. The mapping is `identity_of`."""

TOKEN_COUNTS = ("token_count", "prompt_token_count", "generated_token_count")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        n_rows: The rows that are done, those of an earlier run included.
        n_all: The rows of the input, if it is known before they are read.
        n_new_rows: The rows that this run has computed.
        n_errors: How many of those have an error.
        n_tokens: The tokens of the rows that this run has computed.
        fraction: How much of the input is read, from 0 to 1.
    """

    n_rows: int
    n_all: int | None
    n_new_rows: int
    n_errors: int
    n_tokens: int
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A finished run.

    Attributes:
        n_rows: The rows of all parts.
        n_errors: How many of them have an error.
        n_parts: The parts.
        n_new_rows: The rows that this call has computed.
    """

    n_rows: int
    n_errors: int
    n_parts: int
    n_new_rows: int


def run(
    function: RowFunction,
    inputs: Sequence[str],
    to: Path,
    *,
    id_column: str | None = None,
    kind: str | None = None,
    part_rows: int | None = None,
    force: bool = False,
    progress: Callable[[Progress], object] | None = None,
    computed: Computed | None = None,
) -> Summary:
    """Compute every row of files, and write the results as parts of Parquet.

    Args:
        function: An `Embedder` or a `Generator`.
        inputs: Files, folders and patterns.
        to: The folder to write. If it has parts of the same run, the run is resumed.
        id_column: The column of ids; None for each row's file and number.
        kind: As `find_files`.
        part_rows: The rows of a part.
        force: Whether to replace another run in the folder.
        progress: Called after each window.
        computed: What computes the windows; None for this process, on its CPUs.

    Raises:
        InvalidInput: For input that cannot be used, or a folder of another run.
        ModelNotSupported: As `LocalEngine.infer`.
        LlmRuntimeError: If a file cannot be read or written, and as `LocalEngine.infer`. Finished
            parts stay.
    """
    part_rows = PART_ROWS[type(function)] if part_rows is None else part_rows
    if part_rows < 1:
        raise InvalidInput(f"part_rows must be at least 1, got {part_rows}")
    files = find_files(inputs, kind=kind, outside=to)
    rows = open_input(function, files, id_column=id_column, part_rows=part_rows)
    schema = pa.schema([("id", rows.id_type), *function.schema])
    identity = identity_of(function, rows)
    compute = _computed if computed is None else computed
    with locked_folder(to):
        manifest = Manifest.opened(to, identity, force=force)
        before = sum(part.rows for part in manifest.parts.values())
        n_new = n_errors = n_tokens = 0
        try:
            manifest.write()
            with PartWriter(to, schema, manifest) as writer:
                for window, results in compute(function, rows, identity, set(manifest.parts)):
                    ids = pa.array(window.ids, rows.id_type)
                    batch = pa.RecordBatch.from_arrays([ids, *results.columns], schema=schema)
                    writer.write(window.part, batch, is_last=window.is_last)
                    n_new += len(batch)
                    n_errors += len(batch) - results.column("error").null_count
                    n_tokens += sum(
                        pc.sum(results.column(name)).as_py() or 0
                        for name in results.schema.names
                        if name in TOKEN_COUNTS
                    )
                    if progress is not None:
                        progress(
                            Progress(
                                n_rows=before + n_new,
                                n_all=rows.n_rows,
                                n_new_rows=n_new,
                                n_errors=n_errors,
                                n_tokens=n_tokens,
                                fraction=rows.fraction,
                            )
                        )
                if not manifest.parts and not n_new:  # readers of the folder find the schema
                    empty = pa.RecordBatch.from_pylist([], schema)
                    writer.write(0, empty, is_last=True)
            manifest.write(is_finished=True)
        except LlmError as error:
            n_rows = sum(part.rows for part in manifest.parts.values())
            raise type(error)(
                *error.args,
                f"{n_rows} rows in {len(manifest.parts)} parts are finished and stay in {to}; once "
                "the reason is gone, the same command continues",
            ) from error
    parts = manifest.parts.values()
    return Summary(
        n_rows=sum(part.rows for part in parts),
        n_errors=sum(part.errors for part in parts),
        n_parts=len(parts),
        n_new_rows=n_new,
    )


def _computed(
    function: RowFunction, rows: Input, _identity: Mapping[str, Any], done: AbstractSet[int]
) -> Iterator[tuple[Window, pa.RecordBatch]]:
    """Yield the windows of all parts that are not done, with their results."""
    taken: deque[Window] = deque()

    def columns() -> Iterator[Columns]:
        for window in rows.windows(done.__contains__):
            taken.append(replace(window, columns={}))
            yield window.columns

    for results in function.run(columns()):
        yield taken.popleft(), results


def open_input(
    function: RowFunction,
    files: Sequence[InputFile],
    *,
    id_column: str | None,
    part_rows: int,
) -> Input:
    """Return the rows of files for a function, once every file has the columns that it needs.

    Raises:
        InvalidInput: For a column that a file lacks or has with another type, naming both.
        LlmRuntimeError: If a file cannot be read.
    """
    found = {file: columns_in(file) for file in files}
    there = {file: columns for file, columns in found.items() if columns is not None}
    needed: tuple[str, ...] = ()
    for file, columns in there.items():
        needed = needed or function.needed(list(columns))
        ids = [] if id_column is None else [id_column]
        require_columns(list(columns), [*needed, *ids], file.name)
        for name in function.text_columns:
            if not is_text(columns[name]):
                texts = [each for each, kind in columns.items() if is_text(kind)]
                raise InvalidInput(
                    f"{file.name}: the column {name!r} has the type {columns[name]}, and must have "
                    "texts",
                    f"its columns of texts: {listed(texts)}",
                )
    counts = [_rows_in(file) for file in files]
    return Input(
        files=tuple(there),
        columns=needed,
        id_column=id_column,
        id_type=pa.string() if id_column is None else id_type_of(there, id_column),
        part_rows=part_rows,
        n_rows=None if None in counts else sum(filter(None, counts)),
    )


def _rows_in(file: InputFile) -> int | None:
    """Return the number of rows of a file that has it in its metadata, else None."""
    if file.format == "parquet":
        n_rows: int = pq.read_metadata(file.path).num_rows
        return n_rows
    return None


def identity_of(function: RowFunction, rows: Input) -> dict[str, Any]:
    """Return what determines the rows of a run, as a JSON object; loads the model."""
    options = {
        name: value
        for name, value in asdict(function).items()  # type: ignore[call-overload]
        if name not in NOT_OPTIONS
    }
    names = [*rows.columns, *([] if rows.id_column is None else [rows.id_column])]
    return {
        "command": "embed" if isinstance(function, Embedder) else "infer",
        "refllm": __version__,
        "numerics_revision": NUMERICS_REVISION,
        "numerics": function.numerics,
        "model": {"name": str(function.model), "sha256": model_sha256(function.loaded.path)},
        "options": {**options, "id_column": rows.id_column, "part_rows": rows.part_rows},
        "input": [fingerprint(file, names) for file in rows.files],
    }
