"""One case asked twice: which, how often, and what counts as another answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from refllm.conform.case import Case, Group
from refllm.conform.repeat import change, kind_of_repeat
from refllm.conform.reply import Answer, HarnessError, Implementation, NotApplicable, Reply
from refllm.conform.runner import run_cases
from refllm.conform.verdict import Verdict

GREEDY = {"max_tokens": 40, "temperature": 0.0, "top_k": 40}
DRAWN = {**GREEDY, "temperature": 0.8}
USAGE = {"prompt_token_count": 2, "generated_token_count": 1}


def case(name: str, group: Group = "text", **params: float) -> Case:
    return Case(
        id=f"{group}/{name}",
        group=group,
        proves="-",
        clause="-",
        input={"model": "other", "prompt": "Once", "params": {**GREEDY, **params}, "seed": "0"},
        expected={"text": " upon", "token_ids": [5], "usage": USAGE, "certified": True},
    )


@pytest.mark.parametrize(
    ("asked", "result", "kind"),
    [
        (case("a"), {"text": " upon"}, "greedy text"),
        (case("a", temperature=0.8), {"text": " upon"}, "sampled text"),
        (case("a", temperature=0.8, top_k=1), {"text": " upon"}, "greedy text"),
        (case("a", max_tokens=1), {"text": " upon"}, None),
        (case("a"), {"text": ""}, None),
        (case("a"), {"error": {"kind": "runtime-error", "message": ""}}, None),
        (case("a", "api"), {"text": " upon"}, "api"),
        (case("a", "api", temperature=0.8), {"text": " upon"}, None),
        (case("a", "embeddings"), {"embeddings": [[1.0]]}, "embeddings"),
        (case("a", "embeddings"), {"embeddings": []}, None),
        (case("a", "tokenizer"), {"ids": [1], "text": ""}, "tokenizer"),
    ],
)
def test_an_answer_that_could_change_is_asked_for_again(
    asked: Case, result: Mapping[str, Any], kind: str | None
) -> None:
    assert kind_of_repeat(asked, result) == kind


@pytest.mark.parametrize(
    ("first", "second", "values"),
    [
        ({"text": "a", "usage": 1}, {"text": "a", "usage": 2}, None),
        ({"text": "a"}, {"text": "b"}, ("a", "b")),
        ({"embeddings": [[0.5, 0.25]]}, {"embeddings": [[0.5, 0.2500001]]}, None),
        ({"embeddings": [[0.5, 0.25]]}, {"embeddings": [[0.5, 0.5]]}, (0.25, 0.5)),
        ({"embeddings": [[0.5]]}, {"embeddings": [[0.5], [0.5]]}, ([[0.5]], [[0.5], [0.5]])),
        ({"embeddings": [[float("nan")]]}, {"embeddings": [[float("nan")]]}, None),
        ({"text": "a"}, {"error": {"message": "no"}}, ("an answer", "the error no")),
    ],
)
def test_answers_are_the_same_but_for_rounding_and_counts(
    first: Mapping[str, Any], second: Mapping[str, Any], values: tuple[object, object] | None
) -> None:
    group: Group = "text" if "text" in first else "embeddings"
    found = change(case("a", group), first, Answer(second))
    assert (found and (found.expected, found.got)) == values


def test_an_answer_that_is_missing_the_second_time_has_changed() -> None:
    found = change(case("a"), {"text": "a"}, HarnessError("it ended"))
    assert found is not None
    assert found.got == "no answer: it ended"


class Counting:
    """Answers each request by its number."""

    def __init__(self, *texts: str) -> None:
        self._texts = list(texts)
        self.asked: list[str] = []

    def start(self) -> Implementation:
        return Implementation(name="counting", groups=frozenset({"text"}), draws_as_refllm=True)

    def not_applicable(self, _case: Case) -> NotApplicable | None:
        return None

    def run(self, case: Case) -> Reply:
        self.asked.append(case.id)
        text = self._texts[min(len(self.asked), len(self._texts)) - 1]
        return Answer({"text": text, "usage": USAGE})

    def stop(self) -> None:
        """Nothing is to be let go."""


def run(target: Counting, *cases: Case) -> tuple[Verdict, ...]:
    return run_cases(target, target.start(), cases)


def test_of_each_kind_one_case_is_asked_twice() -> None:
    target = Counting(" upon")
    verdicts = run(target, case("a"), case("b"), case("c", temperature=0.8), case("d"))
    assert target.asked == ["text/a", "text/a", "text/b", "text/c", "text/c", "text/d"]
    assert {verdict.status for verdict in verdicts} == {"passed"}


def test_a_right_answer_that_changes_has_failed_for_that_alone() -> None:
    changed, other = run(Counting(" upon", " a", " upon"), case("a"), case("b"))
    assert (changed.status, other.status) == ("failed", "passed")
    [finding] = changed.findings
    assert finding.consequence == "answers change"
    assert "temperature is 0" in finding.cause


def test_the_cause_of_a_sampled_text_that_changes_is_its_seed() -> None:
    [changed] = run(Counting(" upon", " a"), case("a", temperature=0.8))
    assert "generator of its seed" in changed.findings[0].cause


def test_a_wrong_answer_that_changes_has_both_causes() -> None:
    [changed] = run(Counting("Once upon", "Once a"), case("a"))
    assert [finding.consequence for finding in changed.findings] == ["answers change", "wrong text"]
    assert "begins with the prompt" in changed.findings[1].cause
