"""`refllm run` as a process: what it prints, what it answers, and how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from wasmtime import wat2wasm

from refllm.spin.component import engine_for
from tests.conftest import HUNG_SECONDS
from tests.guests.build import component
from tests.guests.models import model_roots
from tests.support.slow_client import HEAD_WITHOUT_END, answer_to_drops

# Heeds Ctrl-C although whoever runs the tests may not: a job in the background has it ignored.
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
def test_clients_that_are_slow_or_too_many_are_told_so(tmp_path: Path) -> None:
    app = application(tmp_path, "")
    with running(app, "--max-arrival-seconds", "0.2") as (_, (serving, _route)):
        url = serving.removeprefix("Serving ")
        assert answer_to_drops(url, HEAD_WITHOUT_END).startswith(b"HTTP/1.1 408 ")
    patient = ("--max-connections", "1", "--max-arrival-seconds", str(HUNG_SECONDS))
    with running(app, *patient) as (_, (serving, _route)):
        url = serving.removeprefix("Serving ")
        address = urlsplit(url)
        with (
            socket.create_connection((address.hostname, address.port), timeout=HUNG_SECONDS),
            pytest.raises(urllib.error.HTTPError, match="503"),
        ):
            urllib.request.urlopen(url, timeout=HUNG_SECONDS)


def test_an_application_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    process = refllm("run", tmp_path / "nowhere")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == (
        f"refllm: invalid-input: there is no application at {tmp_path / 'nowhere'}\n"
    )


def test_a_component_that_answers_no_requests_says_so(tmp_path: Path) -> None:
    path = tmp_path / "app.wasm"
    path.write_bytes(wat2wasm("(component)"))
    process = refllm("run", path, "--port", "0")
    assert (process.returncode, process.stdout) == (1, "")
    assert "exports nothing, and not the interface wasi:http/incoming-handler" in process.stderr
    assert "Traceback" not in process.stderr
