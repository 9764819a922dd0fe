"""How far embeddings by the numerics `int8` are from exact ones, in cosines and in rankings.

    python -m tools.compare_int8_embeddings MODEL [--types Q8_0 Q4_0]

MODEL is the folder of all-MiniLM-L6-v2 or of another encoder. It is quantized into a temporary
file. The table that this prints is in docs/models.md. For each type two sets of vectors are
compared with the exact ones of MODEL itself:

- `int8`: the quantized model, with activations quantized for each product;
- `exact`: the quantized model by exact products, which is the error of the weights alone.

The texts are those of golden/embeddings, cut at the limit of the tokenizer's file, and 1,000
sentences of the Python language reference, as `pydoc` of this Python has it. 200 of the sentences,
evenly spaced, are queries. Each ranks the other 999 by cosine. Compared are

- overlap@10: the share of the exact ten nearest sentences that are among the ten nearest;
- the nearest: the share of queries whose nearest sentence is the same;
- Spearman's ρ and Kendall's τ of the order of the exact 100 nearest sentences.

No figure depends on the machine; the last digits depend on the numerics' revision.

N texts, D width of a vector, Q queries, K nearest sentences.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.embed import model_tokenizer
from benchmarks.texts import real_sentences
from refllm import NUMERICS_REVISION, __version__
from refllm.conform.suite import golden_root
from refllm.export import quantize
from refllm.ggml.encode import QUANTIZABLE
from refllm.models.load import BertModel, load_path

__all__ = ["Ranking", "cosines", "golden_texts", "ranking_errors", "vectors"]

Array = NDArray[np.float64]

N_SENTENCES, MAX_TOKENS = 1000, 128
N_QUERIES, N_NEAREST, N_RANKED = 200, 10, 100


def main() -> None:
    """Print the table, and what it was made with."""
    parser = argparse.ArgumentParser(description="Compare int8 embeddings with exact ones.")
    parser.add_argument("model", type=Path, help="the folder of an encoder with a tokenizer.json")
    parser.add_argument("--types", nargs="+", default=["Q8_0"], choices=QUANTIZABLE)
    options = parser.parse_args()
    model: Path = options.model.resolve()
    sentences = real_sentences(model_tokenizer(model), N_SENTENCES, max_tokens=MAX_TOKENS)
    both = (golden_texts(), sentences)
    right = [vectors(model, "exact", texts) for texts in both]
    columns = {}
    for type_name in options.types:
        with TemporaryDirectory() as folder:
            small = Path(folder, f"{model.name}-{type_name}.gguf")
            quantize(model, small, type_name=type_name)
            for numerics in ("int8", "exact"):
                found = [vectors(small, numerics, texts) for texts in both]
                least_and_mean = [
                    f"{figure:.6f}"
                    for ours, exact in zip(found, right, strict=True)
                    for figure in (cosines(ours, exact).min(), cosines(ours, exact).mean())
                ]
                ranking = ranking_errors(found[1], right[1], n_queries=N_QUERIES)
                columns[f"{type_name}, {numerics}"] = [*least_and_mean, *ranking.cells()]
    labels = (
        f"cosine, {len(both[0])} golden texts: least",
        "mean",
        f"cosine, {N_SENTENCES:,} sentences: least",
        "mean",
        *Ranking.labels(),
    )
    print(f"| {model.name}, against exact float32 | {' | '.join(columns)} |")
    print("|---|" + "---|" * len(columns))
    for label, *cells in zip(labels, *columns.values(), strict=True):
        print(f"| {label} | {' | '.join(cells)} |")
    today = datetime.now(UTC).date()
    print(f"\nMade on {today} with refllm {__version__} (numerics revision {NUMERICS_REVISION}),")
    print(f"NumPy {np.__version__} and the sentences of Python {platform.python_version()}.")


def golden_texts() -> list[str]:
    """Return the texts of golden/embeddings."""
    file = golden_root() / "embeddings" / "all-minilm-l6-v2.json"
    return [text["text"] for text in json.loads(file.read_text("utf-8"))["texts"]]


def vectors(path: Path, numerics: str, texts: Sequence[str]) -> Array:
    """Return the vectors of texts, as float64 of length 1: [N, D]."""
    model = load_path(path, numerics=numerics)
    if not isinstance(model, BertModel):
        sys.exit(f"{path} is not an encoder")
    found: Array = model.embed(texts).astype(np.float64)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def cosines(a: Array, b: Array) -> Array:
    """Return the cosine of each row of a with the same row of b, both of length 1: [N]."""
    result: Array = np.einsum("nd,nd->n", a, b)
    return result


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well rankings agree, each [Q]."""

    overlap: Array
    nearest: Array
    spearman: Array
    kendall: Array

    @staticmethod
    def labels() -> tuple[str, ...]:
        """Return what the cells are."""
        return (
            f"overlap@{N_NEAREST} of {N_QUERIES} queries: mean",
            "least",
            "queries whose nearest sentence is the same",
            f"Spearman's ρ of the nearest {N_RANKED}: mean",
            "least",
            f"Kendall's τ of the nearest {N_RANKED}: mean",
            "least",
        )

    def cells(self) -> list[str]:
        """Return the figures, as text."""
        return [
            f"{self.overlap.mean():.4f}",
            f"{self.overlap.min():.1f}",
            f"{self.nearest.mean():.1%}",
            *(f"{figure:.4f}" for figure in (self.spearman.mean(), self.spearman.min())),
            *(f"{figure:.4f}" for figure in (self.kendall.mean(), self.kendall.min())),
        ]


def ranking_errors(
    found: Array, exact: Array, *, n_queries: int, n_nearest: int = N_NEAREST, k: int = N_RANKED
) -> Ranking:
    """Return how the rankings of evenly spaced queries agree.

    Args:
        found: Vectors of length 1, [N, D].
        exact: The right ones, [N, D].
        n_queries: The number of queries, Q.
        n_nearest: The number of nearest texts whose overlap is counted.
        k: The number of exact nearest texts whose order is compared, K < N.
    """
    rows = []
    for query in np.arange(n_queries) * len(exact) // n_queries:
        others = np.delete(np.arange(len(exact)), query)  # [N − 1]
        right, ours = exact[others] @ exact[query], found[others] @ found[query]  # [N − 1]
        by_right, by_ours = (np.argsort(-each, kind="stable") for each in (right, ours))
        shared = np.intersect1d(by_right[:n_nearest], by_ours[:n_nearest])
        order = ours[by_right[:k]]  # [K], by falling exact cosine
        place = np.empty(k)
        place[np.argsort(-order, kind="stable")] = np.arange(k)  # our rank of the exact i-th
        moved = place - np.arange(k)
        spearman = 1 - 6 * float(moved @ moved) / (k * (k * k - 1))
        first, second = np.triu_indices(k, 1)  # pairs that are first > second by exact cosine
        kendall = float(np.sign(order[first] - order[second]).mean())
        rows.append((len(shared) / n_nearest, by_right[0] == by_ours[0], spearman, kendall))
    return Ranking(*np.array(rows, np.float64).T)


if __name__ == "__main__":
    main()
