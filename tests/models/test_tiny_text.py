"""The grammar that tiny-chat learns from: its answers are right, and it repeats itself exactly."""

from __future__ import annotations

import hashlib
import math
import random
import re
from itertools import islice

import pytest

from tools.tiny_chat import words
from tools.tiny_chat.corpus import SHARES, WRITERS, held_out, is_kept, samples
from tools.tiny_chat.functions import FUNCTIONS
from tools.tiny_chat.grammar import expanded, in_sentences
from tools.tiny_chat.moods import LABELS
from tools.tiny_chat.plan import Plan
from tools.tiny_chat.sample import Sample, filled, prompt_of
from tools.tiny_chat.stories import keeps_to_its_own, lexicon
from tools.tiny_chat.unseen import COMBINED, LEXICONS, unseen, words_in

N = 300


def written(kind: str, n: int = N) -> list[Sample]:
    choose = random.Random(f"test {kind}")
    return [WRITERS[kind](choose) for _ in range(n)]


def first(n: int, **which: object) -> list[str]:
    return [sample.text for sample in islice(samples(1, **which), n)]  # type: ignore[arg-type]


def test_a_seed_gives_the_same_text_in_every_process_and_on_every_python() -> None:
    # Of the generator as it stands: changes with every change of its words or templates.
    digest = "2947424fe379c55de82dfde7d5901ed7797fdad10d446c06d1feee266f88733e"
    assert hashlib.sha256("\n".join(first(1000)).encode()).hexdigest() == digest
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
        gaps = "[{}<|]" if kind not in ("code", "examples") else "{(name|thing|what|language)}"
        assert not re.search(gaps, f"{sample.question} {sample.answer}")


@pytest.mark.parametrize("kind", ["story", "told-story"])
def test_every_word_of_a_story_is_in_the_lexicon(kind: str) -> None:
    known = lexicon()
    for sample in written(kind):
        assert set(re.findall(r"[a-z]+", sample.answer.lower())) <= known


def test_a_story_that_was_asked_for_is_about_what_was_asked_for() -> None:
    for sample in written("told-story"):
        asked = re.search(r"about an? (\w+)", str(sample.question))
        if asked is not None and asked[1] in (*words.ANIMALS, *words.THINGS, "girl", "boy"):
            assert asked[1] in sample.answer


def test_a_story_has_one_hero_and_one_thing() -> None:
    assert all(keeps_to_its_own(sample.answer) for sample in written("story"))


@pytest.mark.parametrize(
    "text",
    [
        "Anna was a girl. Rosa had a ball.",
        "Anna found a ball. She lost the kite.",
        "Tom was a fox. She was glad.",
        "The fox met a cat and a dog.",
        "A girl met a cat and a dog.",
    ],
)
def test_a_story_that_takes_up_another_hero_thing_or_pronoun_does_not_keep_to_its_own(
    text: str,
) -> None:
    assert not keeps_to_its_own(text)


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


def test_the_answer_about_a_fact_is_stated_in_its_question() -> None:
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


def test_half_of_the_questions_are_asked_plainly_and_half_in_chats() -> None:
    asked = [sample for sample in islice(samples(1), 2000) if sample.question is not None]
    plain = [sample for sample in asked if sample.is_plain]
    assert len(plain) / len(asked) == pytest.approx(1 / 2, abs=0.05)
    for sample in asked:
        assert sample.text == f"{sample.prompt} {sample.answer}"
        assert ("[INST]" in sample.prompt) == (not sample.is_plain)
    assert {sample.kind for sample in plain} == {sample.kind for sample in asked}


def test_the_answer_to_a_plain_question_follows_the_system_prompt() -> None:
    sample = Sample(kind="joke", question="Tell me a joke.", answer="No.", system="Be funny.")
    assert sample.plainly().text == "Be funny. Tell me a joke. No."


def test_requests_are_typed_with_and_without_a_mark_at_their_end() -> None:
    ends = [sample.question[-1:] for sample in islice(samples(1), 3000) if sample.question]
    assert {".", "!", "?"} < set(ends)
    assert any(end.isalpha() for end in ends)


