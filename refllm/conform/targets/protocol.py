"""The JSON lines that a harness speaks, as `protocol.schema.json` describes them, read and checked.

The checks here and the schema accept the same messages; here a message that is wrong is told apart
by what is wrong with it, and nothing needs a library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any, NoReturn

from refllm.conform.case import GROUPS, Case
from refllm.conform.reply import (
    Answer,
    Broken,
    Implementation,
    NotApplicable,
    Reply,
    Skipped,
)
from refllm.conform.wire import MOST_NESTED, is_nested_deeper, to_wire

__all__ = [
    "VERSION",
    "ProtocolError",
    "implementation_of",
    "line_of",
    "message_of",
    "reply_of",
    "run_message",
    "shown",
    "unaskable",
]

VERSION = 1
LONGEST_SHOWN = 120  # characters of what a harness printed, in a message of ours
LONGEST_TEXT = 10_000  # characters of a reason or a name that a harness gives
MOST_DETAILS = 100


class ProtocolError(Exception):
    """What came is not what the protocol says; the message is a clause about the harness."""


# --- To a harness --------------------------------------------------------------------------------


def unaskable(case: Case) -> NotApplicable | None:
    """Return why no harness can be asked a request that only HTTP can carry, None for others."""
    reason = case.input.get("not_in", {}).get("python")
    return None if reason is None else NotApplicable(str(reason))


def run_message(case: Case) -> Mapping[str, Any]:
    """What asks a harness the case."""
    return {"cmd": "run", "id": case.id, "group": case.group, "input": to_wire(case.input)}


def line_of(message: Mapping[str, Any]) -> bytes:
    """The message as one line. It is ASCII, so a reader with another encoding reads it as well."""
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


# --- From a harness ------------------------------------------------------------------------------


def message_of(line: bytes) -> Mapping[str, Any]:
    """The JSON object that is in the line. Errors: `ProtocolError`."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"printed a line that is not UTF-8: {shown(line)}") from None
    try:
        message = json.loads(text, parse_constant=_no_constant)
    except ProtocolError:
        raise
    except (ValueError, RecursionError):
        raise ProtocolError(
            f"printed a line that is not JSON: {shown(line)}; only answers may go to standard "
            "output, so let everything else go to standard error"
        ) from None
    if not isinstance(message, dict):
        raise ProtocolError(f"printed a line that is not a JSON object: {shown(line)}")
    return message


def _no_constant(name: str) -> NoReturn:
    raise ProtocolError(
        f'printed {name}, which JSON does not have; such numbers are the strings "nan", "inf" and '
        '"-inf"'
    )


def implementation_of(message: Mapping[str, Any]) -> Implementation:
    """Who answers, from the answer to start. Errors: `ProtocolError`."""
    _check_nesting(message)
    if "error" in message:
        _check_keys("its answer to start", message, {"error"})
        raise ProtocolError(f"cannot start: {_text(message, 'error')}")
    version = message.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise ProtocolError(
            f"speaks version {shown(version)} of the protocol, and this refllm version {VERSION}; "
            "use a harness and a refllm that belong together"
        )
    answer = "its answer to start"
    _check_keys(answer, message, {"version", "implementation", "groups", "draws_as_refllm"})
    said = message.get("implementation")
    if not isinstance(said, dict):
        raise ProtocolError(f"did not say its implementation: {answer} has {shown(said)}")
    _check_keys("implementation", said, {"name", "version", "language", "details"})
    groups = message.get("groups")
    if not isinstance(groups, list) or any(group not in GROUPS for group in groups):
        raise ProtocolError(f"has groups {shown(groups)}; they must be among {', '.join(GROUPS)}")
    draws = message.get("draws_as_refllm", False)
    if not isinstance(draws, bool):
        raise ProtocolError(f"has draws_as_refllm {shown(draws)}, which must be true or false")
    return Implementation(
        name=_text(said, "name"),
        version=_text(said, "version", default=""),
        language=_text(said, "language", default=""),
        groups=frozenset(groups),
        draws_as_refllm=draws,
        details=_details(said.get("details", {})),
    )


def reply_of(message: Mapping[str, Any], case_id: str, *, n_bytes: int = 0) -> Reply:
    """What a harness replied to the case, in so many bytes. Errors: `ProtocolError`."""
    _check_nesting(message)
    if message.get("id") != case_id:
        raise ProtocolError(
            f"answered {shown(message.get('id'))} when it was asked {case_id!r}; each case gets "
            "one line, with the id that it came with"
        )
    said = message.keys() & {"result", "skip", "error"}
    if len(said) != 1:
        raise ProtocolError(f"must give one of result, skip and error; it gave {_listed(said)}")
    _check_keys("its answer", message, {"id", *said})
    if "skip" in message:
        return Skipped(_text(message, "skip"))
    if "error" in message:
        return Broken(_text(message, "error"))
    if not isinstance(message["result"], dict):
        raise ProtocolError(f"gave a result that is not an object: {shown(message['result'])}")
    return Answer(message["result"], n_bytes)


def shown(value: object) -> str:
    """What came, short and on one line."""
    if isinstance(value, bytes):
        begin = value[: 4 * LONGEST_SHOWN]
        text = repr(begin.decode("utf-8", "backslashreplace").rstrip("\r\n"))
    else:
        text = "nothing" if value is None else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _text(message: Mapping[str, Any], key: str, *, default: str | None = None) -> str:
    text = message.get(key, default)
    if not isinstance(text, str) or (not text and default is None):
        raise ProtocolError(f"must give a text as {key}; it gave {shown(text)}")
    return text[:LONGEST_TEXT]


def _details(said: object) -> Mapping[str, str]:
    if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
        raise ProtocolError(f"has details {shown(said)}; they must be texts by name")
    some = list(said.items())[:MOST_DETAILS]
    return {str(name)[:LONGEST_SHOWN]: text[:LONGEST_TEXT] for name, text in some}


def _check_nesting(message: Mapping[str, Any]) -> None:
    if is_nested_deeper(message, MOST_NESTED):
        raise ProtocolError(f"gave lists or objects more than {MOST_NESTED} deep in one another")


def _check_keys(what: str, message: Mapping[str, Any], known: Set[str]) -> None:
    unknown = message.keys() - known
    if unknown:
        raise ProtocolError(
            f"gave {_listed(unknown)}, which {what} does not have; the keys are {_listed(known)}"
        )


def _listed(keys: Set[str]) -> str:
    return ", ".join(sorted(keys))[:LONGEST_TEXT] or "none of them"
