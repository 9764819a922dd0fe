"""The badge for a README, in the flat style of shields.io: "refllm conformance | 312/312".

Before the slash is the number of cases that passed, behind it the number of those that were asked.
Skipped cases are counted beside it; cases that do not apply to the target are left out.

    green       all that was asked passed
    olive       all but known deviations passed
    red         a case failed, got no answer, or passed although it was known to fail
    gray        no case was asked

It is an SVG, not JSON for shields.io: a file works offline and in private repositories, and the
server of shields.io need not reach it.
"""

from __future__ import annotations

from refllm.conform.report import Report, counted
from refllm.conform.verdict import Status

__all__ = ["badge_of"]

LABEL = "refllm conformance"

# White on each of them has a contrast of at least 4.5, which WCAG 2 requires.
GREEN, OLIVE, RED, GRAY = "#2d7d32", "#6b7010", "#c62828", "#616161"

# The advance widths of Verdana's characters at 11 px, in tenths of a px. A browser without Verdana
# stretches its own font to this length.
ADVANCES = {
    **dict.fromkeys("0123456789", 70),
    **{" ": 39, ",": 40, "/": 50, "a": 66, "b": 69, "c": 57, "d": 69, "e": 66, "f": 39, "g": 69},
    **{"h": 70, "i": 30, "j": 38, "k": 65, "l": 30, "m": 107, "n": 70, "o": 67, "p": 69, "q": 69},
    **{"r": 47, "s": 57, "t": 43, "u": 70, "v": 65, "w": 90, "x": 65, "y": 65, "z": 58},
}
PADDING = 50

BADGE = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" \
aria-label="{label}: {message}">
<title>{label}: {message}</title>
<linearGradient id="s" x2="0" y2="100%">
<stop offset="0" stop-color="#bbb" stop-opacity=".1"/>
<stop offset="1" stop-opacity=".1"/>
</linearGradient>
<clipPath id="r"><rect width="{width}" height="20" rx="3" fill="#fff"/></clipPath>
<g clip-path="url(#r)">
<rect width="{split}" height="20" fill="#555"/>
<rect x="{split}" width="{rest}" height="20" fill="{color}"/>
<rect width="{width}" height="20" fill="url(#s)"/>
</g>
<g fill="#fff" text-anchor="middle" font-family="Verdana,Geneva,DejaVu Sans,sans-serif" \
font-size="110" aria-hidden="true">
<text x="{label_x}" y="150" fill="#010101" fill-opacity=".3" transform="scale(.1)" \
textLength="{label_length}">{label}</text>
<text x="{label_x}" y="140" transform="scale(.1)" textLength="{label_length}">{label}</text>
<text x="{message_x}" y="150" fill="#010101" fill-opacity=".3" transform="scale(.1)" \
textLength="{message_length}">{message}</text>
<text x="{message_x}" y="140" transform="scale(.1)" textLength="{message_length}">{message}</text>
</g>
</svg>
"""


def badge_of(report: Report) -> str:
    """Return the badge as an SVG file of ASCII; the same totals give the same bytes."""
    message, color = _message(report.totals)
    label_length, message_length = _length(LABEL), _length(message)
    split, rest = (round((length + 2 * PADDING) / 10) for length in (label_length, message_length))
    return BADGE.format(
        label=LABEL,
        message=message,
        color=color,
        split=split,
        rest=rest,
        width=split + rest,
        label_x=split * 5,
        label_length=label_length,
        message_x=split * 10 + rest * 5,
        message_length=message_length,
    )


def _message(totals: dict[Status, int]) -> tuple[str, str]:
    """Return the badge's right half: its text and its color."""
    bad: tuple[Status, ...] = ("failed", "unexpected pass", "error")
    wrong = [counted(totals[status], status) for status in bad if totals[status]]
    if wrong:
        return ", ".join(wrong), RED
    n_passed, n_skipped = totals["passed"], totals["skipped"]
    n_asked = n_passed + totals["expected failure"]
    if n_asked == 0:
        return "nothing tested", GRAY
    skipped = f", {n_skipped} skipped" if n_skipped else ""
    return f"{n_passed}/{n_asked}{skipped}", GREEN if n_passed == n_asked else OLIVE


def _length(text: str) -> int:
    return sum(ADVANCES[character] for character in text)
