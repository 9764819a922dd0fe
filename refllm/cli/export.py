"""`refllm models export` and `refllm models quantize`: a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from refllm.cli.common import ModelArgument, model_of, model_path, write_text
from refllm.errors import InvalidInput

if TYPE_CHECKING:
    from refllm.export import Layout

__all__ = ["export", "quantize"]


def export(
    *,
    model: ModelArgument,
    to: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write into.")],
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="spin: DIR/.spin/ai-models/…/NAME/; hf: DIR/NAME/; gguf: DIR/NAME.gguf.",
        ),
    ],
    type_: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="F32, F16 or BF16; in a GGUF file also Q8_0, Q4_0 or Q4_K.",
            show_default="F32; of a GGUF file its own types",
        ),
    ] = None,
) -> None:
    """Write MODEL for Spin, transformers or llama.cpp, and print its path.

    NAME is the name of the model, or of its file or folder. Without --type a GGUF file is copied
    byte for byte. Existing files are never overwritten.
    """
    from refllm.export import export as export_model

    path = export_model(
        model_path(model), to=to, name=_name(model), layout=cast("Layout", layout), type_name=type_
    )
    write_text(f"{path}\n")
    if type_ == "Q4_K":
        typer.echo(
            "refllm: mlx 0.32.4 reads half of the weights of Q4_K wrongly; other programs read "
            "them right. For mlx, export with --format hf",
            err=True,
        )


def quantize(
    *,
    model: ModelArgument,
    type_: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="F32, F16, BF16, Q8_0, Q4_0 or Q4_K.")
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The .gguf file to write.",
            show_default="NAME-TYPE.gguf in $REFLLM_HOME/ai-models",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write MODEL as a GGUF file with all matrices as TYPE, like llama-quantize --pure.

    Without --to every command finds the file by the name NAME-TYPE. Norms, biases, and a BERT's
    position and token-type embeddings become F32. Prints the type of most tensors and the size of
    all, before and after.
    """
    from refllm.export import quantize as quantize_model
    from refllm.export import quantized_path
    from refllm.models.describe import overview
    from refllm.models.find import FoundModel

    path = model_path(model)
    before = overview(FoundModel(_name(model), None, path))
    file = to or quantized_path(path, name=_name(model), type_name=type_)
    if file.exists() and not force:
        raise InvalidInput(f"{file} exists already; --force replaces it")
    quantize_model(path, file, type_name=type_, overwrite=force)
    after = overview(FoundModel(file.stem, None, file))
    sizes = (f"{each.file_type}, {each.n_bytes:,} bytes" for each in (before, after))
    write_text(f"{file}: {' → '.join(sizes)}\n")


def _name(model: str) -> str:
    """Return the model's name, or the name of its file or folder."""
    path = model_of(model)
    if isinstance(path, str):
        return path
    path = path.resolve() if path.is_dir() else path
    return path.stem if path.suffix == ".gguf" else path.name
