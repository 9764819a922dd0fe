"""Comparing an answer with a case of the interface: what is a difference, and what is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from refllm.conform.compare.api import compare_api
from refllm.conform.compare.numbers import MalformedAnswer
from tests.support.golden_api import answer, case_named

SPIN = {"protocol": "spin", "status": 200}


def changed(case_id: str, **changes: object) -> dict[str, Any]:
    """refllm's answer to the case, with these fields in place of its own."""
    return {**answer(case_named(case_id)), **changes}


def where(case_id: str, result: Mapping[str, Any]) -> str | None:
    """Where the answer differs from the case's; None if it does not."""
    found = compare_api(case_named(case_id), result)
    return None if found is None else found.where


def usage(prompt: int, generated: int) -> dict[str, int]:
    return {"prompt_token_count": prompt, "generated_token_count": generated}


def refused(kind: str | None, message: str, **more: object) -> dict[str, Any]:
    error = {"message": message, **({} if kind is None else {"kind": kind})}
    return {"error": {**error, "form": "string"}, **more}


# --- Texts and counts ----------------------------------------------------------------------------


def test_the_first_character_that_differs_is_named() -> None:
    text = case_named("greedy-text").expected["text"]
    other = f"{text[:3]}#{text[4:]}"
    assert where("greedy-text", changed("greedy-text", text=other)) == "the text, from character 3"


def test_a_text_that_ends_too_early_differs_where_it_ends() -> None:
    text = case_named("greedy-text").expected["text"]
    found = where("greedy-text", changed("greedy-text", text=text[:5]))
    assert found == "the text, from character 5"


def test_a_prompt_before_the_text_is_a_difference() -> None:
    result = changed("text-without-the-prompt", text="Once upon a time,")
    assert where("text-without-the-prompt", result) == "the beginning of the text"


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        (usage(6, 1), "usage.prompt_token_count"),
        (usage(5, 2), "usage.generated_token_count"),
        (usage(5, 1), None),
    ],
)
def test_counts_are_equal_or_differ(counts: dict[str, int], found: str | None) -> None:
    assert where("max-tokens-one", changed("max-tokens-one", usage=counts)) == found


def test_a_count_that_may_be_smaller_may_not_be_larger() -> None:
    counts = [where("default-parameters", result_of(n)) for n in (0, 100, 101)]
    assert counts == [None, None, "usage.generated_token_count"]


def result_of(n_generated: int) -> dict[str, Any]:
    return {"text": "", "usage": usage(5, n_generated)}


# --- Vectors -------------------------------------------------------------------------------------


