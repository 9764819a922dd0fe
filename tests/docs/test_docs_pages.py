"""The pages of docs/: each block of commands is executed, each link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from refllm import conform, trace
from tests.conftest import PROJECT
from tests.guests.build import SPIN_SDK_3, Python
from tests.support.pages import BLOCK, COMMAND, FILE, matches, run
from tests.wasm.test_wasm_run import running

DOCS = PROJECT / "docs"
HARNESS = (DOCS / "harness.md").read_text("utf-8")
RUN = (DOCS / "run.md").read_text("utf-8")
ENVIRONMENT = (DOCS / "reference" / "environment.md").read_text("utf-8")

EXECUTED = {
    "batch.md": "test_docs_batch.py",
    "batch-cluster.md": "test_docs_batch_cluster.py",
    "conformance.md": "test_docs_conformance.py",
    "harness.md": "test_docs_pages.py",
    "inspect.md": "test_docs_inspect.py",
    "mistakes.md": "test_mistakes.py",
    "models.md": "test_docs_models.py",
    "new.md": "../cli/test_new.py",
    "run.md": "test_docs_pages.py",
    "serving.md": "test_docs_serving.py",
    "start.md": "test_docs.py",
    "testing.md": "test_docs_testing.py",
    "trace.md": "test_docs_trace.py",
}
"""The pages that have commands or programs, and the file of tests that executes them."""

FOLDERS = ("golden", "benchmarks", "findings", "attacks")
GENERATED = [DOCS / "_build", DOCS / "reference" / "api", DOCS / "reference" / "cli"]
MARKDOWN = [
    *PROJECT.glob("*.md"),
    *(path for path in DOCS.rglob("*.md") if not set(GENERATED) & set(path.parents)),
    *(path for name in FOLDERS for path in (PROJECT / name).rglob("*.md")),
]
LINK = re.compile(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]*))?\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def environment_of(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(PROJECT), "REFLLM_HOME": str(folder)}


def files_of(page: str, folder: Path) -> None:
    """Write the files that the page shows into the folder."""
    for name, text in FILE.findall(page):
        (folder / name).write_text(text, "utf-8")


def test_each_page_with_commands_or_programs_has_a_test_that_executes_them() -> None:
    pages = {
        path.name
        for path in DOCS.glob("*.md")
        if {"console", "python"} & {kind for kind, _ in BLOCK.findall(path.read_text("utf-8"))}
    }
    assert pages | {"mistakes.md"} == EXECUTED.keys()
    for page, tests in EXECUTED.items():
        assert page in (PROJECT / "tests" / "docs" / tests).read_text("utf-8")


def test_the_harness_is_wrong_as_shown_and_right_when_it_is_repaired(tmp_path: Path) -> None:
    files_of(HARNESS, tmp_path)
    commands = COMMAND.findall(
        "".join(body for kind, body in BLOCK.findall(HARNESS) if kind == "console")
    )
    codes = []
    for command, shown in commands:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env=environment_of(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert matches(shown, done.stdout), done.stdout + done.stderr
        codes.append(done.returncode)
    assert codes == [1, 0, 0]


def test_the_harness_has_40_lines_at_most(tmp_path: Path) -> None:
    files_of(HARNESS, tmp_path)
    assert len((tmp_path / "harness.py").read_text("utf-8").splitlines()) <= 40


@pytest.mark.network
def test_the_application_is_built_served_and_answers_as_shown(tmp_path: Path) -> None:
    files_of(RUN, tmp_path)
    install, build = next(b for k, b in BLOCK.findall(RUN) if k == "sh").splitlines()
    assert install == f"pip install {' '.join(SPIN_SDK_3)}"
    assert build == "componentize-py -w spin-http componentize app -o app.wasm"
    Python(SPIN_SDK_3, ("-q", "-w", "spin-http", "componentize")).build(tmp_path)
    text, *_ = (body for kind, body in BLOCK.findall(RUN) if kind == "text")
    console, *_ = (body for kind, body in BLOCK.findall(RUN) if kind == "console")
    with running(tmp_path, "--stand-ins") as (_, announced):
        address = announced[0].removeprefix("Serving ")
        assert text.replace("http://127.0.0.1:3000", address).splitlines() == announced
        for command, shown in COMMAND.findall(console):
            asked = command.replace("http://127.0.0.1:3000", address)
            assert matches(shown, run(asked, tmp_path, environment_of(tmp_path)))


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: str(p.relative_to(PROJECT)))
def test_every_file_of_tests_that_a_page_names_is_there(path: Path) -> None:
    if path.parts[-2] not in {"golden", "findings"}:
        named = re.findall(r"\btests/[\w/]+\.py\b", path.read_text("utf-8"))
        assert [name for name in named if not (PROJECT / name).is_file()] == []


def test_the_workflow_builds_the_application_as_its_page_does() -> None:
    workflow = (DOCS / "ci.md").read_text("utf-8")
    commands = next(body for kind, body in BLOCK.findall(RUN) if kind == "sh").splitlines()
    assert [command for command in commands if f"- run: {command}\n" not in workflow] == []


def test_the_page_names_every_environment_variable_of_the_package() -> None:
    sources = [path.read_text("utf-8") for path in (PROJECT / "refllm").rglob("*.py")]
    names = {name for text in sources for name in re.findall(r"\bREFLLM_[A-Z_]+\b", text)}
    assert {"REFLLM_HOME", "REFLLM_CACHE_DIR", "REFLLM_STAND_INS", "REFLLM_TOKEN"} <= names
    assert [name for name in sorted(names) if f"| `{name}` |" not in ENVIRONMENT] == []


def test_the_page_names_every_schema() -> None:
    page = (DOCS / "reference" / "schemas.md").read_text("utf-8")
    folders = [PROJECT / "golden", *(Path(m.__path__[0]) for m in (conform, trace))]
    schemas = [path for folder in folders for path in folder.rglob("*.schema.json")]
    assert len(schemas) >= 6
    assert [path.name for path in schemas if f"[{path.name}](" not in page] == []


def test_a_fragment_of_the_changelog_has_an_issue_or_a_word_and_a_known_type() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["tool"]["towncrier"]
    types = "|".join(kind["directory"] for kind in settings["type"])
    folder = PROJECT / settings["directory"]
    names = {path.name for path in folder.iterdir()} - {"README.md"}
    assert [
        n for n in names if not re.fullmatch(rf"(\d+|\+[\w-]+)\.({types})(\.\d+)?\.md", n)
    ] == []
    readme = (folder / "README.md").read_text("utf-8")
    assert [kind for kind in types.split("|") if f"| `{kind}` |" not in readme] == []
    assert settings["start_string"].strip() in (PROJECT / settings["filename"]).read_text("utf-8")


def anchors(path: Path) -> set[str]:
    """The anchors of a Markdown file's headings, as GitHub makes them, includes followed."""
    text = path.read_text("utf-8")
    found: set[str] = set()
    for name in re.findall(r"^```\{include\} (\S+)$", text, re.MULTILINE):
        found |= anchors(path.parent / name)
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda p: str(p.relative_to(PROJECT)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(path: Path) -> None:
    for target, anchor in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        file = (path.parent / urlsplit(target).path).resolve() if target else path
        assert file.exists(), target
        file = file / "README.md" if anchor and file.is_dir() else file
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"
