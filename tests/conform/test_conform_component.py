"""A target that is a component: refllm hosts it, and what it answers is what refllm answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refllm.api import InferencingParams
from refllm.conform.case import Case, Group
from refllm.conform.reply import Answer, HarnessError, NotApplicable, Reply, TargetError
from refllm.conform.targets.component import ComponentTarget
from refllm.conform.targets.itself import SuiteModels
from refllm.engine import LocalEngine
from refllm.models import bundled
from tests.guests.build import component

PROMPT = "Once upon a time"
PARAMS = {
    "max_tokens": 7,
    "repeat_penalty": 1.3,
    "repeat_penalty_last_n_token_count": 5,
    "temperature": 1.7,
    "top_k": 11,
    "top_p": 0.6,
}
TEXTS = ["A cat.", "", "Grüße, 你好 🙂"]
SEED = 2**64 - 1


def case(group: Group, **asked: object) -> Case:
    return Case(id=f"{group}/a", group=group, proves="-", clause="-", input=asked, expected={})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> SuiteModels:
    return SuiteModels(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def target(models: SuiteModels) -> Iterator[ComponentTarget]:
    target = ComponentTarget(component("remote"), models=models)
    target.start()
    yield target
    target.stop()


def inferred(target: ComponentTarget, **asked: object) -> Reply:
    return target.run(case("api", operation="infer", model="tiny-chat", prompt=PROMPT, **asked))


@pytest.mark.network
def test_a_component_names_its_groups() -> None:
    target = ComponentTarget(component("remote"))
    try:
        implementation = target.start()
    finally:
        target.stop()
    assert implementation.groups == {"text", "embeddings", "api"}
    assert implementation.draws_as_refllm


@pytest.mark.network
@pytest.mark.parametrize("model", ["tiny-chat", "tiny-chat-Q4_0"])
def test_a_text_is_the_model_s_with_the_case_s_seed(
    model: str, models: SuiteModels, target: ComponentTarget
) -> None:
    asked = {"model": model, "prompt": PROMPT, "params": PARAMS, "seed": str(SEED)}
    reply = target.run(case("text", **asked))
    engine = LocalEngine(roots=[models.path(model).parent], seed=SEED)
    expected = engine.infer(model, PROMPT, InferencingParams(**PARAMS))  # type: ignore[arg-type]
    usage = {
        "prompt_token_count": expected.usage.prompt_token_count,
        "generated_token_count": expected.usage.generated_token_count,
    }
    assert reply == Answer({"text": expected.text, "usage": usage})


@pytest.mark.network
def test_embeddings_are_the_model_s_float32_numbers(target: ComponentTarget) -> None:
    reply = target.run(case("embeddings", model="tiny-embed", texts=TEXTS))
    expected = LocalEngine(roots=[bundled.ROOT]).generate_embeddings("tiny-embed", TEXTS)
    assert isinstance(reply, Answer)
    assert np.array_equal(reply.result["embeddings"], np.array(expected.embeddings))
    assert reply.result["usage"] == {"prompt_token_count": expected.usage.prompt_token_count}


@pytest.mark.network
def test_a_case_without_parameters_has_the_interface_s(target: ComponentTarget) -> None:
    expected = LocalEngine(roots=[bundled.ROOT]).infer("tiny-chat", PROMPT)
    reply = inferred(target)
    assert isinstance(reply, Answer)
    assert reply.result["text"] == expected.text


@pytest.mark.network
@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        ({"params": {"repeat_penalty": 0}}, "invalid-input", "repeat_penalty"),
        ({"setup": {"ai_models": ["tiny-embed"]}}, "invalid-input", "does not have access"),
        ({"setup": {"enabled": False}}, "runtime-error", "Local LLM operations are not supported"),
    ],
)
def test_an_error_of_the_interface_passes_through_the_component(
    asked: dict[str, object], kind: str, says: str, target: ComponentTarget
) -> None:
    reply = inferred(target, **asked)
    assert isinstance(reply, Answer)
    assert reply.result["error"]["kind"] == kind
    assert says in reply.result["error"]["message"]


@pytest.mark.network
def test_files_of_a_case_are_found_as_models(target: ComponentTarget) -> None:
    asked = {"operation": "infer", "model": "damaged", "prompt": PROMPT}
    reply = target.run(case("api", setup={"files": {"llama/damaged.gguf": "47475546"}}, **asked))
    assert isinstance(reply, Answer)
    assert "damaged.gguf" in reply.result["error"]["message"]


@pytest.mark.network
def test_a_model_that_makes_embeddings_writes_no_text(target: ComponentTarget) -> None:
    reply = target.run(case("api", operation="infer", model="tiny-embed", prompt=PROMPT))
    assert reply == Answer({"error": {"kind": "model-not-supported", "message": ""}})


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 2**32),
        ("top_k", 1.5),
        ("temperature", float("nan")),
        ("top_p", 1e39),
    ],
)
def test_a_number_that_the_interface_s_types_do_not_have_is_not_applicable(
    name: str, value: float, target: ComponentTarget
) -> None:
    reply = inferred(target, params={name: value})
    assert isinstance(reply, NotApplicable)
    assert name in reply.reason


@pytest.mark.network
@pytest.mark.parametrize(
    ("group", "asked", "reason"),
    [
        ("embeddings", {"model": "tiny-embed", "texts": ["a"], "max_tokens": 4}, "no max_tokens"),
        ("api", {"operation": "http", "not_in": {"python": "only HTTP can"}}, "only HTTP can"),
    ],
)
def test_cases_that_no_component_can_answer_are_not_applicable(
    group: Group, asked: dict[str, object], reason: str, target: ComponentTarget
) -> None:
    reply = target.run(case(group, **asked))
    assert isinstance(reply, NotApplicable)
    assert reason in reply.reason


@pytest.mark.network
def test_a_component_that_does_something_else_is_broken() -> None:
    target = ComponentTarget(component("probe"))
    target.start()
    try:
        reply = inferred(target)
    finally:
        target.stop()
    assert isinstance(reply, HarnessError)
    assert "KeyError: '/infer'" in reply.message  # the guest's own words


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no component at"),
        (b"print('hello')", "is not WebAssembly"),
        (b"\0asm\1\0\0\0", "is a core module, not a component"),
    ],
)
def test_a_file_that_is_no_component_is_refused(
    content: bytes | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "app.wasm"
    if content is not None:
        path.write_bytes(content)
    target = ComponentTarget(path)
    with pytest.raises(TargetError, match=problem):
        target.start()
    target.stop()
