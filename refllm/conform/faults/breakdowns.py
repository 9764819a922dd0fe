"""Cases without an answer, and errors that repeat: equal messages are one cause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from refllm.conform.verdict import Finding, Verdict

__all__ = ["lost_answers", "repeated_errors"]

# An exception by its class and the first words of its message; the rest names values.
EXCEPTION = re.compile(r"(\w*(?:Error|Exception))\b\W*((?:[^\W\d][\w']*\W+){0,3})")
REQUEST = re.compile(r"\b[A-Z]+ (https?://[^/\s]+)\S*")
QUOTED = re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"")
NUMBER = re.compile(r"-?(?:\d+|\b(?:nan|inf|infinity)\b)", re.IGNORECASE)
# An error of one case is that case's own; the same one again is a cause.
MIN_REPEATS = 2


def lost_answers(verdicts: Iterable[Verdict]) -> dict[str, Finding]:
    """Return the finding of each case that brought no answer, by id.

    Messages that are the same but for numbers, names in quotes and the path of a request are one
    cause, in the words of the first. A case that was lost because of another has its finding.
    """
    causes: dict[str, str] = {}
    found: dict[str, Finding] = {}
    for verdict in verdicts:
        if verdict.status != "error":
            continue
        before = found.get(verdict.because_of or "")
        if before is not None:
            found[verdict.case.id] = before
            continue
        message = _short(verdict.reason)
        cause = causes.setdefault(_kind(message), message)
        found[verdict.case.id] = Finding(cause=cause, consequence="no answer")
    return found


def repeated_errors(verdicts: Sequence[Verdict], causes: Mapping[str, str]) -> dict[str, str]:
    """Return the causes of failed cases that an error which repeats explains, by id.

    A valid request is refused with it, and no single known fault explains all cases that end in it.

    Args:
        verdicts: The verdicts of the whole run.
        causes: The known causes of failed cases, by id.
    """
    by_message: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        answer = {} if verdict.difference is None else verdict.difference.answer
        error = answer.get("error")
        if isinstance(error, Mapping):
            kind, message = str(error.get("kind", "")), str(error.get("message", ""))
            by_message.setdefault((kind, _kind(message)), []).append(verdict)
    found: dict[str, str] = {}
    for alike in by_message.values():
        is_refusal = any("error" not in verdict.case.expected for verdict in alike)
        known = {causes.get(verdict.case.id) for verdict in alike}
        is_explained = len(known) == 1 and None not in known
        if len(alike) >= MIN_REPEATS and is_refusal and not is_explained:
            assert alike[0].difference is not None
            error = alike[0].difference.answer["error"]
            message = _short(str(error.get("message", ""))).rstrip(".:;") or "without a message"
            named = f"{error['kind']}: {message}" if error.get("kind") else message
            cause = f"Valid requests end in the error {named}: look for it in the backend's log."
            found |= {verdict.case.id: cause for verdict in alike}
    return found


def _short(message: str) -> str:
    """Return the message on one line: its first, and of a program's last words the last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no message"]
    return lines[0] if len(lines) == 1 else f"{lines[0]}: {lines[-1]}"


def _kind(message: str) -> str:
    plain = QUOTED.sub("'…'", REQUEST.sub(r"\1", message))
    exception = EXCEPTION.search(plain)
    if exception is not None:
        plain = plain[: exception.start()] + exception[1] + " ".join(exception[2].split())
    return NUMBER.sub("#", plain)