def vectors(case_id: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(answer(case_named(case_id))["embeddings"])


def test_a_vector_of_another_length_differs_in_units_of_the_tolerance() -> None:
    longer = (vectors("embedding-of-one-text") * 1.01).tolist()
    case = case_named("embedding-of-one-text")
    found = compare_api(case, changed("embedding-of-one-text", embeddings=longer))
    assert found is not None
    assert found.where == "the length of vector 0"
    assert found.tolerances == pytest.approx(10, rel=1e-3)


def test_equal_texts_have_equal_vectors() -> None:
    turned = vectors("embedding-order")
    turned[2] = turned[2][::-1]
    found = where("embedding-order", changed("embedding-order", embeddings=turned.tolist()))
    assert found is not None
    assert found.endswith("of vector 2, of the same text as vector 0")


def test_a_vector_that_its_neighbour_changed_is_found_by_its_first_components() -> None:
    case = case_named("embedding-with-a-longer-batch-mate")
    found = compare_api(case, answer(case, profile="spin-local"))
    assert found is not None
    assert found.where.endswith("of vector 0")
    assert found.tolerances is not None
    assert found.tolerances > 8
    assert len(found.expected_values) == len(found.got_values) == 8


@pytest.mark.parametrize(
    ("embeddings", "found"),
    [
        ([], "the number of vectors"),
        ([[1.0], [1.0]], "the number of vectors"),
        ([[1.0]], "the components of vector 0"),
        ([["nan"] * 384], "the length of vector 0"),
    ],
)
def test_vectors_of_another_shape_differ(embeddings: list[Any], found: str) -> None:
    result = changed("embedding-of-one-text", embeddings=embeddings)
    assert where("embedding-of-one-text", result) == found


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (refused("invalid-input", "repeat_penalty must be above 0"), None),
        (refused("invalid-input", "options.repeatPenalty: too small"), None),
        (refused("invalid-input", "RepeatPenalty"), None),
        (refused("runtime-error", "repeat_penalty"), "the error's kind"),
        (refused("invalid-input", "the penalty is 0"), "the error's message"),
        ({"text": "Hi", "usage": usage(2, 1)}, "the answer"),
    ],
)
def test_a_refusal_has_its_kind_and_names_the_parameter(
    result: dict[str, Any], found: str | None
) -> None:
    assert where("penalty-zero", result) == found


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (refused("invalid-input", "no-such-model", protocol="spin", status=400), None),
        (refused(None, "no-such-model", protocol="spin", status=422), None),
        (refused(None, "no-such-model", protocol="spin", status=500), "the HTTP status"),
        (refused(None, "no-such-model", protocol="spin", status=200), "the HTTP status"),
        (
            refused("runtime-error", "no-such-model", protocol="spin", status=400),
            "the error's kind",
        ),
        (
            refused(None, "no-such-model", protocol="openai", status=404),
            "the form of the error's body",
        ),
        (refused(None, "absent", protocol="spin", status=400), "the error's message"),
    ],
)
def test_over_http_a_refusal_has_a_status_and_a_form_and_may_lack_a_kind(
    result: dict[str, Any], found: str | None
) -> None:
    assert where("model-absent", result) == found


def test_a_refusal_in_place_of_an_answer_is_shown() -> None:
    found = compare_api(case_named("max-tokens-one"), refused("runtime-error", "out of memory"))
    assert found is not None
    assert (found.where, found.got) == ("the answer", "runtime-error: out of memory")


def test_a_model_that_is_not_supported_needs_no_message() -> None:
    refusal = {"error": {"kind": "model-not-supported"}}
    assert where("text-asked-of-an-embedding-model", refusal) is None


# --- What is no answer ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case_id", "result"),
    [
        ("max-tokens-zero", {"usage": usage(5, 0)}),
        ("max-tokens-zero", {"text": ""}),
        ("max-tokens-zero", {"text": "", "usage": {"prompt_token_count": 5}}),
        ("max-tokens-zero", {"text": "", "usage": usage(5, True)}),
        ("max-tokens-zero", {"text": 0, "usage": usage(5, 0)}),
        ("embedding-of-one-text", {"usage": {"prompt_token_count": 9}}),
        ("embedding-of-one-text", {"embeddings": [["a"]], "usage": {"prompt_token_count": 9}}),
        ("penalty-zero", {"error": {"message": "repeat_penalty"}}),
        ("penalty-zero", {"error": {"kind": "invalid-input"}}),
        ("penalty-zero", {"error": {"kind": "InvalidInput", "message": "repeat_penalty"}}),
        ("penalty-zero", {"embeddings": 5}),
        ("max-tokens-zero", {"error": "no"}),
    ],
)
def test_a_harness_that_leaves_something_out_is_broken(
    case_id: str, result: dict[str, Any]
) -> None:
    with pytest.raises(MalformedAnswer):
        compare_api(case_named(case_id), result)


@pytest.mark.parametrize(
    ("case_id", "result", "found"),
    [
        ("max-tokens-zero", {"usage": usage(5, 0)}, "the text, from character 0"),
        ("max-tokens-zero", {"text": ""}, "usage.prompt_token_count"),
        ("embedding-order", {}, "the number of vectors"),
        ("embedding-order", {"embeddings": [["a"]] * 3}, "the number of vectors"),
        ("http-stream", {"text": ""}, "stream ends"),
    ],
)
def test_a_server_that_leaves_something_out_is_wrong(
    case_id: str, result: dict[str, Any], found: str
) -> None:
    assert where(case_id, {**result, **SPIN}) == found
