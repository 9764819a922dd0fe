"""Write a page for each command of `refllm`, from the commands themselves.

The pages are written into docs/reference/cli/ before Sphinx looks for pages, and are not kept in
the repository. Usage, arguments, options and defaults are what `--help` prints.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import typer
from api_pages import markdown, write_if_new

from refllm.cli import app as commands

if TYPE_CHECKING:
    from sphinx.application import Sphinx

Command: TypeAlias = Any
"""A command of typer's, whose class has another home in each version."""
Context: TypeAlias = Any
Described: TypeAlias = tuple[str, Command, Context]

PAGES = Path(__file__).parents[1] / "reference" / "cli"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the writing of pages with Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(_app: Sphinx | None = None) -> None:
    """Write a page for each command, and remove the pages of commands that are no more."""
    PAGES.mkdir(exist_ok=True)
    written = set()
    for words, command, context in visible(typer.main.get_command(commands), "refllm"):
        path = PAGES / f"{'-'.join(words.split())}.md"
        write_if_new(path, page(words, command, context))
        written.add(path)
    for path in set(PAGES.glob("*.md")) - written:
        path.unlink()


def visible(command: Command, words: str, parent: Context = None) -> Iterator[Described]:
    """Yield a command's words, itself and its context, and those of the commands in it."""
    context = command.make_context(words.rsplit(maxsplit=1)[-1], [], parent, resilient_parsing=True)
    yield words, command, context
    for name in getattr(command, "commands", {}):
        if not command.commands[name].hidden:
            yield from visible(command.commands[name], f"{words} {name}", context)


def page(words: str, command: Command, context: Context) -> str:
    """Return the text of a command's page."""
    usage = " ".join([words, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "").replace("\f", "")
    lines = [f"# {words}", "", *(f"{markdown(part)}\n" for part in text.split("\n\n") if part)]
    lines += ["```console", f"$ {usage}", "```", "", "```{program} " + words, "```", ""]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    if arguments:
        lines += ["## Arguments", ""]
    for parameter in arguments:
        record = parameter.get_help_record(context) or (parameter.make_metavar(context), "")
        lines += [f"`{record[0]}`", f": {markdown(record[1]) or '…'}", ""]
    lines += ["## Options", ""]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if parameter.param_type_name != "option" or record is None:
            continue
        names, help_ = record
        lines += ["```{option} " + option(names), markdown(help_), "```", ""]
    group = {n: c for n, c in getattr(command, "commands", {}).items() if not c.hidden}
    if group:
        lines += ["## Commands", ""]
        for name, each in group.items():
            file = "-".join([*words.split(), name])
            lines += [f"- [{words} {name}]({file}.md): {markdown(each.get_short_help_str(200))}"]
        lines += [""]
    return "\n".join(lines)


def option(names: str) -> str:
    """Return an option's spelling as the directive `option` takes it."""
    return names.replace("  ", " ").replace(" / ", ", ")
