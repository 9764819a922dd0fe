"""A component's imports, provided by the host: a function of WIT is a method of this package.

Functions that the host does not offer are linked, too, so that a component can run that imports
everything in its SDK; only a call of such a function fails, with its name.
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

__all__ = ["ImportNotProvidedError", "Running", "linked", "running"]

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


class ImportNotProvidedError(Exception):
    """A component imports what no host can provide; the message names it."""


def linked(engine: Engine, component: Component, offered: Iterable[type[Interface]]) -> Linker:
    """Return a linker that has every import of a component.

    Args:
        engine: The component's.
        component: From `compiled`.
        offered: The interfaces that the host has. Calls go to the objects in `running`.

    Raises:
        ImportNotProvidedError: Names an import that no host can provide.
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
    """The numbers of a component's resources; a resource may have several names."""

    def __init__(self) -> None:
        self._known: list[tuple[ResourceType, int]] = []

    def id_of(self, name: str, type_: ResourceType) -> int:
        """Return the number of a resource, which is that of its first name."""
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
    """Add a function or a resource to the linker; a type of values needs nothing."""
    if isinstance(type_, FuncType):
        to.add_func(name, _guarded(imported, function(type_)))
    elif isinstance(type_, ResourceType):
        to.add_resource(name, ResourceType.host(resources.id_of(name, type_)), _drop)
    elif not isinstance(type_, ValType):
        kind = KINDS.get(type(type_), "something unknown")
        raise ImportNotProvidedError(f"{imported}, which is {kind}")


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
            "files, clocks, random numbers and responses to HTTP requests"
        )

    return refuse


def _refusal_of_type(name: str, type_: FuncType) -> HostFunction:
    imported = f"{name} as {spelled(type_)}, which is not its type in WASI 0.2 and Spin 2"
    logger.warning("refllm: a component imports %s; a call of it fails", imported)

    def refuse(*_arguments: object) -> object:
        raise GuestFailed(f"it called {imported}; build it with the WIT of those")

    return refuse


def _guarded(name: str, function: HostFunction) -> HostFunction:
    """Return the function with handles replaced by resources, and exceptions by a trap.

    Any other exception, an exit or an interrupt included, would pass wasmtime's native frames and
    end the process. It is kept in the guest, and raised after the call of the guest.
    """

    def call(store: object, *arguments: object) -> object:
        guest = running.get().guest
        guest.last_called = name
        try:
            guest.turn.check()
            lifted = [guest.lifted(store, argument) for argument in arguments]
            return guest.lowered(function(*lifted))
        except BaseException as error:  # noqa: BLE001 - raised after the call of the guest
            guest.failure = guest.failure or error
            raise WasmtimeError("the host ended the guest") from None

    return call


def _drop(_store: object, number: int) -> None:
    guest = running.get().guest
    try:
        guest.drop(number)
    except BaseException as error:  # noqa: BLE001 - raised after the call of the guest
        guest.failure = guest.failure or error
        raise WasmtimeError("the host could not drop a resource") from None
