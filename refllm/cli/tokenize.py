"""`refllm tokenize MODEL TEXT`: the tokens that a model sees."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refllm.cli.common import (
    JsonOption,
    ModelArgument,
    model_of,
    one_line,
    refuse_swapped,
    text_of,
    warn_of_a_file,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from refllm.tokenizer.base import Tokenizer

__all__ = ["tokenize"]


def tokenize(
    *,
    model: ModelArgument,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="The text; - reads all of standard input.")
    ],
    json: JsonOption = False,
    no_special: Annotated[
        bool, typer.Option("--no-special", help="Leave out the BOS, EOS, [CLS] or [SEP] around it.")
    ] = False,
) -> None:
    """Print the tokens of TEXT: on each line a token's id, a tab, and its piece.

    A piece is how the vocabulary writes the token; an unprintable character in it is escaped
    as in Python. The JSON object has model and tokens, each with id and piece as it is. A GGUF file
    with a vocabulary and no weights is enough. All tokens of a text are printed, also those that
    are cut off before the model sees it.
    """
    from refllm.tokenizer.base import NO_LIMIT
    from refllm.tokenizer.native_messages import hold_native_messages

    refuse_swapped(model, text, "tokenize")
    warn_of_a_file(text, f"refllm tokenize {shlex.quote(model)} - < {shlex.quote(text)}")
    content = text_of(text, "TEXT")
    tokenizer = _tokenizer(model_of(model))
    with hold_native_messages():
        token_ids = tokenizer.encode(content, add_special=not no_special, max_tokens=NO_LIMIT)
    limit = tokenizer.text_limit
    if limit is not None and len(token_ids) > limit:
        typer.echo(
            f"refllm: the model sees {limit} of the {len(token_ids)} tokens: its tokenizer's file "
            "has this limit; of embeddings --max-tokens N sets another",
            err=True,
        )
    pieces = [tokenizer.piece(token_id) for token_id in token_ids]
    if json:
        tokens = [{"id": i, "piece": piece} for i, piece in zip(token_ids, pieces, strict=True)]
        write_json({"model": str(model_of(model)), "tokens": tokens})
    else:
        pairs = zip(token_ids, pieces, strict=True)
        write_text("".join(f"{token_id}\t{one_line(piece)}\n" for token_id, piece in pairs))


def _tokenizer(model: str | Path) -> Tokenizer:
    """The model's tokenizer alone."""
    from refllm.models.find import default_roots, find_model
    from refllm.models.load import load_tokenizer

    return load_tokenizer(model if isinstance(model, Path) else find_model(model, default_roots()))
