"""The page "See every number" (inspect.md): each command is executed, the views are the page's."""

from __future__ import annotations

import re
from pathlib import Path

from refllm.inspect import Shown
from refllm.inspect.notebook import VIEWS
from tests.conftest import PROJECT
from tests.support.pages import COMMAND, blocks, matches, run, user_environment
from tools import screenshots

PAGE = (PROJECT / "docs" / "inspect.md").read_text("utf-8")
VIEW = re.compile(r"^\| ([A-Z][\w ]+) \|", re.MULTILINE)


def test_each_command_prints_what_the_page_shows(tmp_path: Path) -> None:
    environment = user_environment(tmp_path)
    commands = COMMAND.findall("".join(blocks("console", PAGE)))
    assert len(commands) == 7
    for command, shown in commands:
        assert matches(shown, run(command, tmp_path, environment)), command
    made = {path.stem for path in tmp_path.glob("*.html")}
    assert made == {"run", "texts", "numerics", "trace"}


def test_the_program_of_the_page_shows_a_frame() -> None:
    [program] = blocks("python", PAGE)
    imports, expression = program.strip().rsplit("\n", 1)
    namespace: dict[str, object] = {}
    exec(imports, namespace)
    shown = eval(expression, namespace)
    assert isinstance(shown, Shown)
    assert shown._repr_html_().startswith("<iframe srcdoc=")


def test_the_table_has_every_view_in_the_page_s_order() -> None:
    program = (PROJECT / "refllm" / "inspect" / "page" / "main.js").read_text("utf-8")
    assert re.findall(r"^### (.*)$", PAGE, re.MULTILINE) == VIEW.findall(PAGE)
    assert VIEW.findall(PAGE) == re.findall(r'^  \["\w+", "([\w ]+)", ', program, re.MULTILINE)


def test_each_view_has_its_screenshots_and_each_is_small_and_shown() -> None:
    files = {path.name for path in (PROJECT / "docs" / "screenshots").iterdir()}
    assert set(re.findall(r"screenshots/([\w.-]+)", PAGE)) == files
    for view in VIEWS:
        assert {f"{view}-{width}.webp" for width in screenshots.SIZES} <= files
    for view in screenshots.DARK:
        assert f"{view}-1280-dark.webp" in files
    for name in files:
        path = PROJECT / "docs" / "screenshots" / name
        assert path.stat().st_size <= screenshots.MAX_BYTES == 60_000
