from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refllm.conform.case import Case, Group
from refllm.conform.compare import compare
from refllm.conform.compare.numbers import MalformedAnswer
from refllm.conform.verdict import Difference


def case_of(
    group: Group,
    expected: dict[str, Any],
    *,
    tolerance: dict[str, Any] | None = None,
    asked: dict[str, Any] | None = None,
) -> Case:
    return Case(
        id=f"{group}/one",
        group=group,
        proves="",
        clause="",
        input=asked or {},
        expected=expected,
        tolerance=tolerance or {},
    )


def difference(case: Case, result: dict[str, Any]) -> Difference:
    found = compare(case, result)
    assert found is not None
    return found


def array(*values: float | str, shape: list[int] | None = None) -> dict[str, Any]:
    return {"shape": shape or [len(values)], "values": list(values)}


def next_float32(value: float, n: int) -> float:
    found = np.float32(value)
    for _ in range(n):
        found = np.nextafter(found, np.float32(np.inf))
    return float(found)


# --- Every group ---------------------------------------------------------------------------------

TOKENS = case_of("tokenizer", {"ids": [1, 7, 8], "text": "hi"})
REFUSAL = case_of("sampling", {"error": {"kind": "invalid-input", "names": "top_p"}})


def refused(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": message}}


def test_a_refusal_in_place_of_an_answer_is_a_difference() -> None:
    found = difference(TOKENS, refused("runtime-error", "no memory"))
    assert (found.expected, found.got) == ("an answer", "runtime-error: no memory")


def test_an_answer_in_place_of_a_refusal_is_a_difference() -> None:
    assert difference(REFUSAL, {"token": 1}).expected == "an error of the kind invalid-input"


def test_a_refusal_is_right_by_its_kind_and_what_it_names() -> None:
    assert compare(REFUSAL, refused("invalid-input", "top_p must be finite")) is None


def test_a_refusal_of_another_kind_is_a_difference() -> None:
    found = difference(REFUSAL, refused("runtime-error", "top_p must be finite"))
    assert (found.where, found.got) == ("the error's kind", "runtime-error")


def test_a_refusal_that_does_not_name_what_is_wrong_is_a_difference() -> None:
    found = difference(REFUSAL, refused("invalid-input", "no"))
    assert found.expected == "a message that names 'top_p'"


def test_a_difference_has_the_answer_that_it_was_found_in() -> None:
    result = {"ids": [1, 7, 8], "text": "no"}
    assert difference(TOKENS, result).answer == result


def test_a_model_that_is_not_supported_needs_no_message() -> None:
    found = difference(TOKENS, {"error": {"kind": "model-not-supported"}})
    assert found.got == "model-not-supported"


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"ids": [1, 7, 8]},
        {"ids": [1, 7, "8"], "text": "hi"},
        {"ids": [1, 7, True], "text": "hi"},
        {"ids": [1, 7, 8.5], "text": "hi"},
        {"ids": 1, "text": "hi"},
        {"ids": "178", "text": "hi"},
        {"ids": [1, 7, 8], "text": None},
        {"error": "broken"},
        {"error": {"kind": "runtime-error"}},
        {"error": {"kind": "RuntimeError", "message": "no memory"}},
        {"ids": [1, 7, 2**63], "text": "hi"},
        {"ids": [1, 7, 1e300], "text": "hi"},
    ],
)
def test_a_result_without_the_expected_keys_is_malformed(result: dict[str, Any]) -> None:
    with pytest.raises(MalformedAnswer):
        compare(TOKENS, result)


def test_a_result_that_is_no_object_is_malformed() -> None:
    with pytest.raises(MalformedAnswer, match="not an object"):
        compare(TOKENS, [1, 7, 8])  # type: ignore[arg-type]


def test_a_malformed_answer_names_the_field() -> None:
    with pytest.raises(MalformedAnswer, match=r"ids\[1\]"):
        compare(TOKENS, {"ids": [1, None], "text": "hi"})


# --- tokenizer -----------------------------------------------------------------------------------


def test_the_first_token_that_differs_is_found() -> None:
    found = difference(TOKENS, {"ids": [1, 9, 9], "text": "no"})
    assert (found.where, found.expected, found.got) == ("token 1", 7, 9)


@pytest.mark.parametrize(
    ("ids", "expected", "got"), [([1, 7], 8, "the end"), ([1, 7, 8, 2], "the end", 2)]
)
def test_ids_that_end_elsewhere_differ_there(ids: list[int], expected: Any, got: Any) -> None:
    found = difference(TOKENS, {"ids": ids, "text": "hi"})
    assert (found.expected, found.got) == (expected, got)


