"""The report for a browser: one file that fetches nothing, on a telephone or a large screen.

`report.html.jinja` beside this file is what it looks like. Every case has an anchor, its id, so
`report.html#sampling/top-p-crossing` leads there. Jinja escapes all that is put in, and what does
not print is shown as `refllm.conform.report_values` does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from refllm.api import LlmRuntimeError
from refllm.conform.case import Group
from refllm.conform.plot import MOST_POINTS, plot
from refllm.conform.report import STATUSES, Report, counted, without_password
from refllm.conform.report_values import (
    Comparison,
    clipped,
    compared,
    explanation,
    printable,
    shown,
)
from refllm.conform.verdict import Verdict
from refllm.install import how_to_install

__all__ = ["html_of", "require_packages"]

TEMPLATE = Path(__file__).with_name("report.html.jinja")

VALUE_LENGTH = 2000
TEXT_LENGTH = 10_000

OPENED = ("failed", "unexpected pass", "error")
ALWAYS = ("passed", "failed")  # columns, even where all are 0; a telephone has no room for more


def require_packages() -> None:
    """Nothing, where the page can be made. Errors: `LlmRuntimeError` naming what is missing."""
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError as error:
        raise LlmRuntimeError(
            f"the HTML report needs the package {error.name}", how_to_install("server")
        ) from error


def html_of(report: Report) -> str:
    """The report as a page for a file in UTF-8, ending in a line feed.

    Errors: `LlmRuntimeError` where jinja2 is not installed.
    """
    require_packages()
    import jinja2
    from markupsafe import Markup

    def told(value: object) -> object:
        """What Jinja is about to escape, with what does not print made visible."""
        return clipped(printable(value), TEXT_LENGTH) if type(value) is str else value

    environment = jinja2.Environment(
        autoescape=True,
        finalize=told,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        target=without_password(report.target),
        started=report.started.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        environment=sorted(report.environment.items()),
        details=report.details,
        statuses=[status for status, n in report.totals.items() if n or status in ALWAYS],
        counts=report.counts,
        sections=[_section(report, group, Markup) for group in report.groups()],
        fragment=_fragment,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One number of a plot."""

    expected: str
    got: str
    is_different: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A case as the page shows it; `link` only where a browser may follow it."""

    id: str
    status: str
    facts: list[tuple[str, str]]
    link: str | None
    values: Comparison | None
    plot: Any
    rows: list[_Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """A group: what a reader came for, and what can stay folded."""

    group: Group
    opened: list[_Entry]
    folded: list[tuple[str, list[_Entry]]]


def _section(report: Report, group: Group, markup: Callable[[str], Any]) -> _Section:
    verdicts = report.of_group(group)
    opened = [_entry(each, markup) for each in verdicts if each.status in OPENED]
    folded = []
    for status in STATUSES:
        entries = [_entry(each, markup) for each in verdicts if each.status == status]
        if entries and status not in OPENED:
            folded.append((counted(len(entries), status), entries))
    return _Section(group=group, opened=opened, folded=folded)


def _entry(verdict: Verdict, markup: Callable[[str], Any]) -> _Entry:
    difference = verdict.difference
    link = _followable(verdict.link)
    expected = () if difference is None else difference.expected_values
    got = () if difference is None else difference.got_values
    return _Entry(
        id=verdict.case.id,
        status=verdict.status,
        facts=[fact for fact in explanation(verdict) if fact[0] != "link" or link is None],
        link=link,
        values=None
        if difference is None
        else compared(difference.expected, difference.got, length=VALUE_LENGTH),
        plot=markup(plot(expected, got)),  # numbers, and words of ours
        rows=_rows(expected, got),
    )


def _rows(expected: tuple[float, ...], got: tuple[float, ...]) -> list[_Row]:
    """The first numbers of a plot, for who reads them; what one side lacks is "nothing"."""
    n = min(max(len(expected), len(got)), MOST_POINTS) if expected and got else 0
    pairs = [
        (shown(expected[i] if i < len(expected) else None), shown(got[i] if i < len(got) else None))
        for i in range(n)
    ]
    return [_Row(expected=left, got=right, is_different=left != right) for left, right in pairs]


def _followable(link: str | None) -> str | None:
    """The link if a browser goes to a page with it, and does nothing else."""
    try:
        return link if link and urlsplit(link).scheme in ("http", "https") else None
    except ValueError:
        return None


def _fragment(case_id: str) -> str:
    """What follows the # of a link to the case."""
    return quote(printable(case_id), safe="/")
