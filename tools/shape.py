"""The shape of the code in numbers: lines by folder, lengths of functions, helpers with one caller.

    python -m tools.shape [FOLDER]

A private function is one whose name begins with an underscore and is not a method of Python's own
protocols. Its callers are counted by name within its module. `SHORT` lines or fewer with one caller
is a helper to be inlined, unless its name says more than its body.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

__all__ = ["main", "n_lines_of_functions", "short_helpers"]

SHORT = 6
PACKAGE = Path(__file__).resolve().parent.parent / "refllm"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def short_helpers(module: ast.Module) -> Iterator[str]:
    """Yield the names of the private functions of at most `SHORT` lines with one caller."""
    uses = Counter(
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute | ast.Name)
    )
    for function in _functions(module):
        is_private = function.name.startswith("_") and not function.name.startswith("__")
        if is_private and uses[function.name] == 1 and _n_lines(function) <= SHORT:
            yield function.name


def n_lines_of_functions(module: ast.Module) -> list[int]:
    """Return how many lines each function has, docstring included and decorators not."""
    return [_n_lines(function) for function in _functions(module)]


def _functions(module: ast.Module) -> Iterator[Function]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _n_lines(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def main() -> None:
    """Print the figures of the package, or of another folder."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE
    lines_by_folder: Counter[str] = Counter()
    lengths: list[int] = []
    helpers: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        module = ast.parse(text)
        first = path.relative_to(root).parts[0]
        lines_by_folder["." if first.endswith(".py") else first] += text.count("\n")
        lengths += n_lines_of_functions(module)
        if found := [*short_helpers(module)]:
            helpers[str(path.relative_to(root))] = found
    for folder, n_lines in sorted(lines_by_folder.items()):
        print(f"{n_lines:7}  {folder}")
    print(f"{lines_by_folder.total():7}  all lines")
    print(f"{median(lengths):7}  lines in the median function of {len(lengths)}")
    n_helpers = sum(map(len, helpers.values()))
    print(f"{n_helpers:7}  private functions with one caller, ≤ {SHORT} lines")
    for name, found in helpers.items():
        print(f"         {name}: {', '.join(found)}")


if __name__ == "__main__":
    main()
