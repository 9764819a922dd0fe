"""Chat templates: what they make of a chat, where they come from, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.checkpoints.chat_renderer import Renderer
from refllm.checkpoints.chat_template import (
    CHATML,
    LLAMA_2,
    chat_prompt,
    chat_template_of,
    chat_templates_of,
)
from refllm.checkpoints.open import open_weights
from refllm.errors import how_to_install
from refllm.files.accounting.ledger import Ledger
from refllm.models.load import LlamaModel, load_path
from refllm.tokenizer.base import Tokenizer
from tests.support.model_files import tiny_llama_folder, tiny_llama_gguf
from tests.support.peer_values import peer_values

RECORDED = peer_values("chat_templates")
TEXTS: dict[str, dict[str, Any]] = RECORDED["texts"]
RENDERED = {name: case for name, case in TEXTS.items() if "text" in case}
FAILING = {name: case for name, case in TEXTS.items() if "error" in case}

# Errors of transformers that come of the template alone; all others depend on the messages.
OF_THE_TEMPLATE = {
    "SecurityError",
    "SyntaxError",
    "TemplateAssertionError",
    "TemplateRuntimeError",
    "TemplateSyntaxError",
}
HELLO = [{"role": "user", "content": "Hello!"}]


def prompt_of(case: Mapping[str, Any]) -> str:
    return chat_prompt(
        case["template"],
        case.get("messages", RECORDED["messages"]),
        special_tokens=case.get("special_tokens", RECORDED["special_tokens"]),
    )


# What a template makes of a chat


@pytest.mark.parametrize("name", RENDERED)
def test_a_chat_is_written_as_transformers_writes_it(name: str) -> None:
    assert prompt_of(RENDERED[name]) == RENDERED[name]["text"]


@pytest.mark.parametrize("name", FAILING)
def test_a_chat_that_transformers_cannot_render_is_an_error_that_names_the_template(
    name: str,
) -> None:
    is_of_the_template = FAILING[name]["error"] in OF_THE_TEMPLATE
    expected = LlmRuntimeError if is_of_the_template else InvalidInput
    with pytest.raises(expected, match=r"^the model's chat template "):
        prompt_of(FAILING[name])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('Only ' + messages[0].role) }}", "refuses the messages: Only user$"),
        ("\n\n{{ messages[0].name.first }}", r"has no attribute 'name' \(line 3\)$"),
        ("\n{{ 'a'.encode('utf-9') }}", r"LookupError: unknown encoding: utf-9 \(line 2\)$"),
        ("\n{{ messages[0].content + 1 }}", r"TypeError: .* \(line 2\)$"),
        ("\n{% if %}", r"cannot be used: Expected an expression, .* \(line 2\)$"),
        ("{% break %}", "cannot be used: 'break' outside loop$"),
        ("\n{{ '' | shout }}", r"cannot be used: No filter named 'shout'. \(line 2\)$"),
        ("\n{{ ''.__class__.a }}", r"cannot be used: .*'__class__' .* unsafe. \(line 2\)$"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "cannot be used: .*recursion"),
        ("{% if true %}" * 200 + "{% endif %}" * 200, "cannot be used: too many levels"),
        ("{{ raise_exception('x' * 9000) }}", "refuses the messages: x{2000}$"),
    ],
)
def test_an_error_of_a_template_has_its_reason_and_line(template: str, message: str) -> None:
    with pytest.raises((InvalidInput, LlmRuntimeError), match=message):
        chat_prompt(template, HELLO, special_tokens={})


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        (["Hello!"], "must be a mapping with a role, is 'Hello!'"),
        ([{"role": "user", "content": b"Hello!"}], "bytes is not JSON serializable"),
        ([{"role": "user", "content": {1j: 2}}], "keys must be"),
    ],
)
def test_messages_of_a_wrong_shape_are_the_caller_s_mistake(
    messages: Sequence[Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        chat_prompt("{{ messages }}", messages, special_tokens={})


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": None, "thinking": "hm"}]
    chat_prompt("{{ messages }}", messages, special_tokens={})
    assert messages == [{"role": "user", "content": None, "thinking": "hm"}]


def test_halves_of_a_character_stay_halves() -> None:
    halves = chat_prompt("\ud83d{{ messages[0].a }}", [{"a": "\ude42"}], special_tokens={})
    assert halves == "\ud83d\ude42"
    assert len(halves) == 2


def test_a_special_token_cannot_take_the_place_of_the_messages() -> None:
    names = {"messages": "<a>", "tools": "<b>", "self": "<c>"}
    template = "{{ messages[0].content }}{{ tools }}"
    assert chat_prompt(template, HELLO, special_tokens=names) == "Hello!None"


def test_without_jinja_the_error_has_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with Renderer() as renderer, pytest.raises(LlmRuntimeError) as refusal:
        chat_prompt(LLAMA_2, HELLO, special_tokens={}, renderer=renderer)
    assert str(refusal.value) == (
        f"chat templates need jinja2, which is not installed\n{how_to_install('server')}"
    )


# Where templates come from


def written(files: Mapping[str, str], folder: Path) -> Path:
    """A model's folder with these files; their bytes are in Latin-1."""
    tiny_llama_folder(folder)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode("latin-1"))
    return folder


