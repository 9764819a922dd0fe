"""The smallest components that misbehave, written out: no SDK is needed to see that they end."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import get_type_hints

import pytest
from wasmtime import wat2wasm

from refllm.api import EmbeddingsResult, InferencingParams, InferencingResult, LlmRuntimeError
from refllm.wasm.guest import Allowance, Guest, GuestFailed, Limits, Output, Turn
from refllm.wasm.host import OFFERED, Host, Services
from refllm.wasm.http.application import open_application
from refllm.wasm.http.asgi import SpinApp, connection_with
from refllm.wasm.memory import PART_OF_TABLES
from refllm.wasm.spin import inferencing_params
from refllm.wasm.wasi.http import Request
from refllm.wasm.wasi.io import OutputStream, Pollable
from refllm.wasm.wit import record
from tests.conftest import HUNG_SECONDS
from tests.support.servers import serving
from tests.wasm.hosts import HOSTS
from tools.attack.wat import HANDLER

PAGE_BYTES = 64 * 1024
RUN = '(func (export "run") (canon lift (core func $i "run")))'
NUMBER = '(func (export "run") (result s32) (canon lift (core func $i "run")))'


class NoEngine:
    """An engine that is never called."""

    def infer(
        self, model: str, prompt: str, params: InferencingParams | None = None
    ) -> InferencingResult:
        raise NotImplementedError

    def generate_embeddings(self, model: str, texts: Sequence[str]) -> EmbeddingsResult:
        raise NotImplementedError


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(Limits(memory_bytes=10 * PAGE_BYTES)) as host:
        yield host


def result(host: Host, folder: Path, module: str, lift: str = RUN) -> object:
    """What a component whose core module is this one returns from `run`."""
    return result_of(
        host,
        folder,
        f"(component (core module $m {module}) (core instance $i (instantiate $m)) {lift})",
    )


def result_of(host: Host, folder: Path, component: str) -> object:
    path = folder / "app.wasm"
    path.write_bytes(wat2wasm(component))
    return host.call(host.load(path), "run", [], Services(NoEngine()))


def test_a_component_that_returns_has_returned(host: Host, tmp_path: Path) -> None:
    module = '(func (export "run") (result i32) (i32.const 7))'
    assert result(host, tmp_path, module, NUMBER) == 7


def test_a_trap_is_named(host: Host, tmp_path: Path) -> None:
    with pytest.raises(GuestFailed, match="wasm `unreachable` instruction executed"):
        result(host, tmp_path, '(func (export "run") unreachable)')


def test_a_division_by_zero_is_named(host: Host, tmp_path: Path) -> None:
    module = """
        (func (export "run") (result i32) (i32.div_s (i32.const 1) (i32.const 0)))"""
    with pytest.raises(GuestFailed, match="integer divide by zero"):
        result(host, tmp_path, module, NUMBER)


def test_a_stack_without_end_is_named(host: Host, tmp_path: Path) -> None:
    with pytest.raises(GuestFailed, match="call stack exhausted"):
        result(host, tmp_path, '(func $f (export "run") (call $f))')


def test_a_loop_without_end_ends_when_the_time_is_up(tmp_path: Path) -> None:
    with (
        Host(Limits(seconds=0.2)) as host,
        pytest.raises(GuestFailed, match=r"it took more than 0\.2 seconds"),
    ):
        result(host, tmp_path, '(func (export "run") (loop (br 0)))')


@pytest.mark.parametrize(("pages", "grown"), [(9, 1), (10, -1)])
def test_memory_grows_up_to_the_limit(pages: int, grown: int, host: Host, tmp_path: Path) -> None:
    module = f"""
        (memory 1)
        (func (export "run") (result i32) (memory.grow (i32.const {pages})))"""
    assert result(host, tmp_path, module, NUMBER) == grown


@pytest.mark.parametrize(
    ("imported", "called"),
    [
        ('(import "launch" (func $f))', "launch"),
        (
            '(import "missiles:silo/door@1.0.0" (instance $s (export "open" (func))))'
            '(alias export $s "open" (func $f))',
            r"missiles:silo/door@1\.0\.0 open",
        ),
    ],
    ids=["function", "interface"],
)
def test_calling_an_import_that_the_host_lacks_names_it(
    imported: str, called: str, host: Host, tmp_path: Path
) -> None:
    component = f"""
        (component
          {imported}
          (core func $lowered (canon lower (func $f)))
          (core module $m (import "" "f" (func $f)) (func (export "run") (call $f)))
          (core instance $i
            (instantiate $m (with "" (instance (export "f" (func $lowered))))))
          {RUN})"""
    with pytest.raises(GuestFailed, match=f"it called {called}, which refllm does not offer"):
        result_of(host, tmp_path, component)


DROPS = f"""
    (component
      (import "wasi:io/poll@0.2.0" (instance $poll (export "pollable" (type (sub resource)))))
      (alias export $poll "pollable" (type $pollable))
      (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
        (alias outer 1 $pollable (type $pollable))
        (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
      (core func $make (canon lower (func $clock "subscribe-duration")))
      (core func $drop (canon resource.drop $pollable))
      (core module $m
        (import "" "make" (func $make (param i64) (result i32)))
        (import "" "drop" (func $drop (param i32)))
        (func (export "run") (call $drop (call $make (i64.const 0)))))
      (core instance $i
        (instantiate $m
          (with "" (instance (export "make" (func $make)) (export "drop" (func $drop))))))
      {RUN})"""


def test_a_resource_that_a_guest_drops_is_closed(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Pollable] = []

    def close(pollable: Pollable) -> None:
        closed.append(pollable)

    monkeypatch.setattr(Pollable, "close", close)
    result_of(host, tmp_path, DROPS)
    assert len(closed) == 1


def test_an_interrupt_while_a_resource_is_closed_is_raised(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Pollable) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pollable, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result_of(host, tmp_path, DROPS)


def test_an_export_that_is_not_there_is_named(host: Host, tmp_path: Path) -> None:
    with pytest.raises(GuestFailed, match="it exports no run"):
        result_of(host, tmp_path, "(component)")


def test_a_guest_that_is_to_end_calls_the_host_no_more(host: Host, tmp_path: Path) -> None:
    (tmp_path / "app.wasm").write_bytes(wat2wasm(HANDLER))
    program = host.load_handler(tmp_path / "app.wasm")
    end = threading.Event()
    assert host.respond(program, Request("GET", "/"), Services(NoEngine()), end=end).status == 200
    end.set()
    with pytest.raises(GuestFailed, match="is shutting down"):
        host.respond(program, Request("GET", "/"), Services(NoEngine()), end=end)


def test_a_host_that_has_stopped_starts_no_guest(tmp_path: Path) -> None:
    with Host() as host:
        host.stop()
        with pytest.raises(GuestFailed, match="the server is shutting down"):
            result(host, tmp_path, '(func (export "run"))')


# --- One limit for all memories and tables --------------------------------------------------------


def greedy(n_memories: int) -> str:
    """A core module that grows each of its memories as far as it may, and returns all its pages."""
    numbers = range(n_memories)
    memories = " ".join(f"(memory $m{number} 1)" for number in numbers)
    growth = " ".join(
        f"(loop $l{number} (br_if $l{number}"
        f" (i32.ge_s (memory.grow $m{number} (i32.const 1)) (i32.const 0))))"
        for number in numbers
    )
    sizes = " ".join(f"(memory.size $m{number})" for number in numbers)
    sums = " ".join("i32.add" for _ in numbers[1:])
    return f'{memories} (func (export "run") (result i32) {growth} {sizes} {sums})'


@pytest.mark.parametrize(("n_memories", "pages"), [(1, 10), (2, 10), (3, 9), (8, 8)])
def test_several_memories_get_no_more_than_one(
    n_memories: int, pages: int, host: Host, tmp_path: Path
) -> None:
    assert result(host, tmp_path, greedy(n_memories), NUMBER) == pages


def test_the_memories_of_several_instances_share_the_limit(host: Host, tmp_path: Path) -> None:
    instances = " ".join(f"(core instance $i{number} (instantiate $m))" for number in range(8))
    args = " ".join(f'(with "{number}" (instance $i{number}))' for number in range(8))
    imports = " ".join(
        f'(import "{number}" "run" (func $f{number} (result i32)))' for number in range(8)
    )
    calls = " ".join(f"(call $f{number})" for number in range(8)) + " i32.add" * 7
    component = f"""
        (component
          (core module $m {greedy(1)})
          {instances}
          (core module $sum {imports} (func (export "run") (result i32) {calls}))
          (core instance $i (instantiate $sum {args}))
          {NUMBER})"""
    assert result_of(host, tmp_path, component) == 8


def test_tables_have_a_part_of_the_limit_and_memories_the_rest(host: Host, tmp_path: Path) -> None:
    grow = "(table.grow ${0} (ref.null func) (i32.const {1}))"
    of_tables = 10 * PAGE_BYTES // PART_OF_TABLES // 8
    module = f"""
        (memory 1) (table $a 0 funcref) (table $b 0 funcref)
        (func (export "run") (result i32)
          {grow.format("a", of_tables // 2)}
          {grow.format("b", of_tables // 2 + 1)}
          (memory.grow (i32.const 9))
          i32.add i32.add)"""
    assert result(host, tmp_path, module, NUMBER) == 0 - 1 - 1


def test_a_memory_behind_code_that_runs_at_the_start_is_counted(host: Host, tmp_path: Path) -> None:
    component = f"""
        (component
          (core module $first (func $f) (start $f))
          (core instance (instantiate $first))
          (core module $m {greedy(2)})
          (core instance $i (instantiate $m))
          {NUMBER})"""
    assert result_of(host, tmp_path, component) == 10


def test_a_component_that_begins_with_too_much_memory_is_named(host: Host, tmp_path: Path) -> None:
    module = '(memory 6) (memory 6) (func (export "run"))'
    with pytest.raises(LlmRuntimeError, match=r"app\.wasm: cannot be started: .*memory") as caught:
        result(host, tmp_path, module)
    assert "a higher memory limit allows more" in str(caught.value)


def test_a_heap_that_no_limit_counts_is_not_to_be_had(host: Host, tmp_path: Path) -> None:
    module = '(type $pair (struct (field i64))) (func (export "run"))'
    with pytest.raises(LlmRuntimeError, match=r"can run here: .* without the gc feature"):
        result(host, tmp_path, module)


# --- What a component imports and exports ---------------------------------------------------------


@pytest.mark.parametrize(
    ("imported", "message"),
    [
        ('(import "part" (core module))', "imports part, which is a core module"),
        (
            '(import "a:b/c" (instance (export "inner" (instance))))',
            "imports a:b/c inner, which is an instance inside an instance",
        ),
    ],
)
def test_an_import_that_no_host_has_is_named_at_the_start(
    imported: str, message: str, host: Host, tmp_path: Path
) -> None:
    path = tmp_path / "app.wasm"
    path.write_bytes(wat2wasm(f"(component {imported})"))
    with pytest.raises(LlmRuntimeError) as caught:
        host.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "fermyon:spin/http-trigger@2.0.0" in str(caught.value)


def test_a_resource_that_another_interface_renames_is_the_same(host: Host, tmp_path: Path) -> None:
    component = f"""
        (component
          (import "a:b/types" (instance $types (export "thing" (type (sub resource)))))
          (alias export $types "thing" (type $thing))
          (import "a:b/user" (instance
            (alias outer 1 $thing (type $inner))
            (export "renamed" (type $renamed (eq $inner)))
            (export "use" (func (param "thing" (own $renamed))))))
          (core module $m (func (export "run")))
          (core instance $i (instantiate $m))
          {RUN})"""
    assert result_of(host, tmp_path, component) is None


def calling(interface: str, types: str, function: str, core_type: str, call: str) -> str:
    """A component that calls an interface's function that it declares so."""
    return f"""
        (component
          (import "{interface}" (instance $given {types}))
          (core module $memory (memory (export "m") 1))
          (core instance $memory (instantiate $memory))
          (core func $f (canon lower (func $given "{function}") (memory (core memory $memory "m"))))
          (core module $m (import "" "f" (func $f {core_type})) (func (export "run") {call}))
          (core instance $i (instantiate $m (with "" (instance (export "f" (func $f))))))
          {RUN})"""


@pytest.mark.parametrize(
    ("interface", "types", "function", "core_type", "call"),
    [
        (
            "wasi:random/random@0.2.0",
            '(export "get-random-u64" (func (param "length" u64) (result u64)))',
            "get-random-u64",
            "(param i64) (result i64)",
            "(drop (call $f (i64.const 1)))",
        ),
        (
            "wasi:random/random@0.2.0",
            '(export "get-random-u64" (func (result f64)))',
            "get-random-u64",
            "(result f64)",
            "(drop (call $f))",
        ),
        (
            "wasi:clocks/monotonic-clock@0.2.0",
            '(export "subscribe-duration" (func (param "when" f64)))',
            "subscribe-duration",
            "(param f64)",
            "(call $f (f64.const 1))",
        ),
        (
            "fermyon:spin/llm@2.0.0",
            '(export "infer" (func (param "model" string)))',
            "infer",
            "(param i32 i32)",
            "(call $f (i32.const 0) (i32.const 0))",
        ),
        (
            "wasi:clocks/wall-clock@0.2.0",
            '(type $t (record (field "hours" u64) (field "nanoseconds" u32)))'
            '(export "datetime" (type $datetime (eq $t)))'
            '(export "now" (func (result $datetime)))',
            "now",
            "(param i32)",
            "(call $f (i32.const 0))",
        ),
    ],
    ids=["parameters", "result", "type of a parameter", "llm", "fields of a record"],
)
def test_a_function_that_is_imported_with_other_types_is_the_component_s_fault(
    interface: str,
    types: str,
    function: str,
    core_type: str,
    call: str,
    host: Host,
    tmp_path: Path,
) -> None:
    component = calling(interface, types, function, core_type, call)
    with pytest.raises(GuestFailed) as caught:
        result_of(host, tmp_path, component)
    assert f"{interface} {function}" in str(caught.value)
    assert "bug in refllm" not in str(caught.value)


def test_every_function_of_the_host_has_types_to_compare() -> None:
    owners = [owner for offered in OFFERED for owner in (offered, *offered.resources)]
    functions = [
        function
        for owner in owners
        for name, function in vars(owner).items()
        if inspect.isfunction(function) and not name.startswith("_")
    ]
    assert len(functions) > 100
    assert all("return" in get_type_hints(function) for function in functions)


def test_a_record_of_another_shape_is_an_error_of_the_component() -> None:
    with pytest.raises(GuestFailed, match="max-tokens, warmth, which are not the fields"):
        inferencing_params(record(max_tokens=1, warmth=0.5))


def test_a_function_that_is_exported_with_other_types_is_the_component_s_fault(
    host: Host, tmp_path: Path
) -> None:
    module = '(func (export "run") (param i32) (result i32) (local.get 0))'
    lift = '(func (export "run") (param "n" s32) (result s32) (canon lift (core func $i "run")))'
    with pytest.raises(GuestFailed, match="it has other types for the function that it exports"):
        result(host, tmp_path, module, lift)


@pytest.mark.parametrize(
    ("exported", "message"),
    [
        ('(export "handle" (func $f))', "is func()"),
        ('(export "answer" (func $f))', "is no function"),
    ],
)
def test_a_handler_that_takes_no_request_is_named_at_the_start(
    exported: str, message: str, host: Host, tmp_path: Path
) -> None:
    path = tmp_path / "app.wasm"
    path.write_bytes(
        wat2wasm(f"""
            (component
              (core module $m (func (export "f")))
              (core instance $i (instantiate $m))
              (func $f (canon lift (core func $i "f")))
              (instance $handler {exported})
              (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))""")
    )
    with pytest.raises(LlmRuntimeError) as caught:
        host.load_handler(path)
    assert f"handle in its export wasi:http/incoming-handler@0.2.0 {message}" in str(caught.value)


# --- Other ways to misbehave ----------------------------------------------------------------------


def test_a_trap_at_the_start_ends_the_request(host: Host, tmp_path: Path) -> None:
    module = '(func $f unreachable) (start $f) (func (export "run"))'
    with pytest.raises(GuestFailed, match="wasm `unreachable` instruction executed"):
        result(host, tmp_path, module)


def test_a_loop_at_the_start_ends_when_the_time_is_up(tmp_path: Path) -> None:
    module = '(func $f (loop (br 0))) (start $f) (func (export "run"))'
    with (
        Host(Limits(seconds=0.2)) as host,
        pytest.raises(GuestFailed, match=r"it took more than 0\.2 seconds"),
    ):
        result(host, tmp_path, module)


def test_resources_without_end_use_up_what_the_host_keeps(host: Host, tmp_path: Path) -> None:
    without_drop = "(loop (drop (call $make (i64.const 0))) (br 0))"
    component = DROPS.replace("(call $drop (call $make (i64.const 0)))", without_drop)
    with pytest.raises(GuestFailed, match="it gave the host more than 655360 bytes to keep"):
        result_of(host, tmp_path, component)


def test_more_than_may_be_written_at_once_ends_the_guest() -> None:
    turn = Turn(threading.Lock(), threading.Event(), seconds=60, set_deadline=lambda _: None)
    guest = Guest(turn=turn, allowance=Allowance(1000), output=Output())
    stream = OutputStream(guest, guest.output.write)
    with pytest.raises(GuestFailed, match="check-write permits 65536"):
        stream.write(bytes(stream.check_write() + 1))


# --- Behind a port --------------------------------------------------------------------------------


def handler(module: str) -> str:
    """A component whose core module answers requests by its function `handle`."""
    return f"""
        (component
          (import "wasi:http/types@0.2.0" (instance $types
            (export "incoming-request" (type (sub resource)))
            (export "response-outparam" (type (sub resource)))))
          (alias export $types "incoming-request" (type $request))
          (alias export $types "response-outparam" (type $outparam))
          (core module $m {module})
          (core instance $i (instantiate $m))
          (func $handle
            (param "request" (own $request)) (param "response-out" (own $outparam))
            (canon lift (core func $i "handle")))
          (instance $handler (export "handle" (func $handle)))
          (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"""


FAILING = {
    "silent": ('(func (export "handle") (param i32 i32))', "it returned without a response"),
    "trapping": ('(func (export "handle") (param i32 i32) unreachable)', "unreachable"),
    "starting": (
        '(func $f unreachable) (start $f) (func (export "handle") (param i32 i32))',
        "unreachable",
    ),
    "looping": ('(func (export "handle") (param i32 i32) (loop (br 0)))', "more than 0.2 seconds"),
    "recursive": (
        '(func $f (export "handle") (param i32 i32) (call $f (i32.const 0) (i32.const 0)))',
        "call stack exhausted",
    ),
}


@pytest.mark.parametrize("kind", HOSTS)
def test_a_component_that_fails_fails_one_request_and_is_named_in_the_log(
    kind: type[Host], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = "spin_manifest_version = 2\n"
    for id_, (module, _) in FAILING.items():
        (tmp_path / f"{id_}.wasm").write_bytes(wat2wasm(handler(module)))
        manifest += f"[[trigger.http]]\nroute = '/{id_}'\ncomponent = '{id_}'\n"
        manifest += f"[component.{id_}]\nsource = '{id_}.wasm'\n"
    (tmp_path / "spin.toml").write_text(manifest)
    application = open_application(tmp_path, {})
    app = SpinApp(application, kind(Limits(seconds=0.2)), {id_: NoEngine() for id_ in FAILING})
    with (
        serving(app, connection_with(max_connections=8, arrival_seconds=30.0)) as url,
        closing(HTTPConnection(url.removeprefix("http://"), timeout=HUNG_SECONDS)) as client,
    ):
        for id_, (_, message) in FAILING.items():
            client.request("GET", f"/{id_}")
            response = client.getresponse()
            text = response.read().decode()
            assert response.status == 500
            assert text.startswith(f"refllm: component {id_} failed: ")
            assert message in text
            assert f"{id_}: failed: " in caplog.text
        client.request("GET", "/.well-known/spin/health")
        assert client.getresponse().status == 200


def test_a_component_whose_imports_cannot_be_given_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "app.wasm").write_bytes(wat2wasm('(component (import "part" (core module)))'))
    application = open_application(tmp_path / "app.wasm", {})
    with pytest.raises(LlmRuntimeError, match=r"component app: .* imports part"):
        SpinApp(application, Host(), {"app": NoEngine()})
