"""A component's imports, given by the host: each function of WIT becomes a method of this package.

What the host does not offer is linked too, so that a component that imports everything its SDK
knows can run; only a call of such a function fails, and says which one it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

from wasmtime import Engine, WasmtimeError
from wasmtime.component import (
    Component,
    ComponentInstanceType,
    ComponentType,
    FuncType,
    Linker,
    LinkerInstance,
    ModuleType,
    ResourceType,
    ValType,
)

from refllm.wasm.guest import Guest, GuestFailed
from refllm.wasm.signatures import has_type, spelled
from refllm.wasm.wit import Interface, method_name, resource_id, without_version

__all__ = ["CannotBeGiven", "Running", "linked", "running"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """The guest that this thread runs, and the interfaces made for it, by their names in WIT."""

    guest: Guest
    interfaces: Mapping[str, Interface]


running: ContextVar[Running] = ContextVar("running")

HostFunction = Callable[..., object]

KINDS: Mapping[type, str] = {
    ComponentInstanceType: "an instance inside an instance",
    ComponentType: "a component",
    ModuleType: "a core module",
}


class CannotBeGiven(Exception):
    """A component imports what a host cannot give; the message names it."""


def linked(engine: Engine, component: Component, offered: Iterable[type[Interface]]) -> Linker:
    """A linker that has every import of `component`; calls go to the guest that is `running`.

    Errors: `CannotBeGiven` naming an import that a host cannot give.
    """
    offered_by_name = {interface.wit: interface for interface in offered}
    linker = Linker(engine)
    resources = _Resources()
    with linker.root() as root:
        for name, imported in component.type.imports(engine).items():
            type_ = imported.ty
            if not isinstance(type_, ComponentInstanceType):
                function = partial(_function, name, None, "")
                _give(root, name, type_, name, function, resources)
                continue
            # WASI 0.3 has other functions under the same names.
            is_other = "@0.3" in name
            interface = None if is_other else offered_by_name.get(without_version(name))
            with root.add_instance(name) as instance:
                for item, exported in type_.exports(engine).items():
                    function = partial(_function, name, interface, item)
                    _give(instance, item, exported.ty, f"{name} {item}", function, resources)
    return linker


class _Resources:
    """The numbers of a component's resources, of which each may have several names."""

    def __init__(self) -> None:
        self._known: list[tuple[ResourceType, int]] = []

    def id_of(self, name: str, type_: ResourceType) -> int:
        """That of the first name of the resource."""
        for known, id_ in self._known:
            if known == type_:
                return id_
        self._known.append((type_, resource_id(name)))
        return resource_id(name)


def _give(
    to: LinkerInstance,
    name: str,
    type_: object,
    imported: str,
    function: Callable[[FuncType], HostFunction],
    resources: _Resources,
) -> None:
    """Give a function or a resource; a type of values is nothing to give."""
    if isinstance(type_, FuncType):
        to.add_func(name, _guarded(imported, function(type_)))
    elif isinstance(type_, ResourceType):
        to.add_resource(name, ResourceType.host(resources.id_of(name, type_)), _drop)
    elif not isinstance(type_, ValType):
        kind = KINDS.get(type(type_), "something unknown")
        raise CannotBeGiven(f"{imported}, which is {kind}")


def _function(
    name: str, interface: type[Interface] | None, function: str, type_: FuncType
) -> HostFunction:
    found = None if interface is None else method_name(interface, function)
    if interface is None or found is None:
        return _refusal(f"{name} {function}".rstrip())
    owner, method = found
    if not has_type(getattr(owner, method), None if owner is interface else owner, type_):
        return _refusal_of_type(f"{name} {function}", type_)
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


def _refusal_of_type(name: str, type_: FuncType) -> HostFunction:
    said = f"{name} as {spelled(type_)}, which is not its type in WASI 0.2 and Spin 2"
    logger.warning("refllm: a component imports %s; a call of it fails", said)

    def refuse(*_arguments: object) -> object:
        raise GuestFailed(f"it called {said}; build it with the WIT of those")

    return refuse


def _guarded(name: str, function: HostFunction) -> HostFunction:
    """The function with resources for handles, and out of which nothing but a trap comes.

    What else came out, an exit or an interrupt included, would go through wasmtime's native frames
    and end the process. It is kept, for whoever called the guest to raise.
    """

    def call(store: object, *arguments: object) -> object:
        guest = running.get().guest
        guest.last_called = name
        try:
            guest.turn.check()
            lifted = [guest.lifted(store, argument) for argument in arguments]
            return guest.lowered(function(*lifted))
        except BaseException as error:  # noqa: BLE001 - else everyone would wait forever
            guest.failure = guest.failure or error
            raise WasmtimeError("the host ended the guest") from None

    return call


def _drop(_store: object, number: int) -> None:
    guest = running.get().guest
    try:
        guest.drop(number)
    except BaseException as error:  # noqa: BLE001 - else everyone would wait forever
        guest.failure = guest.failure or error
        raise WasmtimeError("the host could not drop a resource") from None
