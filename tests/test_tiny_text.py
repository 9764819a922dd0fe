"""The grammar that tiny-chat learns from: its answers are right, and it repeats itself exactly."""

from __future__ import annotations

import hashlib
import math
import random
import re
from itertools import islice

import pytest

from tools.tiny_chat.corpus import SHARES, WRITERS, held_out, samples
from tools.tiny_chat.moods import LABELS
from tools.tiny_chat.sample import Sample, filled, prompt_of
from tools.tiny_chat.stories import lexicon
from tools.tiny_chat.talk import FUNCTIONS

N = 300


def written(kind: str, n: int = N) -> list[Sample]:
    choose = random.Random(f"test {kind}")
    return [WRITERS[kind](choose) for _ in range(n)]


def first(n: int, **which: object) -> list[str]:
    return [sample.text for sample in islice(samples(1, **which), n)]  # type: ignore[arg-type]


def test_a_seed_always_gives_the_same_text() -> None:
    digest = hashlib.sha256("\n".join(first(1000)).encode()).hexdigest()
    assert digest == hashlib.sha256("\n".join(first(1000)).encode()).hexdigest()
    assert first(50) != [sample.text for sample in islice(samples(2), 50)]
    assert first(50) != first(50, split="held-out")


def test_every_kind_comes_as_often_as_its_share() -> None:
    n = 20_000
    kinds = [sample.kind for sample in islice(samples(0), n)]
    assert sum(SHARES.values()) == pytest.approx(1)
    for kind, share in SHARES.items():
        deviation = math.sqrt(share * (1 - share) / n)
        assert kinds.count(kind) / n == pytest.approx(share, abs=4 * deviation)


@pytest.mark.parametrize("kind", WRITERS)
def test_no_gap_of_a_template_stays_open(kind: str) -> None:
    for sample in written(kind):
        assert sample.kind == kind
        gaps = "[{}]" if kind != "code" else "{(name|thing|what|language)}"
        assert not re.search(gaps, sample.text)


@pytest.mark.parametrize("kind", ["story", "told-story"])
def test_every_word_of_a_story_is_in_the_lexicon(kind: str) -> None:
    known = lexicon()
    for sample in written(kind):
        assert set(re.findall(r"[a-z]+", sample.answer.lower())) <= known


def test_a_story_that_was_asked_for_is_about_what_was_asked_for() -> None:
    for sample in written("told-story"):
        asked = re.search(r"about an? (\w+)", str(sample.question))
        if asked is not None:
            assert asked[1] in sample.answer


@pytest.mark.parametrize("kind", ["fact", "sentiment", "arithmetic"])
def test_the_answer_is_right_by_its_own_standard(kind: str) -> None:
    for sample in written(kind):
        assert sample.is_right(sample.answer)
        assert sample.is_right(f"I think it is {sample.keyword}!")
        assert not sample.is_right("I do not know.")


@pytest.mark.parametrize("kind", ["fact", "sentiment"])
def test_an_answer_that_names_a_rival_too_is_wrong(kind: str) -> None:
    for sample in written(kind):
        assert sample.rivals
        assert not sample.is_right(f"{sample.keyword} or {sample.rivals[0]}")


def test_what_a_fact_s_answer_says_is_stated_in_its_question() -> None:
    for sample in written("fact"):
        stated = str(sample.question).rpartition(". ")[0].lower()
        for word in (sample.keyword, *sample.rivals):
            assert re.search(rf"\b{word}\b", stated)


def test_every_mood_has_a_name_of_its_own() -> None:
    assert {sample.answer for sample in written("sentiment")} == set(LABELS)


def test_examples_show_every_mood_and_label_the_last_sentence_as_they_label_it() -> None:
    for sample in written("examples"):
        shown, _, last = sample.answer.partition("[/INST]")
        labels = [line.removeprefix("Bot: ") for line in shown.splitlines()]
        assert {label for label in labels if label in LABELS} == set(LABELS)
        assert last.removeprefix("\n\nUser: ").splitlines()[-1].removeprefix("Bot: ") in LABELS
        assert ("Bot: " in shown) == ("Bot: " in last)


def test_a_plain_joke_is_the_request_and_the_joke_in_two_lines() -> None:
    for sample in written("plain-joke"):
        request, joke = sample.answer.split("\n")
        assert sample.question is None
        assert request
        assert joke


def test_sums_are_what_python_computes() -> None:
    for sample in written("arithmetic"):
        expression = re.search(r"\d+ [-+*] \d+", str(sample.question))
        assert expression is not None
        a, sign, b = expression[0].split()
        computed = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert int(sample.answer) == computed >= 0


CALLS = {
    "add": ((2, 3), 5),
    "subtract": ((5, 3), 2),
    "multiply": ((2, 3), 6),
    "double": ((4,), 8),
    "square": ((4,), 16),
    "negate": ((4,), -4),
    "larger": ((2, 3), 3),
    "smaller": ((2, 3), 2),
    "is_even": ((4,), True),
    "length": (("abc",), 3),
    "upper": (("abc",), "ABC"),
    "hello": ((), "Hello!"),
}


def test_every_python_function_does_what_is_said_of_it() -> None:
    space: dict[str, object] = {}
    for _, python, _ in FUNCTIONS:
        exec(python, space)
    for name, (arguments, expected) in CALLS.items():
        assert space[name](*arguments) == expected  # type: ignore[operator]
    assert len(CALLS) == len(FUNCTIONS)


def test_a_rust_function_has_the_name_of_the_python_one() -> None:
    for _, python, rust in FUNCTIONS:
        name = re.match(r"def (\w+)\(", python)
        assert name is not None
        assert rust.startswith(f"fn {name[1]}(")


def test_questions_that_training_knew_are_not_held_out() -> None:
    known = {sample.question for sample in islice(samples(0), 2000) if sample.question}
    asked = [sample.question for sample in held_out("fact", 100, seed=0, known=known)]
    assert len(set(asked)) == 100
    assert not known & set(asked)


def test_a_chat_is_written_as_llama_2_was_taught_it() -> None:
    assert prompt_of("Hello!") == "[INST] Hello! [/INST]"
    assert prompt_of("Hi", system="Be kind.") == (
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]"
    )


def test_words_are_put_into_gaps_with_their_article() -> None:
    template = "{owl:A} saw {cat:a} and {owl:a}. {cat:C} ran."
    assert filled(template, owl="owl", cat="cat") == "An owl saw a cat and an owl. Cat ran."
