"""The server of the live page: its answers, its refusals, and its headers."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from refllm.engine import LocalEngine
from refllm.inspect import app as app_module
from refllm.inspect.app import application
from refllm.inspect.run import Run
from refllm.inspect.stages import explained
from tests.conftest import HUNG_SECONDS
from tests.support.commands import refllm

PARAMS = {"temperature": 0.5, "top_k": 5}
STEP = {"step": 3, "params": PARAMS, "seed": "18446744073709551615", "profile": "llama.cpp"}


def ask(
    address: str, path: str, *, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Status, body and headers of an answer; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    types = {} if body is None else {"content-type": "application/json"}
    method = "GET" if body is None else "POST"
    connection.request(method, path, body, {**types, **(headers or {})})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, answer, response.headers


def test_a_step_is_drawn_again_as_in_python(addresses: dict[str, str], told: Run) -> None:
    status, answer, _ = ask(addresses["llama live"], "/step", body=STEP)
    assert status == 200
    draw = told.draws[3]
    params = type(draw.params)(temperature=0.5, top_k=5)
    again = draw.again(params, seed=2**64 - 1, profile="llama.cpp")
    expected = explained(again, told.model.tokenizer, n_candidates=40)
    assert json.loads(answer) == json.loads(json.dumps(expected))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "the body must be JSON"),
        (b"[1]", "the body must be JSON"),
        (b"[" * 60_000, "the body must be JSON"),
        (b" " * 70_000, "longer than the limit of 65536 bytes"),
        ({**STEP, "step": 55}, "has no step 55; it has 55, from 0"),
        ({**STEP, "step": -1}, "has no step -1"),
        ({**STEP, "step": "3"}, "has no step '3'"),
        ({**STEP, "step": True}, "has no step True"),
        ({**STEP, "step": 3.0}, "has no step 3.0"),
        ({**STEP, "step": None}, "has no step None"),
        ({**STEP, "seed": 2**64}, "seed must be a whole number from 0 to 18446744073709551615"),
        ({**STEP, "seed": "-1"}, "seed must be a whole number, got '-1'"),
        ({**STEP, "profile": "x"}, "unknown profile 'x'"),
        ({**STEP, "params": {"top_k": 1.5}}, "top_k must be a whole number"),
        ({**STEP, "params": {"temperature": "hot"}}, "temperature must be a finite float32"),
        ({**STEP, "params": {"top_q": 1}}, "params has the unknown key 'top_q'"),
        ({**STEP, "params": [1]}, "the body must be JSON"),
        ({**STEP, "params": []}, "the body must be JSON"),
        ({**STEP, "params": ""}, "the body must be JSON"),
        ({**STEP, "params": None}, "the body must be JSON"),
        ({**STEP, "params": 5}, "the body must be JSON"),
        ([], "the body must be JSON"),
        ("step", "the body must be JSON"),
    ],
)
def test_an_unusable_step_is_refused_in_words(
    addresses: dict[str, str], body: Any, problem: str
) -> None:
    status, answer, _ = ask(addresses["llama live"], "/step", body=body)
    assert status == 400
    assert problem in json.loads(answer)["error"]


def test_an_array_is_the_value_s_float32(addresses: dict[str, str], told: Run) -> None:
    status, answer, _ = ask(addresses["llama live"], "/array?name=0/Qcur-1%232")
    assert status == 200
    expected = told.array("0/Qcur-1#2")
    assert np.array_equal(np.frombuffer(answer, "<f4").reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("path", "status", "problem"),
    [
        ("/array?name=0/nothing", 400, "no value '0/nothing'"),
        ("/array", 400, "no value ''"),
        ("/quantization?tensor=x", 400, "no matrix 'x'"),
        ("/quantization?tensor=token_embd.weight&row=99999", 400, "asked for row 99999"),
        (
            "/quantization?tensor=token_embd.weight&row=x",
            400,
            "row must be a whole number, got 'x'",
        ),
        ("/app.py", 404, "there is no 'app.py' here"),
        ("/..%2fapp.py", 404, ""),
    ],
)
def test_an_unknown_thing_is_refused_in_words(
    addresses: dict[str, str], path: str, status: int, problem: str
) -> None:
    got, answer, _ = ask(addresses["llama live"], path)
    assert got == status
    assert problem in answer.decode()


def test_a_step_that_is_not_sent_as_json_is_refused(addresses: dict[str, str]) -> None:
    for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"content-type": media_type}
        status, answer, _ = ask(addresses["llama live"], "/step", body=STEP, headers=headers)
        assert status == 415
        assert "must be application/json" in json.loads(answer)["error"]
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert ask(addresses["llama live"], "/step", body=STEP, headers=headers)[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/document.json", "/main.js", "/array?name=x", "/absent", "/step"]
)
def test_every_answer_forbids_what_the_page_does_not_need(
    addresses: dict[str, str], path: str
) -> None:
    _, _, headers = ask(addresses["llama live"], path)
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_an_answer_to_an_error_of_refllm_has_the_headers_too(
    told: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no division")

    monkeypatch.setattr(app_module, "quantization_of", fail)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/quantization",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(application(told)(scope, receive, send))
    assert sent[0]["status"] == 500
    assert dict(sent[0]["headers"])[b"cross-origin-resource-policy"] == b"same-origin"
    error = json.loads(b"".join(each.get("body", b"") for each in sent[1:]))["error"]
    assert error == "unexpected ZeroDivisionError: no division; this is a bug in refllm"


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"host": "evil.example"}, "is not this machine"),
        ({"host": "127.0.0.1.evil.example"}, "is not this machine"),
        ({"host": "[::1"}, "is not this machine"),
        ({"origin": "https://evil.example"}, "is another origin"),
        ({"origin": "http://127.0.0.1:1"}, "is another origin"),
        ({"origin": "http://127.0.0.1"}, "is another origin"),
        ({"origin": "null"}, "is another origin"),
        ({"sec-fetch-site": "cross-site"}, "a page of another origin"),
        ({"sec-fetch-site": "same-site"}, "a page of another origin"),
    ],
)
def test_other_sites_pages_get_nothing(
    addresses: dict[str, str], headers: dict[str, str], problem: str
) -> None:
    for path in ("/document.json", "/array?name=0/Qcur-1", "/quantization", "/main.js"):
        status, answer, _ = ask(addresses["llama live"], path, headers=headers)
        assert status == 403
        assert problem in json.loads(answer)["error"]
    assert ask(addresses["llama live"], "/step", body=STEP, headers=headers)[0] == 403


def test_the_page_itself_and_links_to_it_are_answered(addresses: dict[str, str]) -> None:
    for site in ("same-origin", "none"):
        headers = {"sec-fetch-site": site}
        assert ask(addresses["llama live"], "/document.json", headers=headers)[0] == 200
    assert ask(addresses["llama live"], "/", headers={"sec-fetch-site": "cross-site"})[0] == 200


def test_this_machine_s_names_are_allowed(addresses: dict[str, str]) -> None:
    port = urlsplit(addresses["llama live"]).port
    for host in ("localhost", "127.0.0.1", "[::1]"):
        headers = {"host": f"{host}:{port}", "origin": f"http://{host}:{port}"}
        assert ask(addresses["llama live"], "/", headers=headers)[0] == 200


# The command


def test_a_file_that_cannot_be_written_is_named_before_the_run(tmp_path: Path) -> None:
    result = refllm("inspect", "tiny-chat", "--html", tmp_path / "absent" / "run.html")
    assert result.exit_code == 1
    assert "invalid-input: --html " in result.stderr


def test_a_file_that_exists_is_replaced_with_force_alone(tmp_path: Path) -> None:
    files = {"--html": tmp_path / "run.html", "--json": tmp_path / "run.json"}
    for option, file in files.items():
        file.write_text("old")
        command = ("inspect", "tiny-chat", "--max-tokens", "1", option, file)
        result = refllm(*command)
        assert (result.exit_code, file.read_text()) == (1, "old")
        assert f"{file} exists already; --force replaces it" in result.stderr
        assert refllm(*command, "--force").exit_code == 0
        assert "refllm" in file.read_text("utf-8")


def test_one_file_for_the_page_and_the_document_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run"
    again = tmp_path / "absent" / ".." / "run"
    result = refllm("inspect", "tiny-chat", "--html", file, "--json", again)
    assert result.exit_code == 1
    assert f"--html and --json name the same file, {file}" in result.stderr
    assert not file.exists()


@pytest.mark.parametrize(
    ("browser", "problem"),
    [
        ("time.sleep(3600)", ""),  # a browser in the terminal, until its user ends it
        ("False", "refllm: no browser can be opened here; open {url} in one\n"),
    ],
)
def test_the_page_is_served_whatever_the_browser_does(browser: str, problem: str) -> None:
    program = (
        "import time, webbrowser\n"
        f"webbrowser.open = lambda url: {browser}\n"
        "from refllm.cli import main\n"
        "main()\n"
    )
    arguments = ["inspect", "tiny-chat", "--max-tokens", "1", "--port", "0", "--browser"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert ask(url, "/")[0] == 200
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=HUNG_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, problem.format(url=url))


def test_other_processes_compile_the_kernels_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    class Recorded(LocalEngine):
        def __init__(self, **options: Any) -> None:
            asked.append(options["compiles_apart"])
            super().__init__(**options)

    monkeypatch.setattr("refllm.engine.LocalEngine", Recorded)
    file = tmp_path / "run.html"
    result = refllm("inspect", "tiny-chat", "--max-tokens", "1", "--html", file)
    assert (result.exit_code, asked) == (0, [True])


def test_two_prompts_for_a_llama_are_refused(tmp_path: Path) -> None:
    result = refllm("inspect", "tiny-chat", "Once", "upon", "--html", tmp_path / "run.html")
    assert result.exit_code == 1
    assert "takes one prompt, got 2; quote a text with spaces" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_taken_is_named(addresses: dict[str, str]) -> None:
    port = urlsplit(addresses["llama live"]).port
    result = refllm("inspect", "tiny-chat", "--port", str(port))
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_a_file_needs_no_package_of_the_extra(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('starlette', 'uvicorn', 'fastapi', 'h11'):\n"
        "    sys.modules[name] = None\n"
        "from refllm.cli import main\n"
        "main()\n"
    )
    file = tmp_path / "run.html"
    command = [sys.executable, "-c", program, "inspect", "tiny-chat", "--max-tokens", "1"]
    subprocess.run([*command, "--html", str(file)], check=True)
    assert file.read_text("utf-8").startswith("<!doctype html>")
    served = subprocess.run(command, capture_output=True, text=True, check=False)
    assert served.returncode == 1
    assert "the page needs the package" in served.stderr
    assert "[inspect]" in served.stderr
