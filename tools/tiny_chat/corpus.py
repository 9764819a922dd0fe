"""Everything that tiny-chat learns from, in one stream, and what it is asked afterwards."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Literal

from tools.tiny_chat import words
from tools.tiny_chat.grammar import expanded
from tools.tiny_chat.moods import examples, sentiment
from tools.tiny_chat.questions import arithmetic, fact
from tools.tiny_chat.recall import again, pairs
from tools.tiny_chat.requests import (
    PERSONAS,
    is_never_learned,
    typed,
    with_other_words,
)
from tools.tiny_chat.sample import Choose, Sample, Writer, one_of
from tools.tiny_chat.stories import story, told_story
from tools.tiny_chat.talk import code, greeting, joke, unknown

__all__ = ["SHARES", "WRITERS", "asked_again", "held_out", "samples"]

Split = Literal["training", "held-out"]

WRITERS: Mapping[str, Writer] = {
    "story": story,
    "told-story": told_story,
    "fact": fact,
    "again": again,
    "pairs": pairs,
    "sentiment": sentiment,
    "examples": examples,
    "arithmetic": arithmetic,
    "greeting": greeting,
    "joke": joke,
    "code": code,
    "unknown": unknown,
}
# How often each kind comes: what has many forms more often than what has few.
SHARES: Mapping[str, float] = {
    "story": 0.10,
    "told-story": 0.11,
    "fact": 0.24,
    "again": 0.02,
    "pairs": 0.03,
    "sentiment": 0.08,
    "examples": 0.02,
    "arithmetic": 0.20,
    "greeting": 0.08,
    "joke": 0.07,
    "code": 0.03,
    "unknown": 0.02,
}
# The kinds whose requests may have other words in them, and the words that say what is wanted.
LOOSE = ("told-story", "joke", "greeting")
NEEDED = frozenset(
    word.lower()
    for word in (
        *("story", "tale", "joke", "jokes", "laugh", "funny", "one-liner", "girl", "boy"),
        *("hello", "hi", "hey", "greet", "morning", "evening", "goodbye", "bye", "thank"),
        *("thanks", "who", "what", "how", "name", "help", "you", "i", "am", "are", "later"),
        *(*words.NAMES, *words.ANIMALS, *words.THINGS, *map(words.plural, words.ANIMALS)),
    )
)
PLAIN, PERSONA, LOOSELY = 1 / 2, 1 / 6, 1 / 4
# What is said before or after a question that has one right answer.
EXACT = ("fact", "sentiment", "arithmetic")
BEFORE = ("Consider this.", "Think.", "A question:", "Facts:", "I wonder.", "Well,", "Next one:")
AFTER = (
    "Answer briefly.",
    "Answer in a few words.",
    "Give a short answer.",
    "Be quick.",
    "Thanks!",
)
ASIDE = 1 / 6
# What stands between an instruction and the question, and behind a plain question.
BETWEEN = (" ", " ", "\n", "\n\n")
BEHIND = ("", "", "", "", "", "", "\n", "\n\n")


def samples(seed: int, *, split: Split = "training") -> Iterator[Sample]:
    """Samples without end; the same for a seed and split on every machine."""
    choose = random.Random(f"{split} {seed}")
    while True:
        writer = WRITERS[_kind(choose.random())]
        sample = writer(choose)
        while is_kept(sample):
            sample = writer(choose)
        yield sample if sample.question is None else _asked(choose, sample)


def held_out(kind: str, n: int, *, seed: int, known: Collection[str]) -> list[Sample]:
    """n samples of a kind with different questions, none of which is `known` from training."""
    choose = random.Random(f"held-out {kind} {seed}")
    found: dict[str, Sample] = {}
    while len(found) < n:
        sample = WRITERS[kind](choose)
        question = sample.question or sample.answer
        if question not in known:
            found[question] = sample
    return list(found.values())


def asked_again(kind: str, n: int, *, seed: int) -> list[Sample]:
    """n samples of a kind that has too few questions for any to be new: training had them all."""
    choose = random.Random(f"held-out {kind} {seed}")
    return [WRITERS[kind](choose) for _ in range(n)]


def is_kept(sample: Sample) -> bool:
    """Whether a request is kept from training: some of those that say what they are about."""
    question = sample.question or ""
    is_about = sample.kind == "code" or (
        sample.kind in ("told-story", "joke") and re.search(r"\b(about|with|of|on)\b", question)
    )
    return bool(is_about) and is_never_learned(question)


def _asked(choose: Choose, sample: Sample) -> Sample:
    """The sample with its question as people ask it: typed so or so, plainly or in a chat."""
    question = sample.question or ""
    if sample.kind in LOOSE and choose.random() < LOOSELY:
        question = with_other_words(choose, question, NEEDED)
    if sample.kind == "fact" and choose.random() < 1 / 8:
        question = question.rstrip("?")
    if sample.kind not in ("again", "pairs", "fact", "sentiment"):
        question = typed(choose, question)
    system = sample.system
    if system is None and choose.random() < PERSONA:
        personas = PERSONAS[one_of(choose, (sample.kind if sample.kind in PERSONAS else "", ""))]
        system = expanded(choose, one_of(choose, personas))
    if sample.kind in EXACT and choose.random() < ASIDE:
        question = f"{one_of(choose, BEFORE)} {question}"
    if sample.kind in EXACT and choose.random() < ASIDE:
        question = f"{question} {one_of(choose, AFTER)}"
    sample = replace(sample, question=question, system=system)
    if choose.random() >= PLAIN:
        return sample
    sample = sample.plainly(one_of(choose, BETWEEN))
    return replace(sample, question=f"{sample.question}{one_of(choose, BEHIND)}")


def _kind(fraction: float) -> str:
    """The kind whose share of 0 … 1 the fraction falls into."""
    borders = accumulate(SHARES.values())
    chosen = (kind for kind, border in zip(SHARES, borders, strict=True) if fraction < border)
    return next(chosen, next(iter(SHARES)))  # the shares' sum may be a rounding below 1
