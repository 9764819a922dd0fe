"""A Spin application as `spin.toml` describes it: its components, and the routes that lead to them.

Of a component it takes `source`, `ai_models`, `files`, `exclude_files`, `environment` and
`variables`. A variable of the application has the value of SPIN_VARIABLE_<NAME> in the environment,
or its default. A file that is no manifest is an application of one component, which answers every
path and may use every model.

Source: https://spinframework.dev/manifest-reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.spin.manifest import component_tables, manifest_path, read_manifest, triggers_of
from refllm.spin.toml import read_toml, table_of
from refllm.wasm.http.files import folder_of
from refllm.wasm.http.routes import Route
from refllm.wasm.wasi.filesystem import Folder

__all__ = ["Application", "ApplicationComponent", "open_application"]

EVERYTHING = "/..."
VALUE_CHARACTERS = 1024 * 1024  # of a variable; a prompt or a certificate has some thousand
REFERENCE = re.compile(r"\{\{\s*([A-Za-z0-9_]+)\s*\}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationComponent:
    """A component, and what it is given. `ai_models` None allows every model."""

    id: str
    source: Path
    ai_models: tuple[str, ...] | None
    environment: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Folder = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Application:
    """The components that a route leads to, by id; `manifest` is None for a component alone."""

    components: Mapping[str, ApplicationComponent]
    routes: tuple[Route, ...]
    manifest: Path | None = None


def open_application(app: Path, environment: Mapping[str, str]) -> Application:
    """The application at `app`: a spin.toml, a folder that has one, or a component's file.

    `environment` is this process's, for variables. Errors: `InvalidInput` if there is nothing at
    `app`; `LlmRuntimeError` naming the file, and the key where one is wrong.
    """
    try:
        exists = app.exists()
    except (OSError, ValueError):  # a name that is too long, or has a zero byte in it
        exists = False
    if not exists:
        raise InvalidInput(f"there is no application at {app}")
    if app.is_file() and app.suffix != ".toml":
        component = ApplicationComponent(id=app.stem, source=app, ai_models=None)
        return Application({component.id: component}, (Route(EVERYTHING, component.id),))
    path = manifest_path(app)
    document = read_toml(path)
    tables = component_tables(path, document)
    routes = tuple(_routes(path, document, tables))
    if not routes:
        raise LlmRuntimeError(f"{path}: has no HTTP trigger, so there is nothing to answer")
    values = _variables(path, document, environment)
    ai_models = read_manifest(path).components
    components = {
        id_: _component(path, id_, tables[id_], ai_models[id_].ai_models, values)
        for id_ in dict.fromkeys(route.component for route in routes)
    }
    return Application(components, routes, path)


def _routes(
    path: Path, document: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]
) -> Iterator[Route]:
    """Every public route; a private one is for other components of the application only."""
    if isinstance(document.get("component"), list):
        base = table_of(path, "trigger", document).get("base", "")
        found = [(table_of(path, "trigger", table), id_) for id_, table in tables.items()]
    else:
        triggers = triggers_of(path, document)
        base = ""
        found = [(trigger, id_ or "") for kind, trigger, id_ in triggers if kind == "http"]
    for trigger, id_ in found:
        route = trigger.get("route")
        if isinstance(route, Mapping) and route.get("private"):
            continue
        if not isinstance(route, str) or not route.startswith("/"):
            raise LlmRuntimeError(f"{path}: the route to {id_!r:.80} must begin with a slash")
        if id_ not in tables:
            raise LlmRuntimeError(f"{path}: route {route} leads to no component of the application")
        yield Route(route, id_, base if isinstance(base, str) and base != "/" else "")


def _component(
    path: Path,
    id_: str,
    table: Mapping[str, Any],
    ai_models: tuple[str, ...],
    values: Mapping[str, str],
) -> ApplicationComponent:
    source = table.get("source")
    if not isinstance(source, str):
        raise LlmRuntimeError(
            f"{path}: source of component {id_!r:.80} must be the path of a file; "
            "fetch one that is elsewhere first"
        )
    templates = _texts(path, table, "variables") | _texts(path, table, "config")
    return ApplicationComponent(
        id=id_,
        source=path.parent / source,
        ai_models=ai_models,
        environment=_texts(path, table, "environment"),
        variables={name: _filled(path, name, text, values) for name, text in templates.items()},
        files=folder_of(path, table.get("files", []), table.get("exclude_files", [])),
    )


def _texts(path: Path, table: Mapping[str, Any], key: str) -> dict[str, str]:
    texts = table_of(path, key, table)
    for name, text in texts.items():
        if not isinstance(text, str):
            raise LlmRuntimeError(f"{path}: {key}.{name:.80} must be text")
    return dict(texts)


# --- Variables -----------------------------------------------------------------------------------


def _variables(
    path: Path, document: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, str]:
    """The value of each of the application's variables that has one."""
    values: dict[str, str] = {}
    for name, variable in table_of(path, "variables", document).items():
        given = environment.get(_environment_name(name))
        default = variable.get("default") if isinstance(variable, Mapping) else None
        value = default if given is None else given
        if isinstance(value, str):
            values[name] = value
    return values


def _filled(path: Path, name: str, template: str, values: Mapping[str, str]) -> str:
    """The template with `{{ variable }}` replaced by the variable's value."""
    n_characters = len(template)

    def value(reference: re.Match[str]) -> str:
        nonlocal n_characters
        if reference[1] not in values:
            raise LlmRuntimeError(
                f"{path}: variable {name:.80} needs {reference[1]:.80}, which has no value",
                f"set {_environment_name(reference[1])}, or give it a default in [variables]",
            )
        n_characters += len(values[reference[1]])
        if n_characters > VALUE_CHARACTERS:
            raise LlmRuntimeError(
                f"{path}: variable {name:.80} is longer than {VALUE_CHARACTERS} characters"
            )
        return values[reference[1]]

    return REFERENCE.sub(value, template)


def _environment_name(variable: str) -> str:
    return f"SPIN_VARIABLE_{variable.upper()}"
