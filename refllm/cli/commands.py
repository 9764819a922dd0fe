"""The group of commands: their summaries in whole sentences, and an answer to other words.

A word that is no command gets the command that does what other programs call so (`ADVICE`), or the
commands that are spelled like it; a model in a command's place gets the commands that take one.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from refllm.cli.common import names_a_model, with_exit_codes

__all__ = ["ADVICE", "ADVICE_ON_MODELS", "CommandGroup", "ModelsGroup", "add_command"]

_INFER = "refllm infer MODEL PROMPT continues a text"
_SERVE = "refllm serve answers over HTTP"
_PULL = "refllm models pull NAME fetches a model"
_LIST = "refllm models list prints the models that are here"
_REMOVE = "a pulled model is a folder or file: remove the PATH that refllm models list prints"

ADVICE: Mapping[str, str] = {
    **dict.fromkeys(["chat"], f"{_INFER}, and refllm serve answers chats, as OpenAI's clients ask"),
    **dict.fromkeys(["ask", "complete", "completion", "generate", "prompt"], _INFER),
    **dict.fromkeys(["embeddings", "embedding", "encode"], "refllm embed MODEL TEXT makes vectors"),
    **dict.fromkeys(["tokens", "detokenize"], "refllm tokenize MODEL TEXT prints tokens"),
    **dict.fromkeys(["server", "start", "listen", "api"], _SERVE),
    **dict.fromkeys(["up", "build"], "refllm run APP answers requests with a Spin application"),
    **dict.fromkeys(["download", "fetch", "get", "install", "add"], _PULL),
    **dict.fromkeys(["ls", "ps", "model"], _LIST),
    **dict.fromkeys(["rm", "remove", "delete", "uninstall"], _REMOVE),
    **dict.fromkeys(["info", "inspect"], "refllm models show MODEL prints what a model is"),
    **dict.fromkeys(["convert"], "refllm models export MODEL writes a model in another format"),
    **dict.fromkeys(
        ["test", "check"], "refllm doctor checks this machine, refllm conform TARGET a backend"
    ),
}
"""Words that other programs have for what a command of this one does."""

ADVICE_ON_MODELS: Mapping[str, str] = {
    **dict.fromkeys(["download", "fetch", "get", "install", "add"], _PULL),
    **dict.fromkeys(["ls", "ps"], _LIST),
    **dict.fromkeys(["rm", "remove", "delete", "uninstall"], _REMOVE),
    **dict.fromkeys(["info", "inspect", "describe"], ADVICE["info"]),
    **dict.fromkeys(["check", "test"], "refllm models verify MODEL checks that a model is whole"),
    **dict.fromkeys(["convert"], ADVICE["convert"]),
}
"""The same, behind `refllm models`."""


def add_command(
    to: typer.Typer, name: str, command: Callable[..., None], *, is_listed: bool = True
) -> None:
    """Register `command` under `name`, with the first paragraph of its docstring as its summary.

    Args:
        to: The application or group that gets it.
        name: The word that the user types.
        command: A function whose parameters are typer's.
        is_listed: Whether the help of the group lists it.
    """
    summary = " ".join((inspect.getdoc(command) or "").split("\n\n")[0].split())
    to.command(name, short_help=summary, hidden=not is_listed)(with_exit_codes(command))


class CommandGroup(TyperGroup):
    """typer's group, whose error for an unknown word names the right command."""

    advice = ADVICE

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        """Return what the first argument names. Ends with exit code 2 where it names nothing."""
        word = args[0]
        is_option = word.startswith("-")
        if not is_option and not ctx.resilient_parsing and self.get_command(ctx, word) is None:
            self._refuse(ctx, word)
        return super().resolve_command(ctx, args)

    def _refuse(self, ctx: Any, word: str) -> None:  # noqa: ANN401
        names = self.list_commands(ctx)
        close = difflib.get_close_matches(word.lower(), names)
        if word.lower() in self.advice:
            remedy = f"{self.advice[word.lower()]}."
        elif close:
            remedy = f"Did you mean {' or '.join(map(repr, close))}?"
        elif word.endswith(".gguf") or names_a_model(word):
            remedy = (
                f"It is a model: refllm infer {word} PROMPT, refllm embed {word} TEXT or "
                f"refllm models show {word}."
            )
        else:
            listed = [name for name in names if not self.commands[name].hidden]
            remedy = f"There are {', '.join(listed)}."
        ctx.fail(f"No such command {word!r}. {remedy}")


class ModelsGroup(CommandGroup):
    """The group behind `refllm models`."""

    advice = ADVICE_ON_MODELS
