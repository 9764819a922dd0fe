"""The host: compiles components, and makes an instance of one for each request.

    with Host() as host:
        program = host.load_handler(Path("app.wasm"))
        response = host.respond(program, Request("GET", "/"), Services(engine))

Every request gets a new instance in a store of its own, as in Spin: no state is kept between
requests, and a failure ends one request only.

Source: WASI 0.2's https://github.com/WebAssembly/wasi-http, world `proxy`.
"""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from wasmtime import Store, WasmtimeError
from wasmtime.component import (
    Component,
    ComponentInstanceType,
    Func,
    FuncType,
    Linker,
    OwnType,
)

from refllm.errors import LlmRuntimeError
from refllm.interface import Engine
from refllm.wasm.compiled import causes, compiled, engine_with_limits
from refllm.wasm.guest import (
    TICK_SECONDS,
    Allowance,
    Guest,
    GuestFailed,
    Limits,
    Output,
    Turn,
    Turns,
)
from refllm.wasm.linking import ImportNotProvidedError, Running, linked, running
from refllm.wasm.memory import Shares
from refllm.wasm.signatures import spelled
from refllm.wasm.spin import ConfigStore, Llm, Variables
from refllm.wasm.wasi import cli as wasi_cli
from refllm.wasm.wasi import filesystem as wasi_filesystem
from refllm.wasm.wasi import io as wasi_io
from refllm.wasm.wasi.filesystem import Folder
from refllm.wasm.wasi.http import (
    HttpTypes,
    IncomingRequest,
    Request,
    Response,
    ResponseOutparam,
)
from refllm.wasm.wit import Interface

__all__ = ["Host", "Program", "Services", "Wasi3Error", "unexpected"]

INTERRUPTED = "wasm trap: interrupt"
OVER_THE_LIMIT = re.compile("exceeds (memory|table) limits|resource limit exceeded")
HOW_TO_BUILD = (
    "build it for the world fermyon:spin/http-trigger@2.0.0 with an SDK of Spin 2 or later"
)

HANDLER = "wasi:http/incoming-handler@0.2.x"
IS_HANDLER = re.compile(r"wasi:http/incoming-handler@0\.2\.\d+")
IS_WASI_3 = re.compile(r"wasi:[a-z-]+/[a-z-]+@0\.3\.")
FOR_WASI_2 = (
    "build it for WASI 0.2",
    "in Python: with spin-sdk 3 and componentize-py -w spin-http, or with spin-sdk 4 or 5, the "
    "world fermyon:spin/http-trigger@2.0.0 and a handler that is a WasiHttpIncomingHandler020",
    "in Rust: with spin-sdk 5, for the target wasm32-wasip2",
    "in TypeScript: with @spinframework/wasi-http-proxy",
    "in Go: no version of Spin's SDK does; have Spin run the module that version 2 makes, with "
    "refllm serve for its models",
)
OFFERED: tuple[type[Interface], ...] = (
    *(wasi_io.Streams, wasi_io.IoErrors, wasi_io.Poll),
    *wasi_cli.OFFERED,
    *(wasi_filesystem.Types, wasi_filesystem.Preopens),
    *(HttpTypes, Llm, Variables, ConfigStore),
)


T = TypeVar("T")
HostedFunction = Callable[..., object]


@dataclass(frozen=True, slots=True)
class Services:
    """What a component may use: an engine for its models, and what spin.toml gives it."""

    engine: Engine
    environment: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Folder = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Program:
    """A component, compiled and linked.

    Attributes:
        path: The file it was read from.
        component: The machine code.
        linker: Has the host's functions for its imports.
        shares: How many memories its instances have, as far as is known.
    """

    path: Path
    component: Component
    linker: Linker
    shares: Shares = field(default_factory=Shares, compare=False)


class Wasi3Error(LlmRuntimeError):
    """A component is for WASI 0.3; the lines are what it exports, and how to build it for 0.2."""


