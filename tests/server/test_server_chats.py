"""Chats with models whose templates are of all kinds, as HTTP clients ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refllm.api import InferencingParams, LlmError
from refllm.checkpoints.chat_renderer import Limits, Renderer
from refllm.engine import LocalEngine
from refllm.server.jobs import TextJob, TextRequest
from refllm.server.limits import Limits as ServerLimits
from refllm.testing.server_process import running_server
from tests.support.client import Answer, ask
from tests.support.model_files import tiny_llama_gguf

MESSAGES = [{"role": "user", "content": "Hello!"}]
LONG = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"

# Template → status and words. With 400 the messages may be at fault; with 500 the model is.
TEMPLATES: dict[str, tuple[str, int, str]] = {
    "refuses": ("{{ raise_exception('Only tools!') }}", 400, "refuses the messages: Only tools!"),
    "undefined": ("{{ messages[3].content }}", 400, "makes nothing of the messages: list object"),
    "types": ("{{ messages[0].content + 1 }}", 400, "makes nothing of the messages: TypeError"),
    "codec": ("{{ 'a'.encode('utf-9') }}", 400, "unknown encoding: utf-9"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", 400, "recursion"),
    "syntax": ("{% if %}", 500, "cannot be used: Expected an expression"),
    "break": ("{% break %}", 500, "cannot be used: 'break' outside loop"),
    "filter": ("{{ 'a' | shout }}", 500, "cannot be used: No filter named 'shout'."),
    "deep": ("{% if true %}" * 200 + "{% endif %}" * 200, 500, "cannot be used: too many levels"),
    "unsafe": ("{{ ''.__class__.a }}", 500, "cannot be used: access to attribute '__class__'"),
    "long": ("{% for i in range(99999) %}" + "x" * 50 + "{% endfor %}", 500, "writes more than"),
    "number": ("3", 500, "chat_template must be text, is 3"),
}
GOOD = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose models have these templates; the model's name is the template's."""
    folder = tmp_path_factory.mktemp("project")
    models = folder / ".spin" / "ai-models" / "llama"
    models.mkdir(parents=True)
    templates: dict[str, object] = {name: template for name, (template, *_) in TEMPLATES.items()}
    templates |= {"number": 3, "good": GOOD}
    for name, template in templates.items():
        metadata = {"tokenizer.chat_template": template}
        tiny_llama_gguf(models / f"{name}.gguf", n_layers=1, metadata=metadata)
    return folder


@pytest.fixture(scope="module")
def url(project: Path) -> Iterator[str]:
    with running_server(folder=project) as server:
        yield server.url


def chat(url: str, model: str, **more: object) -> Answer:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 2, **more}
    return ask(url, "/v1/chat/completions", body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_s_error_is_an_answer_that_names_the_template(
    name: str, stream: bool, url: str
) -> None:
    _, status, expected = TEMPLATES[name]
    answer = chat(url, name, stream=stream)
    assert answer.status == status
    error = answer.json["error"]
    assert expected in error["message"]
    assert "chat template" in error["message"] or "chat_template" in error["message"]
    assert error["code"] == ("invalid-input" if status == 400 else "runtime-error")
    assert b"bug in refllm" not in answer.body


def test_after_templates_that_fail_a_good_one_is_answered(url: str) -> None:
    for name in ("recursion", "deep", "long"):
        chat(url, name)
    asked = {"prompt": "Hello!", "model": "good", "max_tokens": 2}
    _, completion = (ask(url, "/v1/completions", asked).json for _ in range(2))  # it is known
    answer = chat(url, "good").json
    assert answer["choices"][0]["message"]["content"] == completion["choices"][0]["text"]
    assert answer["usage"] == completion["usage"]


def test_a_slow_chat_template_fails_its_own_request_only(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = project / ".spin" / "ai-models"
    metadata: dict[str, Any] = {"tokenizer.chat_template": LONG}
    tiny_llama_gguf(models / "llama" / "loops.gguf", n_layers=1, metadata=metadata)
    params = InferencingParams(max_tokens=1)
    request = TextRequest(model="loops", prompt=MESSAGES, params=params, seed=0)
    job = TextJob(request, deliver=list, deadline=0)
    engine, limits = LocalEngine(roots=[models]), ServerLimits()
    job.load(engine, limits)
    with Renderer(Limits(seconds=0.2)) as renderer:
        monkeypatch.setattr("refllm.checkpoints.chat_template.default_renderer", renderer)
        with pytest.raises(LlmError, match=r"did not finish within 0\.2 seconds$"):
            job.prepare(engine, limits)
