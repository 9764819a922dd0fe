"""`refllm chat MODEL`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from refllm.cli.common import (
    DEFAULT,
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
    argument_text,
    model_of,
    one_line,
    params_of,
    write_text,
)
from refllm.cli.explain import print_step
from refllm.cli.waiting import ending_workers, engine_of, loading_bar
from refllm.errors import InvalidInput, LlmError, LlmRuntimeError

if TYPE_CHECKING:
    from refllm.engine import LocalEngine
    from refllm.inspect.drawing import Draw
    from refllm.interface import InferencingParams
    from refllm.models.load import LlamaModel

__all__ = ["chat"]

HELP = """\
/explain [STEP]   why each token of the last answer was drawn, or that of one step, from 0
/reset            begin a new conversation; the system message stays
/help             this list
/quit             end, as Ctrl-D does
//TEXT            the message /TEXT: two slashes begin a message that begins with one
A line that ends in \\ continues on the next one. Ctrl-C stops an answer; at the prompt it ends.
"""


def chat(
    *,
    model: ModelArgument,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system message of the conversation.")
    ] = None,
    top: TopOption = 10,
    max_tokens: MaxTokensOption = 256,
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
) -> None:
    """Talk with MODEL: each line that is entered is a message, and its answer is streamed.

    The model's chat template makes the prompt of the whole conversation, as in `refllm serve`; a
    model without one gets Llama 2's. Each answer begins with the seed again, so it is the one that
    `refllm infer` gives for that prompt. /help lists what can be entered besides messages.
    """
    params = params_of(
        max_tokens=max_tokens,
        repeat_penalty=repeat_penalty,
        repeat_last_n=repeat_last_n,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    params.check()
    if sys.stdin is None:
        raise InvalidInput("standard input is closed")
    write_text("")  # raises where standard output is closed
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8")
    if _is_conversation():
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401 - makes `input` edit lines and remember them
    first = []
    if system is not None:
        first = [{"role": "system", "content": argument_text(system, "--system")}]
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
        llama = engine.inferencing_model(model_of(model))
        messages = list(first)
        draws: list[Draw] = []
        while (entered := _message()) is not None:
            command, _, argument = entered.strip().partition(" ")
            match command:
                case "":
                    continue
                case "/quit" | "/exit" | "/bye":
                    break
                case "/reset" | "/clear":
                    messages, draws = list(first), []
                    write_text("The conversation begins again.\n")
                case "/help" | "/?":
                    write_text(HELP)
                case "/explain":
                    _explain(llama, draws, argument.strip(), top)
                case _ if command.startswith("/") and not command.startswith("//"):
                    write_text(f"There is no {one_line(command)}.\n{HELP}")
                case _:
                    message = entered
                    if command.startswith("//"):
                        message = entered.replace("//", "/", 1)
                    asked = [*messages, {"role": "user", "content": message}]
                    try:
                        draws, answer = _answer(engine, llama, asked, params)
                    except LlmRuntimeError:
                        raise
                    except LlmError as error:
                        lines = "\n".join(one_line(str(line)) for line in error.args)
                        write_text(f"{lines}\nThe message is not in the conversation; ")
                        write_text("/reset begins a new one.\n")
                        continue
                    messages = [*asked, {"role": "assistant", "content": answer}]


def _message() -> str | None:
    """Return what the user enters next, None at its end; a backslash continues a line."""
    lines: list[str] = []
    has_prompt = _is_conversation()
    while True:
        try:
            line = input("| " if lines else "> ") if has_prompt else sys.stdin.readline()
            is_end = not has_prompt and not line
        except EOFError:
            write_text("\n")
            is_end = True
        except KeyboardInterrupt:
            if has_prompt:
                write_text("\n")  # the shell's next prompt begins a line
            raise
        except UnicodeDecodeError as error:
            raise InvalidInput("standard input is not UTF-8") from error
        if is_end:
            return "\n".join(lines) if lines else None
        line = line.removesuffix("\n")
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _is_conversation() -> bool:
    """Return whether a person enters messages and reads the answers, so that prompts are shown."""
    # `input` refuses to work where standard error is closed.
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return None not in streams and sys.stdin.isatty() and sys.stdout.isatty()


def _answer(
    engine: LocalEngine,
    llama: LlamaModel,
    messages: list[dict[str, str]],
    params: InferencingParams,
) -> tuple[list[Draw], str]:
    """Stream the answer to a conversation; return its draws and its text.

    Ctrl-C ends the answer where it is.
    """
    from refllm.inspect.drawing import draws_of

    _, generation = engine.open(llama, llama.chat_prompt(messages), params)
    text = llama.tokenizer.stream(previous=generation.tokens)
    draws: list[Draw] = []
    parts: list[str] = []
    try:
        for draw in draws_of(engine, llama, generation, params):
            draws.append(draw)
            parts.append(text.push(draw.step.token))
            write_text(parts[-1])
        parts.append(text.finish())
        write_text(parts[-1])
    except KeyboardInterrupt:
        write_text(" …")
    except LlmRuntimeError:
        if any(parts):
            write_text("\n")
        raise
    write_text("\n")
    return draws, "".join(parts)


def _explain(llama: LlamaModel, draws: list[Draw], argument: str, top: int) -> None:
    from refllm.inspect.stages import explained

    if not draws:
        write_text("There is no answer to explain.\n")
        return
    chosen = draws
    if argument:
        if not (argument.isascii() and argument.isdigit() and int(argument) < len(draws)):
            write_text(f"The steps of the last answer are 0 to {len(draws) - 1}.\n")
            return
        chosen = [draws[int(argument)]]
    with contextlib.suppress(KeyboardInterrupt):
        for draw in chosen:
            step = explained(draw, llama.tokenizer, n_candidates=top)
            print_step(step, step["text"])
