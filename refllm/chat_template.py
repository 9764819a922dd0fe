"""The chat template that a model brings along, a Jinja template, and what it makes of a chat.

    GGUF                    metadata key tokenizer.chat_template
    Hugging Face folder     chat_template.jinja, else chat_template in tokenizer_config.json

Source: https://huggingface.co/docs/transformers/chat_templating, and llama.cpp's GGUF keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.weights import Weights
from refllm.weights_file import read_json_object

__all__ = ["LLAMA_2", "chat_prompt", "chat_template_of"]

DEFAULT = "default"  # the name, where a file has several

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + message['content'] "
    "+ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
"""The chat of Llama 2, for models that bring no template. Source: Touvron et al. 2023,
arXiv:2307.09288, appendix A, and Meta's reference code."""


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


def chat_prompt(template: str, messages: Sequence[Mapping[str, str]], *, bos: str, eos: str) -> str:
    """The prompt that the template makes of messages with `role` and `content`.

    `bos` and `eos` are the texts of those tokens. The template runs in a sandbox: it comes with a
    model, and a model comes from anywhere. Errors: `InvalidInput` where the template refuses the
    messages, `LlmRuntimeError` where it is none.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise InvalidInput(f"the model's chat template refuses the messages: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
        )
    except jinja2.TemplateSyntaxError as error:
        raise LlmRuntimeError(f"the model's chat template is damaged: {error}") from error
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise InvalidInput(
            f"the model's chat template makes nothing of the messages: {error}"
        ) from error


def _text(weights: Weights, said: object) -> str | None:
    if said is not None and not isinstance(said, str):
        raise LlmRuntimeError(f"{weights.path}: chat_template must be text, is {said!r:.80}")
    return said
