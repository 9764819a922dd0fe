"""Chat templates: five that models have, damaged, and ones grown from a grammar of Jinja."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from random import Random
from typing import Any

from refllm.checkpoints.chat_renderer import Limits, default_renderer
from refllm.checkpoints.chat_template import CHATML, LLAMA_2, chat_prompt
from tools.attack.mutate import ODD_TEXTS, damaged_text, odd_value
from tools.attack.target import Input, Target

__all__ = ["TARGET"]

# How Python shows an object that has no text of its own: with its address, which is never the same.
OBJECT = re.compile("object at|(?:function|method|built-in|macro|generator) |0x[0-9a-f]{6}", re.I)
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# Written after the templates of well-known models: ChatML and Llama 2's are refllm's own.
TEMPLATES: Sequence[str] = (
    CHATML,
    LLAMA_2,
    """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    """{%- set ns = namespace(is_first=true, n=0) -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) and not ns.is_first -%}
        {{- raise_exception('roles must alternate: ' ~ message.role) -}}
    {%- endif -%}
    {%- set ns.is_first = false -%}
    {%- set ns.n = ns.n + (message.content | length) -%}
    {%- if message.content is string -%}
        {{- '[INST] ' + message.content + ' [/INST]' -}}
    {%- else -%}
        {%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{{- ns.n ~ eos_token -}}
""",
    """{%- macro show(value, depth=0) -%}
    {%- if value is mapping -%}
        {%- for key, item in value | dictsort -%}
            {{- '  ' * depth }}{{ key }}: {{ show(item, depth + 1) }}
        {%- endfor -%}
    {%- else -%}{{ value | tojson(indent=2) }}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {%- if message.tool_calls -%}{{ show(message.tool_calls) }}{%- continue -%}{%- endif -%}
    {%- generation -%}
        {{- show(message) | upper | replace('A', 'b') | truncate(200) -}}
    {%- endgeneration -%}
    {%- if loop.last -%}{%- break -%}{%- endif -%}
{%- endfor -%}
""",
)

NAMES = (
    "messages",
    "message",
    "x",
    "y",
    "bos_token",
    "loop",
    "tools",
    "ns",
    "range",
    "nothing",
)
KEYS = (
    "role",
    "content",
    "items()",
    "keys()",
    "index(1)",
    "first",
    "length",
    "__class__",
    "a",
    "append(1)",
)
FILTERS = (
    *("trim", "upper", "lower", "length", "tojson", "string", "int", "float", "list", "first"),
    *(
        "last",
        "join(', ')",
        "reverse | list",
        "sort",
        "unique | list",
        "capitalize",
        "title",
        "escape",
        "safe",
    ),
    *("default('d')", "replace('a', 'b')", "truncate(5)", "indent(3)", "center(80)", "wordwrap(3)"),
    *(
        "map('upper') | list",
        "map(attribute='role') | list",
        "selectattr('role', 'equalto', 'user') | list",
        "items | list",
    ),
    *(
        "rejectattr('content') | list",
        "groupby('role')",
        "batch(2) | list",
        "slice(3) | list",
        "sum",
        "max",
        "min",
    ),
    *("dictsort", "attr('role')", "round(2)", "abs", "format(1)", "urlize", "xmlattr", "striptags"),
    *("filesizeformat", "wordcount", "no_such", "tojson(indent=4)", "urlencode", "pprint", "e"),
)
TESTS = (
    "defined",
    "none",
    "string",
    "mapping",
    "iterable",
    "odd",
    "divisibleby(3)",
    "in([1])",
    "no_such",
)
OPERATORS = ("+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", ">", "and", "or", "in", "**")
SMALL = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "7",
    "1.5",
    "'a'",
    "''",
    "'é\\n'",
    "true",
    "none",
    "[]",
    "{}",
    "[1, 'a']",
)
LARGE = (
    "9999999999",
    "2 ** 64",
    "1e308",
    "10 ** 400",
    "'a' * 100000",
    "'ab' * 9999999",
    "9 ** 99999",
)
CALLS = (
    *(
        "range(3)",
        "range(20)",
        "namespace(a=1)",
        "dict(a=1)",
        "cycler('a', 'b').next()",
        "joiner()()",
    ),
    *(
        "raise_exception('no')",
        "strftime_now('x')",
        "messages.__class__",
        "''.join(['a'])",
        "lipsum.a",
    ),
    *(
        "'a b'.split()",
        "'%s' | format('a')",
        "'{0.a}'.format(x)",
        "'a'.encode('no')",
        "[].append(1)",
    ),
    *(
        "'a'.center(9)",
        "{}.items()",
        "{'a': 1}.get('b')",
        "range(99999999)",
        "'a'.zfill(9)",
        "self",
    ),
    *(
        "loop.cycle('a', 'b')",
        "caller()",
        "x.__init__",
        "''.format_map({})",
        "'a'.encode().decode()",
    ),
)
MAX_DEPTH = 4


def _expression(random: Random, depth: int = 0) -> str:
    if depth > MAX_DEPTH:
        return random.choice(SMALL)
    kind = random.choices(range(10), (9, 1, 9, 4, 3, 4, 3, 1, 1, 2))[0]
    if kind == 0:
        return random.choice(SMALL)
    if kind == 1:
        return random.choice(LARGE) if random.random() < 0.2 else "12345"
    if kind == 2:
        return random.choice(NAMES)
    if kind == 3:
        return random.choice(CALLS)
    inner = _expression(random, depth + 1)
    if kind == 4:
        return f"{inner}.{random.choice(KEYS)}"
    if kind == 5:
        return f"{inner} | {random.choice(FILTERS)}"
    if kind == 6:
        return f"({inner} {random.choice(OPERATORS)} {_expression(random, depth + 1)})"
    if kind == 7:
        key = random.choice(("0", "-1", "1:", "::2", "::0", "'role'", inner))
        return f"{inner}[{key}]"
    if kind == 8:
        return f"({inner} if {_expression(random, depth + 1)} is {random.choice(TESTS)} else 1)"
    return random.choice((f"[{inner}, {inner}]", f"{{'a': {inner}}}", f"not {inner}", f"-{inner}"))


