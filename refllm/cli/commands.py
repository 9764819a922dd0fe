"""The group of commands: summaries in whole sentences, and advice about unknown words.

The error about an unknown command names the equivalent of another program's command (`ADVICE`), the
commands of a similar spelling, or, for a model's name, the commands that take a model. The error
about another program's option names its equivalent (`OTHER_OPTIONS`).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from refllm.cli.common import FAILED, names_a_model, with_exit_codes

__all__ = [
    "ADVICE",
    "ADVICE_ON_BATCHES",
    "ADVICE_ON_KERNELS",
    "ADVICE_ON_MODELS",
    "OPTIONS_OF_BATCHES",
    "OTHER_OPTIONS",
    "BatchGroup",
    "CommandGroup",
    "KernelsGroup",
    "ModelsGroup",
    "add_command",
]

# The base class of typer's usage errors; its module depends on typer's version.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

_INFER = "refllm infer MODEL PROMPT continues a text"
_SERVE = "refllm serve answers over HTTP"
_PULL = "refllm models pull NAME fetches a model"
_LIST = "refllm models list prints the models that are here"
_REMOVE = "A pulled model is a folder or file: remove the PATH that refllm models list prints"

ADVICE: Mapping[str, str] = {
    **dict.fromkeys(["talk", "repl"], "refllm chat MODEL talks with a model"),
    **dict.fromkeys(["why"], "refllm explain MODEL PROMPT shows why each token was drawn"),
    **dict.fromkeys(["ask", "complete", "completion", "generate", "prompt"], _INFER),
    **dict.fromkeys(["embeddings", "embedding", "encode"], "refllm embed MODEL TEXT makes vectors"),
    **dict.fromkeys(["tokens", "detokenize"], "refllm tokenize MODEL TEXT prints tokens"),
    **dict.fromkeys(["server", "start", "listen", "api"], _SERVE),
    **dict.fromkeys(["up", "build"], "refllm run APP answers requests with a Spin application"),
    **dict.fromkeys(["create", "init", "scaffold"], "refllm new NAME starts a Spin application"),
    **dict.fromkeys(["download", "fetch", "get", "install", "add"], _PULL),
    **dict.fromkeys(["ls", "ps", "model"], _LIST),
    **dict.fromkeys(["rm", "remove", "delete", "uninstall"], _REMOVE),
    **dict.fromkeys(["info"], "refllm models show MODEL prints what a model is"),
    **dict.fromkeys(["convert"], "refllm models export MODEL writes a model in another format"),
    **dict.fromkeys(["dump", "record"], "refllm trace MODEL PROMPT --to FILE writes every value"),
    **dict.fromkeys(["compare"], "refllm diff A B names the first value that differs"),
    **dict.fromkeys(
        ["test", "check"], "refllm doctor checks this machine, refllm conform TARGET a backend"
    ),
}
"""The equivalents of other programs' commands."""

ADVICE_ON_MODELS: Mapping[str, str] = {
    **dict.fromkeys(["download", "fetch", "get", "install", "add"], _PULL),
    **dict.fromkeys(["ls", "ps"], _LIST),
    **dict.fromkeys(["rm", "remove", "delete", "uninstall"], _REMOVE),
    **dict.fromkeys(["info", "inspect", "describe"], ADVICE["info"]),
    **dict.fromkeys(["check", "test"], "refllm models verify MODEL checks that a model is whole"),
    **dict.fromkeys(["convert"], ADVICE["convert"]),
}
"""The same, after `refllm models`."""

ADVICE_ON_KERNELS: Mapping[str, str] = {
    **dict.fromkeys(["compile", "build", "cache"], "refllm kernels warm MODEL compiles kernels"),
    **dict.fromkeys(["ls", "show"], "refllm kernels list prints the kernels that are here"),
    **dict.fromkeys(
        ["rm", "remove", "delete", "clear", "clean"],
        "Remove the folder that refllm kernels list prints",
    ),
    **dict.fromkeys(["save", "pack"], "refllm kernels export FILE writes an archive"),
    **dict.fromkeys(["load", "unpack"], "refllm kernels import FILE reads an archive"),
}
"""The same, after `refllm kernels`."""

