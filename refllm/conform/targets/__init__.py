"""What a user wrote for TARGET → the target.

http://127.0.0.1:8177         a server (`http`)
app.wasm                      a component that refllm hosts (`component`)
my_backend.spin:Backend       a Python object (`entry_point`)
node harness.js               anything else is a command (`command`)
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

START_SECONDS = 60.0  # that a command has at least, to load its models

# A colon between two dotted names and nothing else: no command looks like it.
ENTRY_POINT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/\S*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a target is asked.

    `model_map` has a server's names for the suite's models. `draws_as_refllm` says that a server's
    random numbers are refllm's, with seed 0, so seeded texts can be compared. `seconds` is how long
    one case may take.
    """

    protocol: Protocol = "spin"
    token: str | None = None
    model_map: Mapping[str, str] = field(default_factory=dict)
    draws_as_refllm: bool = False
    seconds: float = 60.0


def is_url(text: str) -> bool:
    """Whether the target is a server."""
    return text.startswith(("http://", "https://"))


def target_of(text: str, options: Options) -> Target:
    """The target; nothing is started yet. Errors: `TargetError` for one that cannot be."""
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
    if _is_component(text):
        from refllm.conform.targets.component import ComponentTarget

        return ComponentTarget(text, seconds=options.seconds)
    if ENTRY_POINT.fullmatch(text):
        from refllm.conform.targets.python import EntryPointTarget

        return EntryPointTarget(text)
    from refllm.conform.targets.command import CommandTarget

    start_seconds = max(START_SECONDS, options.seconds)
    return CommandTarget(text, start_seconds=start_seconds, run_seconds=options.seconds)


def _is_component(text: str) -> bool:
    """Whether it is a path; `wasmtime run harness.wasm` is a command."""
    return text.endswith(".wasm") and (Path(text).is_file() or len(text.split()) == 1)
