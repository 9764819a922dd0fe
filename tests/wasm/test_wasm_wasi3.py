"""Components of WASI 0.3: hosted by Node with jco as those of 0.2 are, or refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm

from refllm.api import InferencingParams, LlmRuntimeError
from refllm.engine import LocalEngine
from refllm.wasm.channel import Gone, JsonChannel
from refllm.wasm.compiled import folder_of_kept
from refllm.wasm.guest import GuestFailed, Limits, Output
from refllm.wasm.host import Host, Program, Services
from refllm.wasm.http.application import open_application
from refllm.wasm.http.asgi import SpinApp, connection_with
from refllm.wasm.http.files import folder_of
from refllm.wasm.jco import HOW_TO_GET_JCO
from refllm.wasm.wasi.http import Request
from refllm.wasm.workers import WorkerHost
from tests.conftest import HUNG_SECONDS, PROJECT
from tests.guests.build import component
from tests.guests.calls import Recorder, called
from tests.guests.jco import add_jco
from tests.guests.models import model_roots
from tests.support.client import eventually
from tests.support.pages import blocks
from tests.support.servers import serving
from tests.wasm.hosts import HOSTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Node is run on Linux only")

MEBIBYTE = 1024 * 1024
OF_WASI_3 = """
    (component
      (core module $m (func (export "f")))
      (core instance $i (instantiate $m))
      (func $f (canon lift (core func $i "f")))
      (instance $handler (export "handle" (func $f)))
      (export "wasi:http/handler@0.3.0" (instance $handler)))"""
PROMPT = "the cat sat on"
TEXTS = ["the cat", "", "a dog sat on the mat"]


# --- Without jco ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTS)
def test_a_component_of_wasi_3_is_refused_with_what_to_build_it_for(
    kind: type[Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "app.wasm"
    path.write_bytes(wat2wasm(OF_WASI_3))
    with pytest.raises(LlmRuntimeError) as caught:
        kind().load_handler(path)
    problem, *fixes = str(caught.value).splitlines()
    assert problem.startswith(f"{path}: exports wasi:http/handler@0.3.0, and wasmtime's Python")
    assert fixes[-5] == "build it for WASI 0.2"
    assert fixes[-3] == "in Rust: with spin-sdk 5, for the target wasm32-wasip2"
    assert (HOW_TO_GET_JCO in fixes) == (kind is WorkerHost)


def test_the_page_about_refllm_run_has_the_command_that_the_message_has() -> None:
    page = (PROJECT / "docs" / "run.md").read_text("utf-8")
    assert [HOW_TO_GET_JCO.partition(": ")[2]] == blocks("sh", page)[-1].splitlines()


@pytest.mark.network
def test_what_spin_sdk_5_builds_by_default_is_refused_in_these_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "app.wasm"
    shutil.copyfile(component("wasi_3"), path)
    with pytest.raises(LlmRuntimeError, match=r"exports wasi:http/handler@0\.3\.0, and"):
        WorkerHost().load_handler(path)


def test_messages_as_json_have_the_values_of_pickled_ones() -> None:
    ours, theirs = socket.socketpair()
    with closing(JsonChannel(ours)) as channel, closing(JsonChannel(theirs)) as worker:
        request = Request("GET", "/", (("x", b"\xff"),), b"\0\1")
        channel.send("path", request, {"files": {"a.txt": Path("/a")}})
        _, received, news = worker.receive()
        assert received == {
            **dataclasses.asdict(request),
            "headers": [["x", b"\xff"]],
        }
        assert news == {"files": {"a.txt": "/a"}}
        texts = ["NaN", "-Infinity", "-0", "2", "0.10000000149011612"]
        worker.send(*({"$float": text} for text in texts))
        assert repr(channel.receive()) == "(nan, -inf, -0.0, 2.0, 0.10000000149011612)"
        worker._socket.sendall(b'\0\0\0\5{"a"')
        worker.hang_up()
        with pytest.raises(Gone):
            channel.receive()


# --- With it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest beside the packages, as in the folder of an application."""
    path = add_jco(tmp_path_factory.mktemp("application")) / "wasi_3.wasm"
    path.symlink_to(component("wasi_3"))
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    return LocalEngine(roots=model_roots(tmp_path_factory.mktemp("ai-models")))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with WorkerHost(Limits(memory_bytes=128 * MEBIBYTE)) as host:
        yield host


@pytest.fixture(scope="module")
def probe(host: Host, application: Path) -> Program:
    return host.load_handler(application)


