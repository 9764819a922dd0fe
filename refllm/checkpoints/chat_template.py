"""A model's chat template, which is a Jinja template, and the prompt that it makes of a chat.

A model may have several templates, by name; a chat uses the one called "default".

    GGUF      tokenizer.chat_template, and tokenizer.chat_template.NAME of others
    folder    chat_template.jinja, and additional_chat_templates/NAME.jinja of others;
              else chat_template in tokenizer_config.json, one or several;
              else chat_template in chat_template.json, which processors used to have

Sources: transformers 5.24.0 (`tokenization_utils_base.py`, `processing_utils.py`,
`utils/chat_template_utils.py`) for folders and for what a template can use; gguf-py 0.19.0
(`GGUFWriter.add_chat_template`) and llama.cpp (common/chat.cpp) for GGUF.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refllm.checkpoints.chat_renderer import Renderer, default_renderer
from refllm.checkpoints.open import Weights
from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.files.accounting.keys import Keys
from refllm.files.accounting.ledger import Ledger
from refllm.files.accounting.tokenizer_keys import (
    CHAT_TEMPLATE_JSON,
    GGUF_CHAT_TEMPLATES,
    UNUSED_TEMPLATE,
)
from refllm.files.reading import read_json_object, read_text

__all__ = [
    "CHATML",
    "LLAMA_2",
    "chat_prompt",
    "chat_template_of",
    "chat_templates_of",
    "check_chat_template",
]

DEFAULT = "default"
TOOL_USE = "tool_use"
KEY = "tokenizer.chat_template"
OTHERS = "additional_chat_templates"
BY = "chat template"  # in the ledger
MAX_BYTES = 2**20  # of a template's file; the longest known ones have about 30,000

# Clients' names of a message's reasoning; templates read the first one.
REASONING = ("reasoning_content", "thinking", "reasoning")

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
"""The chat of Llama 2, for models without a template. Source: Touvron et al. 2023,
arXiv:2307.09288, appendix A, and Meta's reference code."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template that a GGUF file means by "chatml" in place of a template, as in llama.cpp."""


def chat_template_of(weights: Weights, *, ledger: Ledger | None = None) -> str | None:
    """Return the template for chats, or None for a model without templates.

    A GGUF file that has none called "default" may have one called "tool_use", which llama.cpp
    then uses for every chat.

    Args:
        weights: The model.
        ledger: Where each template's key or file is recorded.

    Raises:
        LlmRuntimeError: as `chat_templates_of`, and if no template of several is for chats.
        ModelNotSupported: if a GGUF file has an unknown key `tokenizer.chat_template…`.
    """
    found = _found(weights)
    name = DEFAULT
    if weights.source == "gguf" and TOOL_USE in found:
        is_there = DEFAULT in found and found[DEFAULT].text not in ("", "chatml")
        name = DEFAULT if is_there else TOOL_USE
    _account(weights, found, name, Ledger() if ledger is None else ledger)
    if not found:
        return None
    if name not in found:
        raise LlmRuntimeError(
            f"{weights.path}: has the chat templates {', '.join(found):.200}, "
            f"and none called {DEFAULT!r}",
            f"give the one that chats are to use the name {DEFAULT!r}",
        )
    text = found[name].text
    return CHATML if weights.source == "gguf" and text == "chatml" else text


def chat_templates_of(weights: Weights) -> Mapping[str, str]:
    """Return all templates of a model by name.

    Raises:
        LlmRuntimeError: naming the file whose template is no text, or not UTF-8.
    """
    return {name: template.text for name, template in _found(weights).items()}


@dataclass(frozen=True, slots=True)
class Found:
    """A template, and its key in a GGUF file or its file in a folder."""

    text: str
    place: str


def _found(weights: Weights) -> dict[str, Found]:
    """Return the templates by name."""
    found: dict[str, Found] = {}
    if weights.source == "gguf":
        for key, value in weights.hparams.items():
            if (key == KEY or key.startswith(f"{KEY}.")) and value is not None:
                text = _text(weights.path, key, value)
                found[key.removeprefix(f"{KEY}.") if key != KEY else DEFAULT] = Found(text, key)
        return found
    # A file of its own takes the place of every template in a JSON file.
    file = weights.path / "chat_template.jinja"
    if file.is_file():
        found[DEFAULT] = Found(_read(file), file.name)
    for file in sorted((weights.path / OTHERS).glob("*.jinja")):
        found[file.name.removesuffix(".jinja")] = Found(_read(file), f"{OTHERS}/{file.name}")
    for place in ("tokenizer_config.json", "chat_template.json"):
        file = weights.path / place
        if not found and file.is_file():
            named = _named(file, read_json_object(file).get("chat_template"))
            found = {name: Found(text, place) for name, text in named.items()}
    return found


