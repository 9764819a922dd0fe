"""`refllm explain MODEL PROMPT`: why each token of a continuation was drawn."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

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
    TopOption,
    TopPOption,
    model_of,
    one_line,
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
from refllm.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["explain", "print_step", "steps_range"]

WIDTH = 100  # of an output that is no terminal
BAR_WIDTH = 64
SHADES = "█▓▒░"


def explain(
    *,
    model: ModelArgument,
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT",
            help='The text to continue, "" to begin one; - reads all of standard input.',
        ),
    ],
    steps: Annotated[
        str, typer.Option(help="The steps to show, counted from 0: 3, or 0-4, or all.")
    ] = "0-4",
    top: TopOption = 10,
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
    """Show why each token was drawn: its candidates, and the stage that removed each of them.

    The text is that of `refllm infer` with the same options. Each table has the logit of a
    candidate and its value after each stage: penalty, temperature, softmax, top-k, top-p. The
    number u in [0, 1), times the sum Σ of what is left, points at the token on the bar. Steps after
    the last one to show are not computed.
    """
    first, last = steps_range(steps)
    refuse_swapped(model, prompt, "explain")
    warn_of_a_file(prompt, f"refllm explain {shlex.quote(model)} - < {shlex.quote(prompt)}")
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
        from refllm.inspect.drawing import draws_of
        from refllm.inspect.stages import explained

        params.check()  # with its own number of tokens, before the number is lowered
        computed = params
        if last is not None:
            computed = replace(params, max_tokens=min(max_tokens, last + 1))
        llama, generation = engine.open(model_of(model), text_of(prompt, "PROMPT"), computed)
        token_ids = list(generation.tokens)
        shown = []
        text = llama.tokenizer.stream(previous=token_ids)
        for draw in draws_of(engine, llama, generation, params):
            before = text.push(draw.step.token)
            if draw.step.step < first:
                continue
            step = explained(draw, llama.tokenizer, n_candidates=top)
            if json:
                shown.append(step)
            else:
                print_step(step, before)
        if generation.n_drawn <= first and steps != "all":
            n = generation.n_drawn
            raise InvalidInput(
                f"there is no step {first}; the text has {n} step{'s' * (n != 1)}, counted from 0"
            )
        if json:
            tokenizer = llama.tokenizer
            record = {
                "prompt": [{"token": i, "piece": tokenizer.piece(i)} for i in token_ids],
                **conditions_of(engine, params),
                "steps": shown,
            }
            write_json({**answered_by(engine, model_of(model)), **record})


def steps_range(steps: str) -> tuple[int, int | None]:
    """Return the first and the last step that the option names; the last is None for no end."""
    if steps == "all":
        return 0, None
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9})?)?", steps, re.ASCII)
    if match is None:
        raise typer.BadParameter(
            f"{steps!r} is not a number of a step such as 3, a range such as 0-4 or 3-, or all",
            param_hint="'--steps'",
        )
    first = int(match[1])
    if "-" in steps and match[2] is None:
        return first, None
    last = int(match[2] or match[1])
    if last < first:
        raise typer.BadParameter(f"{steps!r} ends before it begins", param_hint="'--steps'")
    return first, last


def print_step(step: dict[str, Any], text: str) -> None:
    """Write the table of one step, and the bar on which u points at the token."""
    from rich.console import Console

    write_text("")  # raises where standard output is closed
    width = None if sys.stdout.isatty() else WIDTH
    console = Console(file=sys.stdout, width=width, highlight=False)
    with console.capture() as capture:
        for part in _parts(step, text):
            console.print(part)
    lines = capture.get().split("\n")
    write_text("\n".join(line.rstrip(" ") for line in lines))


def _parts(step: dict[str, Any], text: str) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    stages = step["stages"]
    has_draw = stages[-1]["name"] != "argmax"
    left = [f"{step['n_vocab']} tokens"]
    left += [f"{_name(s)} removes {s['n_removed']}" for s in stages if s["n_removed"]]
    heading = Text(f"step {step['step']}  ", style="bold")
    heading.append(f"{one_line(step['piece'])} ", style="bold green")
    heading.append(f"(token {step['token']}, text {text!r}): {', '.join(left)}")
    # Top-k and top-p change no value, they end the row.
    shown = [i for i, s in enumerate(stages) if s["name"] not in ("top_k", "top_p", "argmax")]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("token", no_wrap=True, max_width=16)
    table.add_column("logit", justify="right", no_wrap=True)
    for i in shown:
        table.add_column(_name(stages[i]), justify="right", no_wrap=True)
    table.add_column("removed, or its part of Σ")
    for candidate in step["candidates"]:
        is_drawn = candidate["removed_by"] is None
        cells = [one_line(candidate["piece"]), f"{candidate['logit']:.3f}"]
        for i in shown:
            value, digits = candidate["values"][i], 3 if stages[i]["is_logits"] else 4
            cells.append("" if value is None else f"{value:.{digits}f}")
        if candidate["interval"] is None or not has_draw:
            cells.append(candidate["why"])
        else:
            low, high = candidate["interval"]
            cells.append(f"{low:.4f} … {high:.4f}{'  ← u·Σ' if is_drawn else ''}")
        style = "bold green" if is_drawn else "dim" if candidate["removed_by"] != "draw" else ""
        table.add_row(*map(Text, cells), style=style)
    parts: list[RenderableType] = [heading, table]
    if has_draw:
        parts += [Text(line, no_wrap=True, overflow="crop") for line in _bar(step)]
    return [*parts, ""]


def _name(stage: dict[str, Any]) -> str:
    name: str = stage["name"]
    return {"temperature": "temp.", "top_k": "top-k", "top_p": "top-p"}.get(name, name)


def _bar(step: dict[str, Any]) -> list[str]:
    """Return the candidates' shares of Σ as a bar, and the line on which u points at it."""
    total = step["total"]
    inside = [c for c in step["candidates"] if c["interval"] is not None]
    bar = ["·"] * BAR_WIDTH  # a dot for candidates that are not listed
    for i, candidate in enumerate(inside):
        low, high = (round(BAR_WIDTH * end / total) for end in candidate["interval"])
        bar[low:high] = SHADES[i % len(SHADES)] * (high - low)
    at = min(int(BAR_WIDTH * step["u"]), BAR_WIDTH - 1)
    note = f"u = {step['u']:.4f}, u·Σ = {step['threshold']:.4f} of Σ = {total:.4f}"
    is_left = at < BAR_WIDTH // 2
    pointer = f"{' ' * at}↑ {note}" if is_left else f"{note} ↑".rjust(at + 1)
    return [f"0 {''.join(bar)} Σ", f"  {pointer}"]