def test_the_text_of_the_tokens_is_compared() -> None:
    assert difference(TOKENS, {"ids": [1, 7, 8], "text": " hi"}).got == " hi"


def test_whole_numbers_may_be_written_as_floats() -> None:
    assert compare(TOKENS, {"ids": [1.0, 7.0, 8.0], "text": "hi"}) is None


# --- quant ---------------------------------------------------------------------------------------

BLOCK = case_of("quant", {"values": [0.0, 0.10000000149011612, math.nan, -math.inf]})


def test_values_are_equal_as_float32_numbers() -> None:
    assert compare(BLOCK, {"values": [-0.0, 0.1, "nan", "-inf"]}) is None


@pytest.mark.parametrize("wrong", [next_float32(0.1, 1), "nan", "inf", 0])
def test_a_value_that_is_off_by_one_bit_differs(wrong: float | str) -> None:
    found = difference(BLOCK, {"values": [0.0, wrong, "nan", "-inf"]})
    assert found.where.startswith("value 1, the first of 1 of 4")
    assert found.tolerances is None


def test_another_number_of_values_is_malformed() -> None:
    with pytest.raises(MalformedAnswer, match="3 values"):
        compare(BLOCK, {"values": [0.0, 0.1, "nan"]})


# --- ops -----------------------------------------------------------------------------------------


def op_case(value: float, *, ulps: int, scale: float | None = None) -> Case:
    tolerance = {"ulps": ulps} | ({} if scale is None else {"scale": scale})
    return case_of("ops", {"output": array(value)}, tolerance=tolerance)


@pytest.mark.parametrize(("n", "is_right"), [(0, True), (4, True), (5, False)])
def test_a_number_may_be_off_by_so_many_ulps(n: int, is_right: bool) -> None:
    found = compare(op_case(1.5, ulps=4), {"output": array(next_float32(1.5, n))})
    assert (found is None) == is_right


def test_the_distance_is_in_units_of_the_tolerance() -> None:
    found = difference(op_case(1.5, ulps=4), {"output": array(next_float32(1.5, 8))})
    assert found.tolerances == 2.0


def test_ulps_are_counted_at_the_scale_where_the_number_is_smaller() -> None:
    case = op_case(2.0**-20, ulps=1, scale=1.0)
    assert compare(case, {"output": array(2.0**-20 + 2.0**-23)}) is None
    assert compare(case, {"output": array(2.0**-20 + 2.0**-22)}) is not None


def test_an_infinity_is_far_from_every_number() -> None:
    found = difference(op_case(1.0, ulps=1000), {"output": array("inf")})
    assert found.tolerances == math.inf


def test_the_place_in_an_array_is_named() -> None:
    case = case_of("ops", {"output": array(1, 2, 3, 4, shape=[2, 2])}, tolerance={"ulps": 0})
    found = difference(case, {"output": array(1, 2, 9, 9, shape=[2, 2])})
    assert found.where.startswith("output[1, 0], the first of 2 of 4")
    assert found.got_values == (1, 2, 9, 9)


@pytest.mark.parametrize(
    "output", [array(1.0, 2.0), array(1.0, shape=[1, 1]), array(1.0, shape=[2]), {"shape": [1]}]
)
def test_an_array_of_another_shape_is_malformed(output: dict[str, Any]) -> None:
    with pytest.raises(MalformedAnswer):
        compare(op_case(1.0, ulps=1), {"output": output})


@pytest.mark.parametrize("shape", [[1] * 70, [2**62] * 100_000], ids=["axes", "product"])
def test_a_shape_of_more_axes_than_any_array_has_is_malformed(shape: list[int]) -> None:
    with pytest.raises(MalformedAnswer, match=f"{len(shape)} axes"):
        compare(op_case(1.0, ulps=1), {"output": {"shape": shape, "values": [1.0]}})


def test_a_result_that_is_nested_deeper_than_a_reader_follows_is_malformed() -> None:
    nested: Any = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(MalformedAnswer, match="more than 32 deep"):
        compare(TOKENS, {"ids": nested, "text": ""})


def test_vectors_are_counted_before_they_are_read() -> None:
    case = case_of(
        "embeddings",
        {"embeddings": [[1.0]], "usage": {"prompt_token_count": 1}},
        tolerance={"absolute": 1e-6},
    )
    answer = {"embeddings": [[1.0], "no vector"], "usage": {"prompt_token_count": 1}}
    assert difference(case, answer).where == "how many vectors there are"


