"""docs/batch.md is true: its commands and programs run in an empty folder, in their order."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import venv
from pathlib import Path

import pytest

from refllm.batch.local import PART_ROWS
from refllm.batch.reader import COMPRESSED, FORMATS, WINDOW_CHARACTERS
from refllm.batch.rows import ON_LONG, WINDOW_ROWS, Embedder, Generator
from tests.conftest import PROJECT
from tests.support.pages import BLOCK, COMMAND, blocks, matches, run, user_environment

PAGE = (PROJECT / "docs" / "batch.md").read_text("utf-8")
COMMANDS = COMMAND.findall("\n".join(blocks("console", PAGE)))
PROGRAMS = blocks("python", PAGE)
LIBRARIES = ("duckdb", "lancedb", "faiss")
PACKAGES = ("duckdb", "lancedb", "faiss-cpu", "pyarrow", "numpy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page."""
    folder = tmp_path_factory.mktemp("reader")
    docs, *_ = blocks("text", PAGE)
    (folder / "docs.csv").write_text(docs)
    questions = next(each for each in blocks("text", PAGE) if each.startswith('{"name"'))
    (folder / "questions.jsonl").write_text(questions)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return user_environment(tmp_path_factory.mktemp("home"))


def shown_after(program: str) -> str:
    found = BLOCK.findall(PAGE)
    return str(found[[body for _, body in found].index(program) + 1][1])


def test_the_quickstart_has_two_commands_and_the_second_is_run_here() -> None:
    install, command = blocks("sh", PAGE)[0].splitlines()
    assert install == "pip install '.[batch]'"
    assert command == COMMANDS[0][0]


def test_the_commands_of_the_page_print_what_it_shows(
    folder: Path, environment: dict[str, str]
) -> None:
    assert len(COMMANDS) == 8
    for command, shown in COMMANDS:
        printed = run(command, folder, environment)
        assert matches(shown, printed), (command, printed)


def programs_of_libraries() -> list[tuple[str, str]]:
    return [
        (library, program)
        for library in LIBRARIES
        for program in PROGRAMS
        if f"import {library}" in program
    ]


def vectors(folder: Path, environment: dict[str, str]) -> None:
    run(COMMANDS[0][0], folder, environment)


@pytest.mark.parametrize(("library", "program"), programs_of_libraries())
def test_a_library_that_is_installed_opens_the_vectors(
    library: str, program: str, folder: Path, environment: dict[str, str]
) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed; a test marked network installs it")
    vectors(folder, environment)
    assert matches(shown_after(program), run([sys.executable, "-c", program], folder, environment))


@pytest.mark.network
def test_libraries_in_an_environment_of_their_own_open_the_vectors(
    folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    assert [library for library, _ in programs_of_libraries()] == list(LIBRARIES)
    vectors(folder, environment)
    shutil.copytree(folder / "vectors", tmp_path / "vectors")
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    run([python, "-m", "pip", "install", "--quiet", *PACKAGES], folder, environment)
    others = {name: environment[name] for name in environment if name != "PYTHONPATH"}
    for _, program in programs_of_libraries():
        assert len([line for line in program.splitlines() if line]) <= 7
        printed = run([python, "-c", program], tmp_path, others)
        assert matches(shown_after(program), printed), printed


def test_the_numbers_and_names_of_the_page_are_those_of_the_code() -> None:
    assert f"a window of {WINDOW_ROWS} rows, or of {WINDOW_CHARACTERS / 1e6:.0f} million" in PAGE
    for way in ON_LONG:
        assert f"| `{way}` |" in PAGE
    for ending in (
        *(each for endings in FORMATS.values() for each in endings[:1]),
        *COMPRESSED[:4],
    ):
        assert f"{ending}`" in PAGE
    schemas = {
        "embed": Embedder("tiny-embed").schema,
        "infer": Generator("tiny-chat").schema,
    }
    for schema in schemas.values():
        for name in schema.names:
            assert f"| `{name}` |" in PAGE
    assert set(PART_ROWS) == {Embedder, Generator}
