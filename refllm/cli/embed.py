"""`refllm embed MODEL [TEXT]...`: one vector for each text.

N texts, D width of an embedding.
"""

from __future__ import annotations

import io
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from refllm.cli.common import (
    STANDARD_STREAM,
    JsonOption,
    KeepPackedOption,
    ModelArgument,
    NumericsOption,
    StandInsOption,
    ThreadsOption,
    argument_text,
    model_of,
    read_text,
    refuse_swapped,
    warn_of_a_file,
    write_bytes,
    write_json,
    write_text,
)
from refllm.cli.text_files import texts_of
from refllm.cli.waiting import answered_by, ending_workers, engine_of, loading_bar
from refllm.interface import EmbeddingsResult

__all__ = ["embed"]


def embed(
    *,
    model: ModelArgument,
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="The texts.")] = None,
    file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Take one text from each line; - is standard input."),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Embed the texts of this key of JSON objects in FILE, or of this column of a "
            "table (.csv, .tsv).",
        ),
    ] = None,
    json: JsonOption = False,
    npy: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write a NumPy file instead, float32 [texts, width]; - is standard output.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Cut texts at this many tokens; sentence-transformers cuts at the model's "
            "max_seq_length, all-MiniLM-L6-v2 at 256.",
            show_default="the tokenizer file's own limit",
        ),
    ] = None,
    numerics: NumericsOption = "exact",
    stand_ins: StandInsOption = False,
    threads: ThreadsOption = None,
    keep_packed_mib: KeepPackedOption = None,
) -> None:
    """Print the embedding of each TEXT by MODEL: a vector, usually of length 1.

    FILE has plain text, or with --field JSON lines, a JSON array of objects, or a table whose name
    ends in .csv or .tsv. JSON and tables are refused without --field, which would embed braces,
    keys and commas.

    Each line has the numbers of one text's vector, separated by spaces; each number is the shortest
    decimal of its float32 (numpy.loadtxt reads such lines). The JSON object has embeddings, usage,
    truncated (which texts were cut) and model, the one that answered. Where texts are cut, a line
    on standard error has their number and the limit in tokens.
    """
    if json and npy is not None:
        raise typer.BadParameter("choose one of --json and --npy")
    for each in text or []:
        warn_of_a_file(each, f"refllm embed {shlex.quote(model)} --file {shlex.quote(each)}")
    if text:
        refuse_swapped(model, text[0], "embed")
    texts = _texts(text or [], file, field)
    if npy is not None and npy != STANDARD_STREAM:
        from refllm.files.whole import require_whole_file

        require_whole_file(Path(npy))
    with loading_bar() as bar, ending_workers():
        engine = engine_of(
            numerics=numerics,
            threads=threads,
            stand_ins=stand_ins,
            progress=bar,
            keep_packed_mib=keep_packed_mib,
            compiles_apart=True,
        )
        result = engine.generate_embeddings(model_of(model), texts, max_tokens=max_tokens)
    if json:
        write_json({**answered_by(engine, model_of(model)), **asdict(result)})
    elif npy is not None:
        from refllm.models.load import BertModel

        loaded = engine.load(model_of(model))
        assert isinstance(loaded, BertModel)  # it has computed embeddings
        _write_npy(npy, result, width=loaded.width)
    else:
        import numpy as np

        for vector in result.embeddings:
            write_text(" ".join(str(np.float32(value)) for value in vector) + "\n")


def _texts(arguments: list[str], file: str | None, field: str | None) -> list[str]:
    if bool(arguments) == (file is not None):
        raise typer.BadParameter("give either TEXT, one or more, or --file")
    if file is None:
        if field is not None:
            raise typer.BadParameter("--field is for a --file of JSON lines or a table")
        return [argument_text(argument, f"TEXT {i}") for i, argument in enumerate(arguments, 1)]
    name = "standard input" if file == STANDARD_STREAM else file
    return texts_of(read_text(file), field, name)


def _write_npy(file: str, result: EmbeddingsResult, *, width: int) -> None:
    import numpy as np

    from refllm.files.whole import whole_file

    array = np.array(result.embeddings, np.float32).reshape(-1, width)  # [N, D], also for N = 0
    contents = io.BytesIO()  # numpy.save itself cannot write to a pipe
    np.save(contents, array)
    if file == STANDARD_STREAM:
        write_bytes(contents.getvalue())
        return
    with whole_file(Path(file)) as unfinished:
        unfinished.write_bytes(contents.getvalue())
