"""The JSON lines that a harness speaks, as `protocol.schema.json` describes them, read and checked.

These checks and the schema accept the same messages. The checks here are written out, because a
schema's validator is one more package and names a path of the schema; the errors here name the key,
the value and the fix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any, NoReturn

from refllm.conform.case import GROUPS, Case
from refllm.conform.reply import (
    Answer,
    HarnessError,
    Implementation,
    NotApplicable,
    Reply,
    Skipped,
)
from refllm.conform.wire import MAX_NESTING, is_nested_deeper, to_wire

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
MAX_SHOWN = 120  # characters of a harness's output in a message of ours
MAX_TEXT = 10_000  # characters of a reason or a name that a harness gives
MAX_DETAILS = 100


class ProtocolError(Exception):
    """The harness broke the protocol; the message is a clause whose subject is the harness."""


# --- To a harness --------------------------------------------------------------------------------


def unaskable(case: Case) -> NotApplicable | None:
    """Return why no harness can be asked a request that only HTTP can carry, None for others."""
    reason = case.input.get("not_in", {}).get("python")
    return None if reason is None else NotApplicable(str(reason))


def run_message(case: Case) -> Mapping[str, Any]:
    """Return the message that asks a harness the case."""
    return {"cmd": "run", "id": case.id, "group": case.group, "input": to_wire(case.input)}


def line_of(message: Mapping[str, Any]) -> bytes:
    """Return the message as one line of ASCII, which readers of most encodings understand."""
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


# --- From a harness ------------------------------------------------------------------------------


def message_of(line: bytes) -> Mapping[str, Any]:
    """Return the JSON object that is in the line.

    Raises:
        ProtocolError: Where the line is something else.
    """

    def refuse(name: str) -> NoReturn:
        raise ProtocolError(
            f'printed {name}, which JSON does not have; such numbers are the strings "nan", "inf" '
            'and "-inf"'
        )

    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"printed a line that is not UTF-8: {shown(line)}") from None
    try:
        message = json.loads(text, parse_constant=refuse)
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


def implementation_of(message: Mapping[str, Any]) -> Implementation:
    """Return what is tested, from a harness's answer to the start message.

    Raises:
        ProtocolError: Naming the key that is wrong, or why the harness cannot start.
    """
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
    keys = {"version", "implementation", "groups", "draws_as_refllm", "claims_revision"}
    _check_keys(answer, message, keys)
    about = message.get("implementation")
    if not isinstance(about, dict):
        raise ProtocolError(f"did not name its implementation: {answer} has {shown(about)}")
    _check_keys("implementation", about, {"name", "version", "language", "details"})
    groups = message.get("groups")
    if not isinstance(groups, list) or any(group not in GROUPS for group in groups):
        raise ProtocolError(f"has groups {shown(groups)}; they must be among {', '.join(GROUPS)}")
    draws = message.get("draws_as_refllm", False)
    if not isinstance(draws, bool):
        raise ProtocolError(f"has draws_as_refllm {shown(draws)}, which must be true or false")
    claims: Any = message.get("claims_revision")
    is_number = isinstance(claims, int | float) and not isinstance(claims, bool)
    if "claims_revision" in message and not (is_number and claims >= 1 and claims % 1 == 0):
        raise ProtocolError(
            f"has claims_revision {shown(claims)}, which must be a numerics revision, a whole "
            "number from 1; leave it out to claim none"
        )
    details = about.get("details", {})
    if not isinstance(details, dict) or not all(isinstance(v, str) for v in details.values()):
        raise ProtocolError(f"has details {shown(details)}; they must be texts by name")
    return Implementation(
        name=_text(about, "name"),
        version=_text(about, "version", default=""),
        language=_text(about, "language", default=""),
        groups=frozenset(groups),
        draws_as_refllm=draws,
        claims_revision=None if claims is None else int(claims),
        details={
            str(name)[:MAX_SHOWN]: text[:MAX_TEXT]
            for name, text in list(details.items())[:MAX_DETAILS]
        },
    )


def reply_of(message: Mapping[str, Any], case_id: str, *, n_bytes: int = 0) -> Reply:
    """Return a harness's reply to the case.

    Args:
        message: What the harness sent.
        case_id: The id that it was asked with.
        n_bytes: The length of the message as it was sent.

    Raises:
        ProtocolError: Where the message is no reply to the case.
    """
    _check_nesting(message)
    if message.get("id") != case_id:
        raise ProtocolError(
            f"answered {shown(message.get('id'))} when it was asked {case_id!r}; each case gets "
            "one line, with the id that it came with"
        )
    outcome = message.keys() & {"result", "skip", "error"}
    if len(outcome) != 1:
        raise ProtocolError(f"must give one of result, skip and error; it gave {_listed(outcome)}")
    _check_keys("its answer", message, {"id", *outcome})
    if "skip" in message:
        return Skipped(_text(message, "skip"))
    if "error" in message:
        return HarnessError(_text(message, "error"))
    if not isinstance(message["result"], dict):
        raise ProtocolError(f"gave a result that is not an object: {shown(message['result'])}")
    return Answer(message["result"], n_bytes)


def shown(value: object) -> str:
    """Return a value of a harness as a message shows it: short, on one line."""
    if isinstance(value, bytes):
        begin = value[: 4 * MAX_SHOWN]
        text = repr(begin.decode("utf-8", "backslashreplace").rstrip("\r\n"))
    else:
        text = "nothing" if value is None else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _text(message: Mapping[str, Any], key: str, *, default: str | None = None) -> str:
    text = message.get(key, default)
    if not isinstance(text, str) or (not text and default is None):
        raise ProtocolError(f"must give a text as {key}; it gave {shown(text)}")
    return text[:MAX_TEXT]


def _check_nesting(message: Mapping[str, Any]) -> None:
    if is_nested_deeper(message, MAX_NESTING):
        raise ProtocolError(f"gave lists or objects more than {MAX_NESTING} deep in one another")


def _check_keys(what: str, message: Mapping[str, Any], known: Set[str]) -> None:
    unknown = message.keys() - known
    if unknown:
        raise ProtocolError(
            f"gave {_listed(unknown)}, which {what} does not have; the keys are {_listed(known)}"
        )


def _listed(keys: Set[str]) -> str:
    return ", ".join(sorted(keys))[:MAX_TEXT] or "none of them"
