"""How WIT is written in Python: interfaces and resources are classes, functions their methods.

    wasi:io/streams  [method]output-stream.check-write   OutputStream.check_write
    wasi:http/types  [static]fields.from-list            HttpTypes.fields_from_list
    wasi:http/types  [constructor]fields                 HttpTypes.new_fields
    fermyon:spin/llm infer                               Llm.infer

A function that belongs to no single value (all but `[method]`) is a method of the interface's
class, of which each guest has its own object. Versions are ignored: within WASI 0.2 they only add
functions, and the unversioned `fermyon:spin/llm` has the functions of 2.0.0.

A function returns what wasmtime's bindings expect: a `Record`; None for an absent option or an
empty result; `Variant(case, payload)` where the types of the cases overlap, otherwise the payload
itself. It may contain a `Resource` anywhere.

Source: the component model's names, https://component-model.bytecodealliance.org/design/wit.html.
"""

from __future__ import annotations

import re
import zlib
from typing import ClassVar

from wasmtime.component import Record

__all__ = ["Interface", "Resource", "method_name", "record", "resource_id", "without_version"]

FUNCTION = re.compile(r"(?:\[(method|static|constructor)\])?([a-z0-9-]+)(?:\.([a-z0-9-]+))?", re.I)
ALIASES = {"headers": "fields", "trailers": "fields", "io-error": "error"}
"""Names of resources that an interface uses, by the name in the interface that defines them."""


class Resource:
    """A value that the guest holds by a handle; `wit` is its name in WIT."""

    wit: ClassVar[str]

    def close(self) -> None:
        """Release what the value holds, when the guest has dropped it."""


class Interface:
    """The functions of one WIT interface, and the resources that they make."""

    wit: ClassVar[str]
    resources: ClassVar[tuple[type[Resource], ...]] = ()


def method_name(interface: type[Interface], function: str) -> tuple[type, str] | None:
    """Return the class and the name of the method for WIT's `function`; None if there is none.

    Example:
        >>> class Llm(Interface):
        ...     def infer(self): ...
        >>> method_name(Llm, "infer")[1]
        'infer'
    """
    parts = FUNCTION.fullmatch(function)
    if parts is None:
        return None
    kind, first, second = parts.groups()
    owner: type = interface
    if kind == "method":
        owners = [resource for resource in interface.resources if resource.wit == first]
        if not owners:
            return None
        owner, name = owners[0], second
    elif kind == "constructor":
        name = f"new-{first}"
    else:
        name = f"{first}-{second}" if kind == "static" else first
    name = name.replace("-", "_")
    return (owner, name) if callable(getattr(owner, name, None)) else None


def resource_id(name: str) -> int:
    """Return wasmtime's number of a resource, which is the same for all its names."""
    return zlib.crc32(ALIASES.get(name, name).encode())


def without_version(interface: str) -> str:
    """Return an interface's name without its version.

    Example:
        >>> without_version("fermyon:spin/llm@2.0.0")
        'fermyon:spin/llm'
    """
    return interface.partition("@")[0]


def record(**values: object) -> Record:
    """Return a WIT record; an underscore in a name stands for WIT's hyphen."""
    made = Record()
    for name, value in values.items():
        setattr(made, name.replace("_", "-"), value)
    return made
