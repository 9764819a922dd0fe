from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from refllm.conform.case import GROUPS, Case, Group
from refllm.conform.compare import compare
from refllm.conform.compare.numbers import Doubles, array
from refllm.conform.faults import embeddings, ops, quant
from refllm.conform.faults.catalog import Fault, explained_share
from refllm.conform.faults.causes import FAULTS, likely_cause
from refllm.conform.faults.faulty_sampler import Rule, answer
from refllm.conform.faults.logits import LOGITS, network_logits
from refllm.conform.faults.sampling import SAMPLING
from refllm.conform.reply import Answer
from refllm.conform.runner import verdict_of
from refllm.conform.suite import load_suite
from refllm.conform.verdict import Verdict
from tests.support.conform_cases import case_of, text_case

# Faults that do not change tiny-chat: its own base and epsilon, and an output that it shares.
WITHOUT_EFFECT = {"RoPE base 10000", "RMSNorm epsilon 1e-05", "embeddings for output"}
# A longer sampling case takes too long for every fault of a sampler.
MAX_TOKENS = 16
RULES = [fault for fault in SAMPLING if fault.wrong is not None]


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    return load_suite().cases


def of_group(cases: Sequence[Case], group: str) -> list[Case]:
    return [case for case in cases if case.group == group]


def written(values: Doubles) -> dict[str, Any]:
    return {"shape": list(values.shape), "values": values.ravel().tolist()}


def failed(case: Case, result: dict[str, Any]) -> Verdict:
    verdict = verdict_of(case, Answer(result))
    assert verdict.status == "failed"
    return verdict


# --- The table -----------------------------------------------------------------------------------


def test_a_cause_is_a_sentence() -> None:
    for fault in FAULTS:
        assert not fault.cause[0].islower(), fault.name
        assert fault.cause.endswith("."), fault.name


def test_faults_that_share_a_name_share_the_cause() -> None:
    causes = {fault.name: fault.cause for fault in FAULTS}
    for fault in FAULTS:
        assert fault.cause == causes[fault.name]


def test_a_group_has_each_fault_once() -> None:
    places = [(fault.name, fault.group) for fault in FAULTS]
    assert len(set(places)) == len(places)


# --- Without a fault, the parts give the suite's own answers ------------------------------------


def test_a_sampler_without_a_fault_answers_as_the_suite(cases: tuple[Case, ...]) -> None:
    for case in of_group(cases, "sampling"):
        if "error" not in case.expected:
            result = answer(case.input, Rule())
            assert result is not None
            assert compare(case, result) is None, case.id


def test_operations_without_a_fault_answer_as_the_suite(cases: tuple[Case, ...]) -> None:
    for case in of_group(cases, "ops"):
        output = ops.compute(ops.inputs(case))
        assert compare(case, {"output": written(output)}) is None, case.id


def test_super_blocks_without_a_fault_decode_as_the_suite(cases: tuple[Case, ...]) -> None:
    for case in of_group(cases, "quant"):
        if case.input["format"] in quant.K_QUANTS:
            decoded = quant.answer_of(case, quant.super_blocks)
            assert compare(case, decoded) is None, case.id


def test_a_llama_without_a_fault_answers_as_the_suite(cases: tuple[Case, ...]) -> None:
    asked = [c for c in of_group(cases, "logits") if c.input["model"] == "tiny-chat"]
    for case in asked:
        if case.input["numerics"] == "exact":
            logits = network_logits(None, tuple(case.input["token_ids"]))
            assert compare(case, {"logits": written(logits)}) is None, case.id


def test_a_bert_without_a_fault_answers_as_the_suite(cases: tuple[Case, ...]) -> None:
    for case in of_group(cases, "embeddings"):
        if case.input["model"] == "tiny-embed" and case.input["texts"]:
            texts, limit = tuple(case.input["texts"]), case.input.get("max_tokens")
            vectors = embeddings.vectors(None, texts, limit).tolist()
            result = {"embeddings": vectors, "usage": case.expected["usage"]}
            assert compare(case, result) is None, case.id


# --- With one, it is recognized ------------------------------------------------------------------


@pytest.mark.parametrize("fault", RULES, ids=lambda fault: fault.name)
def test_a_faulty_sampler_is_recognized(fault: Fault, cases: tuple[Case, ...]) -> None:
    short = [
        case
        for case in of_group(cases, "sampling")
        if "error" not in case.expected and len(case.input["logits"]) <= MAX_TOKENS
    ]
    answers = [(case, answer(case.input, fault.wrong)) for case in short]
    verdicts = [verdict_of(case, Answer(result)) for case, result in answers if result is not None]
    causes = likely_cause(verdicts)
    assert set(causes.values()) == {fault.cause}
    assert set(causes) == {v.case.id for v in verdicts if v.status == "failed"}


def test_no_two_faulty_networks_are_taken_for_each_other(cases: tuple[Case, ...]) -> None:
    [case] = [case for case in cases if case.id == "logits/tiny-chat-exact-story"]
    token_ids = tuple(case.input["token_ids"])
    right = network_logits(None, token_ids)
    names = [fault.name for fault in LOGITS if fault.name not in WITHOUT_EFFECT]
    shifts = {name: network_logits(name, token_ids) - right for name in names}
    for name, shift in shifts.items():
        shares = {other: explained_share(shift, shifts[other]) for other in names}
        assert max(shares, key=lambda other: shares[other]) == name


