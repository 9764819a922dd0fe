"""`spin.toml`: which models each component of a Spin application may use.

Version 2 keeps components in tables by id, or inside the trigger that starts them; version 1 keeps
a list:

    spin_manifest_version = 2          spin_manifest_version = "1"
    [component.hello]                  [[component]]
    ai_models = ["llama2-chat"]        id = "hello"
                                       ai_models = ["llama2-chat"]

A component without `ai_models` may use none. What else is in the file matters to those who run the
application: see refllm/wasm/http/application.py. Source: https://spinframework.dev/manifest-reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.spin.toml import read_toml, table_of

__all__ = [
    "MANIFEST",
    "Component",
    "Manifest",
    "component_tables",
    "manifest_path",
    "read_manifest",
    "triggers_of",
]

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

    def component(self, component_id: str) -> Component:
        """The component with this id. Errors: `InvalidInput` naming those that there are."""
        if component_id not in self.components:
            known = ", ".join(self.components) or "no component at all"
            raise InvalidInput(
                f"{self.path}: has no component called {component_id!r:.80}; it has {known:.800}"
            )
        return self.components[component_id]


def manifest_path(app: Path) -> Path:
    """The manifest of an application that is named by its folder, or by the manifest itself."""
    return app / MANIFEST if app.is_dir() else app


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`, a `spin.toml` of version 1 or 2.

    Errors: `LlmRuntimeError` naming the file, and the key where one is wrong.
    """
    tables = component_tables(path, read_toml(path))
    components = {
        id_: Component(id_, _ai_models(path, id_, table)) for id_, table in tables.items()
    }
    return Manifest(path, components)


def component_tables(path: Path, manifest: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The table of each component of the manifest, by the component's id.

    Errors: `LlmRuntimeError` naming the file at `path`, and the key where one is wrong.
    """
    found = _of_a_list if isinstance(manifest.get("component"), list) else _of_tables
    tables: dict[str, Mapping[str, Any]] = {}
    for id_, table in found(path, manifest):
        if id_ in tables:
            raise LlmRuntimeError(f"{path}: there are two components called {id_!r:.80}")
        if not isinstance(table, Mapping):
            raise LlmRuntimeError(f"{path}: component {id_!r:.80} must be a table")
        tables[id_] = table
    return tables


def triggers_of(
    path: Path, manifest: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], str | None]]:
    """Each trigger of version 2: its kind, its table, and the id of the component that it starts.

    As Spin does, a component that stands in its trigger is called after it, or else by its number.
    None where it names no component. Errors: as `component_tables`.
    """
    number = 0
    for kind, triggers in table_of(path, "trigger", manifest).items():
        if not isinstance(triggers, list):
            raise LlmRuntimeError(f"{path}: trigger.{kind} must be written [[trigger.{kind}]]")
        for trigger in triggers:
            if not isinstance(trigger, Mapping):
                continue
            component = trigger.get("component")
            id_ = component if isinstance(component, str) else None
            if isinstance(component, Mapping) and isinstance(trigger.get("id"), str):
                id_ = f"{trigger['id']}-component"
            elif isinstance(component, Mapping):
                id_ = f"inline-component{number}"
                number += 1
            yield kind, trigger, id_


def _of_a_list(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each component of version 1 with its id."""
    for place, table in enumerate(manifest["component"], start=1):
        id_ = table.get("id") if isinstance(table, Mapping) else None
        if not isinstance(id_, str):
            raise LlmRuntimeError(f"{path}: component number {place} needs an id")
        yield id_, table


def _of_tables(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each component of version 2 with its id; those that stand in a trigger come last."""
    yield from table_of(path, "component", manifest).items()
    for _, trigger, id_ in triggers_of(path, manifest):
        if id_ is not None and isinstance(trigger["component"], Mapping):
            yield id_, trigger["component"]


def _ai_models(path: Path, id_: str, component: Mapping[str, Any]) -> tuple[str, ...]:
    names = component.get("ai_models", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise LlmRuntimeError(
            f"{path}: ai_models of component {id_!r:.80} must be a list of names, "
            'such as ["llama2-chat"]'
        )
    return tuple(names)
