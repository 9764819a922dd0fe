"""Right values, made by the libraries that users compare with; each module is one topic.

    python -m tools.peer_values.pooling     writes tests/support/peer_values/pooling.json

Models are the tiny random ones that the tests make, from seeds and shapes in code. A module needs
its library installed; the tests read only what is recorded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

__all__ = ["write_peer_values"]

FOLDER = Path(__file__).parents[2] / "tests" / "peer_values"


def write_peer_values(topic: str, *, packages: Sequence[str], cases: Mapping[str, object]) -> Path:
    """Write the cases of one topic, and the installed versions of the packages that made them.

    Args:
        topic: The name of the file, without ".json".
        packages: The distributions that computed the values, such as "transformers".
        cases: A name for each case, and its right value as JSON has it.

    Returns:
        The file that was written.
    """
    path = FOLDER / f"{topic}.json"
    made_by = [f"{package} {version(package)}" for package in packages]
    content = {"made_by": made_by, "cases": cases}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path
