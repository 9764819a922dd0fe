"""A guest that misbehaves ends alone, with a reason; one that behaves gets what WASI promises."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm

from refllm.api import EmbeddingsResult, InferencingParams, InferencingResult, LlmRuntimeError
from refllm.wasm.guest import GuestFailed, Limits, Output
from refllm.wasm.host import Host, Program, Services
from refllm.wasm.http.files import folder_of
from refllm.wasm.wasi.http import Request, Response
from tests.conftest import HUNG_SECONDS
from tests.guests.build import component
from tests.wasm.hosts import HOSTS

MEBIBYTE = 1024 * 1024


class NoEngine:
    """An engine that raises an error that no engine may, or that must not be called."""

    def __init__(self, error: BaseException | None = None) -> None:
        self._error = error or AssertionError("the engine must not be called")

    def infer(
        self, model: str, prompt: str, params: InferencingParams | None = None
    ) -> InferencingResult:
        raise self._error

    def generate_embeddings(self, model: str, texts: Sequence[str]) -> EmbeddingsResult:
        raise self._error


@pytest.fixture(scope="module", params=HOSTS)
def kind(request: pytest.FixtureRequest) -> type[Host]:
    """Where guests run: in threads of this process, or in processes of their own."""
    kind: type[Host] = request.param
    return kind


@pytest.fixture(scope="module")
def host(kind: type[Host]) -> Iterator[Host]:
    with kind(Limits(memory_bytes=64 * MEBIBYTE)) as host:
        yield host


@pytest.fixture(scope="module")
def probe(host: Host) -> Program:
    return host.load_handler(component("probe"))


def services(**given: Any) -> Services:
    return Services(NoEngine(), **given)


def responded(host: Host, probe: Program, target: str, **given: Any) -> Any:
    """The JSON that the probe responds."""
    response = host.respond(probe, Request("GET", target), services(**given))
    assert response.status == 200
    return json.loads(response.body)


# --- What ends a guest ---------------------------------------------------------------------------


@pytest.mark.network
def test_a_trap_is_named_and_the_guest_s_standard_error_kept(host: Host, probe: Program) -> None:
    output = Output()
    with pytest.raises(GuestFailed, match="unreachable"):
        host.respond(probe, Request("GET", "/trap"), services(), output)
    assert output.text().startswith("about to trap\n")
    assert "RuntimeError: this guest traps" in output.text()


@pytest.mark.network
@pytest.mark.parametrize(
    ("target", "imported"),
    [
        ("/key-value", r"fermyon:spin/key-value@2\.0\.0 \[static\]store\.open"),
        ("/outbound", r"wasi:http/types@0\.2\.0 \[constructor\]outgoing-request"),
    ],
)
def test_a_call_of_what_the_host_does_not_offer_names_the_import(
    target: str, imported: str, host: Host, probe: Program
) -> None:
    with pytest.raises(GuestFailed, match=f"it called {imported}, which refllm does not offer"):
        host.respond(probe, Request("GET", target), services())


@pytest.mark.network
@pytest.mark.parametrize("target", ["/loop", "/sleep?3600"])
def test_a_guest_that_does_not_end_is_ended_when_its_time_is_up(
    target: str, kind: type[Host], probe: Program
) -> None:
    with kind(Limits(seconds=0.4)) as host:
        program = host.load_handler(probe.path)
        with pytest.raises(GuestFailed, match=r"it took more than 0\.4 seconds"):
            host.respond(program, Request("GET", target), services())


@pytest.mark.network
def test_a_guest_gets_no_more_memory_than_its_limit(host: Host, probe: Program) -> None:
    output = Output()
    request = Request("GET", f"/memory?{64 * MEBIBYTE}")
    response = host.respond(probe, request, services(), output)
    assert response.status == 500
    assert "MemoryError" in output.text()
    assert responded(host, probe, "/memory?1000") == 1000


@pytest.mark.network
def test_a_guest_that_exits_is_named(host: Host, probe: Program) -> None:
    with pytest.raises(GuestFailed, match="it called exit"):
        host.respond(probe, Request("GET", "/exit"), services())


@pytest.mark.network
def test_a_guest_that_returns_nothing_is_named(host: Host, probe: Program) -> None:
    with pytest.raises(GuestFailed, match="it returned without a response"):
        host.respond(probe, Request("GET", "/silence"), services())


@pytest.mark.network
@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), SystemExit(3), MemoryError(), RecursionError()], ids=repr
)
def test_any_exception_of_an_engine_ends_the_guest_and_not_the_process(
    error: BaseException, host: Host
) -> None:
    program = host.load_handler(component("python_3"))
    with pytest.raises(GuestFailed, match=f"unexpected {type(error).__name__}: .*bug in refllm"):
        host.respond(program, Request("GET", "/"), Services(NoEngine(error)))


@pytest.mark.network
def test_an_interrupt_is_raised_in_the_caller_of_the_guest(host: Host) -> None:
    program = host.load_handler(component("python_3"))
    with pytest.raises(KeyboardInterrupt):
        host.respond(program, Request("GET", "/"), Services(NoEngine(KeyboardInterrupt())))


class Said(Output):
    """Output that one can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = threading.Event()

    def write(self, data: bytes) -> None:
        self.has_begun.set()


