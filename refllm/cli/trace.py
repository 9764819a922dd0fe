"""`refllm trace MODEL PROMPT --to FILE`: every named value of a run, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refllm.cli.common import (
    DEFAULT,
    STANDARD_STREAM,
    JsonOption,
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
    argument_text,
    model_of,
    params_of,
    read_text,
    refuse_swapped,
    write_json,
    write_text,
)
from refllm.cli.waiting import ending_workers, engine_of, loading_bar
from refllm.errors import InvalidInput

__all__ = ["trace"]


def trace(
    *,
    model: ModelArgument,
    prompt: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT...",
            help="The text to continue; of an embedding model one or more texts; - reads all of "
            "standard input.",
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="FILE", help="The .safetensors file to write.")],
    steps: Annotated[
        int | None,
        typer.Option(min=0, help="Draw this many tokens after the prompt.", show_default="1"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Write only values whose name matches, such as 'Qcur-*'; repeatable.",
        ),
    ] = None,
    repeat_penalty: RepeatPenaltyOption = DEFAULT.repeat_penalty,
    repeat_last_n: RepeatLastNOption = DEFAULT.repeat_penalty_last_n_token_count,
    temperature: TemperatureOption = DEFAULT.temperature,
    top_k: TopKOption = DEFAULT.top_k,
    top_p: TopPOption = DEFAULT.top_p,
    seed: SeedOption = 0,
    profile: ProfileOption = "contract",
    numerics: NumericsOption = "exact",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Cut an embedding model's texts at this many tokens.",
            show_default="the tokenizer file's own limit",
        ),
    ] = None,
    stand_ins: StandInsOption = False,
    threads: ThreadsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    json: JsonOption = False,
) -> None:
    """Write every value that MODEL computes for PROMPT into a safetensors file.

    The values have llama.cpp's names, such as Qcur-0. FILE has also the token ids, the parameters,
    what each stage of sampling left, and the versions of everything that takes part. Prints what
    was written; the JSON object has its counts.
    """
    refuse_swapped(model, prompt[0], "trace")
    if to.exists() and not force:
        raise InvalidInput(f"{to} exists already; --force replaces it")
    params = params_of(
        max_tokens=1 if steps is None else steps,
        repeat_penalty=repeat_penalty,
        repeat_last_n=repeat_last_n,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    from refllm.files.whole import require_whole_file

    require_whole_file(to)
    texts = [
        read_text(STANDARD_STREAM) if text == STANDARD_STREAM else argument_text(text, "PROMPT")
        for text in prompt
    ]
    with loading_bar() as bar, ending_workers():
        engine = engine_of(
            seed=seed,
            profile=profile,
            numerics=numerics,
            threads=threads,
            stand_ins=stand_ins,
            progress=bar,
            compiles_apart=True,
        )
        engine.load(model_of(model))
    from refllm.trace import record

    with loading_bar("tracing layers", in_bytes=False) as bar, ending_workers():
        made = record(
            model_of(model),
            texts[0] if len(texts) == 1 else texts,
            to=to,
            params=params,
            engine=engine,
            only=only or (),
            max_tokens=max_tokens,
            overwrite=force,
            progress=bar,
        )
    calls = made.metadata.calls
    counts = {
        "file": str(to),
        "n_bytes": to.stat().st_size,
        "n_calls": len(calls),
        "n_values": sum(len(call.values) for call in calls),
        "token_ids": [list(text.token_ids) for text in made.metadata.texts],
        "n_drawn": len(made.metadata.draws),
    }
    if json:
        write_json(counts)
        return
    n_tokens = sum(call.n_tokens for call in calls)
    write_text(
        f"{to}: {counts['n_values']:,} values of {n_tokens:,} "
        f"token{'s' * (n_tokens != 1)} in {len(calls):,} "
        f"call{'s' * (len(calls) != 1)}, {counts['n_bytes']:,} bytes\n"
    )
