"""`__all__` of each module is the truth: what other modules import is in it, and it exists."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import PROJECT

PACKAGE = PROJECT / "refllm"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {name_of(path): path for path in PACKAGE.rglob("*.py")}


@pytest.fixture(scope="module")
def modules() -> Mapping[str, ast.Module]:
    """Each module's syntax tree by the module's name."""
    return {name: ast.parse(path.read_text("utf-8")) for name, path in PATHS.items()}


def exported(module: ast.Module) -> set[str] | None:
    for node in module.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List() as names)
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.List() as names)
            ):
                return set(ast.literal_eval(names))
    return None


def defined(module: ast.Module) -> set[str]:
    """The names that a module binds at its top level, under conditions too."""
    names: set[str] = set()
    for node in ast.walk(module):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.alias(name=name, asname=alias):
                names.add(alias or name)
    return names


@pytest.fixture(scope="module")
def imported(modules: Mapping[str, ast.Module]) -> Mapping[str, set[str]]:
    """The names that the package imports from each of its modules."""
    names: dict[str, set[str]] = {name: set() for name in modules}
    for module in modules.values():
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and node.module and node.module in modules:
                names[node.module] |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("name", sorted(PATHS))
def test_all_of_a_module_has_every_imported_name_and_only_defined_ones(
    name: str, modules: Mapping[str, ast.Module], imported: Mapping[str, set[str]]
) -> None:
    names = exported(modules[name])
    if names is None:
        assert not defined(modules[name]) - {"annotations"} or name.endswith("__main__")
        return
    submodules = {other.rpartition(".")[2] for other in modules if other.startswith(f"{name}.")}
    assert imported[name] - names - submodules == set(), "imported elsewhere, and not in __all__"
    lazy = {"LocalEngine", "BertModel", "LlamaModel", "load"} if name == "refllm" else set()
    assert names - defined(modules[name]) - lazy == set(), "in __all__, and nowhere defined"
