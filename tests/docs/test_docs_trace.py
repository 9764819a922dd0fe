"""The page trace.md: its commands print what it shows, and its program runs."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conftest import PROJECT
from tests.support.pages import COMMAND, blocks, matches, run, user_environment

PAGE = (PROJECT / "docs" / "trace.md").read_text("utf-8")


def test_the_commands_print_what_the_page_shows_and_its_program_runs(tmp_path: Path) -> None:
    environment = user_environment(tmp_path)
    for command, shown in COMMAND.findall("".join(blocks("console", PAGE))):
        assert matches(shown, run(command, tmp_path, environment))
    [program] = blocks("python", PAGE)
    run([sys.executable, "-c", program], tmp_path, environment)
