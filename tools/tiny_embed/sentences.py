"""Sentences to learn from, and others to be measured on: the generator's and our documents'."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from tools.tiny_chat.corpus import samples

__all__ = ["held_out", "of_documents", "of_generator", "split"]

# One in so many sentences is never learned from. Which one depends on the sentence alone.
ONE_IN = 10
FEWEST_WORDS, MOST_WORDS = 3, 60
ENDS = re.compile(r"(?<=[.!?])\s+")
MARKS = re.compile(r"[`*#|]+")


def of_generator(seed: int, n_samples: int) -> Iterator[str]:
    """The sentences of stories, questions and answers, those of a question also together."""
    for sample in islice(samples(seed), n_samples):
        if sample.question is not None:
            yield sample.question
        for text in (sample.question or "", sample.answer):
            yield from ENDS.split(text)


def of_documents(files: Iterable[Path]) -> Iterator[str]:
    """The sentences of Markdown files and of Python docstrings and comments, as plain text."""
    for file in sorted(files):
        text = file.read_text("utf-8")
        paragraphs = re.split(r"\n\s*\n", text)
        for paragraph in paragraphs:
            plain = " ".join(MARKS.sub(" ", paragraph).split())
            yield from ENDS.split(plain)


def held_out(sentence: str) -> bool:
    """Whether the sentence is one of those that are never learned from."""
    return hashlib.sha256(sentence.encode()).digest()[0] % ONE_IN == 0


def split(sentences: Iterable[str]) -> tuple[Sequence[str], Sequence[str]]:
    """(To learn from, to be measured on): each sentence of a fair length, once, in order."""
    fair = (s for s in sentences if FEWEST_WORDS <= len(s.split()) <= MOST_WORDS)
    different = list(dict.fromkeys(fair))
    kept = [s for s in different if not held_out(s)]
    return kept, [s for s in different if held_out(s)]
