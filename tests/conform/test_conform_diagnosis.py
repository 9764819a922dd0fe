"""From the verdicts of a run to its faults: the second below the first, errors that repeat."""

from __future__ import annotations

from typing import Any

import pytest

from refllm.conform.case import Case
from refllm.conform.faults.causes import FAULTS
from refllm.conform.faults.diagnosis import findings_of
from refllm.conform.reply import Answer, HarnessError
from refllm.conform.runner import verdict_of
from refllm.conform.verdict import Consequence, Verdict, consequence_of
from tests.support.conform_cases import USAGE, case_of, text_case

REFUSAL = {"kind": "invalid-input", "says": ["top_p"], "status": {"spin": [400]}}
REQUEST = {"operation": "infer", "prompt": "Once"}


def first_words(*verdicts: Verdict) -> list[list[str]]:
    """The first words of each case's findings, in the order of the cases."""
    found = findings_of(verdicts)
    return [
        [f"{f.consequence}: {f.cause[:30]}" for f in found.get(v.case.id, ())] for v in verdicts
    ]


def answered(case: Case, text: str, prompt: int = 2, generated: int = 3) -> Verdict:
    usage = {"prompt_token_count": prompt, "generated_token_count": generated}
    return verdict_of(case, Answer({"text": text, "usage": usage}))


# --- Two faults in one answer --------------------------------------------------------------------

ECHO = "wrong text: The text begins with the promp"
UNKNOWN = "wrong text: The text or a token is another"


@pytest.mark.parametrize(
    ("text", "counts", "findings"),
    [
        ("Once upon a time", (2, 3), [ECHO]),
        ("Once upon a time", (1, 3), [ECHO, "wrong counts: The prompt's count is one too "]),
        ("Once upon a time</s>", (2, 3), [ECHO, "wrong text: Special tokens are shown"]),
        ("Once upon a time and on", (2, 5), [ECHO, "wrong text: The text goes on after the end"]),
        ("Once and for all it was so", (2, 20), [ECHO, "wrong text: More tokens are generated"]),
        ("Once nothing else", (2, 3), [ECHO, UNKNOWN]),
        (" nothing else", (1, 3), [UNKNOWN, "wrong counts: The prompt's count is one too "]),
        (" upon a time", (2, 3), []),
    ],
)
def test_a_second_fault_behind_the_first_is_found(
    text: str, counts: tuple[int, int], findings: list[str]
) -> None:
    [found] = first_words(answered(text_case(), text, *counts))
    assert [each[: len(wanted)] for each, wanted in zip(found, findings, strict=True)] == findings


def test_vectors_of_another_length_are_compared_again_after_scaling() -> None:
    expected = {"embeddings": [[0.6, 0.8]], "usage": {"prompt_token_count": 3}}
    case = case_of("embeddings", {"model": "stories260K", "texts": ["a"]}, expected)
    long = {"embeddings": [[3.0, 4.0]], "usage": {"prompt_token_count": 1}}
    [found] = first_words(verdict_of(case, Answer(long)))
    assert found[0] == "wrong numbers: The vectors are not scaled to "
    assert found[1].startswith("wrong counts: The ")


def test_these_faults_can_be_taken_out_of_an_answer() -> None:
    assert {fault.name for fault in FAULTS if fault.repair} == {
        *("prompt echoed in text", "special tokens kept in text", "first space of the text lost"),
        *("space before the text", "BOS not counted", "BOS counted twice"),
        *("prompt count with generated", "end token not counted", "embeddings not normalized"),
        *("error of another kind", "status of another kind"),
    }


# --- Errors --------------------------------------------------------------------------------------


def lost(name: str, message: str, because_of: str | None = None) -> Verdict:
    return verdict_of(text_case(name), HarnessError(message, because_of=because_of))


def test_messages_that_differ_in_numbers_names_and_paths_are_grouped() -> None:
    verdicts = [
        lost("a", "POST http://h:1/infer: no whole answer came within 3 s"),
        lost("b", "POST http://h:1/embed: no whole answer came within 9 s"),
        lost("c", "KeyError: 'x' (mine.py, line 3)"),
        lost("d", "KeyError: 'y' (mine.py, line 7)"),
    ]
    causes = [findings[0].cause for findings in findings_of(verdicts).values()]
    first, third = verdicts[0].reason, verdicts[2].reason
    assert causes == [first, first, third, third]


