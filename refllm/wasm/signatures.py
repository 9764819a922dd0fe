"""Whether a function of this package has the types with which a component imports it.

The types of a method's annotations are those that wasmtime's bindings make of WIT's; what a record
holds, and which cases a variant has, is seen only when one is passed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from wasmtime.component import (
    FuncType,
    ListType,
    OptionType,
    ResourceAny,
    ResourceHost,
    TupleType,
    ValType,
)

from refllm.wasm.wit import Resource

__all__ = ["has_type", "spelled"]

Hint = Any  # what an annotation is


def has_type(function: Callable[..., object], owner: type | None, type_: FuncType) -> bool:
    """Whether `function` takes and returns what WIT's `type_` says.

    `owner` is the resource whose method it is, None where it is an interface's.
    """
    hints = get_type_hints(function)
    names = list(inspect.signature(function).parameters)[1:]  # without self
    taken = [*([] if owner is None else [owner]), *(hints[name] for name in names)]
    given = [value for _, value in type_.params]
    if len(taken) != len(given) or not all(map(_takes, taken, given)):
        return False
    returned, result = hints["return"], type_.result
    if result is None:
        return returned is NoneType
    return _classes_of_hint(returned) <= _classes(result)


def spelled(type_: FuncType) -> str:
    """The type, roughly as WIT has it."""
    params = ", ".join(f"{name}: {_name(value)}" for name, value in type_.params)
    return f"func({params})" + ("" if type_.result is None else f" -> {_name(type_.result)}")


def _takes(hint: Hint, type_: ValType) -> bool:
    if hint is object:
        return True
    if _classes_of_hint(hint) != _classes(type_):
        return False
    alternatives = [each for each in _alternatives(hint) if each is not NoneType]
    if isinstance(type_, OptionType):
        return len(alternatives) != 1 or _takes(alternatives[0], type_.payload)
    if isinstance(type_, ListType) and hint is not bytes:
        return _takes(get_args(hint)[0], type_.element)
    if isinstance(type_, TupleType):
        parts = type_.elements
        return len(get_args(hint)) == len(parts) and all(map(_takes, get_args(hint), parts))
    return True


def _classes(type_: ValType) -> set[type]:
    """The classes that the bindings make of the type; `object` stands for None."""
    classes: set[type] = set()
    try:
        type_.add_classes(classes)
    except NotImplementedError:  # an error-context
        return set()
    return classes


def _classes_of_hint(hint: Hint) -> set[type]:
    classes: set[type] = set()
    for each in _alternatives(hint):
        origin: Any = get_origin(each) or each
        if origin is NoneType:
            classes.add(object)
        elif issubclass(origin, Resource):
            classes |= {ResourceAny, ResourceHost}
        else:
            classes.add(origin)
    return classes


def _alternatives(hint: Hint) -> Iterable[Hint]:
    origin: Any = get_origin(hint)
    return get_args(hint) if origin in (Union, UnionType) else (hint,)


def _name(type_: ValType) -> str:
    return type(type_).__name__.removesuffix("Type").lower()
