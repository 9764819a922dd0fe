"""A release is the same bytes twice, has what the repository has, and answers once installed."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from refllm import __version__
from tests.conftest import PROJECT
from tools.release import ReleaseError, changes_of, main, wheel_differences

WORKFLOW = PROJECT / ".github" / "workflows" / "release.yml"
TRACKED = ["README.md", "refllm/llama.py", "golden/manifest.json", "tests/test_llama.py"]
WHEEL = ["refllm/llama.py", "refllm/golden/manifest.json", "refllm/py.typed"]
METADATA = ["refllm-0.1.0.dist-info/RECORD", "refllm-0.1.0.dist-info/licenses/LICENSE"]
CHANGELOG = """# Changelog

## 0.2.0 (2027-01-01)

- Two.

## 0.1.0 (2026-12-01)

- One.
"""


def test_a_wheel_with_the_package_and_the_golden_suite_is_complete() -> None:
    assert wheel_differences([*WHEEL, *METADATA], TRACKED) == []


def test_a_file_that_the_wheel_lacks_and_one_too_much_are_named() -> None:
    names = ["refllm/llama.py", "refllm/py.typed", "tests/test_llama.py", *METADATA]
    assert wheel_differences(names, TRACKED) == [
        "refllm/golden/manifest.json is missing",
        "tests/test_llama.py should not be there",
    ]


def test_a_version_s_changes_end_where_the_next_version_begins() -> None:
    assert changes_of("0.2.0", CHANGELOG) == "## 0.2.0 (2027-01-01)\n\n- Two.\n"
    assert changes_of("0.1.0", CHANGELOG) == "## 0.1.0 (2026-12-01)\n\n- One.\n"


def test_a_version_that_the_changelog_lacks_is_an_error_with_the_command_to_run() -> None:
    with pytest.raises(ReleaseError, match=r"towncrier build --version 0\.3\.0"):
        changes_of("0.3.0", CHANGELOG)


def test_a_folder_with_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.whl").touch()
    assert main([str(tmp_path)]) == 1
    assert f"{tmp_path} is not empty" in capsys.readouterr().err


def test_a_tag_of_another_version_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--version", "99.0.0"]) == 1
    stated = f"the tag is of version 99.0.0, pyproject.toml of {__version__}"
    assert stated in capsys.readouterr().err


@pytest.mark.network
def test_a_release_is_built_checked_installed_and_listed(tmp_path: Path) -> None:
    if not (PROJECT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("a release is built from a commit, and this is no checkout with git")
    folder = tmp_path / "dist"
    assert main([str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {
        f"refllm-{__version__}-py3-none-any.whl",
        f"refllm-{__version__}.tar.gz",
        "refllm.cdx.json",
        "SHA256SUMS",
    }
    with zipfile.ZipFile(folder / f"refllm-{__version__}-py3-none-any.whl") as wheel:
        assert {
            name for name in wheel.namelist() if name.endswith((".so", ".pyd", ".pyc"))
        } == set()
    sbom = json.loads((folder / "refllm.cdx.json").read_text("utf-8"))
    assert sbom["metadata"]["component"]["name"] == "refllm"
    assert {"numpy", "numba", "llvmlite"} <= {part["name"] for part in sbom["components"]}
    assert str(tmp_path) not in json.dumps(sbom)


@pytest.mark.network
def test_the_workflow_is_one_that_github_can_read(tmp_path: Path) -> None:
    checker = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", checker], check=True)
    pip = (checker / "bin" / "python", "-m", "pip", "install", "--quiet")
    subprocess.run([*pip, "check-jsonschema==0.39.0"], check=True)
    done = subprocess.run(
        [
            checker / "bin" / "check-jsonschema",
            *("--builtin-schema", "vendor.github-workflows", WORKFLOW),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_workflow_runs_the_tool_with_options_that_it_has() -> None:
    text = WORKFLOW.read_text("utf-8").replace("\n          --python", " --python")
    [command] = [line.strip() for line in text.splitlines() if "tools.release" in line]
    options = {word for word in shlex.split(command) if word.startswith("--")}
    assert options == {"--version", "--python"}