def test_other_exceptions_are_other_causes() -> None:
    verdicts = [lost("a", "KeyError: 'x'"), lost("b", "ValueError: 'x'"), lost("c", "no answer")]
    assert len({f[0].cause for f in findings_of(verdicts).values()}) == 3


def test_a_case_that_was_lost_because_of_another_has_its_cause() -> None:
    verdicts = [lost("a", "it ended"), lost("b", "not asked", because_of="text/a")]
    assert first_words(*verdicts) == [["no answer: it ended"]] * 2


def test_the_last_line_of_standard_error_is_in_the_cause() -> None:
    [found] = findings_of(
        [lost("a", "it ended\nIts standard error ends with:\n  at x\n  bad")]
    ).values()
    assert found[0].cause == "it ended: bad"


def refused(name: str, message: str, **expected: Any) -> Verdict:
    error = {"kind": "runtime-error", "message": message}
    return verdict_of(text_case(name, **expected), Answer({"error": error}))


def test_an_error_that_repeats_for_valid_requests_is_a_cause() -> None:
    verdicts = [refused(str(i), f"TypeError: no {i} of undefined") for i in range(3)]
    found = first_words(*verdicts)
    assert found == [["refused: Valid requests end in the erro"]] * 3
    assert "TypeError: no 0 of undefined" in findings_of(verdicts)["text/2"][0].cause


def test_an_error_of_one_case_is_that_case_s() -> None:
    assert first_words(refused("a", "TypeError: no")) == [["refused: A valid request is refused."]]


def test_a_known_fault_that_explains_every_case_of_an_error_is_the_cause() -> None:
    zero = [text_case(name, params={"top_k": 0}) for name in "ab"]
    error = Answer({"error": {"kind": "invalid-input", "message": "top_k must be above 0"}})
    assert (
        first_words(*(verdict_of(case, error) for case in zero))
        == [["refused: A top_k of 0 is refused: it sw"]] * 2
    )


# --- Consequences --------------------------------------------------------------------------------

ANSWER = {"text": " so", "usage": USAGE}


@pytest.mark.parametrize(
    ("case", "result", "consequence"),
    [
        (text_case(), {"text": " no", "usage": USAGE}, "wrong text"),
        (
            text_case(),
            {"text": " upon a time", "usage": {**USAGE, "prompt_token_count": 9}},
            "wrong counts",
        ),
        (text_case(), {"error": {"kind": "runtime-error", "message": "no"}}, "refused"),
        (case_of("api", REQUEST, {"error": REFUSAL}), ANSWER, "accepted"),
        (
            case_of("api", REQUEST, {"error": REFUSAL}),
            {"error": {"kind": "runtime-error", "message": "top_p"}},
            "wrong error",
        ),
        (
            case_of("api", REQUEST, {"error": REFUSAL}),
            {"error": {"kind": "invalid-input", "message": "no"}},
            "unclear error",
        ),
        (case_of("api", REQUEST, {"text": " a", "usage": USAGE}), ANSWER, "wrong text"),
        (case_of("api", REQUEST, {"usage": {"prompt_token_count": 9}}), ANSWER, "wrong counts"),
        (case_of("api", REQUEST, {"unit_length": True}), {"embeddings": [[3.0]]}, "wrong numbers"),
        (case_of("quant", REQUEST, {"values": [1.0]}), {"values": [2.0]}, "wrong numbers"),
        (
            case_of("tokenizer", REQUEST, {"ids": [1], "text": ""}),
            {"ids": [2], "text": ""},
            "wrong text",
        ),
        (case_of("sampling", REQUEST, {"token": 1, "stages": []}), {"token": 2}, "wrong text"),
    ],
)
def test_a_difference_has_the_consequence_that_its_user_has(
    case: Case, result: dict[str, Any], consequence: Consequence
) -> None:
    verdict = verdict_of(case, Answer(result))
    assert verdict.difference is not None
    assert consequence_of(case, verdict.difference) == consequence
