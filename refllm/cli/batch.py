"""`refllm batch embed IN...` and `refllm batch infer IN...`: a vector or a text for every row."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from refllm.cli.common import (
    DEFAULT,
    KeepPackedOption,
    MaxTokensOption,
    NumericsOption,
    RepeatLastNOption,
    RepeatPenaltyOption,
    SeedOption,
    StandInsOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    model_of,
    params_of,
    read_text,
    write_text,
)
from refllm.cli.waiting import ending_workers, engine_of, loading_bar
from refllm.errors import LlmRuntimeError, how_to_install

if TYPE_CHECKING:
    from refllm.batch.local import Progress
    from refllm.batch.rows import OnLong, RowFunction

__all__ = ["embed", "infer"]

LINE_SECONDS = 10.0  # between two lines where standard error is no terminal

InArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IN...",
        help="Files, folders or quoted patterns: .parquet, .arrow, .feather, .jsonl, .csv, .tsv, "
        ".txt (a row on each line); the last four also compressed (.gz, .zst, .bz2).",
    ),
]
ToOption = Annotated[
    Path, typer.Option(metavar="DIR", help="The folder for part-00000.parquet and so on.")
]
ModelOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="A model's name, or the path of a .gguf file or a folder."),
]
ColumnOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The column of texts.",
        show_default="text, or the only column of texts",
    ),
]
IdColumnOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The column whose values become the column id.",
        show_default="the file and the row's number, docs/a.csv:0",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="parquet, arrow, jsonl, csv, tsv or text, for each file of IN.",
        show_default="by the ending of each name",
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Delete the parts of another run in DIR, and begin again.")
]
RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Compute on a Ray cluster: local starts one on this machine, auto is the one that "
        "runs here, HOST:PORT is the one with this head.",
        show_default="compute in this process",
    ),
]
SendModelOption = Annotated[
    bool,
    typer.Option(
        "--send-model", help="With --ray: send the model's files to the nodes, which may lack them."
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def embed(
    *,
    inputs: InArgument,
    to: ToOption,
    model: ModelOption,
    column: ColumnOption = None,
    id_column: IdColumnOption = None,
    on_long: Annotated[
        str,
        typer.Option(
            help="For a text of more than --max-tokens: error (of that row), truncate, or "
            "chunk-mean, the mean of the vectors of its pieces."
        ),
    ] = "error",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The limit of a text in tokens.",
            show_default="the tokenizer file's own limit",
        ),
    ] = None,
    format_: FormatOption = None,
    part_rows: Annotated[int, typer.Option(min=1, help="The rows of a part.")] = 16384,
    force: ForceOption = False,
    numerics: NumericsOption = "exact",
    stand_ins: StandInsOption = False,
    threads: ThreadsOption = None,
    keep_packed_mib: KeepPackedOption = None,
    ray: RayOption = None,
    send_model: SendModelOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the vector of every row of IN into parts of Parquet in DIR, in the rows' order.

    The columns are id, embedding (float32, of fixed length), token_count and error. A row that
    cannot be computed, such as a null, has the reason in error and costs nothing else.

    A run that was ended, by Ctrl-C, a full disk or the machine, is resumed by the same command:
    finished parts stay as they are. No bit of a vector depends on the other rows, nor on threads.
    """
    with _needing_packages():
        from refllm.batch.rows import Embedder
    name = _column(inputs, to, column, format_)
    function = Embedder(
        model_of(model),
        column=name,
        on_long=cast("OnLong", on_long),
        max_tokens=max_tokens,
        numerics=numerics,
    )
    _run(
        *(function, inputs, to),
        id_column=id_column,
        kind=format_,
        part_rows=part_rows,
        force=force,
        stand_ins=stand_ins,
        threads=threads,
        keep_packed_mib=keep_packed_mib,
        ray=ray,
        send_model=send_model,
        quiet=quiet,
    )


