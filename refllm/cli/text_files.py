"""Files of texts for `refllm embed --file`: a text on each line, JSON, or a table.

    docs.txt             a text on each line
    --field body         JSON lines: an object on each line; or one JSON array of objects
    docs.csv, docs.tsv   with --field: a table, whose first line has the columns' names

Without --field, JSON and tables are refused: vectors of braces, keys and commas would look like any
other vectors.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from refllm.errors import InvalidInput

__all__ = ["texts_of"]

MAX_LISTED_KEYS = 10
MAX_LISTED = 200  # characters
BYTE_ORDER_MARK = "\ufeff"
SEPARATORS: Mapping[str, str] = {".csv": ",", ".tsv": "\t"}
"""The separator of a table's columns, by the ending of the file's name."""


def texts_of(content: str, field: str | None, name: str) -> list[str]:
    """Return the texts of a file, in its order.

    Args:
        content: The whole file.
        field: The key or the column that has the texts; None for a text on each line.
        name: The file's name, for errors; its ending marks a table.

    Raises:
        InvalidInput: For JSON or a table without `field`, and for a line without a text in it.
    """
    content = content.removeprefix(BYTE_ORDER_MARK)
    separator = SEPARATORS.get(Path(name).suffix.lower())
    if field is None:
        lines = _lines(content)
        if separator is not None:
            try:
                columns = ", ".join(map(repr, next(csv.reader(lines[:1], delimiter=separator), [])))
            except csv.Error:  # a carriage return in the line, or a field beyond the limit
                columns = repr(lines[0])
            raise InvalidInput(
                f"{name} is a table, and --file reads a text from each line; --field NAME embeds "
                "the texts of one column",
                f"the first line has {columns[:MAX_LISTED] or 'nothing'}",
            )
        _refuse_json(content, lines, name)
        n_empty = sum(not line.strip() for line in lines)
        if n_empty:
            verb = "is" if n_empty == 1 else "are"
            typer.echo(
                f"refllm: {n_empty} of {len(lines)} lines of {name} {verb} empty; each line has "
                "a vector, an empty one too",
                err=True,
            )
        return lines
    if separator is not None:
        return [*_of_table(content, field, name, separator)]
    if content.lstrip().startswith("["):
        objects = _parsed_or_none(content)
        if isinstance(objects, list):
            numbered = enumerate(objects, 1)
            return [_text_of(item, field, f"{name}, item {i}") for i, item in numbered]
    return [*_of_json_lines(content, field, name)]


def _lines(content: str) -> list[str]:
    """Return the lines; only a line feed, with or without a carriage return, ends a line."""
    # str.splitlines would also cut a text at U+2028 or a form feed.
    lines = content.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _of_json_lines(content: str, field: str, name: str) -> Iterator[str]:
    for i, line in enumerate(_lines(content), 1):
        if not line.strip():
            continue
        where = f"{name}, line {i}"
        try:
            value = _parsed(line)
        except ValueError as error:
            raise InvalidInput(
                f"{where}: not JSON: {error}",
                "with --field a file has JSON lines, one JSON array of objects, or a table; a "
                "table's name ends in .csv or .tsv",
            ) from error
        yield _text_of(value, field, where)


def _of_table(content: str, field: str, name: str, separator: str) -> Iterator[str]:
    header = content.partition("\n")[0]
    if separator == "," and ";" in header and "," not in header:
        separator = ";"  # of spreadsheets in locales with a decimal comma
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    usual_limit = csv.field_size_limit(max(len(content), 1))  # of the whole process
    try:
        columns = next(rows, [])
        if field not in columns:
            raise InvalidInput(f"{name}: has no column {field!r}, but {_named(columns)}")
        for row in rows:
            if not row:
                continue  # an empty line
            if len(row) != len(columns):
                raise InvalidInput(
                    f"{name}, line {rows.line_num}: has {len(row)} columns, and the first line "
                    f"{len(columns)}; quote a text that contains {separator!r}"
                )
            yield row[columns.index(field)]
    except csv.Error as error:
        raise InvalidInput(f"{name}, line {rows.line_num}: {error}") from error
    finally:
        csv.field_size_limit(usual_limit)


def _text_of(value: object, field: str, where: str) -> str:
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: a JSON {_kind(value)}, not an object with the key {field!r}")
    if field not in value:
        raise InvalidInput(f"{where}: has no key {field!r}, but {_named(list(value))}")
    text = value[field]
    if not isinstance(text, str):
        raise InvalidInput(f"{where}: {field!r} is not a text but a JSON {_kind(text)}")
    return text


def _refuse_json(content: str, lines: list[str], name: str) -> None:
    """Raise `InvalidInput` if the file is one JSON array or object, or most lines are JSON."""
    if not content.lstrip().startswith(("{", "[")):
        return
    value = _parsed_or_none(content)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        raise InvalidInput(
            f"{name} is one JSON array, and --file reads a text from each line",
            "to embed its texts, if none has a line end: jq -r '.[]' FILE | refllm embed MODEL "
            "--file -",
        )
    values = [_parsed_or_none(line) for line in lines if line.strip()]
    objects = [value for value in values if isinstance(value, dict)]
    if 2 * len(objects) > len(values):
        raise InvalidInput(
            f"{name} has JSON lines; --field NAME embeds the texts of one key",
            f"the first object has {_named(list(objects[0]))}",
        )
    if isinstance(value, list) and value and isinstance(value[0], dict):
        raise InvalidInput(
            f"{name} is one JSON array; --field NAME embeds the texts of one key",
            f"the first object has {_named(list(value[0]))}",
        )
    if value is not None or all(isinstance(value, list) for value in values):
        kind = "JSON lines of arrays" if value is None else f"one JSON {_kind(value)}"
        raise InvalidInput(
            f"{name} is {kind}, and --file reads a text from each line",
            "with an object on each line instead (jq -c makes such lines of any JSON), "
            "--field NAME embeds the texts of one key",
        )


def _parsed(text: str) -> Any:
    """Return the value. Raises `ValueError` for text that is not JSON or nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _parsed_or_none(text: str) -> Any:
    try:
        return _parsed(text)
    except ValueError:
        return None


def _named(keys: list[str]) -> str:
    shown = ", ".join(map(repr, keys[:MAX_LISTED_KEYS]))[:MAX_LISTED] or "no keys"
    return shown + (" and more" if len(keys) > MAX_LISTED_KEYS else "")


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {dict: "object", list: "array", str: "string", int: "number", float: "number"}
    return kinds[type(value)]
