"""The report for CI systems, as JUnit's XML: a testsuite for each group, a testcase for each case.

    failed, unexpected pass                     <failure>, whose type is the consequence
    error                                       <error>
    skipped, not applicable, expected failure   <skipped>, whose message begins with the latter two

A testcase's names depend on its id alone, so that a CI system can follow it from run to run. There
is no standard; this is what Jenkins, GitLab and GitHub's actions have in common.
Source: https://llg.cubic.org/docs/junit/ and Jenkins' jenkins-junit.xsd.
"""

from __future__ import annotations

from datetime import UTC
from typing import assert_never
from xml.etree import ElementTree as ET

from refllm.conform.case import Group
from refllm.conform.report import Report, without_password
from refllm.conform.report.values import (
    clipped,
    compared,
    explanation,
    printable,
    seen_difference,
    sides,
)
from refllm.conform.verdict import Verdict

__all__ = ["junit_of"]

MESSAGE_LENGTH = 200
VALUE_LENGTH = 2000
REASON_LENGTH = 10_000


def junit_of(report: Report) -> str:
    """Return the report as XML for a file in UTF-8, ending in a line feed."""
    suites = ET.Element("testsuites", name="refllm conformance")
    _count(suites, report.verdicts, seconds=report.seconds)
    for group in report.groups():
        suites.append(_suite(report, group))
    ET.indent(suites, " ")
    body = ET.tostring(suites, encoding="unicode", short_empty_elements=True)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _suite(report: Report, group: Group) -> ET.Element:
    verdicts = report.of_group(group)
    suite = ET.Element("testsuite", name=group)
    _count(suite, verdicts, seconds=sum(verdict.seconds for verdict in verdicts))
    # The format has ISO 8601 without a zone, which readers take for UTC.
    suite.set("timestamp", report.started.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(report).items():
        texts = {"name": name, "value": value}
        shown = {key: clipped(printable(text), MESSAGE_LENGTH) for key, text in texts.items()}
        ET.SubElement(properties, "property", shown)
    suite.extend(_testcase(verdict) for verdict in verdicts)
    return suite


def _properties(report: Report) -> dict[str, str]:
    return {
        "suite": report.suite_version,
        "numerics_revision": str(report.numerics_revision),
        "bits": "" if report.bits is None else report.bits.text,
        "target": without_password(report.target),
        "implementation": report.name,
        "profile": report.profile or "",
        **{f"cause.{number}": text for number, text in enumerate(_causes(report), 1)},
        **{f"environment.{key}": value for key, value in sorted(report.environment.items())},
    }


def _causes(report: Report) -> list[str]:
    """Return the causes of the whole run, the worst first; every suite has them."""
    return [
        f"{cause.consequence}, {len(cause.verdicts)} of {len(report.verdicts)} cases, such as "
        f"{cause.example.case.id}: {cause.cause}"
        for cause in report.causes
    ]


def _count(element: ET.Element, verdicts: tuple[Verdict, ...], *, seconds: float) -> None:
    kinds = [_kind(verdict) for verdict in verdicts]
    element.set("tests", str(len(verdicts)))
    element.set("failures", str(kinds.count("failure")))
    element.set("errors", str(kinds.count("error")))
    element.set("skipped", str(kinds.count("skipped")))
    element.set("time", f"{seconds:.3f}")


def _testcase(verdict: Verdict) -> ET.Element:
    group, _, name = verdict.case.id.partition("/")
    testcase = ET.Element(
        "testcase",
        classname=f"conform.{printable(group)}",
        name=printable(name or group),
        time=f"{verdict.seconds:.3f}",
    )
    kind = _kind(verdict)
    if kind is None:
        return testcase
    details = ET.SubElement(testcase, kind, message=clipped(_message(verdict), MESSAGE_LENGTH))
    if kind != "skipped":  # it has no type, and readers look for no text in it
        details.set("type", verdict.findings[0].consequence if verdict.findings else verdict.status)
        details.text = "\n".join(_details(verdict))
    return testcase


def _kind(verdict: Verdict) -> str | None:
    """Return the name of the element for how a case ended, None for one that passed."""
    match verdict.status:
        case "passed":
            return None
        case "failed" | "unexpected pass":
            return "failure"
        case "error":
            return "error"
        case "skipped" | "not applicable" | "expected failure":
            return "skipped"
    assert_never(verdict.status)


def _message(verdict: Verdict) -> str:
    """Return how the case ended, in one line."""
    if verdict.status in ("not applicable", "expected failure", "unexpected pass"):
        text = f"{verdict.status}: {verdict.reason}"
    elif verdict.difference is not None:
        causes = [finding.cause for finding in verdict.findings if finding.is_recognized]
        cause = f"; likely cause: {' '.join(causes)}" if causes else ""
        text = f"differs: {verdict.difference.where}{cause}"
    else:
        text = verdict.reason or verdict.status
    return " ".join(printable(text).split())


def _details(verdict: Verdict) -> list[str]:
    lines = [f"id: {printable(verdict.case.id)}"]
    for label, text in explanation(verdict):
        lines.append(f"{label}: {clipped(text, REASON_LENGTH)}")
        difference = seen_difference(verdict)
        if label == "differs" and difference is not None:
            left, right = sides(verdict)
            values = compared(difference.expected, difference.got, length=VALUE_LENGTH)
            lines += [f"{left}: {values.whole_expected}", f"{right}: {values.whole_got}"]
    return lines