def responded(
    host: Host, probe: Program, engine: LocalEngine, target: str, body: bytes = b"", **given: Any
) -> Any:
    """The JSON that the guest responds."""
    response = host.respond(probe, Request("POST", target, (), body), Services(engine, **given))
    assert response.status == 200
    return json.loads(response.body)


@pytest.mark.network
def test_infer_in_wasi_3_is_infer_in_python(
    host: Host, probe: Program, engine: LocalEngine
) -> None:
    # The SDK sends the interface's defaults.
    expected = engine.infer("tiny-chat", PROMPT, InferencingParams())
    usage = [expected.usage.prompt_token_count, expected.usage.generated_token_count]
    answer = responded(host, probe, engine, "/infer?tiny-chat", PROMPT.encode())
    assert answer == [expected.text, *usage]


@pytest.mark.network
def test_embeddings_in_wasi_3_are_the_same_numbers(
    host: Host, probe: Program, engine: LocalEngine
) -> None:
    expected = engine.generate_embeddings("tiny-embed", TEXTS)
    answer = responded(host, probe, engine, "/embed?tiny-embed", json.dumps(TEXTS).encode())
    assert answer == [expected.embeddings, expected.usage.prompt_token_count]


@pytest.mark.network
@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("tiny-embed", "Error_ModelNotSupported"),
        ("no-such-model", "Error_InvalidInput"),
        ("broken-chat", "Error_RuntimeError"),
    ],
)
def test_each_error_arrives_in_wasi_3_by_its_name(
    model: str, error: str, host: Host, probe: Program, engine: LocalEngine
) -> None:
    assert responded(host, probe, engine, f"/infer?{model}", b"x")[0] == error


@pytest.mark.network
def test_the_request_arrives_and_the_response_comes_back_whole(
    host: Host, probe: Program, engine: LocalEngine
) -> None:
    headers = (("accept", b"text/plain"), ("host", b"localhost"), ("x-y", b"z"))
    request = Request("POST", "/echo?a=b&c", headers, bytes(range(128)) * 1000)
    response = host.respond(probe, request, Services(engine))
    assert json.loads(response.body) == {
        "method": "POST",
        "uri": "/echo?a=b&c",
        "headers": {name: value.decode() for name, value in headers},
        "body": request.body.decode(),
    }
    assert dict(response.headers)["content-length"] == str(len(response.body)).encode()


@pytest.mark.network
def test_every_request_has_an_instance_of_its_own(
    host: Host, probe: Program, engine: LocalEngine
) -> None:
    assert [responded(host, probe, engine, "/remember") for _ in range(3)] == [1, 1, 1]


@pytest.mark.network
def test_a_trap_is_named_and_the_guest_s_standard_error_kept(
    host: Host, probe: Program, engine: LocalEngine
) -> None:
    output = Output()
    with pytest.raises(GuestFailed, match=r"wasm trap: wasm `unreachable` instruction executed"):
        host.respond(probe, Request("GET", "/trap"), Services(engine), output)
    assert "RuntimeError: this guest traps" in output.text()
    assert responded(host, probe, engine, "/remember") == 1


@pytest.mark.network
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (
            "/key-value",
            r"it called spin:key-value/key-value \[static\]store\.open, which refllm does not",
        ),
        ("/outbound", "it called wasi:http/client send, which refllm does not offer"),
        ("/exit", "it called exit, with "),
    ],
)
def test_what_the_host_does_not_offer_ends_the_guest_by_its_name(
    target: str, reason: str, host: Host, probe: Program, engine: LocalEngine
) -> None:
    with pytest.raises(GuestFailed, match=reason):
        host.respond(probe, Request("GET", target), Services(engine))


@pytest.mark.network
@pytest.mark.parametrize("target", ["/loop", "/sleep?3600"])
def test_a_guest_that_does_not_end_is_ended_when_its_time_is_up(
    target: str, application: Path, engine: LocalEngine
) -> None:
    with WorkerHost(Limits(seconds=3)) as host:
        program = host.load_handler(application)
        with pytest.raises(GuestFailed, match="it took more than 3 seconds"):
            host.respond(program, Request("GET", target), Services(engine))


@pytest.mark.network
def test_a_guest_gets_no_more_memory_than_its_limit(
    host: Host, probe: Program, engine: LocalEngine
) -> None:
    output = Output()
    request = Request("GET", f"/memory?{128 * MEBIBYTE}")
    assert host.respond(probe, request, Services(engine), output).status == 500
    assert "MemoryError" in output.text()
    assert responded(host, probe, engine, "/memory?1000") == 1000


