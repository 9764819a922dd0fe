"""`python -m refllm.spin.shim`: one request to a handler, and how it can go wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from typer.testing import CliRunner, Result

from refllm.cli.handle import app
from refllm.engine import LocalEngine
from tests.conftest import HUNG_SECONDS
from tests.support.model_files import tiny_llama_gguf

HANDLER = """
    from spin_sdk import http, llm

    class IncomingHandler(http.IncomingHandler):
        def handle_request(self, request):
            print("a line of the log")
            if request.uri == "/echo":
                seen = f"{request.method} {request.headers}"
                return http.Response(404, {"X-Seen": seen}, request.body)
            answer = llm.infer("tiny", request.body.decode())
            return http.Response(200, {"content-type": "text/plain"}, answer.text.encode())
"""
BROKEN = """
    from spin_sdk import http

    class IncomingHandler(http.IncomingHandler):
        def handle_request(self, request):
            return divided(1, 0)

    def divided(a, b):
        return a / b
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ai-models")
    tiny_llama_gguf(root / "tiny.gguf")
    return root


@pytest.fixture
def handler(tmp_path: Path) -> Path:
    return written(tmp_path, HANDLER)


def written(folder: Path, source: str) -> Path:
    path = folder / "app.py"
    path.write_text(dedent(source), "utf-8")
    return path


def shim(*arguments: str | Path, stdin: str = "") -> Result:
    """What `python -m refllm.spin.shim` with these arguments does."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def complaint(*arguments: str | Path) -> str:
    """The one line that the shim itself says when it fails."""
    result = shim(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.removeprefix("a line of the log\n").splitlines()
    return line


def test_the_response_is_printed_with_status_headers_and_body(handler: Path, root: Path) -> None:
    text = LocalEngine(roots=[root], seed=7).infer("tiny", "the cat").text
    options = ("--model-roots", root, "--seed", "7")
    result = shim(handler, "--request", "POST /", "--body", "the cat", *options)
    assert (result.exit_code, result.stderr) == (0, "a line of the log\n")
    length = len(text.encode())
    head = f"HTTP/1.1 200 OK\ncontent-type: text/plain\ncontent-length: {length}\n\n"
    assert result.stdout == head + text


def test_method_headers_and_body_reach_the_handler(handler: Path) -> None:
    headers = ("--header", "Accept: text/plain", "--header", "X-Time:10:30")
    result = shim(handler, "--request", "put /echo", *headers, "--body", "-", stdin="grüße\n")
    seen = "PUT {'accept': 'text/plain', 'x-time': '10:30'}"
    assert result.stdout.splitlines()[:2] == ["HTTP/1.1 404 Not Found", f"x-seen: {seen}"]
    assert result.stdout.endswith("\n\ngrüße\n")


def test_a_path_alone_is_gotten(handler: Path) -> None:
    assert "\nx-seen: GET {}\n" in shim(handler, "--request", "/echo").stdout


def test_a_handler_that_raises_ends_in_the_line_where_it_did(tmp_path: Path) -> None:
    message = complaint(written(tmp_path, BROKEN))
    assert message == "refllm: runtime-error: app.py:9: ZeroDivisionError: division by zero"


def test_an_error_of_the_model_names_the_line_that_asked(handler: Path, tmp_path: Path) -> None:
    result = shim(handler, "--model-roots", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    message = "refllm: invalid-input: app.py:10: no model directory found for model 'tiny'"
    assert result.stderr.startswith(f"a line of the log\n{message}")
    assert "Traceback" not in result.stderr


def test_a_handler_that_exits_has_failed(tmp_path: Path) -> None:
    assert "app.py:2: SystemExit: 0" in complaint(written(tmp_path, "\nraise SystemExit(0)"))


def test_a_handler_with_a_syntax_error_is_an_error_with_its_line(tmp_path: Path) -> None:
    message = complaint(written(tmp_path, "def\n"))
    assert "app.py: SyntaxError: " in message
    assert message.endswith("(app.py, line 1)")


def test_a_part_of_the_sdk_that_is_not_here_is_named(tmp_path: Path) -> None:
    message = complaint(written(tmp_path, "from spin_sdk import sqlite\nsqlite.open_default()\n"))
    assert "app.py:2: NotInShim: spin_sdk.sqlite.open_default: refllm's shim has no such" in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    message = complaint(tmp_path / "nowhere.py")
    assert message == f"refllm: invalid-input: there is no handler at {tmp_path / 'nowhere.py'}"


@pytest.mark.parametrize("request_", ["", "POST", "POST nowhere", "POST / HTTP/1.1", "http://x/"])
def test_an_invalid_request_argument_is_refused(request_: str, handler: Path) -> None:
    message = complaint(handler, "--request", request_)
    assert message.startswith("refllm: invalid-input: --request must be a method and a path")


@pytest.mark.parametrize("header", ["", "accept", ": text/plain"])
def test_an_invalid_header_argument_is_refused(header: str, handler: Path) -> None:
    message = complaint(handler, "--header", header)
    assert message.startswith("refllm: invalid-input: --header must be a name and a value")


def test_the_shim_runs_as_a_module(handler: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "refllm.spin.shim", handler, "--request", "/echo"],
        capture_output=True,
        check=True,
        timeout=HUNG_SECONDS,
    )
    assert process.stdout.startswith(b"HTTP/1.1 404 Not Found\nx-seen: GET {}\n")
    assert process.stderr.replace(b"\r\n", b"\n") == b"a line of the log\n"
