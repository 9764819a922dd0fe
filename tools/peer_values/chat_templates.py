"""What transformers makes of chat templates, and which of several templates it takes.

python -m tools.peer_values.chat_templates     writes tests/support/peer_values/chat_templates.json
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tools.peer_values import write_peer_values

CHAT: Sequence[Mapping[str, Any]] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a <b> & 'c' é"},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "x"},
)
SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
ALL_SPECIAL = {
    **SPECIAL,
    "sep_token": "[SEP]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "image_token": "<image>",  # named by one model alone
}
PARTS: Sequence[Mapping[str, Any]] = (
    {
        "role": "user",
        "content": [{"type": "text", "text": "Hel"}, {"type": "image"}, {"text": "lo"}],
    },
)
CALLS: Sequence[Mapping[str, Any]] = (
    {"role": "user", "content": "What is 2 + 3?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": {"b": 3, "a": 2.0}}}
        ],
    },
    {"role": "tool", "name": "add", "content": "5"},
)
THOUGHTS: Sequence[Mapping[str, Any]] = (
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "y", "reasoning": "because"},
)
VALUES: Sequence[Mapping[str, Any]] = (
    {"role": "user", "content": 3, "weight": 1.5, "is_last": True, "tags": [], "none": None},
)

# The templates of the cases.
HANDED = {
    "tojson-text": "{{ messages[1]['content'] | tojson }}",
    "tojson-object": "{{ messages[0] | tojson }}",
    "tojson-indent": "{{ messages[0] | tojson(indent=2) }}",
    "tojson-ascii": "{{ messages[1]['content'] | tojson(ensure_ascii=True) }}",
    "eos-by-name": "{{ messages[0]['content'] + eos_token }}",
    "all-special": "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}",
    "tools-none": "{% if tools is not none %}TOOLS{% endif %}"
    "{% if documents is none %}no documents{% endif %}",
    "generation-block": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}[{{ m.content }}]{% endif %}{% endfor %}",
    "loop-controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }} {% endfor %}",
    "whitespace": "{% for m in messages %}\n  {% if m.role == 'user' %}\n    {{ m.content }}\n"
    "  {% endif %}\n{% endfor %}",
    "generation-prompt": "{{ messages[-1].content }}{% if add_generation_prompt %}<go>{% endif %}",
}

# Their neighbours: a template, with CHAT and SPECIAL unless it has messages of its own.
NEIGHBOURS: Mapping[str, str | tuple[str, Sequence[Mapping[str, Any]]]] = {
    "tojson-separators": "{{ messages | tojson(separators=(',', ':')) }}",
    "tojson-sort-keys": "{{ messages[0] | tojson(sort_keys=True, indent='\\t') }}",
    "tojson-keeps-order": "{{ {'z': 1, 'a': [none, true, 1.50, 1e20, '</s>']} | tojson }}",
    "tojson-positional": "{{ messages[1] | tojson(true, 1) }}",
    "tojson-in-a-condition": "{% if (messages[0] | tojson | length) > 9 %}long{% endif %}",
    "generation-with-dashes": "a {%- generation -%} b {%- endgeneration -%} c",
    "generation-lines": "a\n  {% generation %}\n  b\n  {% endgeneration %}\nc",
    "generation-scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}"
    "{% endgeneration %}{{ x }}",
    "generation-in-a-macro": "{% macro say(m) %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% endmacro %}{{ say(messages[2]) }}",
    "generation-in-a-filter": "{% filter upper %}{% generation %}abc{% endgeneration %}"
    "{% endfilter %}",
    "namespace": "{% set ns = namespace(last='', n=0) %}{% for m in messages %}"
    "{% set ns.last = m.role %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.last }}{{ ns.n }}",
    "namespace-of-self": "{{ namespace(self=3).self }}{{ namespace({'a': 1}, b=2).b }}",
    "dict": "{{ dict(a=1, b=2) | tojson }}{{ dict.fromkeys(['a', 'b'], 0) | tojson }}"
    "{{ dict.update is defined }}",
    "macro": "{% macro turn(m, end='!') %}<{{ m.role }}>{{ m.content }}{{ end }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}{{ turn(messages[0], end='?') }}",
    "call-block": "{% macro box() %}[{{ caller() }}]{% endmacro %}"
    "{% call box() %}{{ messages[0].role }}{% endcall %}",
    "loop-variables": "{% for m in messages %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}"
    "{{ loop.length }}{{ loop.revindex }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.previtem.role if loop.previtem is defined }}{{ loop.changed(m.role) }};{% endfor %}",
    "loop-else": "{% for m in messages if m.role == 'tool' %}x{% else %}none{% endfor %}",
    "recursive-loop": "{% for m in [[1, [2]], 3] recursive %}"
    "{% if m is iterable %}({{ loop(m) }}){% else %}{{ m }}{% endif %}{% endfor %}",
    "slices": "{{ messages[1:][0].role }}{{ messages[::-1][0].content }}{{ messages[-1]['role'] }}",
    "filters": "{{ '  a ' | trim }}|{{ messages | map(attribute='role') | join(',') }}|"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|"
    "{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | list }}|"
    "{{ 'a' | default('b') }}|{{ missing | default('c') }}|{{ 'x y' | replace(' ', '_') }}|"
    "{{ [3, 1, 2] | sort | last }}|{{ 'abc' | first }}|{{ 'a\nb' | indent(2) }}|"
    "{{ '3' | int + 1 }}",
    "items": "{% for key, value in messages[0] | items %}{{ key }}={{ value }};{% endfor %}"
    "{% for key, value in messages[0].items() %}{{ key }};{% endfor %}"
    "{{ messages[0] | dictsort }}",
    "escapes-nothing": "{{ messages[1].content }}{{ '<a>' | e }}{{ '<a>' | safe }}",
    "text-methods": "{{ ' a b '.strip().split(' ') }}{{ 'ab'.startswith('a') }}"
    "{{ 'a-b'.replace('-', '+').upper() }}{{ '%s:%d' % ('a', 3) }}{{ '{}'.format('x') }}"
    "{{ 'a~b' ~ 1 }}{{ 'é'.encode('utf-8') }}",
    "tests": "{{ 1 is odd }}{{ 'a' is string }}{{ {} is mapping }}{{ [] is sequence }}"
    "{{ none is none }}{{ 3 is number }}{{ x is defined }}{{ true is boolean }}"
    "{{ 'a' in 'abc' }}{{ 'a' is in ['a'] }}",
    "whitespace-control": "a  {{- ' b ' -}}  c\n  {%- if true %}  d{% endif +%}\n e {#- f -#} g\n"
    "{%+ if true %}h{% endif %}\n",
    "trailing-newline": "a\n{{ messages[0].role }}\n",
    "two-trailing-newlines": "a\n\n",
    "carriage-returns": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc",
    "raw": "{% raw %}{{ not read }}{% endraw %}{# comment #}",
    "undefined": "[{{ missing }}]{% if missing %}x{% endif %}{{ missing is defined }}"
    "{{ messages[0].name }}{{ messages[9] }}",
    "set-block": "{% set text %}{{ messages[0].role }}!{% endset %}{{ text | upper }}",
    "conditional": "{{ 'a' if messages[0].role == 'system' else 'b' }}{{ 'a' if false }}",
    "range": "{% for i in range(3) %}{{ i }}{% endfor %}{{ range(10, 0, -3) | list }}",
    "arithmetic": "{{ 7 // 2 }}{{ 7 / 2 }}{{ 2 ** 3 }}{{ 7 % 4 }}"
    "{{ -3 | abs }}{{ 1e3 }}{{ 1_000 }}",
    "with": "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}",
    "strftime": "{{ strftime_now('%Y-%m-%d') | length }}{{ strftime_now('%%') }}",
    "globals": "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}"
    "{% set j = joiner('-') %}{{ j() }}x{{ j() }}y",
    "special-text": "{{ '<s>' == bos_token }}{{ [bos_token, eos_token] | join }}",
    "no-messages-used": "hello",
    "parts": (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
        "{% elif 'image' in part.values() %}<image>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{% endfor %}",
        PARTS,
    ),
    "tool-calls": (
        "{% for m in messages %}{% if m.tool_calls %}{% for call in m.tool_calls %}"
        "{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
        "{% else %}{{ m.role }}:{{ m.name }}:{{ m.content }}{% endif %}\n{% endfor %}",
        CALLS,
    ),
    "null-keys-are-absent": (
        "{{ 'content' in messages[1] }}{{ messages[1].content is defined }}"
        "{{ messages[0].keys() }}",
        CALLS,
    ),
    "reasoning": (
        "{{ messages[1].reasoning_content }}{{ messages[1].thinking }}{{ messages[1].reasoning }}"
        "{{ messages[0].thinking is defined }}{{ messages[1] | tojson }}",
        THOUGHTS,
    ),
    "values": (
        "{{ messages[0].content + 1 }}{{ messages[0].weight }}{{ messages[0].is_last }}"
        "{{ messages[0].tags }}{{ messages[0].none is defined }}{{ messages[0] }}",
        VALUES,
    ),
    # What cannot be rendered.
    "raises": "{{ raise_exception('Only ' + messages[0].role + '!') }}",
    "raises-another-type": "{{ raise_exception(3) }}",
    "raises-nothing": "{{ raise_exception() }}",
    "syntax": "{% if %}",
    "open-block": "{% for m in messages %}",
    "open-generation": "{% generation %}a",
    "break-outside": "{% if true %}{% break %}{% endif %}",
    "break-in-generation": "{% for m in messages %}{% generation %}{% break %}"
    "{% endgeneration %}{% endfor %}",
    "unknown-filter": "{{ 'a' | shout }}",
    "unknown-filter-later": "{% if messages %}{{ 'a' | shout }}{% endif %}",
    "unknown-test": "{{ 'a' is loud }}",
    "unknown-function": "{{ shout('a') }}",
    "unknown-tag": "{% do messages.append(1) %}",
    "unknown-codec": "{{ 'a'.encode('utf-9') }}",
    "undefined-attribute": "{{ missing.name }}",
    "undefined-sum": "{{ messages[0].content + missing }}",
    "undefined-special-token": "{{ messages[0].content + sep_token }}",
    "sum-of-types": "{{ messages[0].content + 3 }}",
    "divides-by-zero": "{{ 1 / 0 }}",
    "tojson-undefined": "{{ missing | tojson }}",
    "unsafe": "{{ ''.__class__.__mro__ }}",
    "changes-a-list": "{{ messages.append(1) }}",
    "changes-an-object": "{{ messages[0].update(role='x') }}",
    "private-namespace": "{% set ns = namespace(_a=1) %}",
    "private-namespace-later": "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep-loops": "{% for m in messages %}" * 25 + "{% endfor %}" * 25,
    "includes": "{% include 'other' %}",
    "extends": "{% extends 'other' %}",
    "long-range": "{{ range(100001) | list | length }}",
}

# Files of a folder, and which template a chat then uses. Bytes are in Latin-1.
FILES: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "config": {"tokenizer_config.json": '{"chat_template": "config"}'},
    "config-null": {"tokenizer_config.json": '{"chat_template": null}'},
    "config-list": {
        "tokenizer_config.json": json.dumps(
            {
                "chat_template": [
                    {"name": "rag", "template": "rag"},
                    {"name": "default", "template": "listed"},
                ]
            }
        )
    },
    "config-list-twice": {
        "tokenizer_config.json": json.dumps(
            {"chat_template": [{"name": "default", "template": text} for text in ("a", "b")]}
        )
    },
    "config-list-without-default": {
        "tokenizer_config.json": '{"chat_template": [{"name": "rag", "template": "rag"}]}'
    },
    "config-list-without-names": {
        "tokenizer_config.json": '{"chat_template": [{"template": "rag"}]}'
    },
    "config-object": {
        "tokenizer_config.json": '{"chat_template": {"default": "object", "rag": "rag"}}'
    },
    "config-object-without-default": {"tokenizer_config.json": '{"chat_template": {"rag": "rag"}}'},
    "jinja": {"chat_template.jinja": "file\r\n"},
    "jinja-and-config": {
        "chat_template.jinja": "file",
        "tokenizer_config.json": '{"chat_template": "config"}',
    },
    "jinja-with-a-mark": {"chat_template.jinja": "\xef\xbb\xbffile"},
    "jinja-not-utf-8": {"chat_template.jinja": "caf\xe9"},
    "jinja-and-others": {
        "chat_template.jinja": "file",
        "additional_chat_templates/rag.jinja": "rag",
        "tokenizer_config.json": '{"chat_template": "config"}',
    },
    "default-among-others": {
        "chat_template.jinja": "file",
        "additional_chat_templates/default.jinja": "additional",
    },
    "others-and-config": {
        "additional_chat_templates/rag.jinja": "rag",
        "tokenizer_config.json": '{"chat_template": "config"}',
    },
    "other-not-utf-8": {
        "chat_template.jinja": "file",
        "additional_chat_templates/rag.jinja": "caf\xe9",
    },
    "processor-and-config": {
        "chat_template.json": '{"chat_template": "processor"}',
        "tokenizer_config.json": '{"chat_template": "config"}',
    },
    "processor": {"chat_template.json": '{"chat_template": "processor"}'},
}


def _transformers() -> Any:
    return import_module("transformers")


def rendered(
    template: str, messages: Sequence[Mapping[str, Any]], special: Mapping[str, str]
) -> dict[str, Any]:
    """Return a case: what goes in, and the text or the name of the error that comes out.

    Messages and special tokens are left out where they are CHAT and SPECIAL.
    """
    empty = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))  # noqa: S106 - no password
    own = {name: text for name, text in special.items() if name == "image_token"}
    named = {name: text for name, text in special.items() if name not in own}
    tokenizer = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=empty, extra_special_tokens=own or None, **named
    )
    case: dict[str, Any] = {"template": template}
    if messages is not CHAT:
        case["messages"] = messages
    if special is not SPECIAL:
        case["special_tokens"] = special
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
        return {**case, "error": type(error).__name__}
    return {**case, "text": text}


def chosen(files: Mapping[str, str]) -> dict[str, Any]:
    """Return a case: the files of a folder, and the template or the name of the error."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))  # noqa: S106
        for file, text in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(text.encode("latin-1"))
        try:
            tokenizer = _transformers().PreTrainedTokenizerFast.from_pretrained(folder)
            template = tokenizer.get_chat_template()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
            return {"files": files, "error": type(error).__name__}
    return {"files": files, "template": template}


def main() -> None:
    """Write the file."""
    texts = {name: (template, CHAT, SPECIAL) for name, template in HANDED.items()}
    for name, neighbour in NEIGHBOURS.items():
        template, messages = (neighbour, CHAT) if isinstance(neighbour, str) else neighbour
        texts[name] = (template, messages, SPECIAL)
    every = "{{ [sep_token, cls_token, mask_token, image_token] | join(' ') }}"
    texts["every-special-token"] = (every, CHAT, ALL_SPECIAL)
    cases = {
        "messages": CHAT,
        "special_tokens": SPECIAL,
        "texts": {name: rendered(*case) for name, case in texts.items()},
        "files": {name: chosen(files) for name, files in FILES.items()},
    }
    write_peer_values("chat_templates", packages=["transformers", "jinja2"], cases=cases)


if __name__ == "__main__":
    main()
