"""`refllm run` as a process: what it prints, what it answers, and how it ends."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from refllm.spin.component import engine_for
from tests.conftest import HUNG_SECONDS
from tests.guests.build import component
from tests.guests.models import model_roots
from tests.support.client import HEAD_WITHOUT_END, answer_to_drops, connected
from tools.attack.wat import HANDLER

# Restores Ctrl-C: a background job, such as a test runner's, starts with SIGINT ignored.
HEEDING = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('refllm', run_name='__main__', alter_sys=True)"
)
MANIFEST = """
spin_manifest_version = 2

[[trigger.http]]
route = "/..."
component = "teller"

[component.teller]
source = "teller.wasm"
ai_models = [{ai_models}]
"""
JOKE = "You are a stand up comedy writer. Tell me a joke."


def refllm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What `python -m refllm` with these arguments does."""
    command = [sys.executable, "-m", "refllm", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=HUNG_SECONDS
    )


@contextmanager
def running(app: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`refllm run` on a free port, and the lines that it announces."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING, "run", app, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            yield process, [process.stdout.readline().strip() for _ in range(2)]
        finally:
            process.kill()


def application(folder: Path, ai_models: str) -> Path:
    """The documentation's example as an application with models of its own."""
    model_roots(folder / ".spin" / "ai-models")
    (folder / "teller.wasm").symlink_to(component("python_3"))
    (folder / "spin.toml").write_text(MANIFEST.format(ai_models=ai_models))
    return folder


@pytest.mark.network
def test_an_application_is_announced_and_answers(tmp_path: Path) -> None:
    app = application(tmp_path, '"llama2-chat"')
    with running(app) as (_, (serving, route)):
        url = serving.removeprefix("Serving ")
        assert route == f"teller\t{url}/..."
        with urllib.request.urlopen(url, timeout=HUNG_SECONDS) as response:
            text = response.read().decode()
    assert text == engine_for(app, "teller").infer("llama2-chat", JOKE).text


@pytest.mark.network
def test_a_component_may_use_no_model_but_its_ai_models(tmp_path: Path) -> None:
    with running(application(tmp_path, '"tiny-chat"')) as (process, (serving, _)):
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(serving.removeprefix("Serving "), timeout=HUNG_SECONDS)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=HUNG_SECONDS)
    assert "The component does not have access to use 'llama2-chat'" in log


@pytest.mark.network
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_ends_it_cleanly(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with running(application(tmp_path, "")) as (process, _):
        process.send_signal(number)
        _, log = process.communicate(timeout=HUNG_SECONDS)
    assert process.returncode == code
    assert "Traceback" not in log


@pytest.mark.network
@pytest.mark.parametrize(
    ("number", "code", "options"),
    [(signal.SIGTERM, 0, ["--grace", "0"]), (signal.SIGINT, 130, ["--grace", "3600"])],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_request_that_outlasts_its_grace_is_answered_and_ended(
    number: signal.Signals, code: int, options: list[str]
) -> None:
    app = component("probe")
    with running(app, "--max-seconds", "3600", *options) as (process, (serving, _)):
        url = serving.removeprefix("Serving ")
        address = url.removeprefix("http://")
        with closing(http.client.HTTPConnection(address, timeout=HUNG_SECONDS)) as client:
            client.request("GET", "/sleep?3600")
            # What is sent on a later connection is answered after the first request has begun.
            with urllib.request.urlopen(f"{url}/.well-known/spin/health", timeout=HUNG_SECONDS):
                process.send_signal(number)
            response = client.getresponse()
            assert response.status == 500
            assert b" failed: the server is shutting down" in response.read()
        _, log = process.communicate(timeout=HUNG_SECONDS)
    assert process.returncode == code
    assert "Traceback" not in log


@pytest.mark.network
def test_slow_clients_get_408_and_clients_beyond_the_limit_503(tmp_path: Path) -> None:
    app = application(tmp_path, "")
    with running(app, "--max-arrival-seconds", "0.2") as (_, (serving, _route)):
        url = serving.removeprefix("Serving ")
        assert answer_to_drops(url, HEAD_WITHOUT_END).startswith(b"HTTP/1.1 408 ")
    patient = ("--max-connections", "1", "--max-arrival-seconds", str(HUNG_SECONDS))
    with running(app, *patient) as (_, (serving, _route)):
        url = serving.removeprefix("Serving ")
        with (
            connected(url),
            pytest.raises(urllib.error.HTTPError, match="503"),
        ):
            urllib.request.urlopen(url, timeout=HUNG_SECONDS)


def test_a_port_in_use_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "app.wasm"
    path.write_bytes(wat2wasm(HANDLER))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = refllm("run", path, "--port", str(port))
    assert (process.returncode, process.stdout) == (1, "")
    *_, last = process.stderr.splitlines()
    assert last.startswith(f"refllm: invalid-input: cannot listen on 127.0.0.1:{port}: ")


def test_a_missing_application_is_an_error_of_one_line(tmp_path: Path) -> None:
    process = refllm("run", tmp_path / "nowhere")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == (
        f"refllm: invalid-input: there is no application at {tmp_path / 'nowhere'}\n"
    )


def test_a_component_without_an_http_handler_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "app.wasm"
    path.write_bytes(wat2wasm("(component)"))
    process = refllm("run", path, "--port", "0")
    assert (process.returncode, process.stdout) == (1, "")
    assert "exports nothing, and not the interface wasi:http/incoming-handler" in process.stderr
    assert "Traceback" not in process.stderr