# Where transformers' tokenizers have no template: a chat is Llama 2's, or the processors'.
NO_TEMPLATE = {"none": None, "config-null": None, "processor": "processor"}


@pytest.mark.parametrize("name", RECORDED["files"])
def test_of_several_templates_a_chat_uses_the_one_that_transformers_uses(
    name: str, tmp_path: Path
) -> None:
    case = RECORDED["files"][name]
    weights = open_weights(written(case["files"], tmp_path / "tiny"))
    if "template" in case or name in NO_TEMPLATE:
        assert chat_template_of(weights) == case.get("template", NO_TEMPLATE.get(name))
    else:
        with pytest.raises(LlmRuntimeError, match="tiny"):
            chat_template_of(weights)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("chat_template.jinja", "caf\xe9", r"chat_template.jinja: not UTF-8 text: .*0xe9"),
        ("chat_template.jinja", "", "chat_template.jinja: the file is empty"),
        ("chat_template.jinja", "a" * 2**20 + "b", "chat_template.jinja: has 1048577 bytes"),
        (
            "chat_template.jinja",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "chat_template.jinja: this is a Git LFS pointer",
        ),
        ("additional_chat_templates/rag.jinja", "caf\xe9", "rag.jinja: not UTF-8"),
        ("additional_chat_templates/rag.jinja", "a", "has the chat templates rag, and none called"),
        ("tokenizer_config.json", '{"chat_template": 3}', "config.json: chat_template must be tex"),
        ("tokenizer_config.json", '{"chat_template": [3]}', "must be a list of objects with name"),
        ("tokenizer_config.json", '{"chat_template": []}', "has no template with a name"),
        ("tokenizer_config.json", '{"chat_template": {}}', "has no template with a name"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": 1, "template": "a"}]}',
            "has no template with a name",
        ),
        (
            "tokenizer_config.json",
            '{"chat_template": {"default": ["a"]}}',
            r"chat_template must be text, is \['a'\]",
        ),
        ("chat_template.json", '{"chat_template": true}', "template.json: chat_template must be"),
    ],
)
def test_a_template_of_a_wrong_shape_is_an_error_that_names_its_file(
    file: str, text: str, message: str, tmp_path: Path
) -> None:
    folder = written({file: text}, tmp_path / "tiny")
    with pytest.raises(LlmRuntimeError, match=message):
        chat_template_of(open_weights(folder))


@pytest.mark.parametrize(
    ("metadata", "template"),
    [
        ({}, None),
        ({"": "a"}, "a"),
        ({"": "a", ".rag": "b", ".tool_use": "c"}, "a"),
        ({".rag": "b", ".tool_use": "c"}, "c"),
        ({"": "chatml"}, CHATML),
        ({"": "chatml", ".tool_use": "c"}, "c"),
        ({"": "", ".tool_use": "c"}, "c"),
    ],
)
def test_a_gguf_s_template_is_the_one_that_llama_cpp_uses(
    metadata: Mapping[str, str], template: str | None, tmp_path: Path
) -> None:
    message = {f"tokenizer.chat_template{name}": text for name, text in metadata.items()}
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata=message)
    assert chat_template_of(open_weights(path)) == template


def test_a_gguf_s_templates_have_their_names(tmp_path: Path) -> None:
    message = {
        "tokenizer.chat_templates": ["rag"],
        "tokenizer.chat_template": "a",
        "tokenizer.chat_template.rag": "b",
    }
    weights = open_weights(tiny_llama_gguf(tmp_path / "tiny.gguf", metadata=message))
    assert chat_templates_of(weights) == {"default": "a", "rag": "b"}


