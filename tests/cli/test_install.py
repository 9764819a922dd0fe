"""How refllm is installed stands in one place; messages and pages repeat it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from refllm import errors as install
from tests.conftest import PROJECT

PROJECT_FILE = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = list(PROJECT_FILE["optional-dependencies"])
PAGES = [PROJECT / "README.md", PROJECT / "SPEC.md", *sorted((PROJECT / "docs").rglob("*.md"))]
SOURCES = sorted((PROJECT / "refllm").rglob("*.py"))

COMMAND = re.compile(r"pip install (?:-\S+ )*'(?:\.|refllm)\[[^'\n]*'")


def test_the_pages_have_only_the_commands_that_messages_have() -> None:
    known = {command for extra in EXTRAS for command in install.install_commands(extra)}
    known.add("pip install -e '.[test]'")  # the README's second command, which .ci/run executes
    found = {
        (page.name, command)
        for page in PAGES
        for command in COMMAND.findall(page.read_text("utf-8"))
    }
    assert {name for name, _ in found} >= {"README.md", "serving.md", "conformance.md"}
    assert [pair for pair in sorted(found) if pair[1] not in known] == []


def test_no_other_module_writes_a_command_of_its_own() -> None:
    others = [path for path in SOURCES if path != Path(install.__file__)]
    assert [path.name for path in others if COMMAND.search(path.read_text("utf-8"))] == []
    asked = {
        extra
        for path in others
        for extra in re.findall(r"how_to_install\(['\"](\w+)['\"]\)", path.read_text("utf-8"))
    }
    assert asked == {"server", "wasm", "grammar", "inspect", "batch", "ray"}
    assert asked <= set(EXTRAS)


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_command_s_last_word_is_a_requirement_with_the_extra(extra: str) -> None:
    path, address = (command.split("'")[1] for command in install.install_commands(extra))
    assert path == f".[{extra}]"
    requirement = Requirement(address)
    assert (requirement.name, requirement.extras) == ("refllm", {extra})
    assert requirement.url == install.ADDRESS


def test_on_the_day_of_a_release_one_name_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert install.how_to_install("server") == (
        "in a checkout: pip install '.[server]'; "
        "elsewhere: pip install 'refllm[server] @ git+https://HOST/OWNER/refllm'"
    )
    monkeypatch.setattr(install, "ON_AN_INDEX", True)
    assert install.how_to_install("server") == "pip install 'refllm[server]'"
