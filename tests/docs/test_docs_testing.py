"""docs/testing.md says what is true: its files are written, its commands and program are run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.support.pages import COMMAND, FILE, blocks, matches, run, user_environment

PAGE = (PROJECT / "docs" / "testing.md").read_text("utf-8")


@pytest.fixture
def reader(tmp_path: Path) -> dict[str, str]:
    """The environment of a reader who has written the page's files into a folder: tmp_path."""
    for name, text in files().items():
        (tmp_path / name).write_text(text, "utf-8")
    return user_environment(tmp_path)


def files() -> dict[str, str]:
    """The page's files by their names."""
    return dict(FILE.findall(PAGE))


def test_the_page_has_a_handler_its_tests_and_a_configuration() -> None:
    assert files().keys() == {"app.py", "test_app.py", "pytest.ini"}


@pytest.mark.parametrize(("command", "shown"), COMMAND.findall("\n".join(blocks("console", PAGE))))
def test_a_command_of_the_page_prints_what_it_shows(
    command: str, shown: str, tmp_path: Path, reader: dict[str, str]
) -> None:
    printed = run(command, tmp_path, reader)
    assert matches(shown, printed), printed


def test_the_program_of_the_page_prints_what_it_shows(
    tmp_path: Path, reader: dict[str, str]
) -> None:
    *_, program = blocks("python", PAGE)
    (shown,) = blocks("text", PAGE)
    printed = run([sys.executable, "-c", program], tmp_path, reader)
    assert matches(shown, printed), printed


def test_the_pages_tests_can_fail(tmp_path: Path, reader: dict[str, str]) -> None:
    handler = tmp_path / "app.py"
    handler.write_text(handler.read_text("utf-8").replace("503", "500"), "utf-8")
    printed = run("pytest -q || true", tmp_path, reader)
    assert "1 failed, 3 passed" in printed


def test_the_page_names_every_fixture_and_option_of_the_plugin() -> None:
    plugin = (PROJECT / "refllm" / "testing" / "pytest_plugin.py").read_text("utf-8")
    fixtures = re.findall(r"@pytest\.fixture.*\ndef (\w+)", plugin)
    options = re.findall(r"addini\(\s*\"(\w+)\"", plugin)
    assert (len(fixtures), len(options)) == (3, 2)
    assert [name for name in fixtures + options if f"| `{name}` |" not in PAGE] == []
