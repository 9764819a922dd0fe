"""`refllm new`: what it writes is built, tested and served by the commands of its README."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refllm.cli import app
from refllm.cli.new import Language
from refllm.testing.server_process import running_server
from refllm.wasm.http.application import open_application
from tests.conftest import HUNG_SECONDS, PROJECT
from tests.support.pages import COMMAND, blocks, matches, user_environment

PAGE = (PROJECT / "docs" / "new.md").read_text("utf-8")
SECTIONS = {"rust": "Rust", "ts": "TypeScript", "python": "Python", "go": "Go"}
MINUTES = 60


def written(
    folder: Path, language: str, monkeypatch: pytest.MonkeyPatch, name: str = "my-app"
) -> Path:
    """An application that the command has written."""
    monkeypatch.chdir(folder)
    outcome = CliRunner().invoke(app, ["new", name, "--language", language])
    assert (outcome.exit_code, outcome.output) == (0, f"{Path(name, 'README.md')}\n")
    return folder / name


def commands_of(page: str) -> list[str]:
    return [line for block in blocks("sh", page) for line in block.splitlines()]


@pytest.mark.parametrize("language", Language)
def test_an_application_has_a_route_a_model_and_no_placeholder(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path, language, monkeypatch)
    application = open_application(folder, {})
    assert [route.path for route in application.routes] == ["/mood"]
    assert application.components["mood"].ai_models == ("llama2-chat",)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if "@NAME@" in path.read_text("utf-8")]
    assert "my-app" in (folder / "spin.toml").read_text("utf-8")
    assert {".gitignore", "README.md"} <= {path.name for path in files}


@pytest.mark.parametrize("language", Language)
def test_the_commands_of_the_page_are_those_of_the_readme(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (written(tmp_path, language, monkeypatch) / "README.md").read_text("utf-8")
    section = PAGE.partition(f"\n## {SECTIONS[language]}\n")[2].partition("\n## ")[0]
    commands = commands_of(section)
    assert commands
    assert set(commands) <= set(commands_of(readme))


def test_the_command_of_the_page_prints_what_it_shows(tmp_path: Path) -> None:
    ((command, shown),) = COMMAND.findall("".join(blocks("console", PAGE)))
    assert matches(shown, run(command, tmp_path, user_environment(tmp_path)))


def test_a_folder_that_is_there_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my-app").mkdir()
    outcome = CliRunner().invoke(app, ["new", "my-app", "--language", "go"])
    assert outcome.exit_code == 1
    assert "there is my-app already, and nothing is written over it" in outcome.stderr
    assert list(Path("my-app").iterdir()) == []


@pytest.mark.parametrize("name", ["", "My-App", "../app", "a" * 65, "1app", "a--b", "app\n"])
def test_a_name_that_no_tool_takes_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, ["new", "--language", "go", "--", name])
    assert outcome.exit_code == 1
    assert "must have lower-case letters" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


# --- The commands --------------------------------------------------------------------------------


def run(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=10 * MINUTES,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_against_a_server(command: str, folder: Path) -> str:
    """What a command prints that has `refllm serve --stand-ins` at REFLLM_URL."""
    with running_server(["--stand-ins"]) as server:
        return run(command, folder, {**user_environment(folder), "REFLLM_URL": server.url})


def mood_of(folder: Path, text: str) -> str:
    """What the application answers that `refllm run . --stand-ins` serves."""
    command = [sys.executable, "-m", "refllm", "run", ".", "--stand-ins", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            url = server.stdout.readline().removeprefix("Serving ").strip()
            request = urllib.request.Request(f"{url}/mood", text.encode())
            with urllib.request.urlopen(request, timeout=HUNG_SECONDS) as response:
                answer: str = response.read().decode()
                return answer
        finally:
            server.terminate()


def needs(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


@pytest.mark.slow
@pytest.mark.network
def test_an_application_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path, "python", monkeypatch)
    assert re.search("2 passed", run("pytest -q", folder, user_environment(folder)))
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(tmp_path / "venv")}
    run("pip install -q -r requirements.txt", folder, environment)
    run("componentize-py -w spin-http componentize app -o app.wasm", folder, environment)
    assert mood_of(folder, "I love this song.") == "positive"


@pytest.mark.slow
@pytest.mark.network
def test_an_application_in_typescript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("npm")
    folder = written(tmp_path, "ts", monkeypatch)
    run("npm install", folder, os.environ)
    assert re.search("2 passed", run_against_a_server("npm test", folder))
    run("npm run build", folder, os.environ)
    assert mood_of(folder, "I love this song.") == "positive"


@pytest.mark.slow
@pytest.mark.network
def test_an_application_in_rust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("cargo")
    monkeypatch.delenv("CARGO_TARGET_DIR", raising=False)
    folder = written(tmp_path, "rust", monkeypatch)
    assert "2 passed" in run_against_a_server("cargo test", folder)
    needs("rustup")
    if "wasm32-wasip2" not in run("rustup target list --installed", folder, os.environ):
        pytest.skip("the target is not installed: rustup target add wasm32-wasip2")
    run("cargo build --target wasm32-wasip2 --release", folder, os.environ)
    assert mood_of(folder, "I love this song.") == "positive"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my-app", "net", "go"])  # the last two are names of Go's own
def test_an_application_in_go(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("go")
    folder = written(tmp_path, "go", monkeypatch, name)
    tested = run_against_a_server("go test ./...", folder)
    assert re.search(rf"ok\s+example.com/{name}/mood", tested)