def test_sums_are_what_python_computes() -> None:
    for sample in written("arithmetic"):
        expression = re.search(r"(\d+) ([-+*]|plus|minus|times) (\d+)", str(sample.question))
        assert expression is not None
        a, sign, b = int(expression[1]), expression[2], int(expression[3])
        sums = {"+": a + b, "-": a - b, "*": a * b}
        computed = sums[{"plus": "+", "minus": "-", "times": "*"}.get(sign, sign)]
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
    "divide": ((6, 3), 2),
    "sort": (([3, 1, 2],), [1, 2, 3]),
    "total": (([1, 2, 3],), 6),
    "reverse": (("abc",), "cba"),
    "hello": ((), "Hello!"),
}


def test_every_python_function_does_what_its_description_says() -> None:
    space: dict[str, object] = {}
    for function in FUNCTIONS:
        exec(function.python, space)
    for name, (arguments, expected) in CALLS.items():
        assert space[name](*arguments) == expected  # type: ignore[operator]
    assert len(CALLS) == len(FUNCTIONS)


def test_a_rust_function_has_the_name_of_the_python_one() -> None:
    for function in FUNCTIONS:
        name = re.match(r"def (\w+)\(", function.python)
        assert name is not None
        assert function.rust.startswith(f"fn {name[1]}(")


def test_questions_that_training_knew_are_not_held_out() -> None:
    known = {sample.question for sample in islice(samples(0), 2000) if sample.question}
    asked = [sample.question for sample in held_out("fact", 100, seed=0, known=known)]
    assert len(set(asked)) == 100
    assert not known & set(asked)


def test_a_held_out_request_is_in_no_training_text_in_any_spelling() -> None:
    asked = [sample for sample in islice(samples(0), 5000) if sample.kind in COMBINED]
    clean = [sample for kind in COMBINED for sample in written(kind)]
    share = sum(map(is_kept, clean)) / len(clean)
    assert 0.05 < share < 0.2
    kept = {str(sample.question).lower().strip(" .?!") for sample in clean if is_kept(sample)}
    assert not kept & {str(sample.question).lower().strip(" .?!") for sample in asked}


def test_no_unseen_request_is_in_the_training_text() -> None:
    known = {str(sample.question).strip(" .?!\n").lower() for sample in islice(samples(1), 10_000)}
    for sample in unseen(50, seed=0):
        assert str(sample.question).strip(" .?!").lower() not in known


@pytest.mark.parametrize("kind", LEXICONS)
def test_every_word_of_an_answer_is_in_the_lexicon_of_its_kind(kind: str) -> None:
    for sample in written(kind):
        assert LEXICONS[kind].issuperset(words_in(sample.answer))


def test_a_choice_is_drawn_within_a_choice_and_a_rule_within_a_rule() -> None:
    rules = {"a": ("<b>!",), "b": ("[x|y[1|2]]",)}
    drawn = {expanded(random.Random(seed), "<a> {gap}", rules) for seed in range(50)}
    assert drawn == {"x! {gap}", "y1! {gap}", "y2! {gap}"}


def test_a_sentence_begins_with_a_capital_letter_and_what_follows_a_quotation_does_not() -> None:
    text = 'a owl came. "who is it? a dog?" asked a cat. it ran.'
    assert in_sentences(text) == 'An owl came. "Who is it? A dog?" asked a cat. It ran.'


@pytest.mark.parametrize(
    ("noun", "several"), [("cat", "cats"), ("fox", "foxes"), ("mouse", "mice"), ("box", "boxes")]
)
def test_several_of_a_noun(noun: str, several: str) -> None:
    assert words.plural(noun) == several


def test_a_chat_is_written_as_llama_2_was_taught_it() -> None:
    assert prompt_of("Hello!") == "[INST] Hello! [/INST]"
    assert prompt_of("Hi", system="Be kind.") == (
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]"
    )


def test_words_are_put_into_gaps_with_their_article() -> None:
    template = "{owl:A} saw {cat:a} and {owl:a}. {cat:C} ran."
    assert filled(template, owl="owl", cat="cat") == "An owl saw a cat and an owl. Cat ran."


def test_the_learning_rate_rises_stays_level_and_falls_to_a_fiftieth() -> None:
    plan = Plan(steps=1000, warm_up=100, cool_down=200, learning_rate=1e-3)
    rates = [plan.rate(step) for step in (0, 49, 99, 100, 799, 800, 900, 1000)]
    expected = [1e-5, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 5.1e-4, 2e-5]
    assert rates == pytest.approx(expected)
