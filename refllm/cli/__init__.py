"""The command `refllm`: one file for each of its commands.

Exit codes: 0 done; 1 the model said no, with one line on standard error, and below it a line for
each way out where there is one,

    refllm: invalid-input: there is no model at tiny.gguf

whose second word is the error's name in the interface; 2 wrong usage; 130 interrupted (Ctrl-C);
141 nobody reads the output any more (`| head`), quietly. The type of an option's value is usage,
what the value means is the engine's to judge: `--top-k many` exits with 2, `--temperature nan`
with 1.

Results are UTF-8 and their lines end in a line feed, whatever the locale and the system: every
machine writes the same bytes.

Nothing here imports numpy or numba before a command runs: `refllm --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from refllm import __version__
from refllm.cli import conform, doctor, embed, export, infer, models, run, serve, tokenize
from refllm.cli.common import speak_utf8, with_exit_codes
from refllm.cli.waiting import announce_compiling

__all__ = ["app", "main"]

app = typer.Typer(
    name="refllm",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("infer")(with_exit_codes(infer.infer))
app.command("embed")(with_exit_codes(embed.embed))
app.command("tokenize")(with_exit_codes(tokenize.tokenize))
app.command("doctor")(with_exit_codes(doctor.doctor))
app.command("serve")(with_exit_codes(serve.serve))
app.command("run")(with_exit_codes(run.run))
app.command("conform")(with_exit_codes(conform.conform))

models_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
models_app.command("pull")(with_exit_codes(models.pull))
models_app.command("list")(with_exit_codes(models.list_))
models_app.command("show")(with_exit_codes(models.show))
models_app.command("verify")(with_exit_codes(models.verify))
models_app.command("export")(with_exit_codes(export.export))
models_app.command("quantize")(with_exit_codes(export.quantize))
app.add_typer(models_app, name="models", help="Fetch models, and see which ones are here.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"refllm {__version__}")
        raise typer.Exit


@app.callback()
def refllm(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """The reference implementation of Spin's Serverless AI interface.

    MODEL is a model's name (see `refllm models list`), or the path of a .gguf file or of a folder
    with safetensors.
    """


def main() -> None:
    """The entry point: runs the command of `sys.argv` and raises `SystemExit` with its code."""
    speak_utf8()
    announce_compiling()
    app(prog_name="refllm")
