"""Write a page for each public module of refllm, from what the package contains.

The pages are written into docs/reference/api/ before Sphinx looks for pages, and are not kept in
the repository. A module is public unless a part of its name begins with an underscore. Its page has
its docstring and the names of its `__all__`; names from other modules are listed with links.

The sidebar has the modules and packages directly in refllm. Modules in packages are reached from
their package's page: with all of them in the sidebar of every page the build took minutes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from docstrings import to_rst
from docutils import nodes
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PACKAGE = "refllm"
PAGES = Path(__file__).parents[1] / "reference" / "api"


@dataclass(frozen=True, slots=True)
class Module:
    """A public module.

    Attributes:
        name: Its full name.
        docstring: What is at its top.
        own: The names of `__all__` that it defines and autodoc documents, in the order of
            `__all__`: classes, functions, and values with a docstring below them.
        bare: Its other names of `__all__` with their docstring, which may be empty.
        lent: Those that another module defines, with the full name there.
        children: The full names of the public modules in it, if it is a package.
    """

    name: str
    docstring: str
    own: tuple[str, ...]
    bare: tuple[tuple[str, str], ...]
    lent: tuple[tuple[str, str], ...]
    children: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return " ".join(self.docstring.split("\n\n")[0].split())


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the writing of pages, and the directive for the page on architecture."""
    app.connect("builder-inited", write_pages)
    app.add_directive("packages", Packages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(_app: Sphinx | None = None) -> None:
    """Write a page for each module, and remove the pages of modules that are no more."""
    PAGES.mkdir(exist_ok=True)
    modules = {module.name: module for module in public_modules(PACKAGE)}
    for module in modules.values():
        write_if_new(PAGES / f"{module.name}.md", page(module, modules))
    for path in PAGES.glob("*.md"):
        if path.stem not in modules:
            path.unlink()


def write_if_new(path: Path, text: str) -> None:
    """Write a file unless it has this text, so that Sphinx reads changed pages only."""
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def public_modules(name: str) -> Iterator[Module]:
    """Yield a module and, if it is a package, the public modules in it."""
    module = importlib.import_module(name)
    children = tuple(
        f"{name}.{found.name}"
        for found in pkgutil.iter_modules(getattr(module, "__path__", []))
        if not found.name.startswith("_")
    )
    exported = tuple(getattr(module, "__all__", ()))
    defined = names_defined_in(module)
    names = [each for each in exported if each in defined and each != "__version__"]
    documented = {each for _, each in ModuleAnalyzer.for_module(name).find_attr_docs()}
    own = tuple(each for each in names if each in documented or is_function_or_class(module, each))
    bare = tuple((each, own_docstring(vars(module)[each])) for each in names if each not in own)
    lent = tuple(
        (each, origin(module, each))
        for each in exported
        if each not in defined and not isinstance(getattr(module, each), ModuleType)
    )
    yield Module(name, module.__doc__ or "", own, bare, lent, children)
    for child in children:
        yield from public_modules(child)


def is_function_or_class(module: ModuleType, name: str) -> bool:
    """Return whether a name of a module is bound to its own class or function, compiled or not."""
    value = vars(module)[name]
    if isinstance(value, type):
        return value.__module__ == module.__name__
    # autodoc does not document numba's intrinsics, which have no signature of their own.
    is_compiled = hasattr(value, "__wrapped__") and type(value).__name__ != "_Intrinsic"
    return inspect.isroutine(value) or is_compiled


def own_docstring(value: object) -> str:
    """Return the docstring of a value itself, as an intrinsic of numba has one."""
    docstring = getattr(value, "__doc__", None)
    return inspect.cleandoc(docstring) if docstring and docstring != type(value).__doc__ else ""


def names_defined_in(module: ModuleType) -> set[str]:
    """Return the names that are bound at a module's top by anything but an import."""
    tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def origin(module: ModuleType, name: str) -> str:
    """Return the full name of what `module` lends, where it is defined."""
    value = getattr(module, name)
    if isinstance(getattr(value, "__module__", None), str) and hasattr(value, "__name__"):
        return f"{value.__module__}.{value.__name__}"
    tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return f"{node.module}.{name}"
    return f"{module.__name__}.{name}"


def page(module: Module, modules: dict[str, Module]) -> str:
    """Return the text of a module's page."""
    parts = module.name.split(".")
    lines = ["---", "orphan: true", "---", ""] if len(parts) > 2 else []
    lines += [f"# {module.name}", ""]
    if len(parts) > 1:
        above = [".".join(parts[:i]) for i in range(1, len(parts))]
        lines += [" › ".join(f"[{short(name)}]({name}.md)" for name in above), ""]
    lines += ["```{eval-rst}", f".. automodule:: {module.name}"]
    if module.own:
        lines += [f"   :members: {', '.join(module.own)}"]
    for name, docstring in module.bare:
        lines += ["", f".. py:data:: {name}", f"   :module: {module.name}", ""]
        lines += [f"   {line}" for line in to_rst(docstring).split("\n")]
    lines += ["```", ""]
    if module.lent:
        lines += ["## Names from other modules", ""]
        lines += [f"- {{py:obj}}`{name} <{full}>`" for name, full in module.lent]
        lines += [""]
    if module.children:
        lines += ["## Modules", ""]
        lines += [
            f"- [{short(child)}]({child}.md): {markdown(modules[child].summary)}"
            for child in module.children
        ]
        if module.name == PACKAGE:
            lines += ["", "```{toctree}", ":hidden:", ""]
            lines += [f"{short(child)} <{child}>" for child in module.children]
            lines += ["```"]
        lines += [""]
    return "\n".join(lines)


def short(name: str) -> str:
    """Return the last part of a module's name."""
    return name.rpartition(".")[2]


def markdown(sentence: str) -> str:
    """Return a sentence of a docstring with Markdown's own characters escaped outside code."""
    parts = sentence.split("`")
    parts[::2] = [
        part.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;") for part in parts[::2]
    ]
    return "`".join(parts)


class Packages(SphinxDirective):
    """`{packages}`: each package with its docstring, and a link to its page."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Return a definition list of packages."""
        lines: list[str] = []
        for module in public_modules(PACKAGE):
            if not module.children or module.name == PACKAGE:
                continue
            lines += [f":py:mod:`{module.name}`"]
            lines += [f"    {line}" for line in to_rst(module.docstring).strip().split("\n")] + [""]
        text = "\n".join(["```{eval-rst}", *lines, "```"])
        return self.parse_text_to_nodes(text)
