"""Turn the project's docstrings into reStructuredText that napoleon and autodoc can read.

Docstrings are plain text for a reader of the source: code in single backticks, drawings and tables
indented or in columns, lists with hyphens, and Google's sections. Here

- a name in backticks becomes a link if the reference has that name, and code otherwise;
- drawings and columns become literal blocks;
- characters that mean something in reStructuredText alone are escaped;
- `Errors: text` and `Source: text` become paragraphs of their own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

BEFORE_NAPOLEON = 400
SECTION = re.compile(
    r"(Args|Arguments|Returns|Yields|Raises|Errors|Attributes|Examples?|Notes?|References?):$"
)
LABEL = re.compile(r"(Errors|Raises|Returns|Source|Sources|Note|Shapes?): (?=\S)")
EXAMPLES = ("Example", "Examples")
CODE = re.compile(r"``(.+?)``|`([^`]+)`", re.DOTALL)
NAME = re.compile(r"[A-Za-z_][\w.]*(?:\(\))?")
COLUMNS = re.compile(r"\S {3,}\S|[│┌└├─]|^\s*\|")
ARRAY = re.compile(
    r"~?(?:numpy\.)?ndarray\[tuple\[~?(?:typing\.)?Any, \.\.\.\], "
    r"~?(?:numpy\.)?dtype\[~?(?:numpy\.)?(\w+)\]\]"
)
BULLET = re.compile(r"\s*(?:[-*]|\d+\.) ")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the conversion with autodoc."""
    app.connect("autodoc-process-docstring", process, priority=BEFORE_NAPOLEON)
    app.connect("autodoc-process-signature", shorten_arrays)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def shorten_arrays(
    _app: Sphinx,
    _what: str,
    _name: str,
    _object: object,
    _options: object,
    arguments: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Return a signature with NDArray[float32] in place of what NumPy makes of it."""
    return (
        arguments and ARRAY.sub(r"NDArray[\1]", arguments),
        returned and ARRAY.sub(r"NDArray[\1]", returned),
    )


def process(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Replace the lines of a docstring, as autodoc's event passes them."""
    lines[:] = to_rst("\n".join(lines)).split("\n")


def to_rst(docstring: str) -> str:
    """Return a docstring, with no indentation of its own, as reStructuredText."""
    out: list[str] = []
    section: str | None = None
    for paragraph in re.split(r"\n\s*\n", docstring.strip("\n")):
        lines = paragraph.split("\n")
        header = SECTION.match(lines[0])
        if header:
            section = header[1]
            title = "Raises:" if section == "Errors" else lines[0]
            out += ["", title, *section_body(section, lines[1:])]
        elif section and lines[0].startswith("    "):
            out += ["", *section_body(section, lines)]
        else:
            section = None
            out += ["", *body(lines)]
    return "\n".join([*out, ""])


def section_body(section: str, lines: list[str]) -> list[str]:
    """Return what is indented below the header of a section."""
    if section not in EXAMPLES:
        return inline("\n".join(lines)).split("\n")
    if any(line.lstrip().startswith(">>>") for line in lines):
        return lines
    return ["    ::", "", *(f"    {line}" for line in lines)]


def body(lines: list[str]) -> list[str]:
    """Return a paragraph outside of sections: a drawing, a list or text."""
    if all(line.startswith("    ") for line in lines):
        return literal(lines)
    if not BULLET.match(lines[0]) and any(COLUMNS.search(line) for line in lines):
        return literal([f"    {line}" for line in lines])
    out: list[str] = []
    for line in lines:
        indented = bool(out) and line.startswith("    ") and not BULLET.match(out[-1])
        if BULLET.match(line) or LABEL.match(line):
            out.append("")
        out.append(line.lstrip() if indented else line)
    return inline("\n".join(out)).split("\n")


def literal(lines: list[str]) -> list[str]:
    """Return indented lines as a literal block."""
    return ["::", "", *lines]


def inline(text: str) -> str:
    """Return text with code and characters as reStructuredText has them."""
    out, end = [], 0
    for found in CODE.finditer(text):
        code = " ".join((found[1] or found[2]).split())
        after = text[found.end() : found.end() + 1]
        role = f":py:obj:`{code}`" if NAME.fullmatch(code) else f"``{code}``"
        before = text[found.start() - 1 : found.start()] if found.start() else ""
        out += [
            escaped(text[end : found.start()]),
            "\\ " if before.isalnum() else "",
            role,
            "\\ " if after.isalnum() else "",
        ]
        end = found.end()
    out.append(escaped(text[end:]))
    return "".join(out)


def escaped(text: str) -> str:
    """Return text without markup."""
    text = re.sub(r"[\\`|]", r"\\\g<0>", text)
    text = re.sub(r"(?m)(?<!^)\*|^\*(?! )", r"\\*", text)
    return re.sub(r"_(?!\w)", r"\\_", text)