@pytest.mark.network
def test_a_guest_has_its_environment_variables_and_files_and_no_others(
    host: Host, probe: Program, engine: LocalEngine, tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("first")
    (tmp_path / "secret.txt").write_text("not for guests")
    given: dict[str, Any] = {
        "environment": {"LANG": "de"},
        "variables": {"tone": "dry"},
        "files": folder_of(tmp_path / "spin.toml", ["texts/*"], []),
    }
    answers = {
        target: responded(host, probe, engine, target, **given)
        for target in (
            *("/environment", "/variable?tone", "/read?/texts/a.txt", "/list?/"),
            *("/write?texts/a.txt", "/write?new.txt"),
        )
    }
    assert answers == {
        "/environment": {"LANG": "de"},
        "/variable?tone": "dry",
        "/read?/texts/a.txt": "first",
        "/list?/": ["texts"],
        "/write?texts/a.txt": "OSError: Read-only file system",
        "/write?new.txt": "OSError: Read-only file system",
    }
    for path in ("secret.txt", "../secret.txt", "/etc/passwd"):
        request = Request("GET", f"/read?{path}")
        assert host.respond(probe, request, Services(engine, **given)).status == 500
    assert (tmp_path / "texts" / "a.txt").read_text() == "first"


@pytest.mark.network
def test_a_host_that_stops_ends_its_guests_at_once(application: Path, engine: LocalEngine) -> None:
    failures: list[str] = []
    with WorkerHost(Limits(seconds=3600)) as host:
        program = host.load_handler(application)

        def respond() -> None:
            with pytest.raises(GuestFailed) as caught:
                host.respond(program, Request("GET", "/loop"), Services(engine))
            failures.append(str(caught.value))

        thread = threading.Thread(target=respond)
        thread.start()
        eventually(lambda: host.n_guests == 1)
        host.stop()
        thread.join(HUNG_SECONDS)
    assert failures == ["the server is shutting down"]


@pytest.mark.network
def test_a_component_is_hosted_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "components").touch()  # in the place of the folder
    monkeypatch.setenv("REFLLM_CACHE_DIR", str(tmp_path / "cache"))
    assert folder_of_kept() is None
    path = add_jco(tmp_path) / "app.wasm"
    path.symlink_to(component("rust_7"))
    recorder = Recorder()
    with WorkerHost() as host:
        called(host, host.load_handler(path), recorder, "infer", "tiny-chat", PROMPT)
    assert recorder.params == [None]


@pytest.mark.network
def test_no_more_guests_than_a_limit_are_in_node_at_once(
    application: Path, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refllm.wasm.workers.MAX_OF_NODE", 2)
    with WorkerHost(Limits(seconds=HUNG_SECONDS), n_computing=1) as host:
        program = host.load_handler(application)

        def asked(_: int) -> tuple[float, int]:
            slept = responded(host, program, engine, "/sleep?0.2")
            return slept, sum(worker.has == application for worker in host._active)

        with ThreadPoolExecutor(6) as threads:
            answers = [*threads.map(asked, range(6))]
    assert min(slept for slept, _ in answers) >= 0.2
    assert max(n_others for _, n_others in answers) <= 2


@pytest.mark.network
def test_a_guest_with_no_place_in_node_ends_with_the_host(
    application: Path, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refllm.wasm.workers.MAX_OF_NODE", 1)
    with WorkerHost(Limits(seconds=3600), n_computing=1) as host:
        program = host.load_handler(application)
        with ThreadPoolExecutor(2) as threads:
            loops = [threads.submit(responded, host, program, engine, "/loop") for _ in range(2)]
            eventually(lambda: host.n_guests == 2)
            host.stop()
    for loop in loops:
        with pytest.raises(GuestFailed, match="the server is shutting down"):
            loop.result()


@pytest.mark.network
def test_a_component_writes_to_its_client_until_that_has_gone(
    application: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "refllm.wasm")
    host = WorkerHost(Limits(seconds=HUNG_SECONDS))
    app = SpinApp(
        open_application(application, {}), host, {"wasi_3": LocalEngine(allowed_models=[])}
    )
    connection = connection_with(max_connections=8, arrival_seconds=30.0)
    with serving(app, connection) as url:
        address = url.removeprefix("http://")
        with closing(HTTPConnection(address, timeout=HUNG_SECONDS)) as client:
            client.request("GET", "/say?hello")
            assert client.getresponse().read() == b"null"
            client.request("GET", "/stream")
            assert client.getresponse().read(3) == b"one"
            assert host.n_guests == 1
        eventually(lambda: host.n_guests == 0)
    assert "wasi_3| hello\nwasi_3| hello" in caplog.text
