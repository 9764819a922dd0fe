"""docs/peers.md is the rendering of the kept reports, and each engine can be asked again."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from refllm.conform.case import GROUPS
from refllm.conform.profiles import load_profile, require_known_cases
from refllm.conform.suite import load_suite
from tools.peers.ask import HARNESSES, PROFILES, REPORTS, ask, kept
from tools.peers.catalog import PEERS, Environment, Peer, Server
from tools.peers.models import write_models
from tools.peers.page import PAGE, findings_about, kept_reports, render

NAMES = [peer.name for peer in PEERS]
SUITE = load_suite()
PINNED = re.compile(r"(@[a-z]+/)?[a-z0-9.-]+(\[[a-z]+\])?(==|@)[0-9][0-9.]*")
BY_NAME = {peer.name: peer for peer in PEERS}


def peers(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("peer", [BY_NAME[name] for name in names], ids=names)


def report_of(peer: Peer) -> dict[str, Any]:
    text = (REPORTS / f"{peer.name}.json").read_text("utf-8")
    return dict(json.loads(text))


# --- The page ------------------------------------------------------------------------------------


def test_the_page_is_the_rendering_of_the_kept_reports() -> None:
    assert PAGE.read_text("utf-8") == render(kept_reports())


def test_there_is_a_report_of_each_engine_and_of_no_other() -> None:
    assert sorted(path.stem for path in REPORTS.glob("*.json")) == sorted(NAMES)
    assert len({peer.environment.packages[0] for peer in PEERS}) >= 10


def test_each_link_of_the_page_leads_to_a_heading_or_a_file() -> None:
    text = PAGE.read_text("utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert len(links) > 4 * len(PEERS)
    for link in links:
        path, _, anchor = link.partition("#")
        assert anchor in headings if anchor else (PAGE.parent / path).exists(), link


def test_findings_about_an_engine_are_on_the_page() -> None:
    rows = findings_about({"mlx"})
    assert any("mlx-q4-k-half-wrong.sh" in row for row in rows)
    assert all(row in PAGE.read_text("utf-8") for row in rows)
    assert findings_about({"no-such-package"}) == []


# --- The reports ---------------------------------------------------------------------------------


@peers(NAMES)
def test_a_report_is_of_the_present_suite_and_of_the_pinned_packages(peer: Peer) -> None:
    report = report_of(peer)
    pinned = dict(
        re.split(r"(?:\[[a-z]+\])?(?:==|(?<!^)@)", each) for each in peer.environment.packages
    )
    assert report["suite"] == SUITE.version
    assert report["packages"] == pinned
    cases = {case.id for case in SUITE.cases}
    assert {case["id"] for case in report["cases"]} <= cases
    assert sum(sum(counts.values()) for counts in report["counts"].values()) == len(cases)


@peers(NAMES)
def test_an_engine_was_asked_something_and_each_failure_is_explained(peer: Peer) -> None:
    report = report_of(peer)
    assert any("passed" in counts for counts in report["counts"].values())
    assert [case["id"] for case in report["cases"] if case["status"] != "expected failure"] == []
    assert all(case["reason"] and case["link"] for case in report["cases"])


def test_a_report_has_nothing_of_the_machine() -> None:
    for peer in PEERS:
        text = (REPORTS / f"{peer.name}.json").read_text("utf-8")
        assert re.findall(r"/(?:home|root|tmp|Users)/", text) == []


# --- The catalogue -------------------------------------------------------------------------------


@peers(NAMES)
def test_packages_of_an_engine_have_fixed_versions(peer: Peer) -> None:
    assert [each for each in peer.environment.packages if not PINNED.fullmatch(each)] == []


@peers(NAMES)
def test_an_engine_has_a_harness_or_a_server(peer: Peer) -> None:
    assert (HARNESSES / peer.harness).is_file() != isinstance(peer.ask, Server)


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.toml")), ids=lambda path: str(path.stem))
def test_a_profile_names_cases_of_the_suite(path: Path) -> None:
    profile = load_profile(str(path))
    require_known_cases(profile, [case.id for case in SUITE.cases])
    assert profile.name == path.stem
    assert path.stem in {peer.profile for peer in PEERS}


@pytest.mark.parametrize(
    "path",
    sorted(path for path in HARNESSES.iterdir() if path.suffix in (".py", ".mjs")),
    ids=lambda path: str(path.name),
)
def test_a_harness_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) < 160


def test_what_is_kept_of_a_report_is_what_differs() -> None:
    difference = {"where": "token 1", "expected": 1, "got": 2, "tolerances": None, "got_values": []}
    empty = {"reason": "", "cause": None, "link": None, "difference": None}
    report = {
        "suite_version": "1.0.0",
        "implementation": {"groups": ["tokenizer"]},
        "cases": [
            {"id": "text/a", "group": "text", "status": "skipped", **empty, "reason": "no model"},
            {"id": "quant/a", "group": "quant", "status": "passed", **empty},
            {
                "id": "quant/b",
                "group": "quant",
                "status": "failed",
                **empty,
                "difference": difference,
            },
        ],
    }
    document = kept(BY_NAME["gguf"], report, {"gguf": "1"})
    assert document["counts"] == {"text": {"skipped": 1}, "quant": {"passed": 1, "failed": 1}}
    assert document["not_asked"] == {"text": {"no model": 1}}
    shown = {"where": "token 1", "expected": 1, "got": 2, "tolerances": None}
    assert document["cases"] == [{"id": "quant/b", "status": "failed", "difference": shown}]
    page = render([document])
    assert "| [gguf 1](#gguf-1) | [1 / 0 / 1 / 0](#gguf-1-quant) |" in page
    assert (
        "- 1 × failed: no cause recognized `quant/b`. quant/b: token 1: `2` instead of `1`." in page
    )
    assert set(GROUPS) > set(document["counts"])


# --- Engines -------------------------------------------------------------------------------------


@pytest.mark.network
@peers(["gguf", "tokenizers", "tokenizers-js"])
def test_an_engine_answers_as_its_report_has_it(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if peer.environment.kind == "npm" and shutil.which("npm") is None:
        pytest.skip("npm is not installed; it installs the engine")
    before = report_of(peer)
    monkeypatch.setattr("tools.peers.ask.REPORTS", tmp_path)
    models = write_models(tmp_path / "models", stories=None, minilm=None)
    ask(peer, models, tmp_path / "environments", python=None)
    after = json.loads((tmp_path / f"{peer.name}.json").read_text("utf-8"))
    # Without stories260K its cases are skipped.
    cases = [case for case in before["cases"] if "stories260k" not in case["id"]]
    assert after["cases"] == cases
    assert after["packages"] == before["packages"]


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    from tools.peers.environments import STAMP, made

    environment = Environment("ready", ("nothing==1",))
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready" / STAMP).write_text('["nothing==1"]', "utf-8")
    assert made(environment, tmp_path) == tmp_path / "ready"
    assert sys.executable
