"""How WIT's words become Python's: interfaces and resources are classes, functions their methods.

    wasi:io/streams  [method]output-stream.check-write   OutputStream.check_write
    wasi:http/types  [static]fields.from-list            HttpTypes.fields_from_list
    wasi:http/types  [constructor]fields                 HttpTypes.new_fields
    fermyon:spin/llm infer                               Llm.infer

A function that belongs to no single value (all but `[method]`) is a method of the interface's
class, of which each guest has its own object. Versions are not looked at: within WASI 0.2 they only
add, and the unversioned `fermyon:spin/llm` has the functions of 2.0.0.

What a function returns is what wasmtime's bindings expect: a `Record`; None for an absent option
or an empty result; `Variant(case, payload)` where the types of the cases overlap, otherwise the
payload itself. A `Resource` may stand anywhere in it.

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
"""Resources that an interface calls otherwise than the one that defines them."""


class Resource:
    """A value that the guest holds by a handle; `wit` is its name in WIT."""

    wit: ClassVar[str]

    def close(self) -> None:
        """The guest no longer has it."""


class Interface:
    """The functions of one WIT interface, and the resources that they make."""

    wit: ClassVar[str]
    resources: ClassVar[tuple[type[Resource], ...]] = ()


def method_name(interface: type[Interface], function: str) -> tuple[type, str] | None:
    """The class and the name of the method that is WIT's `function`; None where there is none."""
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
    """The number by which wasmtime tells resources apart: the same for every name of a resource."""
    return zlib.crc32(ALIASES.get(name, name).encode())


def without_version(interface: str) -> str:
    """`fermyon:spin/llm` of `fermyon:spin/llm@2.0.0`."""
    return interface.partition("@")[0]


def record(**values: object) -> Record:
    """A WIT record; hyphens are written as underscores."""
    made = Record()
    for name, value in values.items():
        setattr(made, name.replace("_", "-"), value)
    return made
