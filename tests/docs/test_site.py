"""The documentation as a site: it builds without a warning, and its readers find their pages."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

import refllm
from refllm.cli import app
from tests.conftest import PROJECT

pytest.importorskip("sphinx", reason="pip install -e '.[docs]'")
pytest.importorskip("myst_nb", reason="pip install -e '.[docs]'")
pytest.importorskip("furo", reason="pip install -e '.[docs]'")

COMMAND = "python -m sphinx -W --keep-going docs docs/_build/html"
SITE = PROJECT / "docs" / "_build" / "html"

WAYS = {
    "how to check a backend": (
        ["Test your backend"],
        "conformance.html",
        "refllm conform TARGET",
    ),
    "how to test a handler": (
        ["Test your Spin app"],
        "testing.html",
        "A handler and its tests",
    ),
    "where a token is drawn": (
        ["sampling.py"],
        "reference/api/refllm.sampling.html",
        "From logits to one token",
    ),
    "the code that draws a token": (
        ["sampling.py", "[source]"],
        "_modules/refllm/sampling.html",
        "def draw(",
    ),
    "what refllm run is": (
        ["A component, with refllm run"],
        "run.html",
        "serves a Spin application as it is",
    ),
    "what refllm run is, by its options": (
        ["Command line", "refllm run"],
        "reference/cli/refllm-run.html",
        "--stand-ins",
    ),
    "what each folder is": (
        ["Architecture"],
        "project/architecture.html",
        "refllm.conform",
    ),
}
"""What a newcomer looks for: the links to follow from the first page, the last page, its text."""


class Page(HTMLParser):
    """A page's links with their texts, its ids, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.ids: set[str] = set()
        self.text = ""
        self._open: tuple[str, str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a link's target and an element's id."""
        given = dict(attrs)
        if given.get("id"):
            self.ids.add(given["id"] or "")
        if tag == "a" and given.get("href"):
            self._open = (given["href"] or "", "")
        if tag in {"img", "script"} and given.get("src"):
            self.links.append((given["src"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        """Keep a link whose text is complete."""
        if tag == "a" and self._open:
            self.links.append((self._open[0], " ".join(self._open[1].split())))
            self._open = None

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.text += data
        if self._open:
            self._open = (self._open[0], self._open[1] + data)


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built by the one command; what did not change since the last build is kept."""
    command = [sys.executable, *COMMAND.split()[1:]]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return SITE


@cache
def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text("utf-8"))
    return page


def target_of(link: str, path: Path) -> Path:
    """The file that a link on the page at `path` leads to."""
    relative = unquote(urlsplit(link).path)
    return resolved(path.parent, relative) if relative else path


@cache
def resolved(folder: Path, relative: str) -> Path:
    """The file, found once for all pages of a folder: each has the links of the contents."""
    return (folder / relative).resolve()


def test_the_command_is_the_one_that_contributors_read() -> None:
    assert f"\n{COMMAND}\n" in (PROJECT / "CONTRIBUTING.md").read_text("utf-8")
    assert f"\n    {COMMAND}\n" in (PROJECT / "justfile").read_text("utf-8")
    ci = (PROJECT / ".ci" / "run").read_text("utf-8")
    assert re.search(r"^python -m sphinx .*-W .*docs docs/_build/html$", ci, re.MULTILINE)


@pytest.mark.parametrize("wanted", WAYS)
def test_a_newcomer_finds_it_in_three_clicks(wanted: str, site: Path) -> None:
    texts, end, shown = WAYS[wanted]
    assert len(texts) <= 3
    path = site / "index.html"
    for text in texts:
        targets = [link for link, found in read(path).links if found == text]
        assert targets, f"no link {text} on {path}"
        path = target_of(targets[0], path)
    assert path == site / end
    assert shown in read(path).text


def pages(site: Path) -> Iterator[Path]:
    yield from (path for path in site.rglob("*.html") if "_static" not in path.parts)


def test_every_link_within_the_site_leads_to_a_file_and_an_anchor(site: Path) -> None:
    wrong = []
    for path in pages(site):
        for link, _ in read(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = target_of(link, path)
            anchored = parts.fragment and target.suffix == ".html"
            if not target.is_file() or (
                anchored and unquote(parts.fragment) not in read(target).ids
            ):
                wrong.append((str(path.relative_to(site)), link))
    assert wrong == []


def modules() -> list[str]:
    found = pkgutil.walk_packages(refllm.__path__, "refllm.")
    return [each.name for each in found if not re.search(r"\._", each.name)]


def imported(module: ModuleType) -> set[str]:
    """The names that a module has from others."""
    tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in froms for alias in node.names} | {"__version__"}


def test_every_public_module_has_a_page_with_each_name_that_it_defines(site: Path) -> None:
    assert len(modules()) > 50
    missing = []
    for name in ["refllm", *modules()]:
        module = importlib.import_module(name)
        ids = read(site / "reference" / "api" / f"{name}.html").ids
        elsewhere = imported(module)
        for each in getattr(module, "__all__", ()):
            home = getattr(getattr(module, each), "__module__", name)
            if home == name and each in vars(module) and each not in elsewhere:
                missing += [f"{name}.{each}"] if f"{name}.{each}" not in ids else []
    assert missing == []


def test_every_command_has_a_page_with_each_of_its_options(site: Path) -> None:
    group: Any = typer.main.get_command(app)
    commands = {"refllm": group, **with_subcommands("refllm", group)}
    assert {"refllm infer", "refllm models pull", "refllm run"} <= commands.keys()
    for words, command in commands.items():
        text = read(site / "reference" / "cli" / f"{words.replace(' ', '-')}.html").text
        options = [each for each in command.params if each.param_type_name == "option"]
        names = [name for each in options if not each.hidden for name in each.opts]
        assert [name for name in names if name not in text] == []


def with_subcommands(words: str, group: Any) -> dict[str, Any]:
    """The commands that a group lists, and those of the groups in it, by their words."""
    found = {}
    for name, command in group.commands.items():
        if not command.hidden:
            found[f"{words} {name}"] = command
            if hasattr(command, "commands"):
                found |= with_subcommands(f"{words} {name}", command)
    return found


def test_every_page_is_reached_from_the_first_one(site: Path) -> None:
    seen, ahead = set(), [site / "index.html"]
    while ahead:
        path = ahead.pop()
        if path in seen or path.suffix != ".html" or not path.is_file():
            continue
        seen.add(path)
        links = [link for link, _ in read(path).links if not urlsplit(link).scheme]
        ahead += [target_of(link, path) for link in links]
    written = {path for path in pages(site) if "_modules" not in path.parts}
    by_sphinx = {site / name for name in ("search.html", "genindex.html", "py-modindex.html")}
    assert written - by_sphinx - seen == set()


@pytest.mark.slow
@pytest.mark.network
def test_no_link_to_another_site_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "linkcheck", "docs", str(tmp_path)]
    subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    lines = (tmp_path / "output.json").read_text("utf-8").splitlines()
    links = [json.loads(line) for line in lines]
    assert len(links) > 10
    # Other answers, such as 403, 429 and no connection, are about this machine or this hour.
    gone = [f"{each['filename']}: {each['uri']}" for each in links if is_gone(each["info"])]
    assert gone == []


def is_gone(info: str) -> bool:
    """Whether what linkcheck says of a link is that there is no such page."""
    return re.match(r"(404|410) Client Error", info) is not None
