"""Texts to embed: real sentences that every Python carries, and made-up ones of one length."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pydoc_data.topics import topics

import numpy as np
from tokenizers import Tokenizer

__all__ = ["real_sentences", "sha256_of_texts", "uniform_texts"]

SENTENCE = re.compile(r"(?<!\S)[A-Z][^.|]+(?:\.\S[^.|]*)*\.(?!\S)")  # "Use str.join() here."


def real_sentences(tokenizer: Tokenizer, n_texts: int, *, max_tokens: int) -> list[str]:
    """Different sentences of the Python language reference, as `pydoc` shows it.

    None is longer than `max_tokens`, so that no limit of any library's matters; otherwise short
    and long ones come as their authors wrote them.
    """
    sentences: dict[str, None] = {}  # an ordered set
    for topic in sorted(topics):
        for paragraph in topics[topic].split("\n\n"):
            text = " ".join(paragraph.split())
            sentences.update(dict.fromkeys(SENTENCE.findall(text)))
    fitting = [s for s in sentences if len(tokenizer.encode(s).ids) <= max_tokens]
    if len(fitting) < n_texts:
        raise ValueError(f"only {len(fitting)} sentences have at most {max_tokens} tokens")
    step = len(fitting) / n_texts  # from all of the reference, not from its beginning
    return [fitting[int(i * step)] for i in range(n_texts)]


def uniform_texts(tokenizer: Tokenizer, n_texts: int, n_tokens: int) -> list[str]:
    """Random words of the vocabulary, each a token, so that every text has `n_tokens` tokens."""
    vocabulary = tokenizer.get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
    n_special = len(tokenizer.encode("").ids)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, n_tokens - n_special)) for _ in range(n_texts)]
    if any(len(tokenizer.encode(text).ids) != n_tokens for text in texts):
        raise ValueError(f"words of this vocabulary do not make texts of {n_tokens} tokens")
    return texts


def sha256_of_texts(texts: Sequence[str]) -> str:
    """What tells one list of texts from another."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
