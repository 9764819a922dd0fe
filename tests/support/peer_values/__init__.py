"""Values that other libraries computed; `tools.peer_values` records them, a file for each topic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["peer_values"]


def peer_values(topic: str) -> dict[str, Any]:
    """Return the cases of a topic: name to right value."""
    content = json.loads((Path(__file__).parent / f"{topic}.json").read_text("utf-8"))
    cases: dict[str, Any] = content["cases"]
    return cases
