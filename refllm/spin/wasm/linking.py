"""A component's imports, given by the host: each function of WIT becomes a method of this package.

What the host does not offer is linked too, so that a component that imports everything its SDK
knows can run; only a call of such a function fails, and says which one it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from wasmtime import Engine, WasmtimeError
from wasmtime.component import Component, ComponentInstanceType, FuncType, Linker, ResourceType

from refllm.spin.wasm.guest import Guest, GuestFailed
from refllm.spin.wasm.wit import Interface, method_name, resource_id, without_version

__all__ = ["Running", "linked", "running"]


@dataclass(frozen=True, slots=True)
class Running:
    """The guest that this thread runs, and the interfaces made for it, by their names in WIT."""

    guest: Guest
    interfaces: Mapping[str, Interface]


running: ContextVar[Running] = ContextVar("running")

HostFunction = Callable[..., object]


def linked(engine: Engine, component: Component, offered: Iterable[type[Interface]]) -> Linker:
    """A linker that has every import of `component`; calls go to the guest that is `running`."""
    offered_by_name = {interface.wit: interface for interface in offered}
    linker = Linker(engine)
    with linker.root() as root:
        for name, imported in component.type.imports(engine).items():
            if not isinstance(imported.ty, ComponentInstanceType):
                if isinstance(imported.ty, FuncType):
                    root.add_func(name, _guarded(_refusal(name)))
                continue
            # WASI 0.3 has other functions under the same names.
            is_other = "@0.3" in name
            interface = None if is_other else offered_by_name.get(without_version(name))
            with root.add_instance(name) as instance:
                for item, exported in imported.ty.exports(engine).items():
                    kind = exported.ty
                    if isinstance(kind, ResourceType):
                        resource_type = ResourceType.host(resource_id(item))
                        instance.add_resource(item, resource_type, _drop)
                    elif isinstance(kind, FuncType):
                        instance.add_func(item, _guarded(_function(name, interface, item)))
    return linker


def _function(name: str, interface: type[Interface] | None, function: str) -> HostFunction:
    found = None if interface is None else method_name(interface, function)
    if interface is None or found is None:
        return _refusal(f"{name} {function}")
    owner, method = found
    wit, belongs_to_interface = interface.wit, owner is interface

    def call(*arguments: object) -> object:
        if belongs_to_interface:
            return getattr(running.get().interfaces[wit], method)(*arguments)
        return getattr(owner, method)(*arguments)

    return call


def _refusal(name: str) -> HostFunction:
    def refuse(*_arguments: object) -> object:
        raise GuestFailed(
            f"it called {name}, which refllm does not offer; it offers Serverless AI, variables, "
            "files, clocks, random numbers and the answering of HTTP requests"
        )

    return refuse


def _guarded(function: HostFunction) -> HostFunction:
    """The function with resources for handles, and out of which nothing but a trap comes.

    What else came out, an exit or an interrupt included, would go through wasmtime's native frames
    and end the process. It is kept, for whoever called the guest to raise.
    """

    def call(store: object, *arguments: object) -> object:
        guest = running.get().guest
        try:
            guest.turn.check()
            lifted = [guest.lifted(store, argument) for argument in arguments]
            return guest.lowered(function(*lifted))
        except BaseException as error:  # noqa: BLE001
            guest.failure = guest.failure or error
            raise WasmtimeError("the host ended the guest") from None

    return call


def _drop(_store: object, number: int) -> None:
    guest = running.get().guest
    try:
        guest.drop(number)
    except BaseException as error:  # noqa: BLE001 - see `_guarded`
        guest.failure = guest.failure or error
        raise WasmtimeError("the host could not drop a resource") from None
