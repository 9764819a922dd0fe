"""How nearly tiny-embed places sentences as its teacher does, on sentences it never learned from.

N sentences, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.models.load import BertModel, load
from tools.tiny_embed.sentences import of_documents, of_generator, split

__all__ = ["ASKED", "Score", "bert_of", "documents", "scores"]

Floats = NDArray[np.float32]

PROJECT = Path(__file__).parent.parent.parent
DOCUMENTS = ("*.md", "docs/*.md", "golden/**/*.md", "refllm/**/*.py", "tests/*.py", "tools/**/*.py")
SEED_OF_MEASURED = 20_000  # training reads the generator's sentences of another
SAMPLES_OF_MEASURED = 5_000
MAX_MEASURED = 1000
ASKED = 0.85  # the least correlation over all sentences that the model card promises


@dataclass(frozen=True, slots=True)
class Score:
    """The correlation of the similarities of all pairs of so many sentences."""

    name: str
    correlation: float
    n_sentences: int


def scores(student: BertModel, teacher: BertModel) -> Iterator[Score]:
    """The score over sentences of both kinds, half and half, then over those of each kind."""
    _, said = split(of_generator(SEED_OF_MEASURED, SAMPLES_OF_MEASURED))
    _, written = split(of_documents(documents()))
    n = min(len(said), len(written), MAX_MEASURED)
    kinds = {"the generator's": _some(said, n), "our documents'": _some(written, n)}
    both = [*chain.from_iterable(kinds.values())]
    for name, texts in {"of both kinds": both, **kinds}.items():
        yield Score(name, _correlation(student.embed(texts), teacher.embed(texts)), len(texts))


def documents() -> set[Path]:
    """The project's own texts."""
    return {file for pattern in DOCUMENTS for file in PROJECT.glob(pattern)}


def bert_of(name_or_path: str) -> BertModel:
    """The encoder of that name or path."""
    model = load(name_or_path)
    if not isinstance(model, BertModel):
        raise SystemExit(f"{name_or_path} is not an embedding model")
    return model


def _some(sentences: Sequence[str], n: int) -> list[str]:
    """n of them, chosen the same each time."""
    chosen = np.random.default_rng(0).permutation(len(sentences))[:n]
    return [sentences[i] for i in chosen]


def _correlation(ours: Floats, theirs: Floats) -> float:
    """Pearson's, of the cosine similarities of all pairs of N sentences, vectors [N, D]."""
    pairs = np.triu_indices(len(ours), 1)
    return float(np.corrcoef((ours @ ours.T)[pairs], (theirs @ theirs.T)[pairs])[0, 1])
