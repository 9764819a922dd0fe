"""Asking a target every case: what is not even asked, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from refllm.conform.case import Case, Group
from refllm.conform.reply import (
    Answer,
    HarnessError,
    Implementation,
    NotApplicable,
    Reply,
    Skipped,
)
from refllm.conform.runner import run_cases
from refllm.conform.verdict import Verdict

DRAWN = {"max_tokens": 5, "temperature": 0.8, "top_k": 40}
RIGHT = Answer({"ids": [1], "text": ""})
LOST = HarnessError("it ended", is_lost=True)
BROKEN = HarnessError("a bug")


class Scripted:
    """Replies with the results of a function, and keeps the ids of the cases it was sent."""

    def __init__(self, reply: Callable[[Case], Reply]) -> None:
        self._reply = reply
        self.asked: list[str] = []

    def start(self) -> Implementation:
        return Implementation(name="scripted", groups=frozenset({"tokenizer", "text"}))

    def not_applicable(self, case: Case) -> NotApplicable | None:
        return NotApplicable("it has no voice") if case.group == "api" else None

    def run(self, case: Case) -> Reply:
        self.asked.append(case.id)
        return self._reply(case)

    def stop(self) -> None:
        """Nothing is to be let go."""


def case(name: str, group: Group = "tokenizer", **params: float) -> Case:
    return Case(
        id=f"{group}/{name}",
        group=group,
        proves="-",
        clause="-",
        input={"text": "", "params": {**DRAWN, **params}},
        expected={"ids": [1], "text": ""},
        models=("tiny-chat",),
    )


def run(target: Scripted, *cases: Case, absent: Sequence[str] = ()) -> tuple[Verdict, ...]:
    return run_cases(target, target.start(), cases, absent_models=absent)


def statuses(*replies: Reply) -> list[tuple[str, bool]]:
    """How each of so many cases ended, and whether it was asked."""
    target = Scripted(lambda case: replies[int(case.id.partition("/")[2])])
    verdicts = run(target, *(case(str(i)) for i in range(len(replies))))
    return [(verdict.status, verdict.case.id in target.asked) for verdict in verdicts]


@pytest.mark.parametrize(
    ("asked", "absent", "reason"),
    [
        (case("a", "quant"), (), "scripted does not list quant among its groups"),
        (case("a"), ["tiny-chat"], "if it has, add --have tiny-chat"),
        (case("a", "text"), (), "if they are, set --draws-as-refllm"),
    ],
)
def test_cases_that_the_target_cannot_answer_are_not_sent(
    asked: Case, absent: Sequence[str], reason: str
) -> None:
    target = Scripted(lambda _case: RIGHT)
    [verdict] = run(target, asked, absent=absent)
    assert verdict.status == "skipped"
    assert reason in verdict.reason
    assert target.asked == []


def test_cases_that_the_kind_of_target_cannot_answer_are_not_applicable() -> None:
    target = Scripted(lambda _case: RIGHT)
    [verdict] = run(target, case("a", "api"), absent=["tiny-chat"])
    assert (verdict.status, verdict.reason) == ("not applicable", "it has no voice")
    assert target.asked == []


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"top_k": 1}, {"max_tokens": 0}])
def test_a_greedy_text_is_asked_whatever_the_random_numbers(params: dict[str, float]) -> None:
    target = Scripted(lambda _case: Skipped("-"))
    run(target, case("a", "text", **params))
    assert target.asked == ["text/a"]


def test_a_group_without_answers_is_given_up() -> None:
    assert statuses(*[LOST] * 7) == [("error", True)] * 5 + [("error", False)] * 2


def test_the_next_group_is_sent_after_a_broken_one() -> None:
    target = Scripted(lambda case: LOST if case.group == "tokenizer" else Skipped("-"))
    run(target, *(case(str(i)) for i in range(7)), case("b", "text", temperature=0.0))
    assert target.asked[5:] == ["text/b"]


@pytest.mark.parametrize("between", [RIGHT, BROKEN])
def test_an_answer_in_between_keeps_a_group_going(between: Reply) -> None:
    replies = statuses(*[LOST] * 4, between, *[LOST] * 4)
    assert all(is_asked for _, is_asked in replies)


def test_a_skip_does_not_reset_the_count_of_lost_cases() -> None:
    replies = statuses(*[LOST] * 4, Skipped("-"), LOST, LOST)
    assert [is_asked for _, is_asked in replies] == [True] * 6 + [False]


def test_a_harness_that_reports_its_errors_is_not_given_up() -> None:
    assert statuses(*[BROKEN] * 7) == [("error", True)] * 7


def test_wrong_answers_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refllm.conform.runner.MAX_WRONG_BYTES", 100)
    long, wrong = replace(RIGHT, n_bytes=101), Answer({"ids": [2], "text": ""}, n_bytes=101)
    assert statuses(long, wrong, RIGHT) == [("passed", True), ("failed", True), ("error", False)]