class _TooFewShares(Exception):
    """The instance has more memories or tables than were known; another must be made."""


class Host:
    """Runs guests, for as long as the context lasts; safe to use from several threads.

    Args:
        limits: What one request may take.

    Attributes:
        turns: What a guest holds while it computes, see `Turn`; a lock, so that one guest does.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._engine = engine_with_limits()
        self.turns: Turns = threading.Lock()
        self._stopped = threading.Event()
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._ends: list[threading.Event] = []  # one for each guest: it is to end
        self._clock = threading.Thread(target=self._tick, name="refllm-wasm-clock", daemon=True)

    def __enter__(self) -> Self:
        self._clock.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def n_guests(self) -> int:
        """How many guests there are now."""
        return len(self._ends)

    def close(self, seconds: float | None = None) -> bool:
        """End every guest, and wait until they have ended; a model's answer is waited for.

        Args:
            seconds: How long to wait at most.

        Returns:
            Whether every guest has ended.
        """
        self.stop()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._ends, seconds):
                return False
            self._closed.set()
            self._changed.notify_all()
        self._clock.join()
        return True

    def stop(self) -> None:
        """End every guest, at its next instruction or call; none starts any more."""
        self._stopped.set()
        with self._changed:
            for end in self._ends:
                end.set()

    def load(self, path: Path) -> Program:
        """Return the component in the file at `path`, compiled now or earlier.

        Raises:
            LlmRuntimeError: Names the file. It is not a component, imports what no host can
                provide, or begins with more memory than the limit.
        """
        component = compiled(self._engine, path)
        exported = component.type.exports(self._engine)
        of_wasi_3 = next(filter(IS_WASI_3.match, exported), None)
        if of_wasi_3 is not None and not any(map(IS_HANDLER.fullmatch, exported)):
            raise Wasi3Error(
                f"{path}: exports {of_wasi_3}, and wasmtime's Python bindings have no streams and "
                "futures of WASI 0.3",
                *FOR_WASI_2,
            )
        try:
            linker = linked(self._engine, component, OFFERED)
        except ImportNotProvidedError as error:
            raise LlmRuntimeError(f"{path}: imports {error}", HOW_TO_BUILD) from error
        except (WasmtimeError, TypeError, NotImplementedError) as error:
            raise LlmRuntimeError(
                f"{path}: its imports cannot be linked: {error}",
                f"it imports {', '.join(component.type.imports(self._engine))}",
            ) from error
        program = Program(path, component, linker)
        self._try_out(program)
        return program

    def _try_out(self, program: Program) -> None:
        """Make an instance up to where its own code would run. Raises: as `load`."""
        error = self._error_of_an_instance(program)
        while error is not None and program.shares.learn(error):
            error = self._error_of_an_instance(program)
        if error is not None and INTERRUPTED not in error:
            is_too_large = OVER_THE_LIMIT.search(error)
            raise LlmRuntimeError(
                f"{program.path}: cannot be started: {causes(error)}",
                "a higher memory limit allows more" if is_too_large else HOW_TO_BUILD,
            )

    def _error_of_an_instance(self, program: Program) -> str | None:
        """Return why no instance can be made; None if one can. Its own code gets no time to run."""
        store = Store(self._engine)
        program.shares.limit(store, self.limits.memory_bytes)
        store.set_epoch_deadline(0)
        try:
            program.linker.instantiate(store, program.component)
        except WasmtimeError as error:
            return str(error)
        finally:
            store.close()
        return None

    def load_handler(self, path: Path) -> Program:
        """Return a component that answers HTTP requests. Arguments: as `load`.

        Raises:
            LlmRuntimeError: As `load`; or the component exports no handler, and the message has
                what it exports.
        """
        program = self.load(path)
        exports = program.component.type.exports(self._engine)
        name = self._handler(program)
        if name is None:
            names = ", ".join(exports) or "nothing"
            raise LlmRuntimeError(
                f"{path}: exports {names}, and not the interface {HANDLER}", *FOR_WASI_2
            )
        interface = exports[name].ty
        functions = (
            interface.exports(self._engine) if isinstance(interface, ComponentInstanceType) else {}
        )
        type_ = functions["handle"].ty if "handle" in functions else None
        if (
            not isinstance(type_, FuncType)
            or type_.result is not None
            or [type(value) for _, value in type_.params] != [OwnType, OwnType]
        ):
            actual = spelled(type_) if isinstance(type_, FuncType) else "no function"
            raise LlmRuntimeError(
                f"{path}: handle in its export {name} is {actual}; it must be "
                "func(request: own<incoming-request>, response-out: own<response-outparam>)",
                HOW_TO_BUILD,
            )
        return program

    def respond(
        self,
        program: Program,
        request: Request,
        services: Services,
        output: Output | None = None,
        *,
        outparam: ResponseOutparam | None = None,
        end: threading.Event | None = None,
    ) -> Response:
        """Return the response of a new instance of `program` to `request`.

        Args:
            program: From `load_handler`.
            request: What the instance gets.
            services: What the instance may use.
            output: Gets what the instance prints.
            outparam: Where the response can be seen before it is whole.
            end: Ends the instance, once it is set, at its next call of the host.

        Raises:
            GuestFailed: It trapped, used up a limit, called what the host does not offer, or
                returned without a response.
        """
        given = outparam or ResponseOutparam()

        def handle(guest: Guest, function: HostedFunction) -> Response:
            function(guest.own(IncomingRequest(guest, request)), guest.own(given))
            return given.response()

        export = (self._handler(program) or HANDLER, "handle")
        return self._run(program, export, services, output, handle, end or threading.Event())

    def call(
        self,
        program: Program,
        function: str,
        arguments: Sequence[object],
        services: Services,
        output: Output | None = None,
    ) -> object:
        """Return what an exported function of a new instance returns.

        Args:
            program: From `load`.
            function: The name of the export.
            arguments: As wasmtime's bindings take them; the result is as they return it.
            services: What the instance may use.
            output: Gets what the instance prints.

        Raises:
            GuestFailed: The function does not return.
        """
        return self._run(
            program,
            (function,),
            services,
            output,
            lambda _guest, exported: exported(*arguments),
            threading.Event(),
        )

    def _handler(self, program: Program) -> str | None:
        """Return the name under which the component exports its handler of HTTP requests."""
        exports = program.component.type.exports(self._engine)
        return next((export for export in exports if IS_HANDLER.fullmatch(export)), None)

    def _run(
        self,
        program: Program,
        export: Sequence[str],
        services: Services,
        output: Output | None,
        use: Callable[[Guest, HostedFunction], T],
        end: threading.Event,
    ) -> T:
        """Return `use(guest, function)` for a new guest and the function that it exports."""
        while True:
            with self._new_guest(program, output or Output(), end) as (store, guest):
                token = running.set(Running(guest, _interfaces(guest, services)))
                try:
                    with guest.turn:
                        return _used(guest, lambda: use(guest, _exported(program, store, export)))
                except _TooFewShares:
                    continue  # the next guest has a share for each memory
                finally:
                    running.reset(token)

    @contextmanager
    def _new_guest(
        self, program: Program, output: Output, end: threading.Event
    ) -> Iterator[tuple[Store, Guest]]:
        """Make a store with limits, and a guest in it; both end with the context."""
        store = Store(self._engine)
        n_bytes = self.limits.memory_bytes
        program.shares.limit(store, n_bytes)
        turn = Turn(
            self.turns,
            end,
            seconds=self.limits.seconds,
            set_deadline=store.set_epoch_deadline,
        )
        guest = Guest(turn=turn, allowance=Allowance(n_bytes), output=output)
        with self._counted(end):
            try:
                yield store, guest
            finally:
                guest.drop_all()
                store.close()

    @contextmanager
    def _counted(self, end: threading.Event) -> Iterator[None]:
        """Count a guest, and set `end` when the host stops."""
        with self._changed:
            self._ends.append(end)
            if self._stopped.is_set():
                end.set()
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._ends.remove(end)
                self._changed.notify_all()

    def _tick(self) -> None:
        """Call `_on_tick` regularly, while there are guests."""
        while not self._closed.wait(TICK_SECONDS):
            with self._changed:
                self._changed.wait_for(lambda: self._ends or self._closed.is_set())
            self._on_tick()

    def _on_tick(self) -> None:
        beyond_every_deadline = math.ceil(self.limits.seconds / TICK_SECONDS) + 1
        for _ in range(beyond_every_deadline if self._stopped.is_set() else 1):
            self._engine.increment_epoch()


def _interfaces(guest: Guest, services: Services) -> dict[str, Interface]:
    """Return an object of each of `OFFERED` for one guest, by the interface's name in WIT."""
    interfaces = [
        wasi_io.Streams(),
        wasi_io.IoErrors(),
        wasi_io.Poll(),
        *wasi_cli.interfaces(guest, services.environment),
        wasi_filesystem.Types(),
        wasi_filesystem.Preopens(guest, services.files),
        HttpTypes(guest),
        Llm(guest, services.engine),
        Variables(services.variables),
        ConfigStore(services.variables),
    ]
    return {interface.wit: interface for interface in interfaces}