def test_a_fault_of_the_llama_is_recognized_in_its_logits(cases: tuple[Case, ...]) -> None:
    [case] = [case for case in cases if case.id == "logits/tiny-chat-exact-story"]
    logits = network_logits("scores not scaled", tuple(case.input["token_ids"]))
    causes = likely_cause([failed(case, {"logits": written(logits)})])
    assert "not scaled" in causes[case.id]


def test_the_same_fault_is_recognized_in_quantized_activations(cases: tuple[Case, ...]) -> None:
    [case] = [case for case in cases if case.id == "logits/tiny-chat-int8-story"]
    token_ids = tuple(case.input["token_ids"])
    shift = network_logits("GQA heads by modulo", token_ids) - network_logits(None, token_ids)
    positions = case.expected["positions"]
    logits = network_logits(None, token_ids).copy()
    logits[positions] = array(case.expected, "rows")
    causes = likely_cause([failed(case, {"logits": written(logits + shift)})])
    assert "modulo" in causes[case.id]


# --- From many verdicts to one cause -------------------------------------------------------------


def sampling_case(name: str, **changed: Any) -> Case:
    asked = {
        "profile": "contract",
        "logits": [3.0, 2.0, 1.0],
        "params": {
            "repeat_penalty": 1.0,
            "repeat_penalty_last_n_token_count": 64,
            "temperature": 1.0,
            "top_k": 2,
            "top_p": 1.0,
        },
        "previous_tokens": [],
        "u": 0.5,
        **changed,
    }
    result = answer(asked, Rule())
    assert result is not None
    return case_of("sampling", asked, result, name=name)


def test_a_fault_with_which_a_passed_case_would_have_failed_is_no_cause() -> None:
    case = sampling_case("one", u=0.99, top_k=2)
    too_many = answer(case.input, Rule(keep_k=lambda _k, n: n))
    assert too_many is not None
    verdict = failed(case, too_many)
    others = [sampling_case(f"other-{i}", u=0.99) for i in range(2)]
    passed = [verdict_of(other, Answer(dict(other.expected))) for other in others]
    assert likely_cause([verdict])
    assert likely_cause([verdict, *passed]) == {}


def test_a_failure_that_no_fault_explains_has_no_cause() -> None:
    case = sampling_case("one")
    assert likely_cause([failed(case, {"token": 2})]) == {}


def test_a_passed_case_has_no_cause() -> None:
    case = sampling_case("one")
    assert likely_cause([verdict_of(case, Answer(dict(case.expected)))]) == {}


def test_an_answer_of_any_shape_ends_no_run() -> None:
    case = sampling_case("one")
    stages = [{"stage": "penalty", "ids": [2, 1, 0]}, {"stage": "softmax", "probabilities": None}]
    verdict = failed(case, {"stages": stages[:1], "token": 0})
    assert verdict.difference is not None
    broken = replace(verdict.difference, answer={"stages": stages, "token": None})
    assert likely_cause([replace(verdict, difference=broken)]) == {}


@pytest.mark.parametrize("group", GROUPS)
def test_a_refusal_of_anything_ends_no_run(group: Group, cases: tuple[Case, ...]) -> None:
    answered = [case for case in of_group(cases, group) if "error" not in case.expected]
    refusal = {"error": {"kind": "runtime-error", "message": "broken"}}
    verdicts = [failed(case, refusal) for case in answered]
    assert set(likely_cause(verdicts)) <= {case.id for case in answered}


def test_a_text_inherits_what_the_logits_showed(cases: tuple[Case, ...]) -> None:
    [case] = [case for case in cases if case.id == "logits/tiny-chat-exact-story"]
    logits = network_logits("RoPE backwards", tuple(case.input["token_ids"]))
    text = text_case("one")
    other = {"text": " nonsense", "usage": text.expected["usage"]}
    verdicts = [failed(case, {"logits": written(logits)}), failed(text, other)]
    causes = likely_cause(verdicts)
    assert causes[text.id] == causes[case.id]


def test_a_text_alone_inherits_nothing() -> None:
    text = text_case("one")
    assert likely_cause([failed(text, {"text": " no", "usage": text.expected["usage"]})]) == {}


@pytest.mark.parametrize(
    ("text", "counts", "cause"),
    [
        ("Once upon a time", (2, 3), "begins with the prompt"),
        (" upon a time", (1, 3), "BOS belongs to the prompt"),
        (" upon a time", (3, 3), "counted twice"),
        (" upon a time", (5, 3), "has the generated tokens"),
        (" upon a time", (2, 2), "lacks the end token"),
        (" upon a time</s>", (2, 3), "Special tokens are shown"),
        ("upon a time", (2, 3), "lacks the space"),
        ("  upon a time", (2, 3), "no token wrote"),
        (" upon a time there was", (2, 9), "goes on after the end token"),
    ],
)
def test_a_text_and_its_counts_show_what_is_wrong(
    text: str, counts: tuple[int, int], cause: str
) -> None:
    prompt, generated = counts
    usage = {"prompt_token_count": prompt, "generated_token_count": generated}
    case = text_case("one")
    assert cause in likely_cause([failed(case, {"text": text, "usage": usage})])[case.id]


def test_only_a_replacement_of_a_whole_character_counts_as_broken() -> None:
    usage = text_case("one").expected["usage"]
    whole, other = text_case("whole", text=" é"), text_case("other", text=" e")
    broken = {"text": " \ufffd\ufffd", "usage": usage}
    causes = dict(likely_cause([failed(whole, broken), failed(other, broken)]))
    assert "join the bytes" in causes.pop(whole.id)
    assert causes == {}
