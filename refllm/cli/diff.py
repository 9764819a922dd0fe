"""`refllm diff A B`: the first value in which two runs differ."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refllm.cli.common import (
    FAILED,
    JsonOption,
    ThreadsOption,
    argument_text,
    model_of,
    one_line,
    write_json,
    write_text,
)
from refllm.cli.waiting import ending_workers, loading_bar
from refllm.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refllm.trace.reader import Trace
    from refllm.trace.report import Line

__all__ = ["diff"]

STYLES = {"head": "bold", "bad": "bold red", "good": "bold green", "bar": "blue", "plain": ""}


def diff(
    *,
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A trace's file, or a model that is run now: MODEL, MODEL@int8 or MODEL@PROFILE.",
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare with A.")],
    prompt: Annotated[
        str | None,
        typer.Option(help="What a model that is run now reads.", show_default="Once upon a time"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=0, help="How many tokens it draws.", show_default="1"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The weights to compute values with.",
            show_default="those that A names",
        ),
    ] = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page for a browser, too.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file of --html if it exists.")
    ] = False,
) -> None:
    """Name the first value in which B differs from A by more than rounding.

    Tokens come first, then every value in the order of computation, then the draws. A value
    differs if it does not follow from its own inputs within what another order of sums can change.
    Each known fault computes the first such value, and the one that reproduces it is named. Exits
    with 1 if there is a difference, and with 2 if there is an error.
    """
    from refllm.files.whole import require_whole_file, whole_file
    from refllm.trace.compare import compare
    from refllm.trace.report import html_of, json_of, lines_of, require_html
    from refllm.trace.sides import DEFAULT_PROMPT, RunOptions, formulas_for, open_side, side_of

    sides = side_of(a), side_of(b)
    if all(side.trace is not None for side in sides):
        if prompt is not None or steps is not None or threads is not None:
            raise typer.BadParameter(
                "--prompt, --steps and --threads are for a model that is run now; both are traces"
            )
    elif any(side.trace is not None for side in sides) and (prompt, steps) != (None, None):
        raise typer.BadParameter(
            "a model is run with the prompt and the steps of the trace; leave out --prompt and "
            "--steps"
        )
    if html is not None:
        require_html()
        if html.is_file() and not force:  # writing into a pipe replaces nothing
            raise InvalidInput(f"{html} exists already; --force replaces it")
        require_whole_file(html)
    options = RunOptions(
        prompt=DEFAULT_PROMPT if prompt is None else argument_text(prompt, "--prompt"),
        steps=1 if steps is None else steps,
        threads=threads,
    )
    with tempfile.TemporaryDirectory() as folder, ending_workers():
        # A trace first, because the other side is run with its text.
        order = sorted((0, 1), key=lambda i: sides[i].trace is None)
        traces: dict[int, Trace] = {}
        for i in order:
            other = traces.get(1 - i) if sides[1 - i].trace is not None else None
            with loading_bar("tracing layers", in_bytes=False) as bar:
                traces[i] = open_side(
                    sides[i],
                    like=None if other is None else other.metadata,
                    options=options,
                    folder=Path(folder),
                    progress=bar,
                )
        metadata = traces[0].metadata
        is_other_model = traces[1].metadata.model != metadata.model
        found = compare(
            traces[0],
            traces[1],
            formulas=formulas_for(metadata, None if model is None else model_of(model)),
            b_formulas=formulas_for(traces[1].metadata) if is_other_model else None,
            names=(a, b),
        )
    if html is not None:
        with whole_file(html) as unfinished:
            unfinished.write_text(html_of(found, (a, b), metadata), encoding="utf-8")
    if json:
        write_json(json_of(found, (a, b)))
    else:
        _print(lines_of(found, (a, b), metadata))
    if found.is_different:
        raise typer.Exit(FAILED)


def _print(lines: Sequence[Line]) -> None:
    from rich.console import Console
    from rich.text import Text

    write_text("")  # raises where standard output is closed
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    with console.capture() as capture:
        for line in lines:
            # A trace's names and settings can have a terminal's control characters.
            console.print(Text(one_line(line.text), style=STYLES[line.role]))
    write_text(capture.get())
