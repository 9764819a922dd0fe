"""The smallest components that misbehave, written out: no SDK is needed to see that they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from refllm.api import EmbeddingsResult, InferencingParams, InferencingResult
from refllm.spin.wasm.guest import GuestFailed, Limits
from refllm.spin.wasm.host import Host, Services
from refllm.spin.wasm.wasi_io import Pollable

PAGE_BYTES = 64 * 1024
RUN = '(func (export "run") (canon lift (core func $i "run")))'
NUMBER = '(func (export "run") (result s32) (canon lift (core func $i "run")))'


class NoEngine:
    """Nobody asks it."""

    def infer(
        self, model: str, prompt: str, params: InferencingParams | None = None
    ) -> InferencingResult:
        raise NotImplementedError

    def generate_embeddings(self, model: str, texts: object) -> EmbeddingsResult:
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


@pytest.mark.parametrize(("elements", "grown"), [(1, 1), (10 * PAGE_BYTES // 8, -1)])
def test_a_table_grows_up_to_the_limit(
    elements: int, grown: int, host: Host, tmp_path: Path
) -> None:
    module = f"""
        (table 1 funcref)
        (func (export "run") (result i32) (table.grow (ref.null func) (i32.const {elements})))"""
    assert result(host, tmp_path, module, NUMBER) == grown


def test_a_component_that_begins_with_too_much_memory_is_named(host: Host, tmp_path: Path) -> None:
    module = '(memory 100) (func (export "run"))'
    with pytest.raises(GuestFailed, match="memory"):
        result(host, tmp_path, module)


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
def test_a_call_of_what_nobody_offers_names_the_import(
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


def test_what_a_guest_drops_is_closed(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Pollable] = []

    def close(pollable: Pollable) -> None:
        closed.append(pollable)

    monkeypatch.setattr(Pollable, "close", close)
    result_of(host, tmp_path, DROPS)
    assert len(closed) == 1


def test_an_interrupt_while_a_resource_is_closed_goes_through(
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


def test_a_host_that_has_stopped_starts_no_guest(tmp_path: Path) -> None:
    with Host() as host:
        host.stop()
        with pytest.raises(GuestFailed, match="refllm was told to end"):
            result(host, tmp_path, '(func (export "run"))')