def _statements(random: Random, depth: int = 0) -> str:
    return "".join(_statement(random, depth) for _ in range(random.choice((1, 1, 2, 3))))


def _statement(random: Random, depth: int) -> str:
    expression = _expression(random)
    kind = random.randrange(4 if depth > MAX_DEPTH else 18)
    name = random.choice(NAMES)
    if kind < 3:
        return f"{{{{ {expression} }}}}"
    if kind == 3:
        return random.choice(("text\n", "{# a comment #}", "  ", *ODD_TEXTS[:25]))
    if kind < 6:
        return f"{{% set {random.choice((name, f'{name}.a', 'x, y'))} = {expression} %}}"
    inner = _statements(random, depth + 1)
    if kind < 9:
        other = random.choice(("", f"{{% else %}}{inner}", f"{{% elif {expression} %}}b"))
        return f"{{% if {expression} %}}{inner}{other}{{% endif %}}"
    if kind < 13:
        over = random.choice(("messages", "messages", "range(3)", expression))
        names = random.choice(("message", "x", "x, y"))
        return f"{{%- for {names} in {over} %}}{inner}{{% endfor -%}}"
    if kind == 13:
        call = random.choice(
            (f"{{{{ f({expression}) }}}}", f"{{% call f(1) %}}{inner}{{% endcall %}}")
        )
        return f"{{% macro f(x, y=2) %}}{inner}{{% endmacro %}}{call}"
    if kind == 14:
        return f"{{% filter {random.choice(FILTERS)} %}}{inner}{{% endfilter %}}"
    if kind == 15:
        return f"{{% generation %}}{inner}{{% endgeneration %}}"
    if kind == 16:
        return random.choice(
            ("{% break %}", "{% continue %}", "{% do x %}", "{% raw %}{{{% endraw %}")
        )
    return random.choice(
        (
            f"{{% set x %}}{inner}{{% endset %}}",
            f"{{% with x = {expression} %}}{inner}{{% endwith %}}",
            f"{{% block b %}}{inner}{{% endblock %}}",
            f"{{% include {expression} %}}",
            f"{{% extends {expression} %}}",
            f"{{% import 'a' as b %}}{inner}",
            f"{{% autoescape {expression} %}}{inner}{{% endautoescape %}}",
            "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        )
    )


def _messages(random: Random) -> list[Any]:
    messages: list[Any] = []
    for number in range(random.choice((1, 1, 2, 3, 5)) if random.random() < 0.98 else 0):
        role = ("user", "assistant")[number % 2] if random.random() < 0.8 else "system"
        content: Any = random.choice(("Hello!", "a  b\n", *ODD_TEXTS))
        if random.random() < 0.15:
            content = [{"type": "text", "text": content}]
        message = {"role": role, "content": content}
        if random.random() < 0.15:
            key = random.choice(("content", "role", "name", "tool_calls", "thinking", "reasoning"))
            message[key] = odd_value(random)
        messages.append(odd_value(random) if random.random() < 0.01 else message)
    return messages


def _build(random: Random, folder: Path) -> Input:
    kind = random.random()
    if kind < 0.4:
        template = random.choice(TEMPLATES)
        for _ in range(random.choice((0, 1, 1, 2))):
            template = _damaged(random, template)
    else:
        template = _statements(random)
        if random.random() < 0.1:
            template = damaged_text(random, template)
    messages = _messages(random)
    return Input((template, messages), len(template) + len(repr(messages)))


def _damaged(random: Random, template: str) -> str:
    """One change to the text; or an expression or a statement put into it."""
    kind = random.random()
    if kind < 0.4:
        return damaged_text(random, template)
    ends = [match.end() for match in re.finditer("[}%]}", template)]
    if kind < 0.6 and ends:
        place = random.choice(ends)
        return template[:place] + _statement(random, MAX_DEPTH - 1) + template[place:]
    names = [*re.finditer("message|messages|loop|content|'[a-z]+'", template)]
    if not names:
        return damaged_text(random, template)
    name = random.choice(names)
    return template[: name.start()] + _expression(random, 2) + template[name.end() :]


def _read(given: Input) -> bytes:
    template, messages = given.value
    text = chat_prompt(template, messages, special_tokens=SPECIAL_TOKENS)
    return b"an address" if OBJECT.search(text) else text.encode("utf-8", "surrogatepass")


def _children() -> Collection[int]:
    return [child.process_id for child in default_renderer.children]


def _prepare(folder: Path) -> None:
    for template in TEMPLATES:
        assert chat_prompt(
            template, [{"role": "user", "content": "a"}], special_tokens=SPECIAL_TOKENS
        )


TARGET = Target(
    name="templates",
    what="chat templates and messages",
    weight=50,
    build=_build,
    read=_read,
    max_seconds=Limits().seconds + 1.0,  # a process that was ended is started again
    spare_bytes=200_000_000 + Limits().memory_bytes,
    prepare=_prepare,
    helpers=_children,
)
