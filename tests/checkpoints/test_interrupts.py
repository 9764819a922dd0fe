"""Ctrl-C takes effect where nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from refllm.files.interrupts import interrupts_later


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt`; a background job starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(done: list[str], problem: str = "") -> None:
    """A block that is interrupted, does something, and may fail."""
    with interrupts_later():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the block")
        if problem:
            raise ValueError(problem)


def test_an_interrupt_during_the_block_is_raised_at_its_end() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(done)
    assert done == ["the rest of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_block_stays_in_sight_behind_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted([], "the disk is full")
    assert str(caught.value.__context__) == "the disk is full"


def test_in_another_thread_the_block_runs_as_it_is() -> None:
    def run() -> None:
        with interrupts_later():
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[object] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
