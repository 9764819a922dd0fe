"""`__all__` of each module is the truth: what other modules import is in it, and it exists."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import PROJECT

PACKAGE = PROJECT / "refllm"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}


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


def imported_from() -> dict[str, set[str]]:
    """The names that the package imports from each of its modules."""
    names: dict[str, set[str]] = defaultdict(set)
    for module in MODULES.values():
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and node.module in MODULES:
                names[node.module] |= {alias.name for alias in node.names}
    return names


IMPORTED = imported_from()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_all_of_a_module_has_every_imported_name_and_only_defined_ones(name: str) -> None:
    names = exported(MODULES[name])
    if names is None:
        assert not defined(MODULES[name]) - {"annotations"} or name.endswith("__main__")
        return
    submodules = {other.rpartition(".")[2] for other in MODULES if other.startswith(f"{name}.")}
    assert IMPORTED[name] - names - submodules == set(), "imported elsewhere, and not in __all__"
    lazy = {"LocalEngine", "BertModel", "LlamaModel", "load"} if name == "refllm" else set()
    assert names - defined(MODULES[name]) - lazy == set(), "in __all__, and nowhere defined"
