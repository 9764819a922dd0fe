from __future__ import annotations

from typing import Any

import pytest

from refllm.conform.case import Case
from refllm.conform.compare import compare
from refllm.conform.compare.numbers import MalformedAnswer
from refllm.conform.verdict import Difference

USAGE = {"prompt_token_count": 5, "generated_token_count": 3}
CERTIFIED = {"text": " a b.", "token_ids": [7, 8, 2], "usage": USAGE, "certified": True}
TIED = {
    **CERTIFIED,
    "certified": False,
    "tied_at": 1,
    "tied_tokens": [8, 9],
    "tied_texts": [" a b", " a c"],
}


def text_case(expected: dict[str, Any]) -> Case:
    return Case(id="text/one", group="text", proves="", clause="", input={}, expected=expected)


def embeddings_case(*vectors: list[float], count: int) -> Case:
    return Case(
        id="embeddings/one",
        group="embeddings",
        proves="",
        clause="",
        input={},
        expected={"embeddings": list(vectors), "usage": {"prompt_token_count": count}},
        tolerance={"absolute": 0.5},
    )


def answer(text: str, token_ids: list[int] | None = None, *, usage: Any = USAGE) -> dict[str, Any]:
    ids = {} if token_ids is None else {"token_ids": token_ids}
    return {"text": text, "usage": usage, **ids}


def counts(prompt: int, generated: int) -> dict[str, int]:
    return {"prompt_token_count": prompt, "generated_token_count": generated}


def difference(case: Case, result: dict[str, Any]) -> Difference:
    found = compare(case, result)
    assert found is not None
    return found


# --- Certified texts -----------------------------------------------------------------------------


@pytest.mark.parametrize("token_ids", [None, [7, 8, 2]])
def test_a_certified_text_is_equal_and_may_have_no_ids(token_ids: list[int] | None) -> None:
    assert compare(text_case(CERTIFIED), answer(" a b.", token_ids)) is None


def test_the_first_token_that_differs_is_named() -> None:
    found = difference(text_case(CERTIFIED), answer(" a x", [7, 9, 2]))
    assert (found.where, found.expected, found.got) == ("generated token 1", 8, 9)


@pytest.mark.parametrize(
    ("token_ids", "expected", "got"), [([7, 8], 2, "the end"), ([7, 8, 2, 2], "the end", 2)]
)
def test_tokens_that_end_elsewhere_differ_there(
    token_ids: list[int], expected: Any, got: Any
) -> None:
    found = difference(text_case(CERTIFIED), answer(" a b.", token_ids))
    assert (found.expected, found.got) == (expected, got)


def test_without_ids_the_first_character_that_differs_is_named() -> None:
    assert difference(text_case(CERTIFIED), answer(" a c.")).where == "character 3"


def test_a_longer_text_differs_at_the_end_of_the_expected_one() -> None:
    assert difference(text_case(CERTIFIED), answer(" a b. c")).where == "character 5"


@pytest.mark.parametrize(
    ("usage", "where"),
    [(counts(4, 3), "prompt token count"), (counts(5, 2), "generated token count")],
)
def test_both_counts_are_compared(usage: dict[str, int], where: str) -> None:
    assert difference(text_case(CERTIFIED), answer(" a b.", usage=usage)).where == where


@pytest.mark.parametrize("usage", [None, {}, {"prompt_token_count": 5}, counts(5, None)])  # type: ignore[arg-type]
def test_counts_that_are_missing_are_malformed(usage: Any) -> None:
    with pytest.raises(MalformedAnswer):
        compare(text_case(CERTIFIED), answer(" a b.", usage=usage))


# --- Texts with a tie ----------------------------------------------------------------------------


@pytest.mark.parametrize("token_ids", [[7, 8, 2], [7, 9], [7, 9, 4, 4, 4]])
def test_at_a_tie_either_token_is_right_and_what_follows_is_free(token_ids: list[int]) -> None:
    result = answer("whatever", token_ids, usage=counts(5, len(token_ids)))
    assert compare(text_case(TIED), result) is None


def test_a_token_that_is_not_tied_is_wrong() -> None:
    found = difference(text_case(TIED), answer(" a d", [7, 4, 2]))
    assert (found.where, found.expected, found.got) == ("generated token 1", "8 or 9", 4)


def test_before_the_tie_the_tokens_are_equal() -> None:
    assert difference(text_case(TIED), answer(" x b", [6, 8])).where == "generated token 0"


def test_a_text_that_ends_before_its_tie_is_wrong() -> None:
    assert difference(text_case(TIED), answer(" a", [7])).got == "the end"


@pytest.mark.parametrize(("text", "is_right"), [(" a b x", True), (" a c", True), (" a d", False)])
def test_without_ids_a_text_begins_with_one_of_the_tied(text: str, is_right: bool) -> None:
    assert (compare(text_case(TIED), answer(text)) is None) == is_right


def test_the_prompt_is_counted_whatever_follows_a_tie() -> None:
    result = answer(" a b", usage=counts(6, 9))
    assert difference(text_case(TIED), result).where == "prompt token count"


# --- Embeddings ----------------------------------------------------------------------------------

VECTORS = embeddings_case([1.0, 2.0], [3.0, 4.0], count=9)


def embeddings(*vectors: list[Any], count: int = 9) -> dict[str, Any]:
    return {"embeddings": list(vectors), "usage": {"prompt_token_count": count}}


def test_components_within_the_bound_are_right() -> None:
    assert compare(VECTORS, embeddings([1.5, 2.0], [3.0, 3.5])) is None


def test_the_first_component_that_is_off_is_named() -> None:
    found = difference(VECTORS, embeddings([1.0, 2.0], [3.0, 6.0]))
    assert found.where == "component 1 of text 1, the first of 1 of 2 that differ"
    assert (found.expected, found.got, found.tolerances) == (4.0, 6.0, 4.0)


def test_a_component_that_is_no_number_is_wrong() -> None:
    assert difference(VECTORS, embeddings(["nan", 2.0], [3.0, 4.0])).where.startswith("component 0")


def test_another_number_of_vectors_is_a_difference() -> None:
    found = difference(VECTORS, embeddings([1.0, 2.0]))
    assert (found.where, found.expected, found.got) == ("how many vectors there are", 2, 1)


def test_vectors_of_another_width_are_a_difference() -> None:
    assert difference(VECTORS, embeddings([1.0, 2.0], [3.0])).got == 1


def test_the_tokens_of_all_texts_are_counted() -> None:
    found = difference(VECTORS, embeddings([1.0, 2.0], [3.0, 4.0], count=10))
    assert (found.where, found.expected, found.got) == ("prompt token count", 9, 10)


def test_no_texts_have_no_vectors() -> None:
    case = embeddings_case(count=0)
    assert compare(case, embeddings(count=0)) is None


@pytest.mark.parametrize("vectors", [None, [1.0, 2.0], [["a"], ["b"]], "vectors"])
def test_vectors_that_are_no_lists_of_numbers_are_malformed(vectors: Any) -> None:
    with pytest.raises(MalformedAnswer):
        compare(VECTORS, {"embeddings": vectors, "usage": {"prompt_token_count": 9}})
