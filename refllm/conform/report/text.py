"""The report for a terminal: causes, an example of each, a table by group, what was not tested.

text_of     the report, in 80 columns, without color
progress    a bar on a terminal's last line while the cases run
"""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unicodedata import east_asian_width

from refllm.conform.report import STATUSES, Cause, Report
from refllm.conform.report.values import (
    clipped,
    compared,
    explanation,
    printable,
    seen_difference,
    sides,
)
from refllm.conform.verdict import Status, Verdict

__all__ = ["progress", "text_of"]

COLUMNS = 80
LABEL_COLUMNS = 13  # "  1000 cases "
VALUE_LENGTH = 3 * (COLUMNS - LABEL_COLUMNS) - 2  # three lines, with a mark at both ends
REASON_LENGTH = 600
CAUSE_COLUMNS = 4
# Of the cases of one cause, and of the causes with an example.
MAX_IDS = 3
MAX_EXAMPLES = 10
ALWAYS = ("passed", "failed")  # columns, even where all are 0

HEADINGS: dict[Status, tuple[str, str]] = {
    "passed": ("", "passed"),
    "failed": ("", "failed"),
    "skipped": ("", "skipped"),
    "not applicable": ("not", "applicable"),
    "error": ("", "errors"),
    "expected failure": ("expected", "failures"),
    "unexpected pass": ("unexpected", "passes"),
}


def text_of(report: Report, *, max_examples: int = MAX_EXAMPLES) -> str:
    """Return the report as lines of at most 80 columns, ending in a line feed.

    Failures come first: every cause with some of its cases, then one case with its difference for
    each of the first `max_examples` causes.
    """
    profile = f", profile {report.profile}" if report.profile else ""
    revision = f", numerics revision {report.numerics_revision}"
    head = [f"refllm conformance, suite {report.suite_version}{revision}{profile}", report.headline]
    if report.bits is not None:
        head.append(f"bits: {report.bits.text}")
    if report.exit_code:
        head.append(f"{report.summary}: {report.outcome}")
    n_cases = _cases(len(report.verdicts))
    end = f"{n_cases} in {report.seconds:.1f} s: {report.summary}: {report.outcome}"
    sections = (
        [line for each in head for line in _wrapped(clipped(each, REASON_LENGTH), COLUMNS)],
        _causes(report),
        _next_step(report),
        *_examples(report, max_examples),
        *map(_failure, report.with_status("unexpected pass")),
        _table(report),
        _reasons("EXPECTED FAILURES (known to the profile)", report, "expected failure"),
        _reasons("SKIPPED (you can change that)", report, "skipped"),
        _reasons(
            "NOT APPLICABLE (a target of this kind cannot be asked)", report, "not applicable"
        ),
        _wrapped(end, COLUMNS),
    )
    return "\n".join("".join(f"{line}\n" for line in lines) for lines in sections if lines)


