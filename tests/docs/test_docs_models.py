"""docs/models.md says what is true: it is run in order, and has the tables that decide."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import refllm.files.accounting
from tests.conftest import PROJECT
from tests.support.pages import BLOCK, COMMAND, matches
from tools.accounting_page import rewritten

PAGE = (PROJECT / "docs" / "models.md").read_text("utf-8")


def steps() -> list[tuple[str | list[str], str]]:
    """Each command and each program of the page, in order, with what the page shows of it."""
    found = BLOCK.findall(PAGE)
    steps: list[tuple[str | list[str], str]] = []
    for place, (kind, body) in enumerate(found):
        if kind == "console":
            steps += COMMAND.findall(body)
        elif kind == "python":
            steps.append(([sys.executable, "-c", body], found[place + 1][1]))
    return steps


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each step prints, errors included, for a user who follows the page in a folder."""
    folder = tmp_path_factory.mktemp("models")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "REFLLM_HOME": str(folder / "home"),
        "PATH": path,
        "PYTHONPATH": str(PROJECT),
    }
    return [
        subprocess.run(
            command,
            shell=isinstance(command, str),
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        ).stdout
        for command, _ in steps()
    ]


@pytest.mark.parametrize("step", range(len(steps())))
def test_a_step_of_the_page_prints_what_it_shows(step: int, printed: list[str]) -> None:
    _, shown = steps()[step]
    # The first use of a kernel on this machine announces its compilation.
    lines = printed[step].splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("refllm: compiling kernels "))
    assert matches(shown, text), text


def test_the_tables_of_the_page_are_those_that_the_tool_writes() -> None:
    assert rewritten(PAGE) == PAGE, "python -m tools.accounting_page"


def names_in(table: Mapping[str, object]) -> Iterator[str]:
    """The names in a table, or in the tables of a table."""
    for name, ruling in table.items():
        if isinstance(ruling, Mapping):
            yield from names_in(ruling)
        else:
            yield name


def test_the_page_has_every_name_of_every_table() -> None:
    names = set()
    for found in pkgutil.iter_modules(refllm.files.accounting.__path__):
        module = importlib.import_module(f"refllm.files.accounting.{found.name}")
        tables = [getattr(module, name) for name in module.__all__]
        names |= {name for t in tables if isinstance(t, Mapping) for name in names_in(t)}
    assert len(names) > 300
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []


def test_a_page_whose_tables_are_old_is_rewritten() -> None:
    old = PAGE.replace("| GGUF | `general.alignment` |", "| GGUF | `general.aligned` |")
    assert old != PAGE
    assert rewritten(old) == PAGE
