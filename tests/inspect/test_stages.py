"""The stages of a draw: they are those of the golden suite, and the reasons follow from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from refllm.engine import LocalEngine
from refllm.inspect.drawing import Draw, draws_of
from refllm.inspect.stages import explained, stages_of
from refllm.interface import InferencingParams
from refllm.models.load import LlamaModel
from refllm.sampling import PROFILES, sample
from tests.conftest import PROJECT

CASES = json.loads((PROJECT / "golden" / "sampling" / "cases.json").read_text("utf-8"))["cases"]
ANSWERED = [case for case in CASES if "stages" in case]
PROBABILITY_ULPS = 4  # as golden/sampling/README.md
PROMPT = "Once upon a time"


def draw_of(case: dict[str, Any]) -> Draw:
    """The draw of a golden case."""
    values: dict[str, Any] = {
        name: float.fromhex(value) if isinstance(value, str) else value
        for name, value in case["params"].items()
    }
    params = InferencingParams(**values)
    logits = np.array([float.fromhex(logit) for logit in case["logits"]], np.float32)
    u = float.fromhex(case["u"])
    previous = case["previous_tokens"]
    step = sample(logits, params, previous, u, profile=case["profile"])
    return Draw(step, logits, tuple(previous), params, 0)


@pytest.mark.parametrize("case", ANSWERED, ids=lambda case: case["id"])
def test_each_stage_has_the_tokens_and_the_values_of_the_golden_suite(case: dict[str, Any]) -> None:
    draw = draw_of(case)
    stages = stages_of(draw)
    assert draw.step.token == case["token"]
    assert [stage.name for stage in stages] == [entry["stage"] for entry in case["stages"]]
    for stage, entry in zip(stages, case["stages"], strict=True):
        assert stage.ids.tolist() == entry["ids"]
        expected = [float.fromhex(v) for v in entry.get("logits") or entry["probabilities"]]
        assert stage.is_logits == ("logits" in entry)
        if stage.is_logits:
            assert stage.values.tolist() == expected
        else:
            for actual, value in zip(stage.values.tolist(), expected, strict=True):
                # Below 2^-1022 the exponential function is exact to one unit of 2^-1074.
                ulps = PROBABILITY_ULPS if value >= 2**-1022 else 1
                assert abs(actual - value) <= ulps * math.ulp(value)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine()


@pytest.fixture(scope="module")
def llama(engine: LocalEngine) -> LlamaModel:
    return engine.inferencing_model("tiny-chat")


def draws(engine: LocalEngine, llama: LlamaModel, params: InferencingParams) -> list[Draw]:
    _, generation = engine.open(llama, PROMPT, params)
    return list(draws_of(engine, llama, generation, params))


@pytest.fixture(scope="module")
def drawn(engine: LocalEngine, llama: LlamaModel) -> list[Draw]:
    return draws(engine, llama, InferencingParams(max_tokens=8))


def test_the_draws_are_the_tokens_of_the_text(
    engine: LocalEngine, llama: LlamaModel, drawn: list[Draw]
) -> None:
    text = engine.infer("tiny-chat", PROMPT, InferencingParams(max_tokens=8)).text
    prompt = llama.prompt_tokens(PROMPT)
    tokens = [draw.step.token for draw in drawn]
    assert llama.tokenizer.decode_continuation(prompt, tokens) == text
    assert [draw.previous_tokens for draw in drawn] == [
        (*prompt, *tokens[:i]) for i in range(len(tokens))
    ]


def test_the_logits_of_a_draw_are_those_of_the_network(
    llama: LlamaModel, drawn: list[Draw]
) -> None:
    last = drawn[-1]
    assert np.array_equal(llama.forward(last.previous_tokens)[-1], last.logits)


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_token_drawn_is_the_one_candidate_whose_interval_holds_u(
    llama: LlamaModel, drawn: list[Draw], profile: str
) -> None:
    for draw in drawn:
        step = explained(
            draw.again(draw.params, seed=5, profile=profile), llama.tokenizer, n_candidates=40
        )
        inside = [c for c in step["candidates"] if c["interval"] is not None]
        holding = [c for c in inside if c["interval"][0] <= step["threshold"] < c["interval"][1]]
        assert [c["token"] for c in holding] == [step["token"]]
        assert [c["removed_by"] for c in holding] == [None]
        assert inside[0]["interval"][0] == 0.0
        assert inside[-1]["interval"][1] == step["total"]
        for before, after in pairwise(inside):
            assert before["interval"][1] == after["interval"][0]


def test_a_candidate_has_values_until_the_stage_that_removes_it(
    llama: LlamaModel, drawn: list[Draw]
) -> None:
    for draw in drawn:
        step = explained(draw, llama.tokenizer, n_candidates=50)
        names = [stage["name"] for stage in step["stages"]]
        assert len(step["candidates"]) >= 50
        for candidate in step["candidates"]:
            n_values = sum(value is not None for value in candidate["values"])
            if candidate["removed_by"] in (None, "draw"):
                assert n_values == len(names)
            else:
                assert names[n_values] == candidate["removed_by"]
                assert not any(candidate["values"][n_values:])
        for stage, name in enumerate(names):
            removed = sum(c["removed_by"] == name for c in step["candidates"])
            assert removed <= step["stages"][stage]["n_removed"]


def test_top_p_s_reason_is_the_sum_that_had_reached_it(
    llama: LlamaModel, drawn: list[Draw]
) -> None:
    step = explained(drawn[3], llama.tokenizer, n_candidates=40)
    names = [stage["name"] for stage in step["stages"]]
    probabilities = [c["values"][names.index("top_k")] for c in step["candidates"]]
    removed = [i for i, c in enumerate(step["candidates"]) if c["removed_by"] == "top_p"]
    assert removed
    for i in removed:
        total = math.fsum(probabilities[:i])
        assert total >= 0.9
        assert step["candidates"][i]["why"] == f"top-p: the {i} before it have {total:.4f}"


def test_top_k_s_reason_is_the_candidate_s_number(llama: LlamaModel, drawn: list[Draw]) -> None:
    few = drawn[3].again(replace(drawn[3].params, top_k=2), seed=0, profile="contract")
    step = explained(few, llama.tokenizer, n_candidates=4)
    assert [c["removed_by"] for c in step["candidates"]][2:] == ["top_k", "top_k"]
    assert step["candidates"][3]["why"] == "top-k: number 4, it keeps 2"


def test_the_place_of_a_drawn_token_is_that_among_all_tokens(
    llama: LlamaModel, drawn: list[Draw]
) -> None:
    params = replace(drawn[3].params, temperature=8.0, top_k=0, top_p=1.0)
    draw = drawn[3].again(params, seed=0, profile="contract")
    step = explained(draw, llama.tokenizer, n_candidates=4)
    penalized = stages_of(draw)[0].values  # [V]
    [chosen] = [c for c in step["candidates"] if c["removed_by"] is None]
    assert chosen["place"] == 1 + int((penalized > penalized[step["token"]]).sum())
    assert chosen["place"] > len(step["candidates"])
    assert [c["place"] for c in step["candidates"]][:4] == [1, 2, 3, 4]


def test_a_token_that_only_the_penalty_moved_down_is_listed(
    llama: LlamaModel, drawn: list[Draw]
) -> None:
    draw = drawn[3]
    best = int(draw.logits.argmax())
    punished = Draw(draw.step, draw.logits, (best,), draw.params, 0).again(
        replace(draw.params, repeat_penalty=1e9), seed=0, profile="contract"
    )
    step = explained(punished, llama.tokenizer, n_candidates=3)
    last = step["candidates"][-1]
    assert (last["token"], last["rank"], last["removed_by"]) == (best, 1, "top_k")
    assert [c["rank"] for c in step["candidates"]][:3] == [2, 3, 4]


def test_a_greedy_step_draws_nothing(llama: LlamaModel, drawn: list[Draw]) -> None:
    greedy = drawn[3].again(replace(drawn[3].params, temperature=0.0), seed=0, profile="contract")
    step = explained(greedy, llama.tokenizer, n_candidates=3)
    assert [stage["name"] for stage in step["stages"]] == ["penalty", "argmax"]
    assert [c["why"] for c in step["candidates"]] == [
        "the largest logit",
        "not the largest logit",
        "not the largest logit",
    ]


def test_another_seed_changes_u_and_no_logit(llama: LlamaModel, drawn: list[Draw]) -> None:
    again = drawn[3].again(drawn[3].params, seed=1, profile="contract")
    assert again.step.u != drawn[3].step.u
    assert np.array_equal(again.logits, drawn[3].logits)
    assert stages_of(again)[-1].values.tolist() == stages_of(drawn[3])[-1].values.tolist()
