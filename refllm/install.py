"""How refllm and its extras are installed: the one place that messages and the docs repeat.

`ON_AN_INDEX` is the line to change on the day of a release. Until then no index has refllm, so a
requirement such as `refllm[server]` cannot be installed by its name: a checkout is installed by its
path, and any other folder needs the address of the repository.
"""

from __future__ import annotations

__all__ = ["ADDRESS", "ON_AN_INDEX", "commands", "how_to_install"]

ON_AN_INDEX = False

ADDRESS = "git+https://HOST/OWNER/refllm"
"""The address of the repository, as pip takes it; the reader fills in HOST and OWNER."""


def commands(extra: str) -> tuple[str, ...]:
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
    """Return the commands of `commands` as a part of a sentence, for an error's message.

    Example:
        >>> how_to_install("wasm")[:39]
        "in a checkout: pip install '.[wasm]'; e"
    """
    first, *elsewhere = commands(extra)
    if not elsewhere:
        return first
    return f"in a checkout: {first}; elsewhere: {elsewhere[0]}"
