"""The models bundled with the package, and which of Spin's models they can stand in for.

This folder is a root as `refllm.models.find` describes it. Each model has a card beside it: its
training data, its quality, and its limits. It imports nothing of refllm but `refllm.errors`.

    llama/tiny-chat.gguf    short stories, simple questions, the mood of a sentence
    bert/tiny-embed.gguf    embeds sentences; distilled from all-MiniLM-L6-v2
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from refllm.errors import InvalidInput

__all__ = ["ROOT", "SHA256", "STAND_INS", "is_bundled", "is_unchanged", "wants_stand_ins"]

ROOT = Path(__file__).parent

SHA256: Mapping[str, str] = {
    "tiny-chat": "dddc7df98f2ec12ae5f51fc07c02f12ecacd88f807bcc45ce3d15169bbf4dc81",
    "tiny-embed": "b054dac9f8f2f704f45729b23a383faefb992988e47f6e32c63c8421ad8e4e1d",
}
"""The SHA-256 of each model's file, by the model's name."""

STAND_INS: Mapping[str, str] = {
    "llama2-chat": "tiny-chat",
    "codellama-instruct": "tiny-chat",
    "all-minilm-l6-v2": "tiny-embed",
}
"""Spin's names of models, with the bundled model that can answer for each."""


def is_bundled(path: Path) -> bool:
    """Return whether it is the path of a bundled model."""
    return path.stem in SHA256 and path.parent.parent == ROOT


def is_unchanged(path: Path) -> bool:
    """Return whether a bundled model's file is the published one. Raises `OSError`."""
    return hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[path.stem]


def wants_stand_ins(environment: Mapping[str, str]) -> bool:
    """Return whether REFLLM_STAND_INS is 1. Raises `InvalidInput` if it is neither 1 nor 0."""
    wanted = environment.get("REFLLM_STAND_INS", "")
    if wanted not in ("", "0", "1"):
        raise InvalidInput(f"REFLLM_STAND_INS must be 1 or 0, is {wanted!r:.80}")
    return wanted == "1"