ADVICE_ON_BATCHES: Mapping[str, str] = {
    **dict.fromkeys(
        ["encode", "embeddings", "vectors"], "refllm batch embed IN makes a vector of every row"
    ),
    **dict.fromkeys(
        ["generate", "complete", "run"], "refllm batch infer IN continues the prompt of every row"
    ),
}
"""The same, after `refllm batch`."""

_TOKENS = "--max-tokens N stops after N tokens"
_TEMPERATURE = "It is --temperature"
_SEED = "It is --seed"
_THREADS = "It is --threads"
_MODEL = "MODEL is the first argument"
_PROMPT = "The text is the second argument, and - reads standard input"
_FILE = "- in place of the text reads standard input: refllm infer MODEL - < FILE"

_GENERATING: Mapping[str, str] = {
    **dict.fromkeys(["-m", "--model"], _MODEL),
    **dict.fromkeys(["-n", "--n-predict", "--predict", "--num-predict"], _TOKENS),
    **dict.fromkeys(["--max-new-tokens", "--max-length"], _TOKENS),
    "--temp": _TEMPERATURE,
    "-s": _SEED,
    "-t": _THREADS,
    "--repetition-penalty": "It is --repeat-penalty",
    **dict.fromkeys(["-c", "--ctx-size"], "The context is as long as the model's"),
    **dict.fromkeys(["--gpu-layers", "--n-gpu-layers"], "refllm computes on the CPU alone"),
}
"""Of the commands that generate text."""

OTHER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "infer": {
        **_GENERATING,
        **dict.fromkeys(["-p", "--prompt"], _PROMPT),
        **dict.fromkeys(["-f", "--file"], _FILE),
        "--stream": "The text is always streamed",
    },
    "explain": {
        **_GENERATING,
        **dict.fromkeys(["-p", "--prompt"], _PROMPT),
        **dict.fromkeys(["-f", "--file"], _FILE.replace("infer", "explain")),
    },
    "inspect": {
        **_GENERATING,
        **dict.fromkeys(["-p", "--prompt"], _PROMPT),
        **dict.fromkeys(["-o", "--output"], "--html FILE writes a file"),
    },
    "chat": {
        **_GENERATING,
        "--system-prompt": "It is --system",
    },
    "embed": {
        **dict.fromkeys(["-m", "--model"], _MODEL),
        **dict.fromkeys(["-p", "--prompt", "--text"], "The texts are the arguments after MODEL"),
        **dict.fromkeys(["-f", "--input"], "--file FILE takes one text from each line"),
        **dict.fromkeys(["-o", "--output"], "--npy FILE writes a NumPy file"),
        "-t": _THREADS,
    },
    "tokenize": {
        **dict.fromkeys(["-m", "--model"], _MODEL),
        **dict.fromkeys(["-p", "--prompt"], _PROMPT),
        **dict.fromkeys(["-f", "--file"], _FILE.replace("infer", "tokenize")),
    },
    "trace": {
        **dict.fromkeys(["-m", "--model"], _MODEL),
        **dict.fromkeys(["-p", "--prompt"], _PROMPT),
        **dict.fromkeys(["-o", "--output"], "It is --to FILE"),
        **dict.fromkeys(["-n", "--n-predict", "--max-new-tokens"], "--steps N draws N tokens"),
        "-t": _THREADS,
    },
    "serve": {
        **dict.fromkeys(
            ["-m", "--model"], "Each request names its model; --allow NAME restricts them"
        ),
        "--api-key": "It is --token",
        "-p": "It is --port",
    },
    "run": {"--listen": "It is --host ADDRESS and --port N"},
    "pull": {
        **dict.fromkeys(["-o", "--to", "--local-dir"], "REFLLM_HOME names the folder for models")
    },
}
"""The equivalents of other programs' options, by refllm's command."""


