"""The schema of the protocol between refllm conform and a harness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

import refllm.conform

__all__ = ["SCHEMA", "follows"]

SCHEMA = json.loads(
    Path(refllm.conform.__file__).with_name("protocol.schema.json").read_text("utf-8")
)


def follows(part: str, message: Mapping[str, Any]) -> bool:
    """Whether the message is what the schema calls by this name."""
    schema = {"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{part}"}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(message))
