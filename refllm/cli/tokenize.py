"""`refllm tokenize MODEL TEXT`: the tokens of a text."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from refllm.cli.common import (
    JsonOption,
    ModelArgument,
    model_of,
    model_path,
    one_line,
    refuse_swapped,
    text_of,
    warn_of_a_file,
    write_json,
    write_text,
)

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

    A piece is the token's spelling in the vocabulary; unprintable characters are escaped as in
    Python. The JSON object has model and tokens, each with its id and unescaped piece. A GGUF file
    with a vocabulary and no weights is enough. All tokens of a text are printed, also tokens beyond
    the model's limit.
    """
    from refllm.models.load import load_tokenizer
    from refllm.tokenizer.base import NO_LIMIT
    from refllm.tokenizer.native_messages import hold_native_messages

    refuse_swapped(model, text, "tokenize")
    warn_of_a_file(text, f"refllm tokenize {shlex.quote(model)} - < {shlex.quote(text)}")
    content = text_of(text, "TEXT")
    tokenizer = load_tokenizer(model_path(model))
    with hold_native_messages():
        token_ids = tokenizer.encode(content, add_special=not no_special, max_tokens=NO_LIMIT)
    limit = tokenizer.text_limit
    if limit is not None and len(token_ids) > limit:
        typer.echo(
            f"refllm: the model reads {limit} of the {len(token_ids)} tokens, its tokenizer file's "
            "limit; for embeddings --max-tokens N sets another",
            err=True,
        )
    tokens = [{"id": token_id, "piece": tokenizer.piece(token_id)} for token_id in token_ids]
    if json:
        write_json({"model": str(model_of(model)), "tokens": tokens})
    else:
        lines = (f"{token['id']}\t{one_line(str(token['piece']))}\n" for token in tokens)
        write_text("".join(lines))
