"""Faults planted in real engines are found, in traces that tools/record_traces.py recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from refllm import InferencingParams, LocalEngine
from refllm.trace import Trace, open_trace, record
from refllm.trace.compare import compare
from refllm.trace.expected import Formulas
from refllm.trace.sides import formulas_for
from tools.record_traces import FAULTS, FOLDER, PROMPT, STEPS

CASES = [(engine, name) for engine, faults in FAULTS.items() for name in faults]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    to = tmp_path_factory.mktemp("trace") / "run.safetensors"
    params = InferencingParams(max_tokens=STEPS, temperature=0, repeat_penalty=1)
    return record("tiny-chat", PROMPT, to=to, params=params)


@pytest.fixture(scope="module")
def formulas(right: Trace) -> Formulas:
    found = formulas_for(right.metadata)
    assert found is not None
    return found


def recorded(engine: str, name: str) -> Path:
    return FOLDER / engine / f"{name.replace(' ', '-')}.safetensors"


@pytest.mark.parametrize("engine", FAULTS)
def test_an_engine_without_a_fault_differs_by_rounding_alone(
    engine: str, right: Trace, formulas: Formulas
) -> None:
    trace = open_trace(recorded(engine, "right"))
    assert trace.metadata.program.name == engine
    found = compare(right, trace, formulas=formulas)
    assert not found.is_different
    assert found.n_values > 60
    assert found.n_equal < found.n_values


def test_llama_cpp_multiplies_quantized_weights_as_int8_does(
    right: Trace, formulas: Formulas, tmp_path: Path
) -> None:
    params = InferencingParams(max_tokens=STEPS, temperature=0, repeat_penalty=1)
    engine = LocalEngine(numerics="int8")
    int8 = record("tiny-chat", PROMPT, to=tmp_path / "int8", params=params, engine=engine)
    trace = open_trace(recorded("llama.cpp", "right Q8_0"))
    found = compare(int8, trace, formulas=formulas)
    assert not found.is_different
    assert found.n_values > 60
    assert max(growth.share for growth in found.growth) < 1e-5
    found = compare(right, trace, formulas=formulas)
    assert found.first is not None
    assert (found.first.name, found.first.causes[0].name) == ("Qcur-0", "products of int8")


@pytest.mark.parametrize("engine", FAULTS)
def test_ten_faults_are_planted_in_each_engine(engine: str) -> None:
    assert len([each for each in FAULTS[engine].values() if each.value]) >= 10


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_a_fault_planted_in_an_engine_is_found_and_named(
    engine: str, name: str, right: Trace, formulas: Formulas
) -> None:
    found = compare(right, open_trace(recorded(engine, name)), formulas=formulas)
    planted = FAULTS[engine][name]
    if not planted.value:
        assert found.tokens is not None
        assert "BOS" in found.tokens.cause
        return
    assert found.first is not None
    assert (found.first.call, found.first.name) == (planted.call, planted.value)
    assert found.first.wrong == "B"
    assert name in [cause.name for cause in found.first.causes if cause.share == 1]
