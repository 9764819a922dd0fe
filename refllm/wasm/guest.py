"""One guest: an instance of a component, alive for one request, with what the host keeps for it.

A guest has three allowances, and fails where one is used up: memory of its own, memory that the
host keeps for it (headers, bodies), and time. Its time runs while it computes and while it sleeps;
it stands still while a model answers, because that is the host's time.

One guest computes at a time, see `Turn`. While a guest waits, another has its turn.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from wasmtime.component import ResourceAny, ResourceHost, Variant

from refllm.wasm.wit import Resource, resource_id

__all__ = ["TICK_SECONDS", "Allowance", "Guest", "GuestFailed", "Limits", "Output", "Turn"]

TICK_SECONDS = 0.02
"""How often the host looks whether a guest's time is up."""

RESOURCE_BYTES = 512  # about what an object with a small dictionary takes
KEPT_OUTPUT_BYTES = 64 * 1024
STOPPED = "refllm was told to end"


class GuestFailed(Exception):
    """The guest ended without a result; the message says why, for whoever wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may take: bytes of memory, and seconds of the guest's own time.

    The bytes are those of all linear memories and tables together (see memory.py), and as many
    again of what the host keeps for the guest.
    """

    memory_bytes: int = 512 * 1024 * 1024
    seconds: float = 30.0


class Allowance:
    """How many bytes the host still keeps for a guest."""

    def __init__(self, n_bytes: int) -> None:
        self._limit = self._left = n_bytes

    def spend(self, n_bytes: int) -> None:
        """Keep that many bytes more. Errors: `GuestFailed` if they are too many."""
        self._left -= n_bytes
        if self._left < 0:
            raise GuestFailed(
                f"it gave the host more than {self._limit} bytes to keep; "
                "a higher memory limit allows more"
            )


class Output:
    """What a guest writes on its standard output and error, in the order in which it does."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._dropped = 0

    def write(self, data: bytes) -> None:
        """Keep the data, up to a limit."""
        kept = data[: KEPT_OUTPUT_BYTES - len(self._kept)]
        self._kept += kept
        self._dropped += len(data) - len(kept)

    def text(self) -> str:
        """All of it, without white space at the end; bytes that are not UTF-8 are replaced."""
        text = self._kept.decode("utf-8", "replace").rstrip()
        return text + (f"\n… and {self._dropped} bytes more" if self._dropped else "")


class Turn:
    """A guest's turn to compute, and how much of its time is left.

    Machine code runs without Python's own lock, and each guest has a store of its own, so guests
    could compute side by side, were it not for two globals of wasmtime's Python bindings (as of
    50.0): the set `case_test_cache`, cleared and filled again to find out which case of a variant,
    result or option a value is, and `LAST_EXCEPTION`, a host function's error on its way to whoever
    called the guest. They are used inside the bindings, after a host function has returned and
    before the guest goes on. A lock fits only around all that a guest does between two calls of the
    host; without one, a guest is now and then given the wrong case, or somebody else's error.
    """

    def __init__(
        self,
        turns: threading.Lock,
        stopped: threading.Event,
        *,
        seconds: float,
        set_deadline: Callable[[int], None],
    ) -> None:
        """`turns` is held by whoever computes; `set_deadline` takes ticks from now."""
        self._turns = turns
        self._stopped = stopped
        self._seconds = self._left = seconds
        self._set_deadline = set_deadline
        self._since = 0.0
        self._has_turn = False

    def __enter__(self) -> Turn:
        self._begin()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the host works for the guest: its time stands still, others have their turn."""
        self._end()
        try:
            yield
        finally:
            self._begin()

    def sleep(self, seconds: float) -> None:
        """Wait, on the guest's time. Errors: `GuestFailed` if that is up first."""
        seconds = max(0.0, seconds)
        with self.paused():
            self._stopped.wait(min(seconds, self._left))
            self._left -= seconds
        self.check()

    def check(self) -> None:
        """Raise `GuestFailed` if the guest's time is up, or the host is about to end."""
        if self._stopped.is_set():
            raise GuestFailed(STOPPED)
        if self._left - (time.monotonic() - self._since) <= TICK_SECONDS:
            raise GuestFailed(
                f"it took more than {self._seconds:g} seconds; a higher time limit allows more"
            )

    def _begin(self) -> None:
        self._turns.acquire()
        self._has_turn = True
        if self._stopped.is_set():
            self._end()
            raise GuestFailed(STOPPED)
        self._since = time.monotonic()
        self._set_deadline(max(1, math.ceil(self._left / TICK_SECONDS)))

    def _end(self) -> None:
        if self._has_turn:
            self._left -= time.monotonic() - self._since
            self._has_turn = False
            self._turns.release()


class Guest:
    """What the host keeps for a guest: the values behind its handles, and why it failed."""

    def __init__(self, *, turn: Turn, allowance: Allowance, output: Output) -> None:
        self.turn = turn
        self.allowance = allowance
        self.output = output
        self.failure: BaseException | None = None
        self.last_called = ""  # of what the host offers
        self._resources: dict[int, Resource] = {}
        self._numbers = itertools.count(1)

    def own(self, resource: Resource) -> ResourceHost:
        """A new handle, owned by the guest, for the resource."""
        self.allowance.spend(RESOURCE_BYTES)
        number = next(self._numbers)
        self._resources[number] = resource
        return ResourceHost.own(number, resource_id(resource.wit))

    def drop(self, number: int) -> None:
        """The guest no longer has this handle, and nothing that it stands for."""
        resource = self._forget(number)
        if resource is not None:
            resource.close()

    def drop_all(self) -> None:
        """The guest is gone."""
        for number in list(self._resources):
            self.drop(number)

    def lifted(self, store: object, value: object) -> object:
        """An argument with each handle replaced by its resource; what the guest gives is taken."""
        if isinstance(value, ResourceAny):
            number = value.to_host(store).rep  # type: ignore[arg-type]
            resource = self._resources[number]
            if value.owned:
                self._forget(number)
            return resource
        if isinstance(value, list):
            return [self.lifted(store, item) for item in value]
        return value

    def lowered(self, value: object) -> object:
        """A result with each resource replaced by a new handle."""
        if isinstance(value, Resource):
            return self.own(value)
        if isinstance(value, list | tuple):
            return _same_kind(value, [self.lowered(item) for item in value])
        if isinstance(value, Variant):
            return Variant(value.tag, self.lowered(value.payload))
        return value

    def _forget(self, number: int) -> Resource | None:
        resource = self._resources.pop(number, None)
        if resource is not None:
            self.allowance.spend(-RESOURCE_BYTES)
        return resource


def _same_kind(like: Sequence[object], items: list[object]) -> list[object] | tuple[object, ...]:
    return tuple(items) if isinstance(like, tuple) else items