@contextmanager
def progress(n_cases: int) -> Iterator[Callable[[Verdict], None]]:
    """Yield a function to call with each verdict, which moves a bar on standard error.

    Nothing is written where standard error is no terminal, and the bar is removed at the end.
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


def _causes(report: Report) -> list[str]:
    """Return each cause: its consequence, how many cases show it, its text, some of the cases."""
    lines = [f"CAUSES, {report.order_of_causes}"] if report.causes else []
    for number, cause in enumerate(report.causes, 1):
        n = len(cause.verdicts)
        behind = f", in {cause.n_later} of them behind another cause" if cause.n_later else ""
        heading = f"{number:2}  {cause.consequence.upper()} in {_cases(n)}{behind}"
        text = _wrapped(clipped(cause.cause, REASON_LENGTH), COLUMNS - CAUSE_COLUMNS)
        lines += [heading, *(" " * CAUSE_COLUMNS + line for line in (*text, *_some(cause)))]
    return lines


def _some(cause: Cause) -> list[str]:
    """Return the ids of the first cases, as many as fit on a line, and how many more there are."""
    ids = [printable(verdict.case.id) for verdict in cause.verdicts]
    room = COLUMNS - CAUSE_COLUMNS
    for n in range(min(len(ids), MAX_IDS), 0, -1):
        more = f" and {len(ids) - n} more" if len(ids) > n else ""
        line = ", ".join(ids[:n]) + more
        if len(line) <= room or n == 1:
            return _cut(line, room)
    return []


def _next_step(report: Report) -> list[str]:
    if not report.causes:
        return []
    example = report.causes[0].example.case.id
    command = clipped(printable(report.command_for(example)), REASON_LENGTH)
    lines, line = [], " "
    for word in command.split(" "):
        if len(line) + len(word) + 3 > COLUMNS and line.strip():
            lines.append(f"{line} \\")
            line = "   "
        line += f" {word}"
    text = "NEXT: fix the first cause, and run its smallest case again"
    return [text, *(piece for each in (*lines, line) for piece in _cut(each, COLUMNS))]


def _examples(report: Report, most: int) -> Iterator[list[str]]:
    """Yield one case for each cause, with all that is known of it; no case twice."""
    seen: set[str] = set()
    for number, cause in enumerate(report.causes[:most], 1):
        example = next((v for v in cause.verdicts if v.case.id not in seen), None)
        if example is not None:
            seen.add(example.case.id)
            yield _failure(example, f"EXAMPLE OF {number}, {example.status.upper()}")


def _table(report: Report) -> list[str]:
    counts, totals = report.counts, report.totals
    shown = [status for status in STATUSES if totals[status] or status in ALWAYS]
    rows = [
        ["", *(HEADINGS[status][0] for status in shown)],
        ["group", *(HEADINGS[status][1] for status in shown)],
        *([group, *(str(counts[group][s] or "-") for s in shown)] for group in report.groups()),
        ["total", *(str(totals[status] or "-") for status in shown)],
    ]
    widths = [max(map(len, HEADINGS[status])) + 2 for status in shown]
    lines = [
        (f"{first:11}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))).rstrip()
        for first, *cells in rows
    ]
    return lines if lines[0] else lines[1:]


def _failure(verdict: Verdict, heading: str = "") -> list[str]:
    lines = [f"{heading or verdict.status.upper()}: {printable(verdict.case.id)}"]
    for label, text in explanation(verdict):
        if label == "cause" and heading:  # it is in the list of causes
            continue
        lines += _labeled(label, _wrapped(clipped(text, REASON_LENGTH), COLUMNS - LABEL_COLUMNS))
        difference = seen_difference(verdict)
        if label == "differs" and difference is not None:
            left, right = sides(verdict)
            values = compared(difference.expected, difference.got, length=VALUE_LENGTH)
            lines += _labeled(left, _cut(values.whole_expected, COLUMNS - LABEL_COLUMNS))
            lines += _labeled(right, _cut(values.whole_got, COLUMNS - LABEL_COLUMNS))
    return lines


def _reasons(heading: str, report: Report, status: Status) -> list[str]:
    """Return the reasons of the verdicts with this status, the most frequent first."""
    reasons = Counter(
        " ".join(filter(None, (verdict.reason or "no reason given", verdict.link)))
        for verdict in report.with_status(status)
    )
    lines = [
        line
        for text, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        for line in _labeled(
            _cases(n), _wrapped(clipped(printable(text), REASON_LENGTH), COLUMNS - LABEL_COLUMNS)
        )
    ]
    return [heading, *lines] if lines else []


def _cases(n: int) -> str:
    return f"{n} case{'' if n == 1 else 's'}"


def _labeled(label: str, lines: Sequence[str]) -> list[str]:
    """Return the lines, the first behind its label and the next below it."""
    labels = [f"  {label}", *[""] * (len(lines) - 1)]
    return [f"{each:{LABEL_COLUMNS}}{line}" for each, line in zip(labels, lines, strict=True)]


def _wrapped(text: str, columns: int) -> list[str]:
    """Return prose as lines, broken between words where possible; at least one line."""
    lines = textwrap.wrap(
        printable(text), columns, break_on_hyphens=False, break_long_words=False
    ) or [""]
    return [piece for line in lines for piece in _cut(line, columns)]


def _cut(text: str, columns: int) -> list[str]:
    """Return a text as lines, cut where a line is full; East Asian characters are two wide."""
    lines, width = [""], 0
    for character in text:
        advance = 2 if east_asian_width(character) in "WF" else 1
        if width + advance > columns:
            lines.append("")
            width = 0
        lines[-1] += character
        width += advance
    return lines
