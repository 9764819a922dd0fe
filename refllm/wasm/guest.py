"""One guest: an instance of a component, alive for one request, with what the host keeps for it.

A guest has three limits, and fails when it exceeds one: its own memory, memory that the host keeps
for it (headers, bodies), and time. Time counts while the guest computes and while it sleeps, not
while a model answers.

One guest computes at a time, see `Turn`. While a guest waits, another computes.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from wasmtime.component import ResourceAny, ResourceHost, Variant

from refllm.wasm.wit import Resource, resource_id

__all__ = [
    "STOPPED",
    "TICK_SECONDS",
    "Allowance",
    "Guest",
    "GuestFailed",
    "Limits",
    "Output",
    "Turn",
    "Turns",
    "out_of_time",
]

TICK_SECONDS = 0.02
"""How often the host checks whether a guest's time is up."""

RESOURCE_BYTES = 512  # about what an object with a small dictionary takes
KEPT_OUTPUT_BYTES = 64 * 1024
STOPPED = "the server is shutting down"


class GuestFailed(Exception):
    """The guest ended without a result; the message is for the author of the component."""


def out_of_time(seconds: float) -> GuestFailed:
    """Return the failure of a guest that has used up its time."""
    return GuestFailed(f"it took more than {seconds:g} seconds; a higher time limit allows more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may take.

    Attributes:
        memory_bytes: Of all linear memories and tables together, see memory.py; as many again of
            what the host keeps for the guest.
        seconds: Of the guest's own time.
    """

    memory_bytes: int = 512 * 1024 * 1024
    seconds: float = 30.0


class Allowance:
    """How many bytes the host may still keep for a guest."""

    def __init__(self, n_bytes: int) -> None:
        self._limit = self._left = n_bytes

    def spend(self, n_bytes: int) -> None:
        """Count bytes that are kept, or no longer kept where `n_bytes` is negative.

        Raises:
            GuestFailed: There are too many.
        """
        self._left -= n_bytes
        if self._left < 0:
            raise GuestFailed(
                f"it gave the host more than {self._limit} bytes to keep; "
                "a higher memory limit allows more"
            )


class Output:
    """What a guest writes to its standard output and error, in the order of the writes."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._dropped = 0

    def write(self, data: bytes) -> None:
        """Keep the data, up to `KEPT_OUTPUT_BYTES` in all."""
        kept = data[: KEPT_OUTPUT_BYTES - len(self._kept)]
        self._kept += kept
        self._dropped += len(data) - len(kept)

    def text(self) -> str:
        """Return all of it without trailing white space; invalid UTF-8 is replaced."""
        text = self._kept.decode("utf-8", "replace").rstrip()
        return text + (f"\n… and {self._dropped} bytes more" if self._dropped else "")


class Turns(Protocol):
    """What a guest acquires to compute, and releases to wait: a lock, or a number of permits."""

    def acquire(self) -> object: ...

    def release(self) -> object: ...


class Turn:
    """A guest's turn to compute, and how much of its time is left.

    Machine code runs without Python's global lock, and each guest has a store of its own, so guests
    could compute in parallel but for two globals of wasmtime's Python bindings (as of 50.0): the
    set `case_test_cache`, which is cleared and filled to find the case of a variant, result or
    option, and `LAST_EXCEPTION`, the error of a host function until the caller of the guest raises
    it. The bindings use both after a host function has returned and before the guest continues, so
    a lock must be held for all that a guest does between two calls of the host. Without it a guest
    sometimes gets the wrong case, or the error of another guest. Guests in several processes
    compute in parallel, see workers.py.

    Args:
        turns: What all guests of a host share.
        stopped: Is set when the guest is to end.
        seconds: The guest's time.
        set_deadline: Sets when the guest is interrupted, in ticks from now.
    """

    def __init__(
        self,
        turns: Turns,
        stopped: threading.Event,
        *,
        seconds: float,
        set_deadline: Callable[[int], None],
    ) -> None:
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
        """Stop the guest's time and let other guests compute, while the host works for it."""
        self._end()
        try:
            yield
        finally:
            self._begin()

    def sleep(self, seconds: float) -> None:
        """Wait, on the guest's time.

        Raises:
            GuestFailed: The guest's time is up first, or it is to end.
        """
        seconds = max(0.0, seconds)
        with self.paused():
            self._stopped.wait(min(seconds, self._left))
            self._left -= seconds
        self.check()

    def check(self) -> None:
        """Raise `GuestFailed` if the guest's time is up, or it is to end."""
        if self._stopped.is_set():
            raise GuestFailed(STOPPED)
        if self._left - (time.monotonic() - self._since) <= TICK_SECONDS:
            raise out_of_time(self._seconds)

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
        self.last_called = ""  # a function of the host
        self._resources: dict[int, Resource] = {}
        self._numbers = itertools.count(1)

    def own(self, resource: Resource) -> ResourceHost:
        """Return a new handle for the resource, which the guest owns."""
        self.allowance.spend(RESOURCE_BYTES)
        number = next(self._numbers)
        self._resources[number] = resource
        return ResourceHost.own(number, resource_id(resource.wit))

    def drop(self, number: int) -> None:
        """Close the resource of a handle that the guest has dropped."""
        resource = self._forget(number)
        if resource is not None:
            resource.close()

    def drop_all(self) -> None:
        """Close every resource, at the guest's end."""
        for number in list(self._resources):
            self.drop(number)

    def lifted(self, store: object, value: object) -> object:
        """Return an argument with each handle replaced by its resource; owned ones are removed."""
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
        """Return a result with each resource replaced by a new handle."""
        if isinstance(value, Resource):
            return self.own(value)
        if isinstance(value, list):
            return [self.lowered(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.lowered(item) for item in value)
        if isinstance(value, Variant):
            return Variant(value.tag, self.lowered(value.payload))
        return value

    def _forget(self, number: int) -> Resource | None:
        resource = self._resources.pop(number, None)
        if resource is not None:
            self.allowance.spend(-RESOURCE_BYTES)
        return resource
