"""The report for a browser: one file that fetches nothing, for telephones and large screens.

`report.html.jinja` beside this file is its template. Every case has an anchor, its id, so
`report.html#sampling/top-p-crossing` leads there. Jinja escapes everything that is inserted, and
characters that do not print are escaped by `refllm.conform.report.values`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from refllm.conform.case import Group
from refllm.conform.report import STATUSES, Report, counted
from refllm.conform.report.plot import MAX_POINTS, plot
from refllm.conform.report.values import (
    Comparison,
    clipped,
    compared,
    explanation,
    printable,
    seen_difference,
    shown,
    sides,
)
from refllm.conform.verdict import Verdict
from refllm.errors import LlmRuntimeError, how_to_install

__all__ = ["html_of", "require_packages"]

TEMPLATE = Path(__file__).with_name("report.html.jinja")

VALUE_LENGTH = 2000
TEXT_LENGTH = 10_000

OPENED = ("failed", "unexpected pass", "error")
# Cases of one cause in one group; the others are folded.
MAX_OPENED = 3
MAX_LINKS = 10
ALWAYS = ("passed", "failed")  # columns, even where all are 0; a telephone has no room for more


def require_packages() -> None:
    """Check that the page can be made.

    Raises:
        LlmRuntimeError: Naming the package that is missing, and how to install it.
    """
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError as error:
        raise LlmRuntimeError(
            f"the HTML report needs the package {error.name}", how_to_install("server")
        ) from error


def html_of(report: Report) -> str:
    """Return the report as a page for a file in UTF-8, ending in a line feed.

    Raises:
        LlmRuntimeError: Where jinja2 is not installed.
    """
    require_packages()
    import jinja2
    from markupsafe import Markup

    def as_printable(value: object) -> object:
        """Return what Jinja is about to escape, with all characters printable."""
        return clipped(printable(value), TEXT_LENGTH) if type(value) is str else value

    environment = jinja2.Environment(
        autoescape=True,
        finalize=as_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        started=report.started.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        environment=sorted(report.environment.items()),
        details=report.details,
        causes=_causes(report),
        statuses=[status for status, n in report.totals.items() if n or status in ALWAYS],
        counts=report.counts,
        sections=[_section(report, group, Markup) for group in report.groups()],
        fragment=lambda case_id: quote(printable(case_id), safe="/"),  # after the # of a link
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One number of a plot."""

    expected: str
    got: str
    is_different: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A case as the page shows it; `link` only where it leads to a page."""

    id: str
    status: str
    causes: list[tuple[int, str]]
    sides: tuple[str, str]
    facts: list[tuple[str, str]]
    link: str | None
    values: Comparison | None
    plot: Any
    rows: list[_Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cause:
    """A cause as the page shows it: the ids of its first cases, and of the others."""

    number: int
    consequence: str
    cause: str
    n_cases: int
    n_later: int
    first: list[str]
    others: list[str]
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """A group: the cases that are open, and folded ones under their headings."""

    group: Group
    opened: list[_Entry]
    folded: list[tuple[str, list[_Entry]]]


def _causes(report: Report) -> list[_Cause]:
    causes = []
    for number, cause in enumerate(report.causes, 1):
        ids = [verdict.case.id for verdict in cause.verdicts]
        causes.append(
            _Cause(
                number=number,
                consequence=cause.consequence,
                cause=cause.cause,
                n_cases=len(ids),
                n_later=cause.n_later,
                first=ids[:MAX_LINKS],
                others=ids[MAX_LINKS:],
                command=report.command_for(ids[0]),
            )
        )
    return causes


def _section(report: Report, group: Group, markup: Callable[[str], Any]) -> _Section:
    numbers = {cause.cause: number for number, cause in enumerate(report.causes, 1)}
    verdicts = report.of_group(group)
    opened, folded = [], []
    alike: dict[object, list[_Entry]] = {}
    for verdict in verdicts:
        if verdict.status in OPENED:
            first = verdict.findings[0].cause if verdict.findings else None
            same = alike.setdefault(first, [])
            same.append(_entry(verdict, numbers, markup))
            if len(same) <= MAX_OPENED:
                opened.append(same[-1])
    for cause, entries in alike.items():
        rest = entries[MAX_OPENED:]
        if rest:
            of = f" of cause {numbers[cause]}" if cause in numbers else ""
            folded.append((f"{len(rest)} more{of}", rest))
    for status in STATUSES:
        entries = [_entry(each, numbers, markup) for each in verdicts if each.status == status]
        if entries and status not in OPENED:
            folded.append((counted(len(entries), status), entries))
    return _Section(group=group, opened=opened, folded=folded)


def _entry(verdict: Verdict, numbers: Mapping[str, int], markup: Callable[[str], Any]) -> _Entry:
    difference = seen_difference(verdict)
    link = None
    with contextlib.suppress(ValueError):  # no URL
        if verdict.link and urlsplit(verdict.link).scheme in ("http", "https"):
            link = verdict.link
    expected = () if difference is None else difference.expected_values
    got = () if difference is None else difference.got_values
    causes = [
        (numbers[each.cause], each.cause) for each in verdict.findings if each.cause in numbers
    ]
    shown_elsewhere = {"cause"} if causes else set()
    return _Entry(
        id=verdict.case.id,
        status=verdict.status,
        causes=causes,
        sides=sides(verdict),
        facts=[
            fact
            for fact in explanation(verdict)
            if (fact[0] != "link" or link is None) and fact[0] not in shown_elsewhere
        ],
        link=link,
        values=None
        if difference is None
        else compared(difference.expected, difference.got, length=VALUE_LENGTH),
        plot=markup(plot(expected, got)),  # holds no text of the backend
        rows=_rows(expected, got),
    )


def _rows(expected: tuple[float, ...], got: tuple[float, ...]) -> list[_Row]:
    """Return the first numbers of a plot as a table; where one side has none, "nothing"."""
    n = min(max(len(expected), len(got)), MAX_POINTS) if expected and got else 0
    pairs = [
        (shown(expected[i] if i < len(expected) else None), shown(got[i] if i < len(got) else None))
        for i in range(n)
    ]
    return [_Row(expected=left, got=right, is_different=left != right) for left, right in pairs]
