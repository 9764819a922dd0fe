"""`wasi:cli`, `wasi:clocks` and `wasi:random`: what a program finds around it.

A guest has an environment and output, no arguments, no input, no terminal. Its random numbers are
the operating system's.

Sources: https://github.com/WebAssembly/wasi-cli, wasi-clocks, wasi-random (0.2).
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping

from wasmtime.component import Record, Variant

from refllm.wasm.guest import Guest, GuestFailed
from refllm.wasm.wasi.io import NANOSECONDS, InputStream, OutputStream, Pollable
from refllm.wasm.wit import Interface, record

__all__ = ["OFFERED", "interfaces"]

RANDOM_BYTES = 1024 * 1024  # of one call
U64_BYTES = 8


class Environment(Interface):
    """`wasi:cli/environment`."""

    wit = "wasi:cli/environment"

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def get_environment(self) -> list[tuple[str, str]]:
        return list(self._environment.items())

    def get_arguments(self) -> list[str]:
        return []

    def initial_cwd(self) -> None:
        return None


class Exit(Interface):
    """`wasi:cli/exit`."""

    wit = "wasi:cli/exit"

    def exit(self, status: Variant) -> None:
        """A guest that answers a request has no way to end but to return."""
        raise GuestFailed(f"it called exit, with status {status.tag}")

    def exit_with_code(self, code: int) -> None:
        raise GuestFailed(f"it called exit, with code {code}")


class Stdin(Interface):
    """`wasi:cli/stdin`."""

    wit = "wasi:cli/stdin"

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def get_stdin(self) -> InputStream:
        return InputStream(self._guest, io.BytesIO())


class Stdout(Interface):
    """`wasi:cli/stdout`."""

    wit = "wasi:cli/stdout"

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def get_stdout(self) -> OutputStream:
        return OutputStream(self._guest, self._guest.output.write)


class Stderr(Interface):
    """`wasi:cli/stderr`."""

    wit = "wasi:cli/stderr"

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def get_stderr(self) -> OutputStream:
        return OutputStream(self._guest, self._guest.output.write)


class TerminalStdin(Interface):
    """`wasi:cli/terminal-stdin`."""

    wit = "wasi:cli/terminal-stdin"

    def get_terminal_stdin(self) -> None:
        return None


class TerminalStdout(Interface):
    """`wasi:cli/terminal-stdout`."""

    wit = "wasi:cli/terminal-stdout"

    def get_terminal_stdout(self) -> None:
        return None


class TerminalStderr(Interface):
    """`wasi:cli/terminal-stderr`."""

    wit = "wasi:cli/terminal-stderr"

    def get_terminal_stderr(self) -> None:
        return None


class MonotonicClock(Interface):
    """`wasi:clocks/monotonic-clock`; instants and durations are nanoseconds."""

    wit = "wasi:clocks/monotonic-clock"

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def now(self) -> int:
        return time.monotonic_ns()

    def resolution(self) -> int:
        return 1

    def subscribe_instant(self, when: int) -> Pollable:
        return Pollable(self._guest, when)

    def subscribe_duration(self, duration: int) -> Pollable:
        return Pollable(self._guest, time.monotonic_ns() + duration)


class WallClock(Interface):
    """`wasi:clocks/wall-clock`."""

    wit = "wasi:clocks/wall-clock"

    def now(self) -> Record:
        seconds, nanoseconds = divmod(time.time_ns(), NANOSECONDS)
        return record(seconds=seconds, nanoseconds=nanoseconds)

    def resolution(self) -> Record:
        return record(seconds=0, nanoseconds=1)


class Random(Interface):
    """`wasi:random/random`."""

    wit = "wasi:random/random"

    def get_random_bytes(self, length: int) -> bytes:
        return _random_bytes(length)

    def get_random_u64(self) -> int:
        return _random_u64()


class Insecure(Interface):
    """`wasi:random/insecure`."""

    wit = "wasi:random/insecure"

    def get_insecure_random_bytes(self, length: int) -> bytes:
        return _random_bytes(length)

    def get_insecure_random_u64(self) -> int:
        return _random_u64()


class InsecureSeed(Interface):
    """`wasi:random/insecure-seed`."""

    wit = "wasi:random/insecure-seed"

    def insecure_seed(self) -> tuple[int, int]:
        return _random_u64(), _random_u64()


OF_THE_GUEST = (Stdin, Stdout, Stderr, MonotonicClock)
THE_SAME_FOR_ALL = (
    *(Exit, TerminalStdin, TerminalStdout, TerminalStderr),
    *(WallClock, Random, Insecure, InsecureSeed),
)
OFFERED: tuple[type[Interface], ...] = (Environment, *OF_THE_GUEST, *THE_SAME_FOR_ALL)


def interfaces(guest: Guest, environment: Mapping[str, str]) -> list[Interface]:
    """All that is `OFFERED`, for one guest."""
    return [
        Environment(environment),
        *(interface(guest) for interface in OF_THE_GUEST),
        *(interface() for interface in THE_SAME_FOR_ALL),
    ]


def _random_bytes(length: int) -> bytes:
    if length > RANDOM_BYTES:
        raise GuestFailed(f"it asked for {length} random bytes at once; {RANDOM_BYTES} are given")
    return os.urandom(length)


def _random_u64() -> int:
    return int.from_bytes(os.urandom(U64_BYTES), "little")
