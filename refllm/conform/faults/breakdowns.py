"""Cases without an answer, and errors that repeat: what is the same in them is one cause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from refllm.conform.verdict import Finding, Verdict

__all__ = ["lost_answers", "repeated_errors"]

# An exception by its class and the first words of its message; the others name what it met.
EXCEPTION = re.compile(r"(\w*(?:Error|Exception))\b\W*((?:[^\W\d][\w']*\W+){0,3})")
REQUEST = re.compile(r"\b[A-Z]+ (https?://[^/\s]+)\S*")
QUOTED = re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"")
NUMBER = re.compile(r"-?(?:\d+|\b(?:nan|inf|infinity)\b)", re.IGNORECASE)
# The error of one case is that case's; the same one again is a cause.
FEWEST = 2


def lost_answers(verdicts: Iterable[Verdict]) -> dict[str, Finding]:
    """Return the finding of each case that brought no answer, by id.

    Messages that are the same but for numbers, names in quotes and the path of a request are one
    cause, told in the words of the first. A case that was lost because of another has its finding.
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
        said = _short(verdict.reason)
        cause = causes.setdefault(_kind(said), said)
        found[verdict.case.id] = Finding(cause=cause, consequence="no answer")
    return found


def repeated_errors(verdicts: Sequence[Verdict], causes: Mapping[str, str]) -> dict[str, str]:
    """Return the causes of failed cases that an error which repeats explains, by id.

    It is one where a valid request is refused with it, and no one known mistake explains all cases
    that end in it.

    Args:
        verdicts: Those of the whole run.
        causes: What is known of failed cases already, by id.
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
        if len(alike) >= FEWEST and is_refusal and not is_explained:
            assert alike[0].difference is not None
            said = _said(alike[0].difference.answer["error"])
            cause = f"Valid requests end in the error {said}: look for it in the backend's log."
            found |= {verdict.case.id: cause for verdict in alike}
    return found


def _said(error: Mapping[str, object]) -> str:
    message = _short(str(error.get("message", ""))).rstrip(".:;") or "without a message"
    kind = error.get("kind")
    return f"{kind}: {message}" if kind else message


def _short(message: str) -> str:
    """The message on one line: of a program's last words the very last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no message"]
    return lines[0] if len(lines) == 1 else f"{lines[0]}: {lines[-1]}"


def _kind(message: str) -> str:
    plain = QUOTED.sub("'…'", REQUEST.sub(r"\1", message))
    exception = EXCEPTION.search(plain)
    if exception is not None:
        plain = plain[: exception.start()] + exception[1] + " ".join(exception[2].split())
    return NUMBER.sub("#", plain)
