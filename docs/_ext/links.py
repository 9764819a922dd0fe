"""Show Markdown files of the whole repository on the site, with links that work in both places.

A page with the fence `{include} ../SPEC.md` shows that file. A relative link in a page or
an included file is written for GitHub: relative to the file that contains it. It is rewritten to

- the page that shows the target, if there is one (of a folder its README.md, of a module its page
  in the API reference);
- the file itself otherwise, which Sphinx copies into the site as a download.

A link to a missing file, or to a folder without a page, stays as it is, and MyST warns of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"

INCLUDE = re.compile(r"^```\{include\} (\S+\.md)\n```$", re.MULTILINE)
FENCE = re.compile(r"^(```+|~~~+).*?^\1`*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#]*)((?:#[^)\s]*)?\))")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the rewriting of links with Sphinx."""
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put included files into a page's text and rewrite the links of both."""
    page = app.env.doc2path(docname)
    if Path(page).suffix != ".md":
        return
    pages = pages_by_file(DOCS)
    source[0] = "".join(expanded(source[0], Path(page), pages, app))


def expanded(text: str, page: Path, pages: dict[Path, Path], app: Sphinx) -> Iterator[str]:
    """Yield the parts of a page, each include replaced by the file's text."""
    end = 0
    for found in INCLUDE.finditer(text):
        yield rewritten(text[end : found.start()], page, page, pages)
        file = (page.parent / found[1]).resolve()
        app.env.note_dependency(str(file))
        yield rewritten(file.read_text("utf-8"), file, page, pages)
        end = found.end()
    yield rewritten(text[end:], page, page, pages)


@cache
def pages_by_file(docs: Path) -> dict[Path, Path]:
    """Return the page that shows each Markdown file or module of the repository."""
    pages = {page.resolve(): page.resolve() for page in docs.rglob("*.md")}
    for page in list(pages.values()):
        for name in INCLUDE.findall(page.read_text("utf-8")):
            pages[(page.parent / name).resolve()] = page
    for page in (docs / "reference" / "api").glob("*.md"):
        module = PROJECT.joinpath(*page.stem.split("."))
        pages[module.with_suffix(".py") if not module.is_dir() else module] = page.resolve()
    return pages


def rewritten(text: str, file: Path, page: Path, pages: dict[Path, Path]) -> str:
    """Return the text of `file` with its relative links as `page` must have them."""

    def link(found: re.Match[str]) -> str:
        opening, target, end = found.groups()
        if not target or "://" in target or target.startswith("mailto:"):
            return found[0]
        wanted = (file.parent / target).resolve()
        readme = wanted / "README.md"
        shown = pages.get(wanted) or pages.get(readme)
        if shown is None and not wanted.is_file():
            return found[0]
        relative = os.path.relpath(shown or wanted, page.resolve().parent)
        return f"{opening}{relative}{end}"

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(link, text[end:])])
