"""refllm is the reference: whichever way leads to it, it answers what the suite expects."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from refllm.cli import app
from refllm.conform.case import GROUPS
from refllm.testing.server_process import running_server
from tests.guests.build import component

OWN = f"{sys.executable} -m refllm.conform.targets.itself"
SERVED = {"text", "embeddings", "api"}
WAYS = [
    pytest.param("python", set(GROUPS), id="python"),
    pytest.param("lines", set(GROUPS), id="json-lines"),
    pytest.param("spin", SERVED, id="http-spin"),
    pytest.param("openai", SERVED, id="http-openai"),
    pytest.param("wasm", SERVED, id="wasm", marks=pytest.mark.network),
]


@contextmanager
def arguments(way: str, folder: Path) -> Iterator[list[str]]:
    """The target as a user writes it, and its options."""
    if way == "python":
        yield ["refllm.conform.targets.itself:Refllm"]
    elif way == "lines":
        yield [OWN]
    elif way == "wasm":
        yield [str(component("remote"))]
    else:
        with running_server(folder=folder) as server:
            yield [server.url, "--protocol", way, "--draws-as-refllm"]


def report_of(way: str, folder: Path, *options: str) -> dict[str, Any]:
    path = folder / "report.json"
    with arguments(way, folder) as target:
        result = CliRunner().invoke(app, ["conform", *target, *options, "--json", str(path)])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return report


def passed_groups(report: dict[str, Any]) -> set[str]:
    return {case["id"].partition("/")[0] for case in report["cases"] if case["status"] == "passed"}


def skipped_without_reason(report: dict[str, Any]) -> list[str]:
    skipped = [case for case in report["cases"] if case["status"] == "skipped"]
    return [case["id"] for case in skipped if not case["reason"]]


@pytest.mark.parametrize(("way", "groups"), WAYS)
def test_the_quick_cases_pass(way: str, groups: set[str], tmp_path: Path) -> None:
    report = report_of(way, tmp_path, "--quick")
    assert passed_groups(report) == groups
    assert skipped_without_reason(report) == []


@pytest.mark.slow
@pytest.mark.parametrize(("way", "groups"), WAYS)
def test_every_case_passes(way: str, groups: set[str], tmp_path: Path) -> None:
    report = report_of(way, tmp_path)
    assert passed_groups(report) == groups
    assert skipped_without_reason(report) == []