@contextmanager
def occupied(host: Host, program: Program, target: str) -> Iterator[list[str]]:
    """A guest that answers `target` beside this; it has ended when this ends, and said why."""
    message, failures = Said(), []

    def respond() -> None:
        with pytest.raises(GuestFailed) as caught:
            host.respond(program, Request("GET", target), services(), message)
        failures.append(str(caught.value))

    thread = threading.Thread(target=respond)
    thread.start()
    try:
        assert message.has_begun.wait(HUNG_SECONDS)
        yield failures
    finally:
        host.stop()
        thread.join(HUNG_SECONDS)
    assert not thread.is_alive()


@pytest.mark.network
@pytest.mark.parametrize("target", ["/loop", "/sleep?3600"])
def test_a_host_that_stops_ends_its_guests_at_once(
    target: str, kind: type[Host], probe: Program
) -> None:
    with kind(Limits(seconds=3600)) as host:
        program = host.load_handler(probe.path)
        with occupied(host, program, target) as failures:
            pass
    assert failures == ["the server is shutting down"]


@pytest.mark.network
def test_while_a_guest_sleeps_another_has_its_turn(kind: type[Host], probe: Program) -> None:
    with kind(Limits(seconds=3600)) as host:
        program = host.load_handler(probe.path)
        with occupied(host, program, "/sleep?3600") as failures:
            assert responded(host, program, "/remember") == 1
            assert not failures
    assert failures == ["the server is shutting down"]


# --- What a guest gets ---------------------------------------------------------------------------


@pytest.mark.network
def test_every_request_has_an_instance_of_its_own(host: Host, probe: Program) -> None:
    assert [responded(host, probe, "/remember") for _ in range(3)] == [1, 1, 1]


@pytest.mark.network
def test_the_request_arrives_whole(host: Host, probe: Program) -> None:
    request = Request(
        "POST", "/echo?a=b&c", (("accept", b"text/plain"), ("x-y", b"z")), bytes(range(128)) * 1000
    )
    response = host.respond(probe, request, services())
    assert json.loads(response.body) == {
        "method": "POST",
        "uri": "/echo?a=b&c",
        "headers": {"accept": "text/plain", "x-y": "z"},
        "body": request.body.decode(),
    }


@pytest.mark.network
def test_the_response_arrives_whole(host: Host, probe: Program) -> None:
    response = host.respond(probe, Request("GET", "/remember"), services())
    headers = (("content-type", b"application/json"), ("content-length", b"1"))
    assert response == Response(200, headers, b"1")


@pytest.mark.network
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
def test_every_method_arrives(method: str, host: Host, probe: Program) -> None:
    response = host.respond(probe, Request(method, "/echo"), services())
    assert json.loads(response.body)["method"] == method


@pytest.mark.network
def test_the_environment_is_the_component_s_and_nothing_else(host: Host, probe: Program) -> None:
    assert responded(host, probe, "/environment", environment={"LANG": "de"}) == {"LANG": "de"}


@pytest.mark.network
def test_a_variable_has_its_value(host: Host, probe: Program) -> None:
    assert responded(host, probe, "/variable?tone", variables={"tone": "dry"}) == "dry"


@pytest.mark.network
def test_a_variable_that_is_not_there_is_undefined(host: Host, probe: Program) -> None:
    output = Output()
    response = host.respond(probe, Request("GET", "/variable?tone"), services(), output)
    assert response.status == 500
    assert "Error_Undefined(value=\"the component has no variable 'tone'" in output.text()


@pytest.fixture
def app_folder(tmp_path: Path) -> Path:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("first")
    (tmp_path / "texts" / "deep" / "b.txt").write_text("second")
    (tmp_path / "secret.txt").write_text("not for guests")
    return tmp_path


@pytest.mark.network
@pytest.mark.parametrize(
    ("path", "text"),
    [("/texts/a.txt", "first"), ("texts/deep/b.txt", "second"), ("texts/./deep/../a.txt", "first")],
)
def test_a_guest_reads_its_files(
    path: str, text: str, host: Host, probe: Program, app_folder: Path
) -> None:
    files = folder_of(app_folder / "spin.toml", ["texts/**/*"], [])
    assert responded(host, probe, f"/read?{path}", files=files) == text