def test_a_gguf_without_a_template_for_chats_is_an_error(tmp_path: Path) -> None:
    message = {"tokenizer.chat_template.rag": "b"}
    weights = open_weights(tiny_llama_gguf(tmp_path / "tiny.gguf", metadata=message))
    with pytest.raises(LlmRuntimeError, match=r"tiny\.gguf: has the chat templates rag, and none"):
        chat_template_of(weights)


# The ledger


def test_the_ledger_has_every_template_of_a_gguf(tmp_path: Path) -> None:
    message = {
        "tokenizer.chat_templates": ["rag"],
        "tokenizer.chat_template": "a",
        "tokenizer.chat_template.rag": "b",
    }
    ledger = Ledger()
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata=message)
    chat_template_of(open_weights(path), ledger=ledger)
    assert {(entry.name, entry.verdict) for entry in ledger.entries} == {
        ("tokenizer.chat_template", "used"),
        ("tokenizer.chat_template.rag", "irrelevant"),
        ("tokenizer.chat_templates", "irrelevant"),
    }


def test_an_unknown_key_of_a_gguf_s_templates_is_refused(tmp_path: Path) -> None:
    message = {"tokenizer.chat_template_engine": "mustache"}
    weights = open_weights(tiny_llama_gguf(tmp_path / "tiny.gguf", metadata=message))
    with pytest.raises(ModelNotSupported, match=r"tokenizer\.chat_template_engine = 'mustache'"):
        chat_template_of(weights)


def test_the_ledger_has_every_file_of_templates(tmp_path: Path) -> None:
    files = {
        "chat_template.jinja": "a",
        "additional_chat_templates/rag.jinja": "b",
        "chat_template.json": '{"chat_template": "c", "engine": "mustache"}',
    }
    ledger = Ledger()
    chat_template_of(open_weights(written(files, tmp_path / "tiny")), ledger=ledger)
    assert {(entry.where, entry.name, entry.verdict) for entry in ledger.entries} == {
        ("chat_template.jinja", "default", "used"),
        ("additional_chat_templates/rag.jinja", "rag", "irrelevant"),
        ("chat_template.json", "chat_template", "irrelevant"),
        ("chat_template.json", "engine", "unknown"),
    }


# A model's prompt


class Named(Tokenizer):
    """Tokens by name: `<s>` begins a text, and the file names the second of two ends."""

    n_vocab, bos_id, eos_ids, longest_token = 3, 0, frozenset({1, 2}), 0
    special_tokens: Mapping[str, str] = {"bos_token": "<s>", "eos_token": "<|im_end|>"}

    def __init__(self, *, adds_bos: bool) -> None:
        self.adds_bos = adds_bos

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = True,
        max_tokens: int | None = None,
    ) -> list[int]:
        return [0] if self.adds_bos else []

    def piece(self, token_id: int) -> str:
        return ("<s>", "</s>", "<|im_end|>")[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        return b""


def model_with(template: str | None, tmp_path: Path) -> LlamaModel:
    metadata = {} if template is None else {"tokenizer.chat_template": template}
    model = load_path(tiny_llama_gguf(tmp_path / "tiny.gguf", metadata=metadata))
    assert isinstance(model, LlamaModel)
    return model


@pytest.mark.parametrize(("adds_bos", "prompt"), [(True, "a<|im_end|>"), (False, "<s>a<|im_end|>")])
def test_the_template_s_bos_is_left_out_where_the_tokenizer_adds_one_and_eos_is_the_named_one(
    adds_bos: bool, prompt: str, tmp_path: Path
) -> None:
    model = model_with("{{ bos_token }}a{{ eos_token }}", tmp_path)
    model = dataclasses.replace(model, tokenizer=Named(adds_bos=adds_bos))
    assert model.chat_prompt(HELLO) == prompt


def test_a_model_without_a_template_is_asked_as_llama_2_was_taught(tmp_path: Path) -> None:
    model = model_with(None, tmp_path)
    messages = [
        {"role": "system", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye."},
    ]
    assert model.chat_prompt(messages) == (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello! [/INST] Hi.</s><s>[INST] Bye. [/INST]"
    )
