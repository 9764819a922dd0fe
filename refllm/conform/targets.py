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
from typing import Literal

from refllm.conform.reply import Target

__all__ = ["Options", "target_of"]

Protocol = Literal["spin", "openai"]

# A colon between two dotted names and nothing else: no command looks like it.
ENTRY_POINT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


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


def target_of(text: str, options: Options) -> Target:
    """The target; nothing is started yet. Errors: `TargetError` for one that cannot be."""
    if text.startswith(("http://", "https://")):
        from refllm.conform.http import http_target

        return http_target(
            text,
            protocol=options.protocol,
            token=options.token,
            model_map=options.model_map,
            draws_as_refllm=options.draws_as_refllm,
            timeout_seconds=options.seconds,
        )
    if text.endswith(".wasm"):
        from refllm.conform.component import ComponentTarget

        return ComponentTarget(text)
    if ENTRY_POINT.fullmatch(text):
        from refllm.conform.entry_point import EntryPointTarget

        return EntryPointTarget(text)
    from refllm.conform.command import CommandTarget

    return CommandTarget(text, run_seconds=options.seconds)
