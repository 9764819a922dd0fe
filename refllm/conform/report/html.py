"""The report for a browser: one file that fetches nothing, on a telephone or a large screen.

`report.html.jinja` beside this file is what it looks like. Every case has an anchor, its id, so
`report.html#sampling/top-p-crossing` leads there. Jinja escapes all that is put in, and what does
not print is shown as `refllm.conform.report.values` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from refllm.conform.case import Group
from refllm.conform.report import STATUSES, Report, counted
from refllm.conform.report.plot import MOST_POINTS, plot
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
# Of one cause in one group; the others are folded.
MOST_OPENED = 3
MOST_LINKS = 10
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
        started=report.started.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        environment=sorted(report.environment.items()),
        details=report.details,
        causes=_causes(report),
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
    """A group: what a reader came for, and what can stay folded."""

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
                first=ids[:MOST_LINKS],
                others=ids[MOST_LINKS:],
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
            if len(same) <= MOST_OPENED:
                opened.append(same[-1])
    for cause, entries in alike.items():
        rest = entries[MOST_OPENED:]
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
    link = _followable(verdict.link)
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