def _exported(program: Program, store: Store, export: Sequence[str]) -> HostedFunction:
    """Return the function at a path of exports of a new instance: interfaces, then its name."""
    try:
        instance = program.linker.instantiate(store, program.component)
    except WasmtimeError as error:
        if program.shares.learn(str(error)):
            raise _TooFewShares from error
        raise
    index = None
    for name in export:
        index = program.component.get_export_index(name, index)
        if index is None:
            raise GuestFailed(f"it exports no {name}")
    function = None if index is None else instance.get_func(store, index)
    if function is None:
        raise GuestFailed(f"its export {export[-1]} is not a function")
    return functools.partial(_call, running.get().guest, store, function)


def _call(guest: Guest, store: Store, function: Func, *arguments: object) -> object:
    """Call a function. Raise `GuestFailed` if a value has not the type that is declared.

    An exception of the host is kept in the guest. Others are from wasmtime's bindings, which
    convert values by the types that the component declares.
    """
    try:
        result = function(store, *arguments)
    except WasmtimeError:
        raise
    except Exception as error:
        if guest.failure is not None:
            raise
        of = guest.last_called or "the function that it exports"
        raise GuestFailed(
            f"it has other types for {of} than WASI 0.2 and Spin 2: {type(error).__name__}: {error}"
        ) from error
    function.post_return(store)
    return result


def _used(guest: Guest, use: Callable[[], T]) -> T:
    """Return `use()`; raise `GuestFailed` for every exception."""
    try:
        return use()
    except (GuestFailed, _TooFewShares):
        raise
    except Exception as error:
        raise _failure(guest, error) from error


def _failure(guest: Guest, error: Exception) -> BaseException:
    """Return why the guest ended: the host's first exception, or else wasmtime's."""
    failure = guest.failure or error
    if isinstance(failure, WasmtimeError):
        try:
            guest.turn.check()
        except GuestFailed as out_of_time:
            return out_of_time
        # wasmtime's message begins with a list of addresses; the cause is its last line.
        lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
        return GuestFailed(re.sub(r"^\d+: ", "", lines[-1]) if lines else "it trapped")
    if isinstance(failure, GuestFailed | KeyboardInterrupt):
        return failure
    return unexpected(failure)


def unexpected(error: BaseException) -> GuestFailed:
    """Return the failure of a guest because of an exception that the host should not have."""
    return GuestFailed(f"unexpected {type(error).__name__}: {error}; this is a bug in refllm")
