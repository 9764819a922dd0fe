"""JSON lines as `refllm embed --file` reads them: a text from one key of each object.

A file of JSON that is read as plain text gives vectors of braces and keys, which look like any
other vectors, so it is recognized and refused.
"""

from __future__ import annotations

import json
from typing import Any

from refllm.api import InvalidInput

__all__ = ["refuse_json", "texts_of"]

MOST_KEYS_NAMED = 10
LONGEST_NAMED = 200  # characters
BYTE_ORDER_MARK = "\ufeff"


def texts_of(lines: list[str], field: str, name: str) -> list[str]:
    """Return the text of the key `field` of each line.

    Args:
        lines: The lines of the file, each a JSON object.
        field: The key.
        name: What errors call the file.

    Raises:
        InvalidInput: Naming the line that is no JSON object, has no such key, or no text in it.
    """
    return [_text_of(line, field, f"{name}, line {i}") for i, line in enumerate(lines, 1)]


def _text_of(line: str, field: str, where: str) -> str:
    try:
        value = _parsed(line)
    except ValueError as error:
        raise InvalidInput(f"{where}: no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: a JSON {_kind(value)}, not an object with the key {field!r}")
    if field not in value:
        raise InvalidInput(f"{where}: has no key {field!r}, but {_keys_of(value)}")
    text = value[field]
    if not isinstance(text, str):
        raise InvalidInput(f"{where}: {field!r} is not a text but a JSON {_kind(text)}")
    return text


def refuse_json(content: str, lines: list[str], name: str) -> None:
    """Raise `InvalidInput` if the file is one JSON array or object, or a JSON object on each line.

    Args:
        content: The whole file.
        lines: Its lines.
        name: What the error calls the file.
    """
    if not content.lstrip(BYTE_ORDER_MARK).lstrip().startswith(("{", "[")):
        return
    try:
        objects = [_parsed(line) for line in lines if line.strip()]
    except ValueError:
        objects = []
    if objects and all(isinstance(value, dict) for value in objects):
        raise InvalidInput(
            f"{name} has JSON lines; --field NAME embeds the texts of one key",
            f"the first line has {_keys_of(objects[0])}",
        )
    try:
        value = _parsed(content)
    except ValueError:
        return
    raise InvalidInput(
        f"{name} is one JSON {_kind(value)}, and --file reads a text from each line",
        "with an object on each line instead (jq -c '.[]' FILE makes such lines of an array), "
        "--field NAME embeds the texts of one key",
    )


def _parsed(text: str) -> Any:  # noqa: ANN401 (JSON is anything)
    """Return the value. Raises `ValueError` if it is no JSON, or nested too deep."""
    try:
        return json.loads(text.removeprefix(BYTE_ORDER_MARK))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _keys_of(value: dict[str, Any]) -> str:
    keys = ", ".join(map(repr, list(value)[:MOST_KEYS_NAMED]))[:LONGEST_NAMED] or "no keys"
    return keys + (" and more" if len(value) > MOST_KEYS_NAMED else "")


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {dict: "object", list: "array", str: "string", int: "number", float: "number"}
    return kinds[type(value)]
