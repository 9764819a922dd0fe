"""`spin.toml`: which models each component of a Spin application may use.

Version 2 keeps components in tables by id, or inside the trigger that starts them; version 1 keeps
a list:

    spin_manifest_version = 2          spin_manifest_version = "1"
    [component.hello]                  [[component]]
    ai_models = ["llama2-chat"]        id = "hello"
                                       ai_models = ["llama2-chat"]

A component without `ai_models` may use none. Everything else in the file is Spin's business, and is
not looked at. Source: https://spinframework.dev/manifest-reference.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refllm.api import LlmRuntimeError

__all__ = ["MANIFEST", "Component", "Manifest", "read_manifest"]

MANIFEST = "spin.toml"


@dataclass(frozen=True, slots=True)
class Component:
    """A component's id, and the models it may use in the order in which it names them."""

    id: str
    ai_models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A Spin application's components, by id."""

    path: Path
    components: Mapping[str, Component]


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`, a `spin.toml` of version 1 or 2.

    Errors: `LlmRuntimeError` naming the file, and the key where one is wrong.
    """
    try:
        manifest = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise LlmRuntimeError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise LlmRuntimeError(f"{path}: not valid TOML: {error}") from error
    found = _of_a_list if isinstance(manifest.get("component"), list) else _of_tables
    components: dict[str, Component] = {}
    for id_, table in found(path, manifest):
        if id_ in components:
            raise LlmRuntimeError(f"{path}: there are two components called {id_!r:.80}")
        components[id_] = Component(id_, _ai_models(path, id_, table))
    return Manifest(path, components)


def _of_a_list(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each component of version 1 with its id."""
    for place, table in enumerate(manifest["component"], start=1):
        id_ = table.get("id") if isinstance(table, Mapping) else None
        if not isinstance(id_, str):
            raise LlmRuntimeError(f"{path}: component number {place} needs an id")
        yield id_, table


def _of_tables(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each component of version 2 with its id; those that stand in a trigger come last.

    As Spin does, such a one is called after its trigger, or else by its number.
    """
    yield from _table(path, "component", manifest).items()
    number = 0
    for kind, triggers in _table(path, "trigger", manifest).items():
        if not isinstance(triggers, list):
            raise LlmRuntimeError(f"{path}: trigger.{kind} must be written [[trigger.{kind}]]")
        for trigger in triggers:
            component = trigger.get("component") if isinstance(trigger, Mapping) else None
            if not isinstance(component, Mapping):
                continue  # the id of a component that stands elsewhere
            if isinstance(trigger.get("id"), str):
                yield f"{trigger['id']}-component", component
            else:
                yield f"inline-component{number}", component
                number += 1


def _table(path: Path, key: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    table = manifest.get(key, {})
    if not isinstance(table, Mapping):
        raise LlmRuntimeError(f"{path}: {key} must be a table")
    return table


def _ai_models(path: Path, id_: str, component: object) -> tuple[str, ...]:
    if not isinstance(component, Mapping):
        raise LlmRuntimeError(f"{path}: component {id_!r:.80} must be a table")
    names = component.get("ai_models", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise LlmRuntimeError(
            f"{path}: ai_models of component {id_!r:.80} must be a list of names, "
            'such as ["llama2-chat"]'
        )
    return tuple(names)