@pytest.mark.network
def test_a_guest_lists_its_folders(host: Host, probe: Program, app_folder: Path) -> None:
    files = folder_of(app_folder / "spin.toml", ["texts/**/*"], [])
    assert responded(host, probe, "/list?/", files=files) == ["texts"]
    assert responded(host, probe, "/list?texts", files=files) == ["a.txt", "deep"]


@pytest.mark.network
@pytest.mark.parametrize(
    "path", ["secret.txt", "../secret.txt", "texts/../../secret.txt", "/etc/passwd"]
)
def test_a_guest_reads_nothing_else(
    path: str, host: Host, probe: Program, app_folder: Path
) -> None:
    files = folder_of(app_folder / "spin.toml", ["texts/**/*"], [])
    output = Output()
    response = host.respond(probe, Request("GET", f"/read?{path}"), services(files=files), output)
    assert response.status == 500
    assert "Error: [Errno" in output.text()


@pytest.mark.network
@pytest.mark.parametrize("path", ["texts/a.txt", "texts/new.txt"])
def test_a_guest_writes_no_file(path: str, host: Host, probe: Program, app_folder: Path) -> None:
    files = folder_of(app_folder / "spin.toml", ["texts/**/*"], [])
    assert responded(host, probe, f"/write?{path}", files=files) == "OSError: Read-only file system"
    assert (app_folder / "texts" / "a.txt").read_text() == "first"
    assert not (app_folder / "texts" / "new.txt").exists()


# --- What is no component ------------------------------------------------------------------------


OF_WASI_1 = '(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))))'


def written(folder: Path, data: bytes) -> Path:
    path = folder / "app.wasm"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not WebAssembly"),
        (b"#!/bin/sh\n", "is not WebAssembly"),
        (bytes(wat2wasm("(module)")), "is a core module, not a component\nwasm-tools component"),
        (bytes(wat2wasm(OF_WASI_1)), "it is for WASI 0.1\nin Rust: build it for the target"),
        (bytes(wat2wasm("(component)"))[:8] + b"\xff\xff", "is not a component that can run here"),
        (bytes(wat2wasm("(component)")), "exports nothing, and not the interface wasi:http/inc"),
    ],
    ids=["empty", "script", "core module", "WASI 0.1", "damaged", "without a handler"],
)
def test_a_file_that_cannot_answer_requests_is_named_with_the_reason(
    data: bytes, message: str, host: Host, tmp_path: Path
) -> None:
    path = written(tmp_path, data)
    with pytest.raises(LlmRuntimeError) as caught:
        host.load_handler(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_component_without_a_handler_is_refused_with_how_each_language_makes_one(
    host: Host, tmp_path: Path
) -> None:
    with pytest.raises(LlmRuntimeError) as caught:
        host.load_handler(written(tmp_path, bytes(wat2wasm("(component)"))))
    _, _, *fixes = str(caught.value).splitlines()
    languages = [fix.partition(":")[0] for fix in fixes]
    assert languages == ["in Python", "in Rust", "in TypeScript", "in Go"]


def test_a_file_that_is_not_there_is_named(host: Host, tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match=r"app\.wasm: cannot be read: No such file"):
        host.load(tmp_path / "app.wasm")


# --- The cache of machine code -------------------------------------------------------------------


@pytest.fixture
def cached(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Path:
    """A component that has been compiled into a new cache, and how often it was is in the log."""
    monkeypatch.setenv("REFLLM_CACHE_DIR", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "refllm.wasm")
    path = written(tmp_path, bytes(wat2wasm("(component)")))
    host.load(path)
    return path


def compilations(caplog: pytest.LogCaptureFixture) -> int:
    """How often it was compiled, before the test and in it."""
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    return sum("compiling" in record.getMessage() for record in records)


def test_a_component_is_compiled_once(
    host: Host, cached: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host.load(cached)
    assert compilations(caplog) == 1


@pytest.mark.parametrize("damage", [b"", b"\0" * 100])
def test_a_damaged_file_of_the_cache_is_compiled_again(
    damage: bytes, host: Host, cached: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (kept,) = (tmp_path / "cache" / "components").iterdir()
    kept.write_bytes(damage)
    host.load(cached)
    assert compilations(caplog) == 2


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
def test_a_component_that_another_user_could_have_written_is_compiled_again(
    host: Host, cached: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache" / "components").chmod(0o777)
    host.load(cached)
    assert compilations(caplog) == 2