def _account(weights: Weights, found: Mapping[str, Found], used: str, ledger: Ledger) -> None:
    """Record each template; the tokenizer's reader records those of tokenizer_config.json."""
    if weights.source == "gguf":
        keys = Keys(weights.path, weights.hparams, ledger=ledger, by=BY)
        if used in found:
            keys.get(found[used].place)
        keys.account(GGUF_CHAT_TEMPLATES, unknown="refuse", among=f"{KEY}*")
        return
    for name, template in found.items():
        if template.place.endswith(".jinja"):
            if name == used:
                ledger.use(template.place, name, BY)
            else:
                ledger.dismiss(template.place, name, UNUSED_TEMPLATE)
    file = weights.path / "chat_template.json"
    if file.is_file():
        keys = Keys(file, read_json_object(file), ledger=ledger, where=file.name, by=BY)
        if any(template.place == file.name for template in found.values()):
            keys.get("chat_template")
        keys.account(CHAT_TEMPLATE_JSON, unknown="warn")


def chat_prompt(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    special_tokens: Mapping[str, str],
    renderer: Renderer | None = None,
) -> str:
    r"""Return the prompt that a template makes of a chat, to be continued by the model.

    As in transformers, a template gets no keys of messages whose value is None, None for tools and
    documents, and a message's reasoning under each of its usual names.

    Args:
        template: The Jinja template.
        messages: The chat so far; each message has a `role` and usually a `content`.
        special_tokens: The texts of special tokens by name, such as `bos_token` and `eos_token`.
        renderer: The renderer, by default the one with the default limits.

    Raises:
        InvalidInput: if the template refuses the messages or fails with them.
        LlmRuntimeError: if the template cannot be used, takes too long or needs too much memory, or
            Jinja is not installed.

    Example:
        >>> chat_prompt(CHATML, [{"role": "user", "content": "Hello!"}], special_tokens={})
        '<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n'
    """
    if not messages:
        raise InvalidInput("a chat needs at least one message")
    seen = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise InvalidInput(f"a message must be a mapping with a role, is {message!r:.80}")
        kept = {key: value for key, value in message.items() if value is not None}
        reasoning = next((kept[name] for name in REASONING if name in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
        seen.append(kept)
    variables = {
        **special_tokens,
        "messages": seen,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    return (renderer or default_renderer).render(template, variables)


def check_chat_template(template: str) -> None:
    """Raise `LlmRuntimeError` for a template that no chat can be written with.

    A template may refuse the short chat of this check, because it needs other messages.
    """
    hello = [{"role": "user", "content": "Hello!"}]
    with contextlib.suppress(InvalidInput):
        chat_prompt(template, hello, special_tokens={"bos_token": "", "eos_token": ""})


def _read(file: Path) -> str:
    text = read_text(file, max_bytes=MAX_BYTES)
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as a file opened as text is read


def _named(file: Path, value: object) -> dict[str, str]:
    """Return the templates of a JSON file: one, a list of named ones, or an object of them."""
    match value:
        case None:
            return {}
        case list():
            pairs: dict[object, object] = {}
            for entry in value:
                if not isinstance(entry, Mapping) or not {"name", "template"} <= entry.keys():
                    raise LlmRuntimeError(
                        f"{file}: chat_template must be a list of objects with name and template, "
                        f"has {entry!r:.80}"
                    )
                pairs[entry["name"] if isinstance(entry["name"], str) else None] = entry["template"]
        case dict():
            pairs = dict(value)
        case _:
            pairs = {DEFAULT: value}
    if not pairs or None in pairs:
        raise LlmRuntimeError(f"{file}: chat_template has no template with a name: {value!r:.80}")
    return {str(name): _text(file, "chat_template", template) for name, template in pairs.items()}


def _text(file: Path, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise LlmRuntimeError(f"{file}: {key} must be text, is {value!r:.80}")
    return value
