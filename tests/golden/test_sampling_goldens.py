from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.api import InferencingParams, LlmError
from refllm.sampling import apply_penalty, apply_temperature, sample, splitmix64, uniform

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "golden" / "sampling"
TOOL = PROJECT / "tools" / "make_sampling_goldens.py"

GOLDEN = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
CASES = GOLDEN["cases"]
ANSWERED = [case for case in CASES if "stages" in case]
REFUSED = [case for case in CASES if "error" in case]
DRAWN = [case for case in ANSWERED if case["stages"][-1]["stage"] != "argmax"]

# A probability inherits the error of exp (1.16 ulp here, 2 allowed) from its numerator and from
# the denominator, and three roundings: 4 ulp is what the folder's README grants.
PROBABILITY_ULPS = 4


def floats(strings: list[str]) -> list[float]:
    return [float.fromhex(string) for string in strings]


def logits_of(case: dict[str, Any]) -> NDArray[np.float32]:
    return np.array(floats(case["logits"]), dtype=np.float32)


def params_of(case: dict[str, Any]) -> InferencingParams:
    params: dict[str, Any] = {
        key: float.fromhex(value) if isinstance(value, str) else value
        for key, value in case["params"].items()
    }
    return InferencingParams(**params)


def stage_of(case: dict[str, Any], stage: str) -> dict[str, Any]:
    return next(entry for entry in case["stages"] if entry["stage"] == stage)


def assert_within_tolerance(actual: list[float], expected: list[float]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        normal = e >= sys.float_info.min
        assert abs(a - e) <= (PROBABILITY_ULPS if normal else 1) * math.ulp(e), (a.hex(), e.hex())


def test_the_tool_writes_the_same_bytes_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(TOOL), str(tmp_path)], check=True)
    assert (tmp_path / "cases.json").read_bytes() == (FOLDER / "cases.json").read_bytes()


def test_the_tool_refuses_a_draw_that_rounding_decides() -> None:
    tool = load_tool()
    defaults = {
        "proves": "Nothing.",
        "clause": "draw",
        "profile": "contract",
        "repeat_penalty": 1.0,
        "repeat_penalty_last_n_token_count": 64,
        "temperature": 1.0,
        "top_k": 40,
        "top_p": 1.0,
        "previous_tokens": [],
    }
    share_of_the_first = 1 / (1 + math.exp(-1))
    question = {"id": "unfair", "logits": [1.0, 0.0], "u": share_of_the_first}
    with pytest.raises(tool.UnfairCaseError, match=r"unfair: a sum of 0\.73"):
        tool.golden_case(question, defaults)


def load_tool() -> Any:
    spec = importlib.util.spec_from_file_location("make_sampling_goldens", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", ANSWERED, ids=itemgetter("id"))
def test_the_token_is_the_golden_one(case: dict[str, Any]) -> None:
    step = sample(
        logits_of(case),
        params_of(case),
        case["previous_tokens"],
        float.fromhex(case["u"]),
        profile=case["profile"],
    )
    assert step.token == case["token"]


@pytest.mark.parametrize("case", ANSWERED, ids=itemgetter("id"))
def test_every_stage_leaves_the_golden_candidates(case: dict[str, Any]) -> None:
    step = sample(
        logits_of(case),
        params_of(case),
        case["previous_tokens"],
        float.fromhex(case["u"]),
        profile=case["profile"],
    )
    expected = [entry for entry in case["stages"] if "probabilities" in entry]
    assert len(step.stages) == len(expected)
    for stage, entry in zip(step.stages, expected, strict=True):
        assert stage.candidates.ids.tolist() == entry["ids"]
        assert_within_tolerance(
            stage.candidates.probabilities.tolist(), floats(entry["probabilities"])
        )


@pytest.mark.parametrize("case", ANSWERED, ids=itemgetter("id"))
def test_the_penalty_gives_the_golden_bits(case: dict[str, Any]) -> None:
    params = params_of(case)
    penalized, _ = apply_penalty(
        logits_of(case),
        case["previous_tokens"],
        penalty=params.repeat_penalty,
        last_n=params.repeat_penalty_last_n_token_count,
    )
    assert [x.hex() for x in penalized.tolist()] == stage_of(case, "penalty")["logits"]


@pytest.mark.parametrize("case", DRAWN, ids=itemgetter("id"))
def test_the_temperature_gives_the_golden_bits(case: dict[str, Any]) -> None:
    penalized = np.array(floats(stage_of(case, "penalty")["logits"]))
    expected = stage_of(case, "temperature")
    scaled = apply_temperature(penalized[expected["ids"]], params_of(case).temperature)
    assert [x.hex() for x in scaled.tolist()] == expected["logits"]


@pytest.mark.parametrize("case", REFUSED, ids=itemgetter("id"))
def test_the_error_is_the_golden_one(case: dict[str, Any]) -> None:
    with pytest.raises(LlmError) as raised:
        sample(
            logits_of(case),
            params_of(case),
            case["previous_tokens"],
            float.fromhex(case["u"]),
            profile=case["profile"],
        )
    assert raised.value.kind == case["error"]["kind"]
    assert case["error"]["names"] in str(raised.value)


@pytest.mark.parametrize("entry", GOLDEN["uniform"], ids=lambda e: f"{e['seed']}-{e['step']}")
def test_the_random_number_is_the_golden_one(entry: dict[str, Any]) -> None:
    assert splitmix64(int(entry["seed"]), entry["step"]) == int(entry["output"])
    assert uniform(int(entry["seed"]), entry["step"]) == float.fromhex(entry["u"])
