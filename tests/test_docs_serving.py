"""docs/serving.md says what is true: its server runs, and answers its commands and its program."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refllm.spin.server.process import running_server
from tests.conftest import PROJECT
from tests.test_docs import BLOCK, COMMAND, matches, run

PAGE = (PROJECT / "docs" / "serving.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8177"


def blocks(kind: str) -> list[str]:
    return [body for found, body in BLOCK.findall(PAGE) if found == kind]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    *_, command = blocks("sh")[0].splitlines()
    with running_server(command.removeprefix("refllm serve ").split()) as server:
        yield server.url


def test_the_server_prints_what_is_shown() -> None:
    with running_server() as server:
        assert server.process.stdout is not None
        printed = "".join(server.process.stdout.readline() for _ in range(4))
    shown = blocks("text")[0].replace(ADDRESS, server.url)
    assert shown == f"# listening on {server.url}; for Spin's runtime configuration:\n{printed}"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("command", "shown"), COMMAND.findall("\n".join(blocks("console"))))
def test_a_command_of_the_page_prints_what_it_shows(
    command: str, shown: str, url: str, tmp_path: Path
) -> None:
    printed = run(command.replace(ADDRESS, url), tmp_path, {"PATH": "/usr/local/bin:/usr/bin:/bin"})
    assert matches(shown, printed), printed


def test_the_program_of_the_page_prints_what_it_shows(url: str, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="pip install openai")
    [program] = blocks("python")
    printed = run([sys.executable, "-c", program.replace(ADDRESS, url)], tmp_path, {})
    assert matches(blocks("text")[1], printed), printed


def test_the_page_names_every_path_and_every_limit() -> None:
    server = PROJECT / "refllm" / "spin" / "server"
    sources = "".join(file.read_text("utf-8") for file in server.glob("*.py"))
    paths = set(re.findall(r"@(?:app|router)\.\w+\(\s*\"(/\S+?)\"", sources))
    assert len(paths) == 9
    assert [path for path in paths if f"{path}`" not in PAGE] == []
    commands = "".join((PROJECT / f"refllm/cli/{name}.py").read_text() for name in ("serve", "run"))
    options = re.findall(r"^    (max_\w+): ", commands, re.M)
    assert [name for name in options if f"`--{name.replace('_', '-')}`" not in PAGE] == []
