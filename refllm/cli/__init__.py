"""The command `refllm`: one file for each command; common.py has what they share. Start here.

It may import every other package, but imports numpy and numba only when a command runs, so that
`refllm --help` is fast. Exit codes:

    0      done
    1      the request failed; standard error has a line with the error's name in the interface,
           `refllm: invalid-input: there is no model at tiny.gguf`, and below it a line for each fix
    2      wrong usage: a value of the wrong type. `--top-k many` exits with 2; a wrong value of the
           right type, such as `--temperature nan`, is the engine's error and exits with 1; where 1
           is an answer, as `refllm diff` and `refllm conform` have it, each error exits with 2
    130    interrupted (Ctrl-C)
    141    the reader of the output has closed it (`| head`)

Results are UTF-8 with line feeds in every locale and system: every machine writes the same bytes.
"""

from __future__ import annotations

from typing import Annotated

import typer

from refllm import NUMERICS_REVISION, __version__
from refllm.cli import (
    batch,
    chat,
    conform,
    diff,
    doctor,
    embed,
    explain,
    export,
    infer,
    inspect,
    kernels,
    models,
    new,
    run,
    serve,
    tokenize,
    trace,
)
from refllm.cli.commands import BatchGroup, CommandGroup, KernelsGroup, ModelsGroup, add_command
from refllm.cli.common import run_app
from refllm.cli.waiting import announce_compiling

__all__ = ["app", "main"]

CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="refllm",
    cls=CommandGroup,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)
add_command(app, "infer", infer.infer)
add_command(app, "chat", chat.chat)
add_command(app, "explain", explain.explain)
add_command(app, "inspect", inspect.inspect)
add_command(app, "embed", embed.embed)
add_command(app, "tokenize", tokenize.tokenize)
add_command(app, "trace", trace.trace)
add_command(app, "diff", diff.diff, failed=2)
add_command(app, "doctor", doctor.doctor)
add_command(app, "serve", serve.serve)
add_command(app, "run", run.run)
add_command(app, "new", new.new)
add_command(app, "conform", conform.conform)

batch_app = typer.Typer(cls=BatchGroup, invoke_without_command=True, rich_markup_mode=None)
app.add_typer(batch_app, name="batch", help="Compute a vector or a text for every row of files.")
add_command(batch_app, "embed", batch.embed)
add_command(batch_app, "infer", batch.infer)

models_app = typer.Typer(cls=ModelsGroup, invoke_without_command=True, rich_markup_mode=None)
app.add_typer(models_app, name="models", help="Fetch, list, check and convert models.")
# Each works without the word "models", too, as in other programs.
for is_listed, group in ((True, models_app), (False, app)):
    add_command(group, "pull", models.pull, is_listed=is_listed)
    add_command(group, "list", models.list_, is_listed=is_listed)
    add_command(group, "show", models.show, is_listed=is_listed)
    add_command(group, "verify", models.verify, is_listed=is_listed)
    add_command(group, "export", export.export, is_listed=is_listed)
    add_command(group, "quantize", export.quantize, is_listed=is_listed)

kernels_app = typer.Typer(cls=KernelsGroup, invoke_without_command=True, rich_markup_mode=None)
app.add_typer(kernels_app, name="kernels", help="Compile, list, export and import kernels.")
add_command(kernels_app, "warm", kernels.warm)
add_command(kernels_app, "list", kernels.list_)
add_command(kernels_app, "export", kernels.export)
add_command(kernels_app, "import", kernels.import_)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"refllm {__version__}, numerics revision {NUMERICS_REVISION}")
        raise typer.Exit


@app.callback()
def refllm(
    ctx: typer.Context,
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_print_version,
            is_eager=True,
            help="Print the version and the numerics revision, and exit.",
        ),
    ] = False,
) -> None:
    """The reference implementation of Spin's Serverless AI interface.

    MODEL is a model's name (see `refllm models list`), or the path of a .gguf file or of a folder
    with safetensors. To begin: refllm infer tiny-chat "Once upon a time"
    """
    _help_without_command(ctx)


@batch_app.callback()
@models_app.callback()
@kernels_app.callback()
def _help_without_command(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command("version", hidden=True)
def _version_command() -> None:
    """Print the version and the numerics revision."""
    _print_version(True)


@app.command("help", hidden=True)
def _help_command(
    ctx: typer.Context, words: Annotated[list[str] | None, typer.Argument(metavar="COMMAND")] = None
) -> None:
    """Print the help of COMMAND, or of refllm."""
    app([*(words or []), "--help"], prog_name="refllm")


def main() -> None:
    """Run the command of `sys.argv`: the entry point. Raises `SystemExit` with the exit code."""
    announce_compiling()
    run_app(app, "refllm")
