"""The chat template that a model brings along: the text of a Jinja template, not yet rendered.

    GGUF                    metadata key tokenizer.chat_template
    Hugging Face folder     chat_template.jinja, else chat_template in tokenizer_config.json

Source: https://huggingface.co/docs/transformers/chat_templating, and llama.cpp's GGUF keys.
"""

from __future__ import annotations

from refllm.api import LlmRuntimeError
from refllm.weights import Weights
from refllm.weights_file import read_json_object

__all__ = ["chat_template_of"]

DEFAULT = "default"  # the name, where a file has several


def chat_template_of(weights: Weights) -> str | None:
    """The model's template, None where it brings none.

    Of several, the one called "default". Errors: `LlmRuntimeError` naming the file that is damaged.
    """
    if weights.source == "gguf":
        return _text(weights, weights.hparams.get("tokenizer.chat_template"))
    template = weights.path / "chat_template.jinja"
    if template.is_file():
        return template.read_text("utf-8", "replace")
    config = weights.path / "tokenizer_config.json"
    if not config.is_file():
        return None
    said = read_json_object(config).get("chat_template")
    if isinstance(said, list):
        by_name = {entry.get("name"): entry for entry in said if isinstance(entry, dict)}
        said = by_name.get(DEFAULT, {}).get("template")
    return _text(weights, said)


def _text(weights: Weights, said: object) -> str | None:
    if said is not None and not isinstance(said, str):
        raise LlmRuntimeError(f"{weights.path}: chat_template must be text, is {said!r:.80}")
    return said
