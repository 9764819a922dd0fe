"""The processes that render chat templates: their limits, their end, and sharing them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.checkpoints import chat_renderer
from refllm.checkpoints.chat_renderer import Limits, Renderer
from tests.conftest import HUNG_SECONDS
from tests.support.client import eventually

CHILD = [sys.executable, "-m", "refllm.checkpoints.chat_renderer_child"]
SECONDS = HUNG_SECONDS
# Ten thousand million rounds: minutes, unless something ends them.
LONG = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
HAS_FORK = pytest.mark.skipif(sys.platform == "win32", reason="no fork")
HAS_MEMORY_LIMIT = pytest.mark.skipif(sys.platform != "linux", reason="no RLIMIT_AS")


def output_of(program: str) -> str:
    """What a Python process prints on standard output, which ends well."""
    return subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
    ).stdout


def child_ids(renderer: Renderer) -> set[int]:
    return {child.process_id for child in renderer.children}


# Limits


def test_a_template_that_takes_too_long_is_ended_and_the_next_is_not() -> None:
    with Renderer(Limits(seconds=SECONDS)) as renderer:
        renderer.render("a", {})
        first = child_ids(renderer)
        renderer.limits = Limits(seconds=0.2)
        with pytest.raises(LlmRuntimeError, match=r"did not finish within 0\.2 seconds$"):
            renderer.render(LONG, {})
        assert not child_ids(renderer)
        renderer.limits = Limits(seconds=SECONDS)
        assert renderer.render("b", {}) == "b"
        assert not child_ids(renderer) & first


@HAS_MEMORY_LIMIT
def test_a_template_that_needs_too_much_memory_is_refused() -> None:
    with Renderer(Limits(seconds=SECONDS, memory_bytes=2**28)) as renderer:
        for template in ("{{ ('x' * n) | length }}", "{{ '{:>{n}}'.format(1, n=n) }}"):
            with pytest.raises(LlmRuntimeError, match="needs more than 256 MiB of memory"):
                renderer.render(template, {"n": 2**28})
        assert renderer.render("{{ ('x' * n) | length }}", {"n": 100}) == "100"


def test_a_text_is_as_long_as_the_limit_and_no_longer() -> None:
    with Renderer(Limits(seconds=SECONDS, characters=100)) as renderer:
        template = "{% for i in range(n) %}x{% endfor %}"
        assert renderer.render(template, {"n": 100}) == "x" * 100
        with pytest.raises(LlmRuntimeError, match="writes more than 100 characters"):
            renderer.render(template, {"n": 101})


def test_messages_that_are_too_long_are_the_caller_s_mistake() -> None:
    with Renderer(Limits(characters=10)) as renderer:
        with pytest.raises(InvalidInput, match="bytes as JSON, and may have 60"):
            renderer.render("", {"a": "x" * 60})
        assert not child_ids(renderer)


# Children


def test_a_child_stays_for_the_next_chat() -> None:
    with Renderer(Limits(seconds=SECONDS)) as renderer:
        renderer.render("a", {})
        first = child_ids(renderer)
        with pytest.raises(InvalidInput):
            renderer.render("{{ raise_exception('no') }}", {})
        with pytest.raises(LlmRuntimeError):
            renderer.render("{% if %}", {})
        renderer.render("b", {})
        assert child_ids(renderer) == first
        assert len(first) == 1


def test_of_children_without_a_chat_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_renderer, "IDLE_SECONDS", 0.01)
    with Renderer() as renderer:
        children = [renderer._new_child() for _ in range(3)]
        for child in children:
            renderer._give_back(child, is_usable=True)
        eventually(lambda: len(renderer.children) <= 1, seconds=SECONDS)
        assert renderer.children == {children[-1]}
        assert renderer.render("{{ word }}", {"word": "hello"}) == "hello"
        assert renderer.children == {children[-1]}


def test_a_child_that_has_ended_is_replaced() -> None:
    with Renderer(Limits(seconds=SECONDS)) as renderer:
        renderer.render("a", {})
        [child] = renderer.children
        child.kill()
        assert renderer.render("{{ a }}", {"a": "b"}) == "b"
        assert child not in renderer.children


def test_threads_get_what_each_asked_for() -> None:
    template = "{% for i in range(200) %}{{ n }} {% endfor %}"
    with Renderer(Limits(seconds=SECONDS)) as renderer, ThreadPoolExecutor(8) as threads:
        texts = threads.map(lambda n: renderer.render(template, {"n": n}), range(100))
        assert list(texts) == [f"{n} " * 200 for n in range(100)]
        assert 1 <= len(child_ids(renderer)) <= 4


def test_a_renderer_that_is_closed_has_no_child_and_renders_no_more() -> None:
    renderer = Renderer(Limits(seconds=SECONDS))
    renderer.render("a", {})
    [child] = renderer.children
    renderer.close()
    assert not child.is_alive
    assert not renderer.children
    with pytest.raises(LlmRuntimeError, match="no longer rendered"):
        renderer.render("a", {})


@HAS_FORK
def test_a_process_that_was_forked_off_starts_its_own_child() -> None:
    program = """
