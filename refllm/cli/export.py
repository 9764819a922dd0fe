"""`refllm models export` and `refllm models quantize`: a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from refllm.cli.common import ModelArgument, model_of, write_text

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
            show_default="F32; in a GGUF file what it is",
        ),
    ] = None,
) -> None:
    """Write MODEL for Spin, transformers or llama.cpp, and print where it is.

    NAME is the model's name, or that of its file or folder. Without --type a GGUF file stays a GGUF
    file byte for byte. What exists is never overwritten.
    """
    from refllm.export import export as export_model

    name, path = _found(model)
    made = export_model(path, to=to, name=name, layout=cast("Layout", layout), type_name=type_)
    write_text(f"{made}\n")


def quantize(
    *,
    model: ModelArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .gguf file to write.")],
    type_: Annotated[
        str,
        typer.Option("--type", metavar="TYPE", help="F32, F16, BF16, Q8_0, Q4_0 or Q4_K."),
    ],
) -> None:
    """Write MODEL as a GGUF file with all matrices as TYPE, like llama-quantize --pure.

    The line printed says what most of it was and is, and how many bytes all tensors took and take.
    """
    from refllm.export import quantize as quantize_model
    from refllm.models.describe import overview
    from refllm.models.find import FoundModel

    name, path = _found(model)
    quantize_model(path, file, type_name=type_)
    before, after = (overview(FoundModel(name, None, place)) for place in (path, file))
    sizes = (f"{said.file_type}, {said.n_bytes:,} bytes" for said in (before, after))
    write_text(f"{file}: {' → '.join(sizes)}\n")


def _found(model: str) -> tuple[str, Path]:
    """The model's name, and where it is."""
    from refllm.models.find import default_roots, find_model

    named = model_of(model)
    if isinstance(named, str):
        return named, find_model(named, default_roots())
    path = named.resolve() if named.is_dir() else named
    return (path.stem if path.suffix == ".gguf" else path.name), named
