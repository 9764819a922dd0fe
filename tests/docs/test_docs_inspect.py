"""The page "See every number" (inspect.md): each command is executed, the views are the page's."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import PROJECT
from tests.support.pages import COMMAND, blocks, matches, run, user_environment

PAGE = (PROJECT / "docs" / "inspect.md").read_text("utf-8")
VIEW = re.compile(r"^\| ([A-Z][\w ]+) \|", re.MULTILINE)


def test_each_command_prints_what_the_page_shows(tmp_path: Path) -> None:
    environment = user_environment(tmp_path)
    commands = COMMAND.findall("".join(blocks("console", PAGE)))
    assert len(commands) == 4
    for command, shown in commands:
        assert matches(shown, run(command, tmp_path, environment)), command
    assert {path.name for path in tmp_path.glob("*.html")} == {"run.html", "texts.html"}


def test_the_table_has_every_view_in_the_page_s_order() -> None:
    program = (PROJECT / "refllm" / "inspect" / "page" / "main.js").read_text("utf-8")
    assert VIEW.findall(PAGE) == re.findall(r'^  \["\w+", "([\w ]+)", ', program, re.MULTILINE)