def infer(
    *,
    inputs: InArgument,
    to: ToOption,
    model: ModelOption,
    column: ColumnOption = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help='A Jinja template of the prompt, whose names are columns: "Q: {{ question }}". '
            "@FILE reads it from a file.",
        ),
    ] = None,
    id_column: IdColumnOption = None,
    per_row: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=COLUMN]",
            help="Take a parameter of each row from a column: max_tokens, temperature, top_k, "
            "top_p, repeat_penalty, repeat_penalty_last_n_token_count or seed. Where it is null, "
            "the option's value is used. Can be repeated.",
        ),
    ] = None,
    max_tokens: MaxTokensOption = DEFAULT.max_tokens,
    repeat_penalty: RepeatPenaltyOption = DEFAULT.repeat_penalty,
    repeat_last_n: RepeatLastNOption = DEFAULT.repeat_penalty_last_n_token_count,
    temperature: TemperatureOption = DEFAULT.temperature,
    top_k: TopKOption = DEFAULT.top_k,
    top_p: TopPOption = DEFAULT.top_p,
    seed: SeedOption = 0,
    format_: FormatOption = None,
    part_rows: Annotated[int, typer.Option(min=1, help="The rows of a part.")] = 512,
    at_once: Annotated[int, typer.Option(min=1, help="The rows that are computed together.")] = 32,
    force: ForceOption = False,
    numerics: NumericsOption = "exact",
    stand_ins: StandInsOption = False,
    threads: ThreadsOption = None,
    keep_packed_mib: KeepPackedOption = None,
    ray: RayOption = None,
    send_model: SendModelOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the continuation of every row's prompt into parts of Parquet in DIR, in order.

    The columns are id, generated_text, generated_token_ids, prompt_token_count,
    generated_token_count, finish_reason (stop or length) and error. A row that cannot be computed,
    such as a null, has the reason in error and costs nothing else.

    A run that was ended, by Ctrl-C, a full disk or the machine, is resumed by the same command.
    Each text is that of refllm infer, whatever is computed beside it.
    """
    if template is not None and column is not None:
        raise typer.BadParameter("give either --column or --template")
    with _needing_packages():
        from refllm.batch.rows import Generator
    params = params_of(
        max_tokens=max_tokens,
        repeat_penalty=repeat_penalty,
        repeat_last_n=repeat_last_n,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    if template is not None and template.startswith("@"):
        template = read_text(template[1:])
    pairs = (each.partition("=") for each in per_row or [])
    function = Generator(
        model_of(model),
        column=_column(inputs, to, column, format_) if template is None else None,
        template=template,
        params=params,
        seed=seed,
        row_parameters={name: column or name for name, _, column in pairs},
        at_once=at_once,
        numerics=numerics,
    )
    _run(
        *(function, inputs, to),
        id_column=id_column,
        kind=format_,
        part_rows=part_rows,
        force=force,
        stand_ins=stand_ins,
        threads=threads,
        keep_packed_mib=keep_packed_mib,
        ray=ray,
        send_model=send_model,
        quiet=quiet,
    )


@contextmanager
def _needing_packages() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise LlmRuntimeError(
            f"refllm batch needs the package {error.name}", how_to_install("batch")
        ) from error


def _column(inputs: list[str], to: Path, column: str | None, kind: str | None) -> str:
    """Return the column of texts, by default that of the first file with a row."""
    if column is not None:
        return column
    from refllm.batch.reader import columns_in, default_column, find_files

    for file in find_files(inputs, kind=kind, outside=to):
        there = columns_in(file)
        if there is not None:
            return default_column(there, file)
    return "text"


def _run(
    function: RowFunction,
    inputs: list[str],
    to: Path,
    *,
    id_column: str | None,
    kind: str | None,
    part_rows: int,
    force: bool,
    stand_ins: bool,
    threads: int | None,
    keep_packed_mib: int | None,
    ray: str | None,
    send_model: bool,
    quiet: bool,
) -> None:
    if send_model and ray is None:
        raise typer.BadParameter("--send-model needs --ray")
    from refllm.batch.local import run

    with ExitStack() as stack:
        computed = None
        if ray is not None:
            from refllm.batch.ray import connected

            cluster = stack.enter_context(connected(ray, threads=threads, send_model=send_model))
            computed = cluster.computed
        bar = stack.enter_context(loading_bar())
        stack.enter_context(ending_workers())
        progress = stack.enter_context(_progress(quiet=quiet))
        function.use(
            engine_of(
                numerics=function.numerics,
                threads=threads,
                stand_ins=stand_ins,
                progress=bar,
                keep_packed_mib=keep_packed_mib,
                compiles_apart=True,
            )
        )
        try:
            summary = run(
                *(function, inputs, to),
                id_column=id_column,
                kind=kind,
                part_rows=part_rows,
                force=force,
                progress=progress,
                computed=computed,
            )
        except KeyboardInterrupt:
            if to.is_dir() and not quiet:
                typer.echo(
                    f"refllm: interrupted; finished parts stay in {to}, and the same command "
                    "continues",
                    err=True,
                )
            raise
    with_error = f", {summary.n_errors} with an error" if summary.n_errors else ""
    rows, parts = _counted(summary.n_rows, "row"), _counted(summary.n_parts, "part")
    write_text(f"{to}: {rows} in {parts}{with_error}\n")


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Yield what shows progress: a bar in a terminal, else a line every ten seconds."""
    if quiet or sys.stderr is None:
        yield None
        return
    begin = time.monotonic()
    if not sys.stderr.isatty():
        shown_at = begin

        def write_line(progress: Progress) -> None:
            nonlocal shown_at
            now = time.monotonic()
            if now - shown_at >= LINE_SECONDS:
                shown_at = now
                typer.echo(f"refllm: {_described(progress, now - begin)}", err=True)

        yield write_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("loading", total=1.0)

        def update(progress: Progress) -> None:
            words = _described(progress, time.monotonic() - begin)
            bars.update(task, completed=progress.fraction, description=words)

        yield update


def _described(progress: Progress, seconds: float) -> str:
    """Return rows, rate and time left in words."""
    of_all = "" if progress.n_all is None else f" of {progress.n_all}"
    rate = progress.n_tokens / max(seconds, 1e-9)
    words = f"{progress.n_rows}{of_all} rows, {rate:.0f} tokens/s"
    if progress.n_errors:
        words += f", {progress.n_errors} with an error"
    done = progress.fraction
    if progress.n_all is not None:
        # Rows of an earlier run were not computed in these seconds.
        n_left = progress.n_all - progress.n_rows
        left = seconds * n_left / max(progress.n_new_rows, 1)
    elif done > 0:
        left = seconds * (1 - done) / done
    else:
        return words
    minutes, rest = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{words}, {hours}:{minutes:02}:{rest:02} left"
