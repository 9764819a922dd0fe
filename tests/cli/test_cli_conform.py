"""`refllm conform`: what it prints, what it writes, and how it exits."""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest

from refllm.conform.profiles import profile_names
from refllm.errors import how_to_install
from tests.conftest import PROJECT
from tests.support.commands import refllm_conform

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


def test_a_backend_that_is_right_ends_with_0() -> None:
    code, printed, _ = refllm_conform(EXAMPLE, *QUICK)
    assert code == 0
    assert "sampling" in printed
    assert "failed" in printed  # the heading of a column


def test_a_wrong_backend_exits_with_1_and_the_report_has_the_differences(wrong: str) -> None:
    code, printed, _ = refllm_conform(wrong, *QUICK)
    assert code == 1
    assert "expected" in printed
    assert "got" in printed


def test_a_command_that_does_not_start_ends_with_2_and_its_name() -> None:
    code, printed, errors = refllm_conform("no-such-harness --at all", *QUICK)
    assert (code, printed) == (2, "")
    assert errors.startswith("refllm: ")
    assert "no-such-harness" in errors


def test_a_server_that_is_not_there_ends_with_2() -> None:
    code, _, errors = refllm_conform("http://127.0.0.1:9", *QUICK)
    assert code == 2
    assert "127.0.0.1:9" in errors


@pytest.mark.parametrize(
    ("target", "errors"),
    [("127.0.0.1:8080", "begins with http://"), ("no-such-runner app.wasm", "'no-such-runner'")],
)
def test_the_kind_of_a_target_is_recognized(target: str, errors: str) -> None:
    code, _, printed = refllm_conform(target, *QUICK)
    assert code == 2
    assert errors in printed


def test_a_run_in_which_all_is_skipped_ends_with_2() -> None:
    code, printed, _ = refllm_conform(EXAMPLE, "--quick", "--group", "ops")
    assert code == 2
    assert printed.endswith("nothing was tested\n")


def test_no_target_is_wrong_usage() -> None:
    assert refllm_conform()[0] == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--group", "opps"], "no group 'opps'; did you mean ops? The groups are tokenizer, "),
        (["--group", "zzz"], "no group 'zzz'. The groups are tokenizer, "),
        (["--only", "txt/*"], "matches 'txt/*'; did you mean text/*?"),
        (["--only", "text/nothin"], "matches 'text/nothin'; did you mean text/nothing?"),
        (["--group", "quant", "--only", "text/*"], "leave no case"),
        (["--profile", "spin-locl"], "no profile 'spin-locl'; did you mean spin-local?"),
        (["--have", "tiny-chart"], "no model 'tiny-chart'; did you mean tiny-chat?"),
    ],
)
def test_an_option_that_matches_nothing_is_wrong_usage_with_a_suggestion(
    arguments: list[str], named: str
) -> None:
    code, printed, errors = refllm_conform("no-such-harness", *arguments)
    assert (code, printed) == (2, "")
    assert errors.startswith("Usage: ")
    assert named in errors


def test_a_model_s_name_that_is_mapped_and_not_known_is_wrong_use() -> None:
    code, _, errors = refllm_conform("http://127.0.0.1:9", "--model-map", "tiny-embd=mine")
    assert code == 2
    assert "'tiny-embd=mine'; did you mean tiny-embed?" in errors


def test_a_report_that_needs_a_missing_package_is_wrong_usage_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, printed, errors = refllm_conform("no-such-harness", "--html", tmp_path / "report.html")
    assert (code, printed) == (2, "")
    assert "needs the package jinja2" in errors
    assert how_to_install("server") in errors


def test_a_component_target_without_its_package_is_an_error_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wasmtime", None)
    for name in ("guest", "host"):  # which would be imported already
        monkeypatch.delitem(sys.modules, f"refllm.wasm.{name}", raising=False)
    (tmp_path / "app.wasm").write_bytes(b"")
    code, printed, errors = refllm_conform(tmp_path / "app.wasm")
    assert (code, printed) == (2, "")
    assert errors == f"refllm: a component needs the package wasmtime; {how_to_install('wasm')}\n"


