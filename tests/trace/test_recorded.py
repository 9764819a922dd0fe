"""Faults planted in real engines are found, in traces that tools/record_traces.py recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from refllm import InferencingParams, LocalEngine
from refllm.trace import Trace, open_trace, record
from refllm.trace.compare import compare
from refllm.trace.expected import Formulas
from refllm.trace.sides import formulas_for
from tests.support.exported_models import MODELS
from tools.record_traces import ENGINES, FAULTS, FOLDER, MPNET_TEXTS, PROMPT, STEPS, TEXTS

CASES = [(engine, name) for engine, faults in FAULTS.items() for name in faults]


@dataclass(frozen=True, slots=True)
class Right:
    """refllm's trace of a model, and the model's formulas."""

    trace: Trace
    formulas: Formulas


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Right]:
    """By the model's name."""
    folder = tmp_path_factory.mktemp("trace")
    params = InferencingParams(max_tokens=STEPS, temperature=0, repeat_penalty=1)
    made = {}
    for model, prompt in {"tiny-chat": PROMPT, "tiny-embed": TEXTS}.items():
        trace = record(model, prompt, to=folder / model, params=params)
        formulas = formulas_for(trace.metadata)
        assert formulas is not None
        made[model] = Right(trace, formulas)
    return made


def recorded(engine: str, name: str) -> Path:
    return FOLDER / engine / f"{name.replace(' ', '-')}.safetensors"


@pytest.mark.parametrize("engine", FAULTS)
def test_an_engine_without_a_fault_differs_by_rounding_alone(
    engine: str, right: Mapping[str, Right]
) -> None:
    trace = open_trace(recorded(engine, "right"))
    assert trace.metadata.program.name == engine
    model = right[ENGINES[engine].model]
    found = compare(model.trace, trace, formulas=model.formulas)
    assert not found.is_different
    assert found.n_values >= 52
    assert found.n_equal < found.n_values
    # Of a llama the prompt alone is recorded.
    assert found.n_alone == sum(len(call.values) for call in model.trace.metadata.calls[1:]) * (
        model.trace.metadata.architecture == "llama"
    )
    assert 0 < max(growth.share for growth in found.growth) < 1e-5


def test_mpnets_attention_is_that_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = MODELS["mpnet"].make(tmp_path / "model")
    a = record(model, MPNET_TEXTS, to=tmp_path / "a")
    assert a.metadata.calls[0].n_tokens > 30
    formulas = formulas_for(a.metadata, model)
    found = compare(
        a, open_trace(recorded("sentence-transformers", "right mpnet")), formulas=formulas
    )
    assert not found.is_different
    assert (found.n_values, found.n_alone) == (26, 0)
    assert 0 < max(growth.share for growth in found.growth) < 1e-5


def test_llama_cpp_multiplies_quantized_weights_as_int8_does(
    right: Mapping[str, Right], tmp_path: Path
) -> None:
    model = right["tiny-chat"]
    params = InferencingParams(max_tokens=STEPS, temperature=0, repeat_penalty=1)
    engine = LocalEngine(numerics="int8")
    int8 = record("tiny-chat", PROMPT, to=tmp_path / "int8", params=params, engine=engine)
    trace = open_trace(recorded("llama.cpp", "right Q8_0"))
    found = compare(int8, trace, formulas=model.formulas)
    assert not found.is_different
    assert found.n_values > 60
    assert max(growth.share for growth in found.growth) < 1e-5
    found = compare(model.trace, trace, formulas=model.formulas)
    assert found.first is not None
    assert (found.first.name, found.first.causes[0].name) == ("Qcur-0", "products of int8")


@pytest.mark.parametrize("engine", FAULTS)
def test_ten_faults_are_planted_in_each_engine(engine: str) -> None:
    assert len([each for each in FAULTS[engine].values() if each.value]) >= 10


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_a_fault_planted_in_an_engine_is_found_and_named(
    engine: str, name: str, right: Mapping[str, Right]
) -> None:
    model, trace = right[ENGINES[engine].model], open_trace(recorded(engine, name))
    found = compare(model.trace, trace, formulas=model.formulas)
    planted = FAULTS[engine][name]
    if not planted.value:
        assert found.tokens is not None
        words = {"BOS missing": "BOS", "special tokens missing": "The special tokens"}
        assert words[name] in found.tokens.cause
        return
    assert found.first is not None
    assert (found.first.call, found.first.name) == (planted.call, planted.value)
    assert found.first.wrong == "B"
    named = [cause.name for cause in found.first.causes if cause.share == 1]
    assert (name in named) == planted.is_named
    # Queries alone do not show whether keys are turned.
    assert named[:1] == ([name] if planted.is_named else []) or name == "RoPE missing"
