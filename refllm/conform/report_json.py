"""The report for programs: everything, with every number as exact as it was.

`report.schema.json` beside this file describes it. Floats are the shortest decimals that give the
same float64 back; the three that JSON has no number for are the strings "nan", "inf" and "-inf".
What was asked is not repeated: a case's id and the suite's version say it.
"""

from __future__ import annotations

import json
from datetime import UTC
from typing import Any

from refllm.conform.case import GROUPS
from refllm.conform.report import Report, without_password
from refllm.conform.report_values import plain
from refllm.conform.verdict import Difference, Verdict
from refllm.conform.wire import to_wire

__all__ = ["VERSION", "json_of"]

VERSION = 1
"""Of the format: a field more does not change it, anything else does."""


def json_of(report: Report) -> str:
    """The report as ASCII, ending in a line feed; the same report gives the same bytes."""
    document = {
        "version": VERSION,
        "suite_version": report.suite_version,
        "target": without_password(report.target),
        "implementation": _implementation(report),
        "profile": report.profile,
        "environment": dict(sorted(report.environment.items())),
        "started": report.started.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": report.seconds,
        "exit_code": report.exit_code,
        "totals": report.totals,
        "groups": {group: report.counts[group] for group in report.groups()},
        "causes": report.causes,
        "cases": [_case(verdict) for verdict in report.verdicts],
    }
    return json.dumps(to_wire(document), indent=1, allow_nan=False) + "\n"


def _implementation(report: Report) -> dict[str, Any]:
    who = report.implementation
    return {
        "name": who.name,
        "version": who.version,
        "language": who.language,
        "groups": [group for group in GROUPS if group in who.groups],
        "draws_as_refllm": who.draws_as_refllm,
        "details": report.details,
    }


def _case(verdict: Verdict) -> dict[str, Any]:
    case = verdict.case
    return {
        "id": case.id,
        "group": case.group,
        "status": verdict.status,
        "proves": case.proves,
        "clause": case.clause,
        "models": list(case.models),
        "reason": verdict.reason,
        "link": verdict.link,
        "cause": verdict.cause,
        "difference": None if verdict.difference is None else _difference(verdict.difference),
        "seconds": verdict.seconds,
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "where": difference.where,
        "expected": plain(difference.expected),
        "got": plain(difference.got),
        "tolerances": plain(difference.tolerances),
        "expected_values": plain(difference.expected_values),
        "got_values": plain(difference.got_values),
    }
