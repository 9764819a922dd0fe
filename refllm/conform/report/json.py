"""The report for programs: everything, and every number exactly.

`report.schema.json` beside this file describes it. Floats are the shortest decimals that give the
same float64 back; the three that JSON has no number for are the strings "nan", "inf" and "-inf".
The questions are left out: a case's id and the suite's version identify them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC
from typing import Any

from refllm.conform.bits import Bits
from refllm.conform.case import GROUPS
from refllm.conform.report import Cause, Report, without_password
from refllm.conform.report.values import plain
from refllm.conform.verdict import Difference, Verdict
from refllm.conform.wire import to_wire

__all__ = ["VERSION", "json_of"]

VERSION = 2
"""The version of the format: a new field does not change it, anything else does.

Version 1 had no status "not applicable", and `causes` mapped each text to its number of cases.
"""


def json_of(report: Report) -> str:
    """Return the report as ASCII, ending in a line feed; the same report gives the same bytes."""
    document = {
        "version": VERSION,
        "suite_version": report.suite_version,
        "numerics_revision": report.numerics_revision,
        "target": without_password(report.target),
        "command": report.command,
        "implementation": _implementation(report),
        "profile": report.profile,
        "environment": dict(sorted(report.environment.items())),
        "started": report.started.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": report.seconds,
        "exit_code": report.exit_code,
        "totals": report.totals,
        "groups": {group: report.counts[group] for group in report.groups()},
        "bits": None if report.bits is None else _bits(report.bits),
        "causes": [_cause(cause) for cause in report.causes],
        "cases": [_case(verdict) for verdict in report.verdicts],
    }
    return json.dumps(to_wire(document), indent=1, allow_nan=False) + "\n"


def _implementation(report: Report) -> dict[str, Any]:
    implementation = report.implementation
    return {
        "name": implementation.name,
        "version": implementation.version,
        "language": implementation.language,
        "groups": [group for group in GROUPS if group in implementation.groups],
        "draws_as_refllm": implementation.draws_as_refllm,
        "details": report.details,
    }


def _bits(bits: Bits) -> dict[str, Any]:
    return {
        "text": bits.text,
        "sha256": bits.sha256,
        "revision": bits.revision,
        "claimed": bits.claimed,
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
        "findings": [asdict(finding) for finding in verdict.findings],
        "difference": None if verdict.difference is None else _difference(verdict.difference),
        "change": None if verdict.change is None else _difference(verdict.change),
        "seconds": verdict.seconds,
    }


def _cause(cause: Cause) -> dict[str, Any]:
    return {
        "cause": cause.cause,
        "consequence": cause.consequence,
        "is_recognized": cause.is_recognized,
        "cases": [verdict.case.id for verdict in cause.verdicts],
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
