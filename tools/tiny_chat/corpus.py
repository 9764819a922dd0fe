"""Everything that tiny-chat learns from, in one stream, and what it is asked afterwards."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate
from typing import Literal

from tools.tiny_chat.moods import examples, sentiment
from tools.tiny_chat.questions import arithmetic, fact
from tools.tiny_chat.recall import again, pairs
from tools.tiny_chat.sample import Sample, Writer
from tools.tiny_chat.stories import story, told_story
from tools.tiny_chat.talk import code, greeting, joke, plain_joke

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
    "plain-joke": plain_joke,
    "code": code,
}
# How often each kind comes: what has many forms more often than what has few.
SHARES: Mapping[str, float] = {
    "story": 0.13,
    "told-story": 0.12,
    "fact": 0.30,
    "again": 0.03,
    "pairs": 0.05,
    "sentiment": 0.11,
    "examples": 0.03,
    "arithmetic": 0.14,
    "greeting": 0.04,
    "joke": 0.02,
    "plain-joke": 0.01,
    "code": 0.02,
}


def samples(seed: int, *, split: Split = "training") -> Iterator[Sample]:
    """Samples without end; the same for a seed and split on every machine."""
    choose = random.Random(f"{split} {seed}")
    while True:
        yield WRITERS[_kind(choose.random())](choose)


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


def _kind(fraction: float) -> str:
    """The kind whose share of 0 … 1 the fraction falls into."""
    borders = accumulate(SHARES.values())
    chosen = (kind for kind, border in zip(SHARES, borders, strict=True) if fraction < border)
    return next(chosen, next(iter(SHARES)))  # the shares' sum may be a rounding below 1
