"""Processes that compile kernels: none is left behind where a start fails or is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from refllm.jit import workers
from refllm.jit.workers import Workers, stop_workers
from tests.conftest import HUNG_SECONDS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signal.pause is POSIX's")

Process = subprocess.Popen[bytes]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Process]]:
    """The processes that have been started, on a machine with three CPUs."""
    processes: list[Process] = []
    monkeypatch.setattr(workers, "available_cpus", lambda: 3)
    monkeypatch.setattr(workers, "_started", [])
    calling(lambda: None, processes, monkeypatch)
    yield processes
    for process in processes:
        Process.kill(process)
        process.wait(HUNG_SECONDS)


def calling(
    before: Callable[[], object], processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Call a function whenever a second process is about to be started."""

    def start(*arguments: Any, **options: Any) -> Process:
        if len(processes) == 1:
            before()
        processes.append(Process(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", start)


def waiting_workers() -> Workers:
    """Processes that never end."""
    return Workers("signal:pause", {}, n_kernels=9)


def have_all_ended(processes: list[Process]) -> bool:
    """Whether all have been ended and reaped."""
    return all(process.returncode is not None for process in processes)


def test_one_process_is_started_for_each_cpu_and_stop_ends_them(started: list[Process]) -> None:
    three = waiting_workers()
    assert (len(three), len(started)) == (3, 3)
    assert three.are_running()
    three.stop()
    assert not three.are_running()
    assert have_all_ended(started)


def test_where_one_process_cannot_be_started_the_others_are_ended(
    started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError("no more processes")

    calling(refuse, started, monkeypatch)
    with pytest.raises(OSError, match="no more processes"):
        waiting_workers()
    assert len(started) == 1
    assert have_all_ended(started)
    stop_workers()  # has nothing to wait for


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def _heeding() -> Iterator[None]:
    """Ctrl-C raises an exception, also where the test runner ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeding")
def test_ctrl_c_between_two_starts_ends_all_processes(
    started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    calling(interrupt, started, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        waiting_workers()
    assert started
    assert have_all_ended(started)


@pytest.mark.usefixtures("_heeding")
def test_a_second_ctrl_c_while_processes_are_ended_leaves_none(
    started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill() -> None:
        interrupt()
        Process.kill(started[0])

    waiting_workers()
    monkeypatch.setattr(started[0], "kill", kill)
    with pytest.raises(KeyboardInterrupt):
        stop_workers()
    assert have_all_ended(started)


@pytest.mark.usefixtures("_heeding")
def test_a_stopped_process_is_ended_as_well(started: list[Process]) -> None:
    three = waiting_workers()
    started[1].send_signal(signal.SIGSTOP)
    three.stop()
    assert have_all_ended(started)


def test_another_thread_starts_processes_without_a_change_of_the_signal_s_handler(
    started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    during: list[object] = []
    calling(lambda: during.append(signal.getsignal(signal.SIGINT)), started, monkeypatch)
    thread = threading.Thread(target=waiting_workers)
    thread.start()
    thread.join(HUNG_SECONDS)
    stop_workers()
    assert during == [before]
    assert have_all_ended(started)


def test_stop_waits_for_a_start_in_another_thread_and_ends_all_of_it(
    started: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_starting, may_go_on = threading.Event(), threading.Event()

    def pause() -> None:
        is_starting.set()
        assert may_go_on.wait(HUNG_SECONDS)

    calling(pause, started, monkeypatch)
    starting = threading.Thread(target=waiting_workers)
    starting.start()
    assert is_starting.wait(HUNG_SECONDS)
    stopping = threading.Thread(target=stop_workers)
    stopping.start()
    may_go_on.set()
    starting.join(HUNG_SECONDS)
    stopping.join(HUNG_SECONDS)
    stop_workers()
    assert len(started) == 3
    assert have_all_ended(started)
