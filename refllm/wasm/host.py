"""The host: compiles components, and lets an instance of one answer a request.

    with Host() as host:
        program = host.load_handler(Path("app.wasm"))
        response = host.respond(program, Request("GET", "/"), Services(engine))

Every request gets a new instance in a store of its own, as in Spin: nothing is remembered, and
what goes wrong in one ends there.

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
)
from refllm.wasm.linking import CannotBeGiven, Running, linked, running
from refllm.wasm.memory import Shares
from refllm.wasm.signatures import spelled
from refllm.wasm.spin_llm import Llm
from refllm.wasm.spin_variables import ConfigStore, Variables
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

__all__ = ["Host", "Program", "Services"]

INTERRUPTED = "wasm trap: interrupt"
OVER_THE_LIMIT = re.compile("exceeds (memory|table) limits|resource limit exceeded")
HOW_TO_BUILD = (
    "build it for the world fermyon:spin/http-trigger@2.0.0 with an SDK of Spin 2 or later"
)

HANDLER = "wasi:http/incoming-handler@0.2.x"
IS_HANDLER = re.compile(r"wasi:http/incoming-handler@0\.2\.\d+")
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
    """What a component is given: an engine for its models, and what spin.toml says it has."""

    engine: Engine
    environment: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Folder = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Program:
    """A component, compiled and linked; `path` is where it came from.

    `shares` is what has been learned of its memories.
    """

    path: Path
    component: Component
    linker: Linker
    shares: Shares = field(default_factory=Shares, compare=False)


class _TooFewShares(Exception):
    """The instance has more memories or tables than were known, and must be made anew."""


class Host:
    """Runs guests, for as long as the context lasts; safe to use from several threads."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._engine = engine_with_limits()
        self._turns = threading.Lock()  # of whoever computes; `Turn` says why there is one
        self._stopped = threading.Event()
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._n_guests = 0
        self._clock = threading.Thread(target=self._tick, name="refllm-wasm-clock", daemon=True)

    def __enter__(self) -> Self:
        self._clock.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """End every guest, and wait until they have; a model's answer is waited for."""
        self.stop()
        with self._changed:
            self._changed.wait_for(lambda: self._n_guests == 0)
        self._closed.set()
        self._clock.join()

    def stop(self) -> None:
        """End every guest, at its next instruction or call; none starts any more."""
        self._stopped.set()

    def load(self, path: Path) -> Program:
        """The component in the file at `path`, compiled now or earlier.

        Errors: `LlmRuntimeError` naming the file if it is not a component, if it imports what
        cannot be given, or if it begins with more memory than the limit.
        """
        component = compiled(self._engine, path)
        try:
            linker = linked(self._engine, component, OFFERED)
        except CannotBeGiven as error:
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
        """Make an instance up to where its own code would run. Errors: as `load`."""
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
        """Why no instance can be made, None where one can; its own code has no time to run."""
        store = Store(self._engine)
        program.shares.limit(store, self._limits.memory_bytes)
        store.set_epoch_deadline(0)
        try:
            program.linker.instantiate(store, program.component)
        except WasmtimeError as error:
            return str(error)
        finally:
            store.close()
        return None

    def load_handler(self, path: Path) -> Program:
        """As `load`, of a component that answers HTTP requests.

        Errors: also `LlmRuntimeError` saying what it is instead, if it does not.
        """
        program = self.load(path)
        exports = program.component.type.exports(self._engine)
        name = self._handler(program)
        if name is None:
            said = ", ".join(exports) or "nothing"
            raise LlmRuntimeError(
                f"{path}: exports {said}, and not the interface {HANDLER}",
                "build it for the world fermyon:spin/http-trigger@2.0.0 (spin-sdk 3: -w spin-http; "
                "spin-sdk 4 and 5: a handler that is a WasiHttpIncomingHandler020)",
            )
        interface = exports[name].ty
        functions = (
            interface.exports(self._engine) if isinstance(interface, ComponentInstanceType) else {}
        )
        type_ = functions["handle"].ty if "handle" in functions else None
        if not isinstance(type_, FuncType) or not _handles_requests(type_):
            said = spelled(type_) if isinstance(type_, FuncType) else "no function"
            raise LlmRuntimeError(
                f"{path}: handle in its export {name} is {said}; it must be "
                "func(request: own<incoming-request>, response-out: own<response-outparam>)",
                HOW_TO_BUILD,
            )
        return program

    def respond(
        self, program: Program, request: Request, services: Services, output: Output | None = None
    ) -> Response:
        """What a new instance of `program` responds to `request`; `output` gets what it prints.

        Errors: `GuestFailed` if it does not respond: it trapped, used up a limit, called what the
        host does not offer, or returned without a response.
        """
        outparam = ResponseOutparam()

        def handle(guest: Guest, function: HostedFunction) -> Response:
            function(guest.own(IncomingRequest(guest, request)), guest.own(outparam))
            return outparam.response()

        export = (self._handler(program) or HANDLER, "handle")
        return self._run(program, export, services, output, handle)

    def call(
        self,
        program: Program,
        function: str,
        arguments: Sequence[object],
        services: Services,
        output: Output | None = None,
    ) -> object:
        """What an exported function of a new instance returns, as wasmtime's bindings have it.

        Errors: `GuestFailed` if it does not return.
        """
        return self._run(
            program, (function,), services, output, lambda _guest, exported: exported(*arguments)
        )

    def _handler(self, program: Program) -> str | None:
        """The name under which the component exports its handler of HTTP requests."""
        exports = program.component.type.exports(self._engine)
        return next((export for export in exports if IS_HANDLER.fullmatch(export)), None)

    def _run(
        self,
        program: Program,
        export: Sequence[str],
        services: Services,
        output: Output | None,
        use: Callable[[Guest, HostedFunction], T],
    ) -> T:
        """What `use` makes of a new guest and of the function that it exports."""
        with self._new_guest(program, output or Output()) as (store, guest):
            token = running.set(Running(guest, _interfaces(guest, services)))
            try:
                with guest.turn:
                    return _used(guest, lambda: use(guest, _exported(program, store, export)))
            except _TooFewShares:
                pass  # the program is asked again, with a share for each memory that it has
            finally:
                running.reset(token)
        return self._run(program, export, services, output, use)

    @contextmanager
    def _new_guest(self, program: Program, output: Output) -> Iterator[tuple[Store, Guest]]:
        """A store with limits and what the host keeps for the guest in it; both end with this."""
        store = Store(self._engine)
        n_bytes = self._limits.memory_bytes
        program.shares.limit(store, n_bytes)
        turn = Turn(
            self._turns,
            self._stopped,
            seconds=self._limits.seconds,
            set_deadline=store.set_epoch_deadline,
        )
        guest = Guest(turn=turn, allowance=Allowance(n_bytes), output=output)
        self._count_guests(1)
        try:
            yield store, guest
        finally:
            guest.drop_all()
            store.close()
            self._count_guests(-1)

    def _count_guests(self, change: int) -> None:
        with self._changed:
            self._n_guests += change
            self._changed.notify_all()

    def _tick(self) -> None:
        beyond_every_deadline = math.ceil(self._limits.seconds / TICK_SECONDS) + 1
        while not self._closed.wait(TICK_SECONDS):
            for _ in range(beyond_every_deadline if self._stopped.is_set() else 1):
                self._engine.increment_epoch()


