"""The interface's three errors, and how a message tells a user to install an extra.

    LlmError
    ├── InvalidInput        the request itself cannot be answered: the caller changes it
    ├── ModelNotSupported   the engine does not support this model
    └── LlmRuntimeError     the request failed while it ran: a damaged file, an unreachable server

`ON_AN_INDEX` is the line to change on the day of a release. Until then no index has refllm, so a
requirement such as `refllm[server]` cannot be installed by its name: a checkout is installed by its
path, and any other folder needs the address of the repository.
"""

from __future__ import annotations

__all__ = [
    "ADDRESS",
    "ON_AN_INDEX",
    "InvalidInput",
    "LlmError",
    "LlmRuntimeError",
    "ModelNotSupported",
    "how_to_install",
    "install_commands",
]

ON_AN_INDEX = False

ADDRESS = "git+https://HOST/OWNER/refllm"
"""The address of the repository, as pip takes it; the reader fills in HOST and OWNER."""


def install_commands(extra: str) -> tuple[str, ...]:
    """Return the commands that install refllm with one of its extras, the shortest first.

    Args:
        extra: A key of `project.optional-dependencies` in pyproject.toml, such as "server".

    Returns:
        By the name on an index; before a release in a checkout, then from the repository.
    """
    if ON_AN_INDEX:
        return (f"pip install 'refllm[{extra}]'",)
    return (f"pip install '.[{extra}]'", f"pip install 'refllm[{extra}] @ {ADDRESS}'")


def how_to_install(extra: str) -> str:
    """Return the commands of `install_commands` as a part of a sentence, for an error's message.

    Example:
        >>> how_to_install("wasm")[:39]
        "in a checkout: pip install '.[wasm]'; e"
    """
    first, *elsewhere = install_commands(extra)
    if not elsewhere:
        return first
    return f"in a checkout: {first}; elsewhere: {elsewhere[0]}"


class LlmError(Exception):
    """Any of the interface's three errors; `kind` is its name in the interface.

    Each argument is a line of the message: what is wrong, then ways to fix it. `code` is OpenAI's
    name of the error where it has one of its own: "model_not_found", "context_length_exceeded".
    """

    kind: str

    def __init__(self, *lines: object, code: str | None = None) -> None:
        super().__init__(*lines)
        self.code = code

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ModelNotSupported(LlmError):
    """The engine does not support this kind of model (`model-not-supported`)."""

    kind = "model-not-supported"


class LlmRuntimeError(LlmError):
    """The request failed while it ran (`runtime-error`): a damaged file, not the caller."""

    kind = "runtime-error"


class InvalidInput(LlmError):
    """The request itself cannot be answered (`invalid-input`): the message says what to change."""

    kind = "invalid-input"
