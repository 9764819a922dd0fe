"""Batches of rows in the forms that data libraries pass to a function, as columns, and back.

A form is a class of batch: pyarrow's Table and RecordBatch, pandas' DataFrame, or a dict of NumPy
arrays or of lists. In between a column is a list of Python values with None for a null, and results
are a RecordBatch.

N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from refllm.errors import InvalidInput

__all__ = [
    "Columns",
    "NotText",
    "add_results",
    "column_names",
    "columns_of",
    "is_text",
    "listed",
    "require_columns",
    "values_of",
]

Columns: TypeAlias = Mapping[str, Sequence[object]]
"""The columns of a batch by name, all of the same length."""

MAX_LISTED = 20  # columns in a message


class NotText:
    """The value of a row that cannot be read, such as bytes that are not UTF-8.

    Attributes:
        reason: A clause for the row's error.
    """

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


def column_names(batch: object) -> list[str]:
    """Return the names of a batch's columns. Raises `InvalidInput` for another class."""
    if isinstance(batch, pa.Table | pa.RecordBatch):
        names: list[str] = batch.schema.names
        return names
    if isinstance(batch, Mapping):
        return [str(name) for name in batch]
    if _is_frame(batch):
        frame: Any = batch
        return [str(name) for name in frame.columns]
    raise InvalidInput(
        "a batch must be a pyarrow Table or RecordBatch, a pandas DataFrame, or a dict of NumPy "
        f"arrays or lists; got {type(batch).__module__}.{type(batch).__qualname__}"
    )


def columns_of(batch: object, names: Collection[str], *, text: Collection[str]) -> Columns:
    """Return columns of a batch.

    Args:
        batch: A Table, RecordBatch, DataFrame, or dict of NumPy arrays or lists.
        names: The columns.
        text: Those of them that must have texts.

    Raises:
        InvalidInput: For an object of another class, a column that is missing, and one of `text`
            whose type is another.
    """
    require_columns(column_names(batch), names, "the batch")
    if isinstance(batch, pa.Table | pa.RecordBatch):
        for name in text:
            kind = batch.schema.field(name).type
            if not is_text(kind):
                raise _wrong_type(name, kind)
        return {name: values_of(batch.column(name)) for name in names}
    if isinstance(batch, Mapping):
        return {name: _of_sequence(name, batch[name], name in text) for name in names}
    frame: Any = batch
    found = {}
    for name in names:
        series = frame.iloc[:, column_names(frame).index(name)]  # its own names may be numbers
        if name in text and series.dtype.kind in "iufcbmM" and series.notna().any():
            raise _wrong_type(name, series.dtype)
        values = series.astype(object).where(series.notna(), None)
        found[name] = _of_sequence(name, values.tolist(), name in text)
    return found


def add_results(batch: Any, results: pa.RecordBatch) -> Any:
    """Return a batch of the same class with the results' columns after its own.

    In a dict of NumPy arrays and in a DataFrame, the rows of a column of vectors are arrays; of a
    row with an error they are NaN.

    Raises:
        InvalidInput: For a column of the batch that has a result's name.
    """
    same = [name for name in results.schema.names if name in column_names(batch)]
    if same:
        raise InvalidInput(
            f"the batch has a column {same[0]!r} already, which the result would have; rename it"
        )
    if isinstance(batch, pa.Table | pa.RecordBatch):
        columns = [*batch.columns, *results.columns]
        fields = [*batch.schema, *results.schema]
        return type(batch).from_arrays(
            columns, schema=pa.schema(fields, metadata=batch.schema.metadata)
        )
    if isinstance(batch, Mapping):
        is_numpy = any(isinstance(column, np.ndarray) for column in batch.values())
        convert: Callable[[Any], object] = _array_of if is_numpy else pa.Array.to_pylist
        return {**batch, **{name: convert(results.column(name)) for name in results.schema.names}}
    arrays = {name: _array_of(results.column(name)) for name in results.schema.names}
    return batch.assign(
        **{name: list(array) if array.ndim > 1 else array for name, array in arrays.items()}
    )


def require_columns(there: Sequence[str], names: Collection[str], where: str) -> None:
    """Raise `InvalidInput` for a name that is not among the columns that are there, or twice."""
    for name in names:
        if name not in there:
            raise InvalidInput(f"{where} has no column {name!r}; its columns are {listed(there)}")
        if there.count(name) > 1:
            raise InvalidInput(f"{where} has several columns {name!r}; rename all but one")


def listed(names: Sequence[str]) -> str:
    """Return the names of columns for a message."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return (", ".join(map(repr, names[:MAX_LISTED])) or "none") + more


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this Arrow type has texts; one of nulls alone may have them."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def values_of(column: pa.Array | pa.ChunkedArray) -> list[object]:
    """Return the values of an Arrow column, with a `NotText` for each that Python cannot hold.

    Such values are texts that are not UTF-8, times after the year 9999, and fractions of a
    microsecond.
    """
    try:
        values: list[object] = _without_ns(column).to_pylist()
    except (ValueError, OverflowError):
        values = [_value_of(scalar) for scalar in column]
    return values


def _without_ns(values: Any) -> Any:
    """Return times in ns as times in us; a column or scalar of another type as it is.

    In ns they would be values of pandas where it is installed, whose texts are others.

    Raises:
        pa.ArrowInvalid: For a fraction of a microsecond.
    """
    kind = values.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return values.cast(pa.timestamp("us", kind.tz))
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return values.cast(pa.duration("us"))
    return values


def _value_of(scalar: pa.Scalar) -> object:
    try:
        value: object = _without_ns(scalar).as_py()
    except UnicodeDecodeError as error:
        return NotText(f"not UTF-8: byte 0x{error.object[error.start]:02X} at index {error.start}")
    except (ValueError, OverflowError) as error:
        return NotText(f"no value that Python can hold: {error}")
    return value


def _of_sequence(name: str, column: Any, must_be_text: bool) -> list[object]:
    if isinstance(column, np.ndarray):
        if must_be_text and column.dtype.kind not in "OUT":
            raise _wrong_type(name, column.dtype)
        column = column.tolist()
    return [None if isinstance(v, float) and math.isnan(v) else v for v in column]


def _array_of(column: pa.Array) -> np.ndarray[Any, Any]:
    """Return a column of results as NumPy has it: vectors as float32 [N, D], else [N]."""
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        vectors = np.full((len(column), width), np.nan, np.float32)  # [N, D]
        is_there = np.asarray(column.is_valid())  # bool [N]
        vectors[is_there] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        return vectors
    values = column.to_pylist()
    array = np.empty(len(values), object)  # [N]
    array[:] = values if not pa.types.is_list(column.type) else [_int32(value) for value in values]
    return array


def _int32(value: list[int] | None) -> object:
    return None if value is None else np.array(value, np.int32)


def _is_frame(batch: object) -> bool:
    """Return whether this is a pandas DataFrame, without importing pandas."""
    return any(
        each.__name__ == "DataFrame" and each.__module__.partition(".")[0] == "pandas"
        for each in type(batch).__mro__
    )


def _wrong_type(name: str, kind: object) -> InvalidInput:
    return InvalidInput(f"the column {name!r} has the type {kind}, and must have texts")
