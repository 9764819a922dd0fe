"""Sentences to learn from, and others to be measured on: the generator's and our documents'."""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from tools.tiny_chat.corpus import samples

__all__ = ["held_out", "of_documents", "of_generator", "parts_of", "split"]

# One in so many sentences is never learned from. Which one depends on the sentence alone.
ONE_IN = 10
MIN_WORDS, MAX_WORDS = 3, 60
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
    """The sentences of Markdown files, of docstrings, and those that tests are named by."""
    for file in sorted(files):
        text = file.read_text("utf-8")
        for document in _documents_of(text) if file.suffix == ".py" else [text]:
            for paragraph in re.split(r"\n\s*\n", document):
                plain = " ".join(MARKS.sub(" ", paragraph).split())
                yield from ENDS.split(plain)


def _documents_of(source: str) -> Iterator[str]:
    """The docstrings of a Python file, and the names of its tests as sentences."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name.removeprefix("test_").replace("_", " ") + "."


def parts_of(sentences: Sequence[str], *, n_each: int, seed: int) -> Iterator[str]:
    """Runs of words out of each sentence, chosen at random: a teacher has a vector for any text."""
    choose = random.Random(seed)
    for words in (sentence.split() for sentence in sentences):
        for _ in range(n_each):
            n = choose.randint(MIN_WORDS, max(len(words), MIN_WORDS))
            first = choose.randint(0, max(len(words) - n, 0))
            yield " ".join(words[first : first + n])


def held_out(sentence: str) -> bool:
    """Whether the sentence is one of those that are never learned from."""
    return hashlib.sha256(sentence.encode()).digest()[0] % ONE_IN == 0


def split(sentences: Iterable[str]) -> tuple[Sequence[str], Sequence[str]]:
    """(To learn from, to be measured on): each sentence of a fair length, once, in order."""
    fair = (s for s in sentences if MIN_WORDS <= len(s.split()) <= MAX_WORDS)
    different = list(dict.fromkeys(fair))
    kept = [s for s in different if not held_out(s)]
    return kept, [s for s in different if held_out(s)]