import os, sys
from refllm.checkpoints.chat_renderer import default_renderer as renderer
def ids():
    return {child.process_id for child in renderer.children}
renderer.render("a", {})
before = ids()
if os.fork() == 0:
    assert renderer.render("{{ a }}", {"a": "forked"}) == "forked"
    assert not ids() & before
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
assert renderer.render("{{ a }}", {"a": "here"}) == "here"
print(ids() == before)
"""
    assert output_of(program) == "True\n"


@HAS_FORK
def test_a_process_ends_while_a_template_is_rendered_and_so_does_the_child() -> None:
    program = f"""
import threading
from refllm.checkpoints.chat_renderer import Child, Limits, Renderer
renderer, started = Renderer(Limits(seconds=3600)), threading.Event()
write = Child.write
def noted(child, data):
    write(child, data)
    if b"template" in data:
        started.set()
Child.write = noted
threading.Thread(target=renderer.render, args=({LONG!r}, {{}}), daemon=True).start()
started.wait()
print(*(child.process_id for child in renderer.children))
"""
    child_id = int(output_of(program))
    with pytest.raises(ProcessLookupError):
        os.kill(child_id, 0)


def frame(content: dict[str, Any]) -> bytes:
    body = json.dumps(content).encode()
    return struct.pack(">I", len(body)) + body


def limits(*, seconds: float) -> dict[str, Any]:
    return {"seconds": seconds, "memory_bytes": 2**29, "characters": 100}


def test_a_child_ends_where_its_parent_does() -> None:
    ended = subprocess.run(
        CHILD, input=frame(limits(seconds=1)), capture_output=True, check=False, timeout=SECONDS
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b'"jinja2"' in ended.stdout


def test_an_orphaned_renderer_ends_at_its_time_limit() -> None:
    request = frame({"template": LONG, "variables": {}, "is_strict": False})
    ended = subprocess.run(
        CHILD,
        input=frame(limits(seconds=-4.9)) + request,
        capture_output=True,
        check=False,
        timeout=SECONDS,
    )
    assert ended.returncode == 1


def test_a_child_imports_nothing_that_computes() -> None:
    program = "import sys, refllm.checkpoints.chat_renderer_child; print(*sys.modules)"
    modules = set(output_of(program).split())
    assert "jinja2" in modules
    assert (
        not {"numpy", "numba", "gguf", "tokenizers", "refllm.checkpoints.chat_renderer"} & modules
    )


def test_a_template_finds_nothing_of_the_parent_s_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "open-sesame")
    started: list[dict[str, str]] = []
    popen = subprocess.Popen

    def noting(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(options["env"])
        return popen(*args, **options)

    monkeypatch.setattr("refllm.checkpoints.chat_renderer.subprocess.Popen", noting)
    with Renderer(Limits(seconds=SECONDS)) as renderer:
        renderer.render("a", {})
    assert len(started) == 1
    assert "PYTHONPATH" in started[0]
    assert "SECRET_OF_THE_PARENT" not in started[0]


def test_an_old_jinja_whose_sandbox_can_be_left_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refllm.checkpoints.chat_renderer.MIN_JINJA", (99, 0, 1))
    with Renderer() as renderer, pytest.raises(LlmRuntimeError, match=r"jinja2 99\.0\.1 or newer"):
        renderer.render("a", {})