OPTIONS_OF_BATCHES: Mapping[str, Mapping[str, str]] = {
    "embed": {
        **dict.fromkeys(["-m", "--model-name"], "It is --model NAME"),
        **dict.fromkeys(["-o", "--output", "--out"], "It is --to DIR"),
        **dict.fromkeys(["--text-column", "--field"], "It is --column NAME"),
        "--truncate": "It is --on-long truncate",
        **dict.fromkeys(
            ["-b", "--batch-size"], "No batch size is needed: --threads N is what there is to set"
        ),
    },
    "infer": {
        **dict.fromkeys(["-m", "--model-name"], "It is --model NAME"),
        **dict.fromkeys(["-o", "--output", "--out"], "It is --to DIR"),
        **dict.fromkeys(["--text-column", "--prompt-column", "--field"], "It is --column NAME"),
        **dict.fromkeys(["-p", "--prompt"], "--template TEXT makes a prompt of each row's columns"),
        **dict.fromkeys(["-n", "--max-new-tokens", "--n-predict"], _TOKENS),
        "--temp": _TEMPERATURE,
        **dict.fromkeys(
            ["-b", "--batch-size"], "--at-once N is the number of rows that are computed together"
        ),
    },
}
"""The same, of the commands of `refllm batch`."""


def add_command(
    to: typer.Typer,
    name: str,
    command: Callable[..., None],
    *,
    is_listed: bool = True,
    failed: int = FAILED,
) -> None:
    """Register `command` under `name`, with the first paragraph of its docstring as its summary.

    Args:
        to: The application or group.
        name: The command's name on the command line.
        command: A function whose parameters are typer's.
        is_listed: Whether the help of the group lists it.
        failed: The exit code of an error, where 1 is an answer of the command.
    """
    summary = " ".join((inspect.getdoc(command) or "").split("\n\n")[0].split())
    to.command(name, short_help=summary, hidden=not is_listed)(
        with_exit_codes(command, failed=failed)
    )


class CommandGroup(TyperGroup):
    """typer's group, whose error for an unknown word names the right command."""

    advice = ADVICE
    other_options = OTHER_OPTIONS

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and add advice to its usage errors."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            if error.ctx is not None and error.ctx.parent is ctx:
                option = getattr(error, "option_name", None)
                advice = self.other_options.get(error.ctx.info_name, {}).get(option or "")
                if advice is not None:
                    error.possibilities = None
                    error.message = f"{error.message}. {advice}."
                elif option is None and error.message.startswith("Got unexpected extra argument"):
                    error.message = f"{error.message}. Quote a text with spaces."
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of the first argument. Exits with 2 where there is none."""
        word = args[0]
        is_option = word.startswith("-")
        if is_option or ctx.resilient_parsing or self.get_command(ctx, word) is not None:
            return super().resolve_command(ctx, args)
        names = self.list_commands(ctx)
        close = difflib.get_close_matches(word.lower(), names)
        if word.lower() in self.advice:
            remedy = f"{self.advice[word.lower()]}."
        elif word.endswith(".gguf") or names_a_model(word):
            remedy = (
                f"It is a model: refllm infer {word} PROMPT, refllm embed {word} TEXT or "
                f"refllm models show {word}."
            )
        elif close:
            remedy = f"Did you mean {' or '.join(map(repr, close))}?"
        else:
            listed = [name for name in names if not self.commands[name].hidden]
            remedy = f"The commands are {', '.join(listed)}."
        return ctx.fail(f"No such command {word!r}. {remedy}")


class ModelsGroup(CommandGroup):
    """The group `refllm models`."""

    advice = ADVICE_ON_MODELS


class KernelsGroup(CommandGroup):
    """The group `refllm kernels`."""

    advice = ADVICE_ON_KERNELS


class BatchGroup(CommandGroup):
    """The group `refllm batch`."""

    advice = ADVICE_ON_BATCHES
    other_options = OPTIONS_OF_BATCHES
