"""Every target by its name."""

from __future__ import annotations

from collections.abc import Mapping

from tools.attack.target import Target
from tools.attack.targets import (
    answers,
    components,
    config,
    conform,
    gguf,
    http_bytes,
    http_json,
    http_run,
    safetensors,
    sentence,
    sentencepiece,
    templates,
    texts,
    tokenizer_json,
    toml,
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
        toml,
        texts,
        http_bytes,
        http_json,
        http_run,
        components,
        answers,
        conform,
    )
}
