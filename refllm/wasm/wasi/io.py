"""`wasi:io`: streams, pollables, and errors of streams.

The data of every stream is in memory or in a file, so that a stream is always ready; a guest waits
for clocks only. A result that is `closed` in WIT is None here.

Source: https://github.com/WebAssembly/wasi-io (0.2).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from wasmtime.component import Variant

from refllm.wasm.guest import Guest, GuestFailed
from refllm.wasm.wit import Interface, Resource

__all__ = [
    "CHUNK_BYTES",
    "NANOSECONDS",
    "InputStream",
    "IoError",
    "IoErrors",
    "OutputStream",
    "Poll",
    "Pollable",
    "Streams",
]

CHUNK_BYTES = 64 * 1024  # one call reads or writes at most so many
NANOSECONDS = 1_000_000_000
OK = Variant("ok")


class IoError(Resource):
    """Why a stream failed."""

    wit = "error"

    def __init__(self, message: str) -> None:
        self._message = message

    def to_debug_string(self) -> str:
        return self._message


class Pollable(Resource):
    """A point in time, by the monotonic clock in nanoseconds; None for what is ready."""

    wit = "pollable"

    def __init__(self, guest: Guest, ready_at: int | None = None) -> None:
        self._guest = guest
        self.ready_at = time.monotonic_ns() if ready_at is None else ready_at

    def ready(self) -> bool:
        return time.monotonic_ns() >= self.ready_at

    def block(self) -> None:
        self._guest.turn.sleep((self.ready_at - time.monotonic_ns()) / NANOSECONDS)


class Source(Protocol):
    """The data of an input stream."""

    def read(self, length: int, /) -> bytes: ...

    def close(self) -> None: ...


class InputStream(Resource):
    """Bytes to read."""

    wit = "input-stream"

    def __init__(self, guest: Guest, source: Source) -> None:
        self._guest = guest
        self._source = source

    def read(self, length: int) -> bytes | IoError | None:
        if length == 0:
            return b""
        try:
            return self._source.read(min(length, CHUNK_BYTES)) or None
        except OSError as error:
            return IoError(error.strerror or str(error))

    def blocking_read(self, length: int) -> bytes | IoError | None:
        return self.read(length)

    def skip(self, length: int) -> int | IoError | None:
        data = self.read(length)
        return len(data) if isinstance(data, bytes) else data

    def blocking_skip(self, length: int) -> int | IoError | None:
        return self.skip(length)

    def subscribe(self) -> Pollable:
        return Pollable(self._guest)

    def close(self) -> None:
        self._source.close()


class OutputStream(Resource):
    """Passes bytes to `write` at once."""

    wit = "output-stream"

    def __init__(self, guest: Guest, write: Callable[[bytes], object]) -> None:
        self._guest = guest
        self._write = write

    def check_write(self) -> int:
        return CHUNK_BYTES

    def write(self, contents: bytes) -> Variant:
        if len(contents) > CHUNK_BYTES:
            raise GuestFailed(
                f"it wrote {len(contents)} bytes at once; check-write permits {CHUNK_BYTES}"
            )
        self._write(contents)
        return OK

    def blocking_write_and_flush(self, contents: bytes) -> Variant:
        return self.write(contents)

    def flush(self) -> Variant:
        return OK

    def blocking_flush(self) -> Variant:
        return OK

    def write_zeroes(self, length: int) -> Variant:
        if length > CHUNK_BYTES:
            raise GuestFailed(
                f"it wrote {length} zeroes at once; check-write permits {CHUNK_BYTES}"
            )
        return self.write(bytes(length))

    def blocking_write_zeroes_and_flush(self, length: int) -> Variant:
        return self.write_zeroes(length)

    def splice(self, source: InputStream, length: int) -> int | IoError | None:
        data = source.read(length)
        if not isinstance(data, bytes):
            return data
        self._write(data)
        return len(data)

    def blocking_splice(self, source: InputStream, length: int) -> int | IoError | None:
        return self.splice(source, length)

    def subscribe(self) -> Pollable:
        return Pollable(self._guest)


class Streams(Interface):
    """`wasi:io/streams`."""

    wit = "wasi:io/streams"
    resources = (InputStream, OutputStream)


class IoErrors(Interface):
    """`wasi:io/error`."""

    wit = "wasi:io/error"
    resources = (IoError,)


class Poll(Interface):
    """`wasi:io/poll`."""

    wit = "wasi:io/poll"
    resources = (Pollable,)

    def poll(self, pollables: list[Pollable]) -> list[int]:
        """Wait until one is ready, and return the indices of all that are."""
        if not pollables:
            raise GuestFailed("it polled an empty list, which wasi:io/poll does not permit")
        min(pollables, key=lambda pollable: pollable.ready_at).block()
        return [index for index, pollable in enumerate(pollables) if pollable.ready()]
