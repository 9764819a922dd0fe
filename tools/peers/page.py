"""docs/peers.md, written from the kept reports of docs/peers and the table of findings."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from refllm.conform.case import GROUPS
from tools.peers.ask import NOT_ASKED, PROFILES, PROJECT, REPORTS
from tools.peers.catalog import PEERS

__all__ = ["PAGE", "findings_about", "kept_reports", "render"]

PAGE = PROJECT / "docs" / "peers.md"
FINDINGS = PROJECT / "findings" / "README.md"
TEMPLATE = Path(__file__).resolve().parent / "peers.md.jinja"

EXPECTED = "expected failure"
FAILED = ("failed", "error", "unexpected pass")
MAX_NAMED = 3  # cases of a cause


@dataclass(frozen=True, slots=True)
class Cause:
    """Cases that fail for one reason.

    Attributes:
        kind: "expected" or the status of an unexpected result.
        reason: Of a known deviation; otherwise the cause that the suite recognized.
        link: Where a known deviation is described.
        cases: Their ids.
        example: The difference of the first case that has one.
    """

    kind: str
    reason: str
    link: str | None
    cases: Sequence[str]
    example: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One engine and one group; `anchor` is that of the section with its causes."""

    group: str
    anchor: str
    passed: int
    expected: int
    failed: int
    not_asked: Mapping[str, int]
    causes: Sequence[Cause]

    @property
    def text(self) -> str:
        """The cell of the table."""
        n_not_asked = sum(self.not_asked.values())
        return f"[{self.passed} / {self.expected} / {self.failed} / {n_not_asked}](#{self.anchor})"


@dataclass(frozen=True, slots=True)
class Row:
    """One engine; cells of the groups that it was asked."""

    name: str
    heading: str
    anchor: str
    about: str
    packages: str
    profile: str | None
    profile_link: str
    cells: Mapping[str, Cell]


def kept_reports() -> list[dict[str, Any]]:
    """Return the reports of docs/peers, in the order of the catalogue."""
    reports = [json.loads(path.read_text("utf-8")) for path in REPORTS.glob("*.json")]
    order = [peer.name for peer in PEERS]
    return sorted(reports, key=lambda report: order.index(report["peer"]))


def render(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return the page.

    Args:
        reports: As `tools.peers.ask.kept` gives them.
    """
    rows = [row_of(report) for report in reports]
    asked = {group for row in rows for group in row.cells}
    environment = jinja2.Environment(  # noqa: S701 - Markdown, from reports of our own
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    names = {name for report in reports for name in report["packages"]}
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        rows=rows,
        groups=[group for group in GROUPS if group in asked],
        suite=", ".join(sorted({report["suite"] for report in reports})),
        findings=findings_about(names),
        max_named=MAX_NAMED,
    )


def row_of(report: Mapping[str, Any]) -> Row:
    """Return the row of a report."""
    packages = report["packages"]
    engine, *_ = packages
    heading = f"{report['title']} {packages[engine]}"
    cells = {}
    for group, counts in report["counts"].items():
        if not set(counts) <= set(NOT_ASKED):
            causes = causes_of(report["cases"], group)
            not_asked = report["not_asked"].get(group, {})
            section = f"{heading}: {group}" if causes or not_asked else heading
            cells[group] = Cell(
                group,
                anchor_of(section),
                counts.get("passed", 0),
                counts.get(EXPECTED, 0),
                sum(counts.get(status, 0) for status in FAILED),
                not_asked,
                causes,
            )
    return Row(
        report["peer"],
        heading,
        anchor_of(heading),
        report["about"],
        ", ".join(f"{name} {version}" for name, version in packages.items()),
        report["profile"],
        profile_link(report["profile"]),
        cells,
    )


def profile_link(name: str | None) -> str:
    """Return the path of a profile from docs/: one of tools/peers, or of the suite."""
    own = PROFILES / f"{name}.toml"
    folder = "../tools/peers/profiles" if own.exists() else "../golden/profiles"
    return f"{folder}/{name}.toml"


def causes_of(cases: Sequence[Mapping[str, Any]], group: str) -> list[Cause]:
    """Return why cases of a group fail: unexpected failures first, then the most cases."""
    by_reason: dict[tuple[str, str, str | None], list[Mapping[str, Any]]] = defaultdict(list)
    for case in cases:
        if case["id"].partition("/")[0] == group:
            is_expected = case["status"] == EXPECTED
            reason = case.get("reason") or case.get("cause") or "no cause recognized"
            kind = "expected" if is_expected else case["status"]
            by_reason[kind, " ".join(reason.split()), case.get("link")].append(case)
    causes = [
        Cause(kind, reason, link, [case["id"] for case in of_cause], example_of(of_cause))
        for (kind, reason, link), of_cause in by_reason.items()
    ]
    return sorted(causes, key=lambda cause: (cause.kind == "expected", -len(cause.cases)))


def example_of(cases: Sequence[Mapping[str, Any]]) -> str:
    """Return the first difference of the first case that has one: "id: where, a instead of b"."""
    for case in cases:
        found = case.get("difference")
        if found:
            got, expected = (short(found[key]) for key in ("got", "expected"))
            far = (
                ""
                if found["tolerances"] is None
                else f", {float(found['tolerances']):.3g} tolerances"
            )
            return f"{case['id']}: {found['where']}: {got} instead of {expected}{far}"
    return ""


def short(value: object) -> str:
    """Return a value as code, cut where it is long."""
    text = json.dumps(value, ensure_ascii=True)
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


def anchor_of(heading: str) -> str:
    """Return a heading's anchor, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def findings_about(packages: set[str]) -> list[str]:
    """Return the rows of the table of findings that are about one of these packages."""
    lines = FINDINGS.read_text("utf-8").splitlines()
    rows = []
    for line in lines:
        if line.startswith("| ["):
            _, script, libraries, *_ = line.split("|")
            named = {each.split()[0] for each in libraries.split(",")}
            if named & packages:
                name = script.strip()[1:].partition("]")[0]
                rows.append(line.replace(f"({name})", f"(../findings/{name})", 1))
    return rows