# --- sampling ------------------------------------------------------------------------------------

STAGES = [
    {"stage": "penalty", "ids": [0, 1], "logits": [2.0, 1.0]},
    {"stage": "softmax", "ids": [0, 1], "probabilities": [0.75, 0.25]},
    {"stage": "top_k", "ids": [0], "probabilities": [0.75]},
]
DRAW = case_of("sampling", {"stages": STAGES, "token": 0})


def stages(*, place: int, **changed: Any) -> list[dict[str, Any]]:
    return [{**stage, **(changed if i == place else {})} for i, stage in enumerate(STAGES)]


@pytest.mark.parametrize("given", [None, [], STAGES[:1], STAGES[1:], STAGES[::2], STAGES])
def test_stages_may_be_left_out(given: list[dict[str, Any]] | None) -> None:
    assert compare(DRAW, {"stages": given, "token": 0}) is None


def test_a_token_alone_is_an_answer() -> None:
    assert compare(DRAW, {"token": 0}) is None
    assert difference(DRAW, {"token": 1}).where == "the token"


def test_stages_in_another_order_differ() -> None:
    found = difference(DRAW, {"stages": STAGES[::-1], "token": 0})
    assert found.where == "the stages and their order"


def test_a_logit_is_equal_to_the_last_bit() -> None:
    off = stages(place=0, logits=[2.0, math.nextafter(1.0, 2.0)])
    found = difference(DRAW, {"stages": off, "token": 0})
    assert found.where == "stage penalty, the logit of token 1"


@pytest.mark.parametrize(("n", "is_right"), [(4, True), (5, False)])
def test_a_probability_may_be_off_by_four_ulps(n: int, is_right: bool) -> None:
    off = stages(place=1, probabilities=[0.75, 0.25 + n * math.ulp(0.25)])
    assert (compare(DRAW, {"stages": off, "token": 0}) is None) == is_right


def test_the_first_stage_that_differs_is_named() -> None:
    wrong = stages(place=1, ids=[1, 0]), stages(place=2, ids=[0, 1], probabilities=[0.75, 0.25])
    assert difference(DRAW, {"stages": wrong[0], "token": 1}).where == "stage softmax, candidate 0"
    assert difference(DRAW, {"stages": wrong[1], "token": 1}).got == 2


def test_as_many_numbers_as_ids_belong_to_a_stage() -> None:
    with pytest.raises(MalformedAnswer, match="not as many"):
        compare(DRAW, {"stages": stages(place=0, logits=[2.0]), "token": 0})


# --- logits --------------------------------------------------------------------------------------

LOGITS = case_of(
    "logits",
    {
        "shape": [2, 3],
        "positions": [1],
        "rows": array(0.0, 5.0, 1.0, shape=[1, 3]),
        "best": {"ids": [2, 1], "logits": array(4.0, 5.0)},
    },
    tolerance={"absolute": 0.125},
)


def logits(*values: float | str) -> dict[str, Any]:
    return {"logits": array(*values, shape=[2, 3])}


def test_logits_within_the_bound_are_right() -> None:
    assert compare(LOGITS, logits(1.0, 4.0, 3.9, 0.1, 5.1, 0.9)) is None


def test_the_logit_that_is_farthest_off_is_named() -> None:
    found = difference(LOGITS, logits(0, 0, 4, 0.5, 5, 2))
    assert found.where == "position 1, the logit of token 2; 1 of 2 positions differ"
    assert (found.expected, found.got, found.tolerances) == (1.0, 2.0, 8.0)
    assert found.got_values == (0.5, 5.0, 2.0)


def test_where_only_the_best_logit_is_known_no_other_may_be_larger() -> None:
    assert compare(LOGITS, logits(4.25, 0, 4, 0, 5, 1)) is None
    found = difference(LOGITS, logits(5, 0, 4, 0, 5, 1))
    assert "the most likely token is 0, not 2" in found.where
    assert found.tolerances == 4.0


@pytest.mark.parametrize("wrong", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("token", range(3))
def test_a_logit_that_is_not_a_number_is_wrong_in_any_position(token: int, wrong: str) -> None:
    values: list[float | str] = [0, 0, 4, 0, 5, 1]
    values[token] = wrong
    found = difference(LOGITS, logits(*values))
    assert found.where.startswith(f"position 0, the logit of token {token};")
    assert found.tolerances == math.inf


def test_logits_for_another_number_of_tokens_are_malformed() -> None:
    with pytest.raises(MalformedAnswer, match="asks for"):
        compare(LOGITS, {"logits": array(0, 5, 1, shape=[1, 3])})
