"""Put the shim's modules into `sys.modules`, and restore it afterwards."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import cast

from refllm.interface import Engine
from refllm.spin.shim.sdk import TOP_LEVEL, LlmModule, Request, absence, modules_of
from refllm.spin.shim.wit import Llm

__all__ = ["forget", "is_in_place", "spin_sdk_backed_by"]


@contextmanager
def spin_sdk_backed_by(engine: Engine) -> Iterator[None]:
    """Make `import spin_sdk` import the shim within the context.

    Modules imported meanwhile that hold a part of the shim, such as a handler, are removed from
    `sys.modules` at the end, so that the next import executes them again. A real SDK, or the shim
    of an outer context, is removed together with the modules that hold a part of it, and restored.

    Args:
        engine: Answers `spin_sdk.llm`.
    """
    set_aside = _take_out(sys.modules.keys())
    before = set(sys.modules)
    finder = _RefusingFinder()
    sys.meta_path.insert(0, finder)
    sys.modules.update(modules_of(engine))
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _take_out(sys.modules.keys() - before)
        sys.modules.update(set_aside)
        for name, module in set_aside.items():
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], child, module)


def is_in_place() -> bool:
    """Return whether `import spin_sdk` imports the shim now."""
    return getattr(sys.modules.get("spin_sdk.http"), "Request", None) is Request


def forget(name: str) -> ModuleType:
    """Undo the import of the module called `name`, and return it."""
    module = sys.modules.pop(name)
    parent, _, child = name.rpartition(".")
    # `from parent import child` would find it there.
    if parent in sys.modules and vars(sys.modules[parent]).get(child) is module:
        delattr(sys.modules[parent], child)
    return module


class _RefusingFinder:
    """Finds no module of the SDK, and raises an error with the reason."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if _is_of_sdk(name):
            raise ModuleNotFoundError(absence(name), name=name)
        return None


def _is_of_sdk(name: str) -> bool:
    return name.partition(".")[0] in TOP_LEVEL


def _take_out(candidates: Collection[str]) -> dict[str, ModuleType]:
    """Remove the SDK's modules, and those of the `candidates` that hold a part of them."""
    taken = {name for name in sys.modules if _is_of_sdk(name)}
    others = [name for name in candidates if name not in taken]
    found = taken
    while found:  # an application's module may hold the SDK by way of another one
        found = {name for name in others if name not in taken and _holds(name, found)}
        taken |= found
    return {name: forget(name) for name in sorted(taken, reverse=True)}


def _holds(name: str, modules: Collection[str]) -> bool:
    """Return whether a global of module `name` is one of `modules`, or was made in one."""
    module: ModuleType | None = sys.modules[name]  # None there forbids an import
    held = [] if module is None else list(vars(module).values())
    return any(_home(value) in modules for value in held)


def _home(value: object) -> str:
    """Return the name of the module that a value is, or in which it was made."""
    # Not isinstance: a lazy object may run code when its class is read.
    kind = type(value)
    if kind is ModuleType:
        return str(vars(value).get("__name__"))
    if kind is MethodType and type(cast(MethodType, value).__self__) in (Llm, LlmModule):
        return "spin_sdk.llm"  # a bound method of the shim
    if kind is FunctionType or issubclass(kind, type):
        return str(value.__module__)
    return str(kind.__module__)
