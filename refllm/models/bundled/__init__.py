"""The models that ship with the package, and which of Spin's models they can stand in for.

This folder is a root as `refllm.models.find` describes it. Beside each model lies its card: what it
was made from, how well it does, and what it is not for.

    llama/tiny-chat.gguf    short stories, simple questions, the mood of a sentence
    bert/tiny-embed.gguf    places sentences nearly as all-MiniLM-L6-v2 does
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from refllm.errors import InvalidInput

__all__ = ["ROOT", "SHA256", "STAND_INS", "is_embedded", "is_unchanged", "wants_stand_ins"]

ROOT = Path(__file__).parent

SHA256: Mapping[str, str] = {
    "tiny-chat": "dddc7df98f2ec12ae5f51fc07c02f12ecacd88f807bcc45ce3d15169bbf4dc81",
    "tiny-embed": "b054dac9f8f2f704f45729b23a383faefb992988e47f6e32c63c8421ad8e4e1d",
}
"""Of each model's file, by the model's name."""

STAND_INS: Mapping[str, str] = {
    "llama2-chat": "tiny-chat",
    "codellama-instruct": "tiny-chat",
    "all-minilm-l6-v2": "tiny-embed",
}
"""The names that Spin knows, and which embedded model answers for each where that is asked for."""


def is_embedded(path: Path) -> bool:
    """Whether it is the path of a model that ships with the package."""
    return path.stem in SHA256 and path.parent.parent == ROOT


def is_unchanged(path: Path) -> bool:
    """Whether an embedded model's file is the one that was published.

    Errors: `OSError` if it cannot be read.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[path.stem]


def wants_stand_ins(environment: Mapping[str, str]) -> bool:
    """Whether REFLLM_STAND_INS asks for stand-ins. Errors: `InvalidInput` if it is not 1 or 0."""
    wanted = environment.get("REFLLM_STAND_INS", "")
    if wanted not in ("", "0", "1"):
        raise InvalidInput(f"REFLLM_STAND_INS must be 1 or 0, is {wanted!r:.80}")
    return wanted == "1"
