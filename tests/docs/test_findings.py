"""The form of the scripts under findings/; running them installs packages and is left to people."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

FINDINGS = Path(__file__).parents[2] / "findings"
SCRIPTS = sorted(FINDINGS.glob("*.sh"))
INSTALL = re.compile(r'\bpip"? install (.*)')
NPM_INSTALL = re.compile(r"\bnpm install (.*)")
PINNED = re.compile(r"[a-z0-9][a-z0-9-]*==[0-9][0-9.]*")
NPM_PINNED = re.compile(r"(@[a-z]+/)?[a-z][a-z.-]*@[0-9][0-9.]*")
HOST = re.compile(
    r"://|\b(?:[a-z0-9-]+\.)+(?:com|org|net|io|co|dev|ai|pkg)\b|\b\d+\.\d+\.\d+\.\d+\b"
)


def test_the_folder_of_findings_is_not_empty() -> None:
    assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
class TestAScript:
    def test_can_be_run(self, script: Path) -> None:
        assert os.access(script, os.X_OK)

    def test_begins_with_what_surprises_and_ends_at_the_first_error(self, script: Path) -> None:
        first, *rest = script.read_text().splitlines()
        comment = rest[: rest.index("set -euo pipefail")]
        assert first == "#!/usr/bin/env bash"
        assert comment
        assert all(line.startswith("# ") for line in comment)

    def test_pins_each_package_that_it_installs(self, script: Path) -> None:
        installs = INSTALL.findall(script.read_text())
        packages = [word for line in installs for word in line.split() if not word.startswith("-")]
        assert packages
        assert [package for package in packages if not PINNED.fullmatch(package)] == []
        by_npm = " ".join(NPM_INSTALL.findall(script.read_text())).split()
        packages = [word for word in by_npm if not word.startswith("-")]
        assert [package for package in packages if not NPM_PINNED.fullmatch(package)] == []

    def test_names_no_host(self, script: Path) -> None:
        assert HOST.findall(script.read_text()) == []

    def test_is_in_the_table_of_the_readme(self, script: Path) -> None:
        assert f"| [{script.name}]({script.name}) |" in (FINDINGS / "README.md").read_text()


def test_the_table_has_no_other_scripts() -> None:
    named = re.findall(r"^\| \[(.+?)\]\(", (FINDINGS / "README.md").read_text(), re.MULTILINE)
    assert sorted(named) == [script.name for script in SCRIPTS]
