"""docs/mistakes.md: each mistake is made here, and gets the answer that the page shows."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import refllm
from refllm.cli import app
from refllm.models.bundled import ROOT
from refllm.testing.server_process import running_server
from tests.conftest import PROJECT
from tests.support.client import Answer, ask
from tests.support.pages import matches

PAGE = (PROJECT / "docs" / "mistakes.md").read_text("utf-8")
END_OF_LINE = " ⏎ "

COMMAND = re.compile(r"^\| [^|`]+ \| `refllm ?([^|`]*)` \| (\d) \| `([^|`]+)` \|$", re.MULTILINE)
REQUEST = re.compile(r"^\| [^|`]+ \| `curl ([^|`]*)` \| (\d{3}) \| `([^|`]+)` \|$", re.MULTILINE)
TOKEN = "open-sesame"
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
    (tmp_path / "noisy.py").write_text('print("loading the model", flush=True)\n')
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


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of both servers of the page, by the names that it gives them."""
    folder = tmp_path_factory.mktemp("served")
    environment = os.environ | {"REFLLM_HOME": str(folder / "home"), "REFLLM_STAND_INS": "0"}
    with (
        running_server(folder=folder, environment=environment) as server,
        running_server(["--token", TOKEN], folder=folder, environment=environment) as guarded,
    ):
        yield {"$URL": server.url, "$GUARDED": guarded.url}


def as_a_cell(lines: str) -> str:
    """What is printed, as a cell of the page has it."""
    return END_OF_LINE.join(" ".join(line.split()) for line in lines.splitlines() if line.strip())


def test_the_page_has_rows_for_three_dozen_mistakes() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| [^|`]+ \| `refllm", line)]
    assert len(COMMAND.findall(PAGE)) + len(PROGRAM.findall(PAGE)) == len(rows) >= 36


def test_the_page_has_rows_for_two_dozen_mistakes_over_http() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| [^|`]+ \| `curl", line)]
    assert len(REQUEST.findall(PAGE)) == len(rows) >= 24


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


def curl(arguments: str, servers: dict[str, str]) -> Answer:
    """The answer to a request of the page, which uses four of curl's options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("-d", dest="body")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-X", dest="method")
    asked = parser.parse_args(shlex.split(arguments))
    server, path = re.fullmatch(r"(\$[A-Z]+)(/.*)", asked.address).groups()  # type: ignore[union-attr]
    if asked.body == "@long.json":
        asked.body = json.dumps({"model": "tiny-chat", "prompt": "Once " * 600})
    headers = dict(header.split(": ", 1) for header in asked.headers)
    body = None if asked.body is None else asked.body.encode()
    return ask(servers[server], path, body, method=asked.method, headers=headers)


@pytest.mark.parametrize(("arguments", "status", "shown"), REQUEST.findall(PAGE))
def test_a_mistake_over_http_gets_the_answer_of_the_page(
    arguments: str, status: str, shown: str, servers: dict[str, str]
) -> None:
    answer = curl(arguments, servers)
    text = answer.body.decode()
    if answer.status != 200:
        text = answer.json if isinstance(answer.json, str) else answer.json["error"]["message"]
    assert answer.status == int(status)
    assert matches(shown, as_a_cell(text)), as_a_cell(text)
