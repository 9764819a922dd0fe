"""`refllm conform`: what it prints, what it writes, and how it exits."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refllm.cli import app
from tests.conftest import PROJECT

EXAMPLE = f"{sys.executable} {PROJECT / 'docs' / 'harnesses' / 'harness.py'}"
QUICK = ["--quick", "--group", "sampling", "--group", "quant"]

# Answers every draw with the last token, and every block with nothing but zeros.
WRONG = """
class Wrong:
    def start(self):
        return {"implementation": {"name": "wrong"}, "groups": ["sampling", "quant"]}
    def run(self, group, asked):
        if group == "quant":
            return {"values": [0.0] * asked["n"]}
        return {"token": len(asked["logits"]) - 1}
"""


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "wrong_backend.py").write_text(WRONG, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "wrong_backend:Wrong"


def conform(*arguments: str | Path) -> tuple[int, str, str]:
    """The exit code, and what is printed to standard output and error."""
    result = CliRunner().invoke(app, ["conform", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_a_backend_that_is_right_ends_with_0() -> None:
    code, printed, _ = conform(EXAMPLE, *QUICK)
    assert code == 0
    assert "sampling" in printed
    assert "failed" in printed  # the heading of a column


def test_a_backend_that_is_wrong_ends_with_1_and_is_told_what_differs(wrong: str) -> None:
    code, printed, _ = conform(wrong, *QUICK)
    assert code == 1
    assert "expected" in printed
    assert "got" in printed


def test_a_command_that_does_not_start_ends_with_2_and_its_name() -> None:
    code, printed, said = conform("no-such-harness --at all", *QUICK)
    assert (code, printed) == (2, "")
    assert said.startswith("refllm: ")
    assert "no-such-harness" in said


def test_a_server_that_is_not_there_ends_with_2() -> None:
    code, _, said = conform("http://127.0.0.1:9", *QUICK)
    assert code == 2
    assert "127.0.0.1:9" in said


@pytest.mark.parametrize(
    ("target", "said"),
    [("127.0.0.1:8080", "begins with http://"), ("no-such-runner app.wasm", "'no-such-runner'")],
)
def test_a_target_that_looks_like_another_kind_is_told_apart(target: str, said: str) -> None:
    code, _, told = conform(target, *QUICK)
    assert code == 2
    assert said in told


def test_a_run_in_which_all_is_skipped_ends_with_2() -> None:
    code, printed, _ = conform(EXAMPLE, "--quick", "--group", "ops")
    assert code == 2
    assert printed.endswith("nothing was tested\n")


def test_no_target_is_wrong_usage() -> None:
    assert conform()[0] == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--group", "opps"], "opps"),
        (["--only", "nothing/*"], "nothing/*"),
        (["--group", "quant", "--only", "text/*"], "leave no case"),
        (["--profile", "nobody"], "nobody"),
        (["--have", "gpt-5"], "gpt-5"),
        (["--model-map", "tiny-chat=mine"], "--model-map"),
    ],
)
def test_an_option_that_names_nothing_is_named(arguments: list[str], named: str) -> None:
    code, _, said = conform(EXAMPLE, *arguments)
    assert code == 1
    assert said.startswith("refllm: invalid-input: ")
    assert named in said


def test_the_reports_are_written_even_when_something_failed(wrong: str, tmp_path: Path) -> None:
    files = {
        kind: tmp_path / "new" / f"report.{kind}" for kind in ("junit", "html", "json", "badge")
    }
    options = [text for kind, path in files.items() for text in (f"--{kind}", str(path))]
    code, _, _ = conform(wrong, *QUICK, *options)
    assert code == 1
    assert ET.parse(files["junit"]).getroot().tag == "testsuites"
    assert json.loads(files["json"].read_text("utf-8"))["implementation"]["name"] == "wrong"
    assert "<html" in files["html"].read_text("utf-8")
    assert files["badge"].read_text("utf-8").startswith("<svg")


def test_the_names_of_tests_are_the_same_from_run_to_run(wrong: str, tmp_path: Path) -> None:
    names = []
    for i in range(2):
        path = tmp_path / f"{i}.xml"
        conform(wrong, *QUICK, "--junit", path)
        cases = ET.parse(path).iter("testcase")
        names.append([(case.get("classname"), case.get("name")) for case in cases])
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0]) > 20


def test_the_models_of_the_suite_can_be_written(tmp_path: Path) -> None:
    code, printed, _ = conform("--write-models", tmp_path / "models")
    assert code == 0
    written = sorted(path.stem for path in (tmp_path / "models").iterdir())
    assert printed.count("\n") == len(written)
    assert {"tiny-chat", "tiny-chat-F32", "tiny-chat-Q4_0", "tiny-embed"} <= set(written)