def _interfaces(guest: Guest, services: Services) -> dict[str, Interface]:
    """Everything that is offered, made for one guest, by its name in WIT."""
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
    """The function of a new instance that the names lead to, through interfaces."""
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


def _handles_requests(type_: FuncType) -> bool:
    given = [value for _, value in type_.params]
    return type_.result is None and list(map(type, given)) == [OwnType, OwnType]


def _call(guest: Guest, store: Store, function: Func, *arguments: object) -> object:
    """What the function returns. Errors: `GuestFailed` if a value has not the type that is said.

    Whatever the host itself raises is kept in the guest. What else comes is from wasmtime's
    bindings, which convert values by the types that the component declares.
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
    """What `use` returns; every way in which it fails is the guest's failure."""
    try:
        return use()
    except (GuestFailed, _TooFewShares):
        raise
    except Exception as error:
        raise _failure(guest, error) from error


def _failure(guest: Guest, error: Exception) -> BaseException:
    """Why the guest ended: what the host said first, or else what wasmtime says."""
    failure = guest.failure or error
    if isinstance(failure, WasmtimeError):
        try:
            guest.turn.check()
        except GuestFailed as out_of_time:
            return out_of_time
        return GuestFailed(_reason(str(failure)))
    if isinstance(failure, GuestFailed | KeyboardInterrupt):
        return failure
    unexpected = f"unexpected {type(failure).__name__}: {failure}; this is a bug in refllm"
    return GuestFailed(unexpected)


def _reason(error: str) -> str:
    """The cause at the end of what wasmtime says, which begins with a list of addresses."""
    causes = [line.strip() for line in error.splitlines() if line.strip()]
    return re.sub(r"^\d+: ", "", causes[-1]) if causes else "it trapped"
