"""Every target by its name."""

from __future__ import annotations

from collections.abc import Mapping

from tools.attack.target import Target
from tools.attack.targets import (
    answers,
    components,
    conform,
    http_bytes,
    http_json,
    http_run,
    texts,
    toml,
)

__all__ = ["TARGETS"]

MODULES = (toml, texts, http_bytes, http_json, http_run, components, answers, conform)
TARGETS: Mapping[str, Target] = {module.TARGET.name: module.TARGET for module in MODULES}
