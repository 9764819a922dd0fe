"""docs/mistakes.md: each mistake is made here, and gets the answer that the page shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import refllm
from refllm.cli import app
from refllm.embedded import ROOT
from tests.conftest import PROJECT
from tests.test_docs import matches

PAGE = (PROJECT / "docs" / "mistakes.md").read_text("utf-8")
END_OF_LINE = " ⏎ "

COMMAND = re.compile(r"^\| [^|`]+ \| `refllm ?([^|`]*)` \| (\d) \| `([^|`]+)` \|$", re.MULTILINE)
PROGRAM = re.compile(r"^\| [^|`]+ \| `(refllm\.[^|`]*)` \| `([^|`]+)` \|$", re.MULTILINE)


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the page describes is the current one, and no model was pulled."""
    objects = [{"id": i, "text": text} for i, text in enumerate(("A cat.", "A dog."))]
    (tmp_path / "notes.txt").write_text("Feed the cat.\n")
    (tmp_path / "latin-1.txt").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in objects))
    (tmp_path / "list.json").write_text(json.dumps(objects[:1]))
    (tmp_path / "docs.csv").write_text('id,text\n0,"A cat."\n1,"A dog."\n')
    (tmp_path / "cut.gguf").write_bytes((ROOT / "llama" / "tiny-chat.gguf").read_bytes()[:100_000])
    (tmp_path / "page.gguf").write_text("<html>Moved Permanently</html>")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "spin.toml").write_text(
        'spin_manifest_version = 2\n[application]\nname = "app"\n[component.a]\nsource = "a.wasm"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFLLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REFLLM_STAND_INS", raising=False)


def as_a_cell(lines: str) -> str:
    """What is printed, as a cell of the page has it."""
    return END_OF_LINE.join(" ".join(line.split()) for line in lines.splitlines() if line.strip())


def test_the_page_has_rows_for_three_dozen_mistakes() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| [^|`]+ \| `refllm", line)]
    assert len(COMMAND.findall(PAGE)) + len(PROGRAM.findall(PAGE)) == len(rows) >= 36


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize(("arguments", "code", "shown"), COMMAND.findall(PAGE))
def test_a_mistake_gets_the_answer_of_the_page(arguments: str, code: str, shown: str) -> None:
    result = CliRunner().invoke(app, shlex.split(arguments))
    printed = as_a_cell(result.output)
    if code == "2":
        printed = printed.replace(END_OF_LINE, " ")  # the error may be in a frame of its own
    assert result.exit_code == int(code)
    assert matches(shown, printed), printed


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize(("program", "shown"), PROGRAM.findall(PAGE))
def test_a_mistake_in_python_gets_the_error_of_the_page(program: str, shown: str) -> None:
    with pytest.raises(refllm.LlmError) as error:
        eval(program, {"refllm": refllm})
    printed = as_a_cell(f"{type(error.value).__name__}: {error.value}")
    assert matches(shown, printed), printed
