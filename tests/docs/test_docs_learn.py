"""docs/learn: each program prints what its page shows, and each cell of a notebook runs."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refllm.cli import app
from refllm.plain import bert, llama
from tests.conftest import PROJECT
from tests.support.pages import COMMAND, matches

FOLDER = PROJECT / "docs" / "learn"
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.md"))}
LADDER = (PROJECT / "examples" / "ladder.py").read_text("utf-8")

NOTEBOOK = "---\nfile_format: mystnb\nkernelspec: {name: python3}\n---\n"
BLOCK = re.compile(r"^```(\{?[\w-]+\}?)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"^:[\w-]+:.*\n", re.MULTILINE)  # of a cell, such as :tags: [remove-cell]
FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True, slots=True)
class Program:
    """A block of Python, and what the page shows below it; nothing where it prints nothing."""

    source: str
    shown: str


def programs(page: str) -> list[Program]:
    """The blocks of a page that are run one after the other, in one namespace."""
    found = BLOCK.findall(PAGES[page])
    after = [*found[1:], ("", "")]
    return [
        Program(body, below if kind_below == "text" else "")
        for (kind, body), (kind_below, below) in zip(found, after, strict=True)
        if kind == "python" and not FILE.match(body) and body.strip() not in LADDER
    ]


def cells(page: str) -> list[str]:
    """The cells of a notebook."""
    return [OPTION.sub("", body) for kind, body in BLOCK.findall(PAGES[page]) if "cell" in kind]


def printed_by(source: str, namespace: dict[str, object], name: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(source, name, "exec"), namespace)
    return output.getvalue()


NOTEBOOKS = [page for page, text in PAGES.items() if text.startswith(NOTEBOOK)]
CHAPTERS = [page for page in PAGES if page not in NOTEBOOKS and programs(page)]


@pytest.mark.parametrize("page", CHAPTERS)
def test_the_programs_of_a_page_print_what_it_shows(page: str) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, program in enumerate(programs(page), start=1):
        printed = printed_by(program.source, namespace, f"{page}.md, program {number}")
        assert matches(program.shown, printed), f"{program.source}\n{printed}"


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_the_cells_of_a_notebook_run(page: str) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib draws the figures")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    namespace: dict[str, object] = {"__name__": "__main__"}
    sources = cells(page)
    assert len(sources) >= 8
    try:
        for number, source in enumerate(sources, start=1):
            printed_by(source, namespace, f"{page}.md, cell {number}")
        assert pyplot.get_fignums() != []
    finally:
        pyplot.close("all")


# --- The ladder ----------------------------------------------------------------------------------


def test_the_page_shows_every_rung_as_the_example_has_it() -> None:
    shown = [body for kind, body in BLOCK.findall(PAGES["ladder"]) if kind == "python"]
    rungs = [body for body in shown if re.match(r"def |@", body)]
    assert [body for body in rungs if body.strip() not in LADDER] == []
    names = re.findall(r"^def (\w+)\(", "".join(rungs), re.MULTILINE)
    defined = re.findall(r"^def (\w+)\(", LADDER, re.MULTILINE)
    assert [name for name in defined if name not in names] == []


# --- The exercises -------------------------------------------------------------------------------


def exercises() -> list[tuple[str, str, str, str]]:
    """The file, its content, the command and what it prints, of each exercise with an answer."""
    found = BLOCK.findall(PAGES["exercises"])
    answers = []
    for (kind, content), (kind_below, below) in itertools.pairwise(found):
        name = FILE.match(content)
        if kind == "python" and name is not None:
            assert kind_below == "console"
            [(command, shown)] = COMMAND.findall(below)
            answers.append((name[1], content, command, shown))
    return answers


@pytest.fixture
def _right_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test runs in an empty folder, and may break the plain networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    right = [(module, dict(vars(module))) for module in (bert, llama)]
    yield
    for module, names in right:
        vars(module).update(names)
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.mark.usefixtures("_right_again")
@pytest.mark.parametrize(
    ("name", "content", "command", "shown"), exercises(), ids=[each[0] for each in exercises()]
)
def test_an_exercise_has_the_answer_that_the_page_shows(
    name: str, content: str, command: str, shown: str
) -> None:
    Path(name).write_text(content, "utf-8")
    program, *arguments = shlex.split(command)
    assert program == "refllm"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == (0 if "all as expected" in shown else 1), result.output
    assert matches(shown, result.stdout), result.stdout


def test_the_page_has_seven_exercises_with_answers() -> None:
    assert len(exercises()) == PAGES["exercises"].count("\n## ") - 1 >= 7


def test_the_backend_of_the_exercises_passes_before_it_is_broken() -> None:
    assert "\nrefllm conform examples.plain_backend:Backend\n" in PAGES["exercises"]
    result = CliRunner().invoke(app, ["conform", "examples.plain_backend:Backend"])
    assert result.exit_code == 0, result.output
    passed = re.findall(r"^(\w+) +(\d+) +- ", result.stdout, re.MULTILINE)
    assert {group for group, _ in passed} == {"ops", "logits", "embeddings", "total"}


# --- The pages -----------------------------------------------------------------------------------


def test_the_index_lists_every_page_in_a_toctree() -> None:
    [tree] = [body for kind, body in BLOCK.findall(PAGES["index"]) if kind == "{toctree}"]
    listed = [line for line in OPTION.sub("", tree).splitlines() if line]
    assert sorted(listed) == sorted(page for page in PAGES if page != "index")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    links = [link for link in re.findall(r"\]\((\S+?)\)", PAGES[page]) if "://" not in link]
    missing = [link for link in links if not (FOLDER / link.partition("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    named = re.findall(r"`((?:refllm|examples|tests)/[\w/]+\.py|refllm/\w+(?:/\w+)*)`", PAGES[page])
    below_kernels = re.findall(r"`((?:packed|simd)/\w+\.py|linear\.py)`", PAGES[page])
    paths = [*named, *(f"refllm/kernels/{name}" for name in below_kernels)]
    assert [path for path in paths if not (PROJECT / path).exists()] == []