@pytest.mark.parametrize(
    "option",
    [
        ["--protocol", "spin"],
        ["--token", "secret"],
        ["--token", ""],
        ["--model-map", "tiny-chat=mine"],
        ["--draws-as-refllm"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    "target",
    [EXAMPLE, "wrong_backend:Wrong", "127.0.0.1:8080", "a.wasm"],
    ids=["a command", "an object", "no URL", "a component"],
)
def test_an_option_for_servers_is_refused_for_other_targets(target: str, option: list[str]) -> None:
    code, printed, errors = refllm_conform(target, *QUICK, *option)
    assert (code, printed) == (2, "")
    assert f"Error: Invalid value: {option[0]} is for servers, " in errors
    assert target in errors
    assert "http://" in errors
    assert "secret" not in errors


@pytest.mark.parametrize("kind", ["junit", "html", "json", "badge"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("file/report", "Not a directory"),
        ("file/new/report", "Not a directory"),
        pytest.param("x" * 300, "name too long", id="name too long"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_the_run(
    kind: str, path: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    code, printed, errors = refllm_conform("no-such-harness", *QUICK, f"--{kind}", tmp_path / path)
    assert (code, printed) == (2, "")
    assert f"Error: Invalid value: --{kind} {tmp_path / path}: cannot be written: " in errors
    assert reason in errors
    assert (tmp_path / "file").read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_report_that_may_not_be_written_over_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by the file's mode: root may write it in any mode.
    monkeypatch.setattr("os.access", lambda _path, mode: mode != os.W_OK)
    path = tmp_path / "report.json"
    path.write_text("mine")
    code, _, errors = refllm_conform("no-such-harness", *QUICK, "--json", path)
    assert code == 2
    assert "Permission denied; name a file in a folder that you may write to" in errors
    assert path.read_text() == "mine"


def test_a_report_at_a_folder_is_wrong_usage(tmp_path: Path) -> None:
    code, _, errors = refllm_conform("no-such-harness", *QUICK, "--json", tmp_path)
    assert code == 2
    assert "'--json'" in errors


def test_a_run_that_does_not_begin_leaves_the_places_of_the_reports_as_they_are(
    tmp_path: Path,
) -> None:
    old = tmp_path / "old.json"
    old.write_text("mine")
    new = ("--html", tmp_path / "new.html", "--junit", tmp_path / "folder" / "new.xml")
    assert refllm_conform("no-such-harness", *QUICK, "--json", old, *new)[0] == 2
    assert old.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [old]


def profile_of(path: Path, *cases: str, besides: Sequence[str] = ()) -> Path:
    """A profile of one deviation."""
    path.write_text(
        'name = "mine"\nabout = "My backend."\n\n[[deviation]]\n'
        f"cases = {json.dumps(cases)}\nexcept = {json.dumps(besides)}\n"
        'because = "It is so."\nlink = "https://example.com/why"\nmay_pass = true\n',
        encoding="utf-8",
    )
    return path


def test_a_profile_that_names_no_case_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = profile_of(tmp_path / "mine.toml", "api/top-k-zeros", "quant/*", besides=["txt/*"])
    code, printed, errors = refllm_conform("no-such-harness", *QUICK, "--profile", path)
    assert (code, printed) == (2, "")
    first, *lines = errors.partition("Error: Invalid value: ")[2].splitlines()
    assert first == "the profile mine names cases that the suite does not have"
    assert [line.partition(":")[0] for line in lines] == ["'api/top-k-zeros'", "'txt/*'"]
    assert lines[0].startswith("'api/top-k-zeros': the nearest ids are api/top-k-zero, ")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (QUICK, "text/*, api/top-k-zero"),
        (["--only", "quant/*", "--quick"], "text/*, api/top-k-zero, sampling/*"),
        (["--group", "ops", "--quick"], "text/*, api/top-k-zero, sampling/*, …"),
    ],
)
def test_patterns_of_a_profile_without_a_chosen_case_are_a_warning(
    options: list[str], named: str, tmp_path: Path
) -> None:
    cases = ["text/*", "api/top-k-zero", "sampling/*", "quant/*"]
    path = profile_of(tmp_path / "mine.toml", *cases)
    code, _, errors = refllm_conform("no-such-harness", *options, "--profile", path)
    assert code == 2
    assert errors.splitlines()[0] == (
        "refllm: --group, --only or --quick leave out all cases that the profile mine has as "
        f"{named}"
    )


@pytest.mark.parametrize("profile", profile_names())
def test_a_profile_of_the_suite_gives_no_warning(profile: str) -> None:
    code, _, errors = refllm_conform("no-such-harness", "--profile", profile)
    assert code == 2
    assert errors.splitlines()[0].startswith("refllm: cannot start 'no-such-harness'")


def test_the_reports_are_written_even_when_something_failed(wrong: str, tmp_path: Path) -> None:
    files = {
        kind: tmp_path / "new" / f"report.{kind}" for kind in ("junit", "html", "json", "badge")
    }
    options = [text for kind, path in files.items() for text in (f"--{kind}", str(path))]
    code, _, _ = refllm_conform(wrong, *QUICK, *options)
    assert code == 1
    assert ET.parse(files["junit"]).getroot().tag == "testsuites"
    assert json.loads(files["json"].read_text("utf-8"))["implementation"]["name"] == "wrong"
    assert "<html" in files["html"].read_text("utf-8")
    assert files["badge"].read_text("utf-8").startswith("<svg")


def test_the_names_of_tests_are_the_same_from_run_to_run(wrong: str, tmp_path: Path) -> None:
    names = []
    for i in range(2):
        path = tmp_path / f"{i}.xml"
        refllm_conform(wrong, *QUICK, "--junit", path)
        cases = ET.parse(path).iter("testcase")
        names.append([(case.get("classname"), case.get("name")) for case in cases])
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0]) > 20


def test_the_models_of_the_suite_can_be_written(tmp_path: Path) -> None:
    code, printed, _ = refllm_conform("--write-models", tmp_path / "models")
    assert code == 0
    written = sorted(path.stem for path in (tmp_path / "models").iterdir())
    assert printed.count("\n") == len(written)
    assert {"tiny-chat", "tiny-chat-F32", "tiny-chat-Q4_0", "tiny-embed"} <= set(written)
