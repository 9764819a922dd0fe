"""The ways to reach a backend, and which one a user means by TARGET.

http://127.0.0.1:8177         a server (`http`, with `http_dialects`)
app.wasm                      a component that refllm hosts (`component`)
my_backend.spin:Backend       a Python object (`python`)
node harness.js               any other text is a command (`command`)

Start at `target_of`. `protocol` has the JSON lines of a command, `harness` helps to write one in
Python, and `itself` is refllm as a target. This package may import all below `refllm.conform`, and
of that `case`, `reply`, `wire` and `models`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from refllm.conform.reply import Target, TargetError

if TYPE_CHECKING:
    from refllm.conform.targets.http import Protocol

__all__ = ["Options", "is_url", "target_of"]

MIN_START_SECONDS = 60.0  # for a command to load its models

# A colon between two dotted names and nothing else: no command looks like it.
ENTRY_POINT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/\S*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a target is asked.

    Attributes:
        protocol: What a server speaks.
        token: What a server wants as `authorization: bearer`, None for nothing.
        model_map: A server's names of the suite's models, by the suite's.
        draws_as_refllm: Whether a server's random numbers are refllm's, with seed 0, so that
            sampled texts can be compared.
        seconds: How long one case may take.
    """

    protocol: Protocol = "spin"
    token: str | None = None
    model_map: Mapping[str, str] = field(default_factory=dict)
    draws_as_refllm: bool = False
    seconds: float = 60.0


def is_url(text: str) -> bool:
    """Return whether the target is a server."""
    return text.startswith(("http://", "https://"))


def target_of(text: str, options: Options) -> Target:
    """Return the target; nothing is started yet.

    Args:
        text: What the user wrote for TARGET.
        options: How it is asked.

    Raises:
        TargetError: Where the text can be no target.
    """
    if is_url(text):
        from refllm.conform.targets.http import HttpTarget

        return HttpTarget(
            text,
            protocol=options.protocol,
            token=options.token,
            model_map=options.model_map,
            draws_as_refllm=options.draws_as_refllm,
            timeout_seconds=options.seconds,
        )
    if HOST_AND_PORT.fullmatch(text):
        raise TargetError(f"a server's URL begins with http:// or https://, got {text!r}")
    # A path; `wasmtime run harness.wasm` is a command.
    if text.endswith(".wasm") and (Path(text).is_file() or len(text.split()) == 1):
        from refllm.conform.targets.component import ComponentTarget

        return ComponentTarget(text, seconds=options.seconds)
    if ENTRY_POINT.fullmatch(text):
        from refllm.conform.targets.python import EntryPointTarget

        return EntryPointTarget(text)
    from refllm.conform.targets.command import CommandTarget

    start_seconds = max(MIN_START_SECONDS, options.seconds)
    return CommandTarget(text, start_seconds=start_seconds, run_seconds=options.seconds)
