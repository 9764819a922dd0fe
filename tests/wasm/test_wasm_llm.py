"""`fermyon:spin/llm` as a component sees it: Spin's SDK gets what the Python API returns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refllm.api import InferencingParams, InvalidInput, LlmRuntimeError
from refllm.engine import LocalEngine
from refllm.wasm.host import Host, Program, Services
from tests.guests.build import component
from tests.guests.calls import PROMPT, TEXTS, UNUSABLE, USABLE
from tests.guests.models import model_roots

pytestmark = pytest.mark.network  # the SDKs that guests are built with


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return model_roots(tmp_path_factory.mktemp("ai-models"))


@pytest.fixture(scope="module")
def engine(roots: tuple[Path, ...]) -> LocalEngine:
    return LocalEngine(roots=roots)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def sdk_5(host: Host) -> Program:
    return host.load(component("llm_only"))


@pytest.fixture(scope="module")
def unversioned(host: Host) -> Program:
    return host.load(component("llm_unversioned"))


def answer(
    host: Host, guest: Program, engine: LocalEngine, function: str, *arguments: object
) -> Any:
    """What the guest gets when it calls the function."""
    call = json.dumps({"function": function, "arguments": arguments})
    result = host.call(guest, "run", [call], Services(engine))
    assert isinstance(result, str)
    return json.loads(result)


def test_infer_returns_the_text_and_usage_of_the_python_api(
    host: Host, sdk_5: Program, engine: LocalEngine
) -> None:
    expected = asdict(engine.infer("tiny-chat", PROMPT))
    assert answer(host, sdk_5, engine, "infer", "tiny-chat", PROMPT) == expected
    assert expected["usage"]["generated_token_count"] > 0


@pytest.mark.parametrize("options", USABLE, ids=str)
def test_every_usable_parameter_has_the_effect_that_it_has_in_python(
    options: dict[str, Any], host: Host, sdk_5: Program, engine: LocalEngine
) -> None:
    expected = asdict(engine.infer("tiny-chat", PROMPT, InferencingParams(**options)))
    got = answer(host, sdk_5, engine, "infer_with_options", "tiny-chat", PROMPT, options)
    assert got == expected


def test_no_parameters_are_the_default_ones(
    host: Host, sdk_5: Program, engine: LocalEngine
) -> None:
    expected = asdict(engine.infer("tiny-chat", PROMPT, None))
    assert answer(host, sdk_5, engine, "raw_infer", "tiny-chat", PROMPT, None) == expected


def test_the_parameters_arrive_each_in_its_place(
    host: Host, sdk_5: Program, engine: LocalEngine
) -> None:
    options = InferencingParams(
        max_tokens=7,
        repeat_penalty=1.3,
        repeat_penalty_last_n_token_count=5,
        temperature=1.7,
        top_k=11,
        top_p=0.6,
    )
    in_order = list(asdict(options).values())
    expected = asdict(engine.infer("tiny-chat", PROMPT, options))
    assert answer(host, sdk_5, engine, "raw_infer", "tiny-chat", PROMPT, in_order) == expected


@pytest.mark.parametrize("guest", ["sdk_5", "unversioned"])
def test_embeddings_are_the_same_float32_bits(
    guest: str, host: Host, engine: LocalEngine, request: pytest.FixtureRequest
) -> None:
    expected = engine.generate_embeddings("tiny-embed", TEXTS)
    program = request.getfixturevalue(guest)
    got = answer(host, program, engine, "generate_embeddings", "tiny-embed", TEXTS)
    bits = np.asarray(expected.embeddings, np.float32).view(np.uint32)
    assert (np.asarray(got["embeddings"], np.float32).view(np.uint32) == bits).all()
    assert got["usage"] == {"prompt_token_count": expected.usage.prompt_token_count}


def test_no_texts_have_no_embeddings(host: Host, sdk_5: Program, engine: LocalEngine) -> None:
    got = answer(host, sdk_5, engine, "generate_embeddings", "tiny-embed", [])
    assert got == {"embeddings": [], "usage": {"prompt_token_count": 0}}


@pytest.mark.parametrize("options", UNUSABLE, ids=str)
def test_a_parameter_that_cannot_be_used_is_invalid_input(
    options: dict[str, float], host: Host, sdk_5: Program, engine: LocalEngine
) -> None:
    with pytest.raises(InvalidInput) as caught:
        engine.infer("tiny-chat", PROMPT, InferencingParams(**options))  # type: ignore[arg-type]
    got = answer(host, sdk_5, engine, "infer_with_options", "tiny-chat", PROMPT, options)
    assert got == {"error": "InvalidInput", "message": str(caught.value)}


def test_a_prompt_that_is_too_long_is_invalid_input(
    host: Host, sdk_5: Program, engine: LocalEngine
) -> None:
    prompt = "the " * 5000
    with pytest.raises(InvalidInput) as caught:
        engine.infer("tiny-chat", prompt)
    got = answer(host, sdk_5, engine, "infer", "tiny-chat", prompt)
    assert got == {"error": "InvalidInput", "message": str(caught.value)}


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("infer", ["llama2-chat", PROMPT]), ("generate_embeddings", ["tiny-embed", TEXTS])],
)
def test_a_model_that_the_component_may_not_use_is_the_contract_s_access_error(
    function: str, arguments: list[object], host: Host, sdk_5: Program, roots: tuple[Path, ...]
) -> None:
    engine = LocalEngine(roots=roots, allowed_models=["tiny-chat"])
    model = arguments[0]
    assert answer(host, sdk_5, engine, function, *arguments) == {
        "error": "InvalidInput",
        "message": f"The component does not have access to use '{model}'. To give the component "
        f"access, add '{model}' to the 'ai_models' key for the component in your spin.toml "
        "manifest",
    }


def test_an_unknown_embedding_model_is_not_supported(
    host: Host, sdk_5: Program, engine: LocalEngine
) -> None:
    got = answer(host, sdk_5, engine, "generate_embeddings", "no-such-model", TEXTS)
    assert got == {"error": "ModelNotSupported", "message": None}


def test_a_model_of_the_other_kind_is_not_supported(
    host: Host, sdk_5: Program, engine: LocalEngine
) -> None:
    got = answer(host, sdk_5, engine, "infer", "tiny-embed", PROMPT)
    assert got == {"error": "ModelNotSupported", "message": None}


def test_a_damaged_model_is_a_runtime_error_that_names_its_file(
    host: Host, sdk_5: Program, engine: LocalEngine
) -> None:
    with pytest.raises(LlmRuntimeError, match=r"broken-chat\.gguf") as caught:
        engine.infer("broken-chat", PROMPT)
    got = answer(host, sdk_5, engine, "infer", "broken-chat", PROMPT)
    assert got == {"error": "RuntimeError", "message": str(caught.value)}


def test_an_engine_that_is_switched_off_is_a_runtime_error(
    host: Host, sdk_5: Program, roots: tuple[Path, ...]
) -> None:
    engine = LocalEngine(roots=roots, enabled=False)
    assert answer(host, sdk_5, engine, "infer", "tiny-chat", PROMPT) == {
        "error": "RuntimeError",
        "message": "Local LLM operations are not supported in this version of Spin.",
    }


@pytest.mark.parametrize("params", [None, {}, {"max_tokens": 7, "top_k": 3}], ids=str)
def test_the_unversioned_interface_infers_the_same(
    params: dict[str, Any] | None, host: Host, unversioned: Program, engine: LocalEngine
) -> None:
    options = None if params is None else InferencingParams(**params)
    record = None if options is None else asdict(options)
    expected = asdict(engine.infer("tiny-chat", PROMPT, options))
    assert answer(host, unversioned, engine, "infer", "tiny-chat", PROMPT, record) == expected


def test_the_unversioned_interface_has_the_same_errors(
    host: Host, unversioned: Program, engine: LocalEngine
) -> None:
    got = answer(host, unversioned, engine, "generate_embeddings", "no-such-model", TEXTS)
    assert got == {"error": "ModelNotSupported", "message": None}
