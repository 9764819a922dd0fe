"""`refllm infer MODEL PROMPT`: the continuation of a prompt."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from refllm.cli.common import (
    DEFAULT,
    JsonOption,
    KeepPackedOption,
    MaxTokensOption,
    ModelArgument,
    NumericsOption,
    ProfileOption,
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
    refuse_swapped,
    text_of,
    warn_of_a_file,
    write_json,
    write_text,
)
from refllm.cli.waiting import (
    answered_by,
    conditions_of,
    ending_workers,
    engine_of,
    loading_bar,
)

if TYPE_CHECKING:
    from refllm.generate import Chunk

__all__ = ["infer"]


def infer(
    *,
    model: ModelArgument,
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT",
            help='The text to continue, "" to begin one; - reads all of standard input, '
            "including a final newline.",
        ),
    ],
    max_tokens: MaxTokensOption = DEFAULT.max_tokens,
    repeat_penalty: RepeatPenaltyOption = DEFAULT.repeat_penalty,
    repeat_last_n: RepeatLastNOption = DEFAULT.repeat_penalty_last_n_token_count,
    temperature: TemperatureOption = DEFAULT.temperature,
    top_k: TopKOption = DEFAULT.top_k,
    top_p: TopPOption = DEFAULT.top_p,
    seed: SeedOption = 0,
    profile: ProfileOption = "contract",
    numerics: NumericsOption = "exact",
    stand_ins: StandInsOption = False,
    threads: ThreadsOption = None,
    keep_packed_mib: KeepPackedOption = None,
    json: JsonOption = False,
) -> None:
    """Continue PROMPT with MODEL, and stream the new text.

    A newline ends the output. The JSON object has text and usage, and everything that determines
    the text: model (the one that answered), params, seed, profile and numerics.
    """
    refuse_swapped(model, prompt, "infer")
    warn_of_a_file(prompt, f"refllm infer {shlex.quote(model)} - < {shlex.quote(prompt)}")
    params = params_of(
        max_tokens=max_tokens,
        repeat_penalty=repeat_penalty,
        repeat_last_n=repeat_last_n,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    with loading_bar() as bar, ending_workers():
        engine = engine_of(
            seed=seed,
            profile=profile,
            numerics=numerics,
            threads=threads,
            stand_ins=stand_ins,
            progress=bar,
            keep_packed_mib=keep_packed_mib,
            compiles_apart=True,
        )
        text = text_of(prompt, "PROMPT")
        if json:
            record = {
                **asdict(engine.infer(model_of(model), text, params)),
                **conditions_of(engine, params),
            }
            write_json({**answered_by(engine, model_of(model)), **record})
        else:
            _stream(engine.stream(model_of(model), text, params))


def _stream(chunks: Iterator[Chunk]) -> None:
    """Print text as it arrives, and end its line even where an error follows."""
    has_begun = False
    try:
        for chunk in chunks:
            has_begun = True  # first, because Ctrl-C can interrupt between the two
            write_text(chunk.text)
    except BaseException:
        if has_begun:
            write_text("\n")
        raise
    write_text("\n")
