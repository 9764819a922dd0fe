"""Values and texts of a backend as reports show them: no reader misled, no format broken.

A backend's text may hold anything: markup, control characters, half a surrogate pair, marks that
reverse the writing direction, megabytes. Characters that do not print are escaped as Python does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np

from refllm.conform.verdict import Difference, Verdict

__all__ = [
    "Comparison",
    "clipped",
    "compared",
    "distance",
    "explanation",
    "plain",
    "printable",
    "seen_difference",
    "shown",
    "sides",
]

KEPT = "\n\t"
CUT = "…"


def plain(value: Any) -> Any:
    """Return the value in JSON's types, floats still floats, keys as sorted texts.

    Bytes become hexadecimal, arrays and sets lists, and any other type its text.

    Example:
        >>> plain({2: np.float32(0.5), 1: b"ab"})
        {'1': '6162', '2': 0.5}
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, AbstractSet):
        return sorted(map(plain, value), key=str)
    if isinstance(value, Sequence):
        return [plain(each) for each in value]
    return str(value)


def shown(value: Any) -> str:
    """Return the value on one line, texts in quotes; None is "nothing".

    Example:
        >>> shown(["3", 3])
        '["3", 3]'
    """
    if value is None:
        return "nothing"
    return printable(json.dumps(plain(value), ensure_ascii=False))


def printable(text: str) -> str:
    """Return the text with every character escaped that does not print, but line feeds and tabs.

    Every character of the result is allowed in XML 1.0 and in UTF-8, and none of them changes the
    direction in which its neighbors are written.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in KEPT
        else character.encode("unicode_escape").decode()
        for character in text
    )


def clipped(text: str, length: int) -> str:
    """Return the text, cut to `length` characters, the last of which then is a mark.

    Example:
        >>> clipped("conformance", 8)
        'conform…'
    """
    return text if len(text) <= length else text[: length - 1] + CUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two shown values: the part that differs, and what both have before and after it."""

    before: str
    expected: str
    got: str
    after: str

    @property
    def whole_expected(self) -> str:
        """Return the expected value with what is shared."""
        return self.before + self.expected + self.after

    @property
    def whole_got(self) -> str:
        """Return the target's value with what is shared."""
        return self.before + self.got + self.after


def compared(expected: Any, got: Any, *, length: int) -> Comparison:
    """Return both values shown, each cut to about `length` characters around the first difference.

    Texts, lists and objects are compared by character; any other value, such as a number, differs
    as a whole.
    """
    left, right = shown(expected), shown(got)
    if not isinstance(plain(expected), str | list | dict):
        left, right = clipped(left, length), clipped(right, length)
        return Comparison(before="", expected=left, got=right, after="")
    n_before = _n_shared(left, right)
    if max(len(left), len(right)) > length:
        begin = max(0, n_before - length // 3)
        left, right = _window(left, begin, length), _window(right, begin, length)
        n_before = _n_shared(left, right)
    rest = min(len(left), len(right)) - n_before
    n_after = min(rest, _n_shared(left[::-1], right[::-1]))
    return Comparison(
        before=left[:n_before],
        expected=left[n_before : len(left) - n_after],
        got=right[n_before : len(right) - n_after],
        after=left[len(left) - n_after :],
    )


def distance(tolerances: float) -> str:
    """Return in words how far apart two values are, in units of what is allowed.

    Example:
        >>> distance(2.5)
        '2.5 times what is allowed'
    """
    is_readable = 1000 <= tolerances < 1e9
    return f"{tolerances:{',.0f' if is_readable else '.3g'}} times what is allowed"


def seen_difference(verdict: Verdict) -> Difference | None:
    """Return how a case's answer changed, else how it differs from the right one."""
    return verdict.change or verdict.difference


def sides(verdict: Verdict) -> tuple[str, str]:
    """Return the names of the two values of `seen_difference`."""
    return ("first", "again") if verdict.change is not None else ("expected", "got")


def explanation(verdict: Verdict) -> list[tuple[str, str]]:
    """Return what a report says of a case besides its values, as labels and texts in their order.

    The labels are proves, clause, differs, off by, cause, reason and link; only those that apply.
    """
    difference = seen_difference(verdict)
    away = None if difference is None else difference.tolerances
    facts = (
        ("proves", verdict.case.proves),
        ("clause", verdict.case.clause),
        ("differs", "" if difference is None else difference.where),
        ("off by", "" if away is None else distance(away)),
        *(("cause", each.cause) for each in verdict.findings if each.is_recognized),
        ("reason", verdict.reason),
        ("link", verdict.link or ""),
    )
    return [(label, printable(text)) for label, text in facts if text]


def _n_shared(left: str, right: str) -> int:
    """Return how many characters both begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    different = next((i for i, (a, b) in pairs if a != b), None)
    return min(len(left), len(right)) if different is None else different


def _window(text: str, begin: int, length: int) -> str:
    piece = text[begin : begin + length]
    return (CUT if begin else "") + piece + (CUT if begin + length < len(text) else "")
