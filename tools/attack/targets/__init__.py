"""Every target by its name."""

from __future__ import annotations

from collections.abc import Mapping

from tools.attack.target import Target
from tools.attack.targets import (
    config,
    gguf,
    safetensors,
    sentence,
    sentencepiece,
    templates,
    tokenizer_json,
)

__all__ = ["TARGETS"]

TARGETS: Mapping[str, Target] = {
    module.TARGET.name: module.TARGET
    for module in (
        gguf,
        safetensors,
        config,
        tokenizer_json,
        sentencepiece,
        sentence,
        templates,
    )
}
