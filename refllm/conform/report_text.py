"""The report for a terminal: a table by group, what failed and how, and what was not tested.

text_of     the report, in 80 columns, without color
progress    how far the run is, on a terminal's last line
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from unicodedata import east_asian_width

from refllm.conform.report import STATUSES, Report, without_password
from refllm.conform.report_values import clipped, compared, explanation, printable
from refllm.conform.verdict import Status, Verdict

__all__ = ["progress", "text_of"]

COLUMNS = 80
LABEL_COLUMNS = 13  # "  1000 cases "
VALUE_LENGTH = 3 * (COLUMNS - LABEL_COLUMNS) - 2  # three lines, with a mark at both ends
REASON_LENGTH = 600
# Who breaks the first thing breaks many, and the rest of them says nothing new.
MOST_EXPLAINED = 25

HEADINGS: dict[Status, tuple[str, str]] = {
    "passed": ("", "passed"),
    "failed": ("", "failed"),
    "skipped": ("", "skipped"),
    "error": ("", "errors"),
    "expected failure": ("expected", "failures"),
    "unexpected pass": ("unexpected", "passes"),
}


def text_of(report: Report, *, most_explained: int = MOST_EXPLAINED) -> str:
    """The report as lines of at most 80 columns, ending in a line feed.

    The first `most_explained` failures are explained, the others named.
    """
    sections = (
        _head(report),
        _table(report),
        *_failures(report, most_explained),
        _reasons(
            "ERRORS (the harness broke, which says nothing about the backend)", report, "error"
        ),
        _reasons("EXPECTED FAILURES (the profile knows)", report, "expected failure"),
        _reasons("SKIPPED", report, "skipped"),
        _causes(report),
        _end(report),
    )
    return "\n".join("".join(f"{line}\n" for line in lines) for lines in sections if lines)


@contextmanager
def progress(n_cases: int) -> Iterator[Callable[[Verdict], None]]:
    """What to tell each verdict as it comes: a bar on standard error, where somebody sees it.

    Nothing is written where standard error is no terminal, and the bar is gone at the end.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda verdict: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=n_cases)
        n_wrong = 0

        def show(verdict: Verdict) -> None:
            nonlocal n_wrong
            n_wrong += not verdict.is_as_expected
            wrong = f", {n_wrong} not as expected" if n_wrong else ""
            bars.update(task, advance=1, description=f"{verdict.case.group}{wrong}")

        yield show


def _head(report: Report) -> list[str]:
    profile = f", profile {report.profile}" if report.profile else ""
    language = report.implementation.language
    who = f"{report.name} ({language})" if language else report.name
    lines = (
        f"refllm conformance, suite {report.suite_version}{profile}",
        f"{who} at {without_password(report.target)}",
    )
    return [line for text in lines for line in _wrapped(clipped(text, REASON_LENGTH), COLUMNS)]


def _table(report: Report) -> list[str]:
    counts = report.counts
    rows = [
        ["", *(above for above, _ in HEADINGS.values())],
        ["group", *(heading for _, heading in HEADINGS.values())],
        *([group, *_cells(counts[group])] for group in report.groups()),
        ["total", *_cells(report.totals)],
    ]
    return [_row(row) for row in rows]


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    return (f"{first:12}" + "".join(f"{cell:>11}" for cell in others)).rstrip()


def _cells(counts: dict[Status, int]) -> list[str]:
    return [str(counts[status] or "-") for status in STATUSES]


def _failures(report: Report, most: int) -> Iterator[list[str]]:
    """A section for each failure, and one for those beyond `most`."""
    failures = report.with_status("failed", "unexpected pass")
    yield from map(_failure, failures[:most])
    others = failures[most:]
    if others:
        names = [
            clipped(f"  {verdict.status}: {printable(verdict.case.id)}", COLUMNS)
            for verdict in others
        ]
        yield [f"AND {len(others)} MORE", *names]


def _failure(verdict: Verdict) -> list[str]:
    lines = [f"{verdict.status.upper()} {printable(verdict.case.id)}"]
    for label, text in explanation(verdict):
        lines += _labeled(label, _wrapped(clipped(text, REASON_LENGTH), COLUMNS - LABEL_COLUMNS))
        if label == "differs" and verdict.difference is not None:
            difference = verdict.difference
            values = compared(difference.expected, difference.got, length=VALUE_LENGTH)
            lines += _labeled("expected", _cut(values.whole_expected, COLUMNS - LABEL_COLUMNS))
            lines += _labeled("got", _cut(values.whole_got, COLUMNS - LABEL_COLUMNS))
    return lines


def _reasons(heading: str, report: Report, status: Status) -> list[str]:
    """The reasons of all that ended so, and where to read on, the most frequent first.

    Of an error the first case as well, which has to be run again.
    """
    cases: dict[str, list[str]] = {}
    for verdict in report.with_status(status):
        reason = " ".join(filter(None, (verdict.reason or "no reason given", verdict.link)))
        cases.setdefault(reason, []).append(verdict.case.id)
    said = []
    for reason, ids in cases.items():
        others = " and others" if len(ids) > 1 else ""
        said.append((f"{ids[0]}{others}: {reason}" if status == "error" else reason, len(ids)))
    return _many(heading, sorted(said, key=lambda item: (-item[1], item[0])))


def _causes(report: Report) -> list[str]:
    return _many("LIKELY CAUSES", report.causes.items())


def _many(heading: str, said: Iterable[tuple[str, int]]) -> list[str]:
    """A line for each text, behind how many cases it is said of; nothing where there is none."""
    lines = [
        line
        for text, n in said
        for line in _labeled(
            f"{n} case{'' if n == 1 else 's'}",
            _wrapped(clipped(printable(text), REASON_LENGTH), COLUMNS - LABEL_COLUMNS),
        )
    ]
    return [heading, *lines] if lines else []


def _end(report: Report) -> list[str]:
    n = len(report.verdicts)
    text = (
        f"{n} case{'' if n == 1 else 's'} in {report.seconds:.1f} s: {report.summary}: "
        f"{report.outcome}"
    )
    return _wrapped(text, COLUMNS)


def _labeled(label: str, lines: Sequence[str]) -> list[str]:
    """The lines, the first behind its label and the others below it."""
    labels = [f"  {label}", *[""] * (len(lines) - 1)]
    return [f"{each:{LABEL_COLUMNS}}{line}" for each, line in zip(labels, lines, strict=True)]


def _wrapped(text: str, columns: int) -> list[str]:
    """Prose as lines, broken between words where that is possible; at least one line."""
    lines = textwrap.wrap(
        printable(text), columns, break_on_hyphens=False, break_long_words=False
    ) or [""]
    return [piece for line in lines for piece in _cut(line, columns)]


def _cut(text: str, columns: int) -> list[str]:
    """A text as lines, cut wherever a line is full; characters of East Asia are two wide."""
    lines, width = [""], 0
    for character in text:
        advance = 2 if east_asian_width(character) in "WF" else 1
        if width + advance > columns:
            lines.append("")
            width = 0
        lines[-1] += character
        width += advance
    return lines
