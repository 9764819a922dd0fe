"""Writes golden/embeddings/cases.json: the vectors that answer the questions in inputs.toml.

    python -m tools.golden_embeddings [FOLDER]

all-minilm-l6-v2's are sentence-transformers', taken from all-minilm-l6-v2.json. tiny-embed's are
those of `tools.plain_bert` in float64, rounded to float32: another implementation, which pads and
masks where refllm does neither. The tool writes nothing where its vectors depend on padding, or
where refllm's or its own in float32 are farther off than half the tolerance.

FOLDER (default: golden/embeddings) receives cases.json; the other files are always read there.

N texts, D vector length.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refllm.models import bundled
from refllm.models.load import BertModel, load
from tools.golden_layout import hexadecimal
from tools.plain_bert import Mistakes, PlainBert, bert_of_gguf

__all__ = ["Question", "main", "questions", "token_ids_of"]

Json: TypeAlias = Mapping[str, Any]
Vectors: TypeAlias = NDArray[np.float64]

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "embeddings"
TINY_EMBED = bundled.ROOT / "bert" / "tiny-embed.gguf"

TOLERANCE = 1e-6
# What the order of float64 additions may do to a component.
FLOAT64_ERROR = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One entry of inputs.toml; `ids` are those of the texts that all-minilm-l6-v2.json has."""

    id: str
    proves: str
    clause: str
    model: str
    texts: Sequence[str]
    ids: Sequence[str | None]
    max_tokens: int | None
    is_quick: bool


def published() -> Json:
    """all-minilm-l6-v2.json."""
    return dict(json.loads((GOLDEN / "all-minilm-l6-v2.json").read_text(encoding="utf-8")))


def questions() -> list[Question]:
    """All of inputs.toml."""
    texts = {text["id"]: text["text"] for text in published()["texts"]}
    asked = tomllib.loads((GOLDEN / "inputs.toml").read_text(encoding="utf-8"))
    return [_question(entry, texts) for entry in asked["case"]]


def _question(entry: Json, texts: Mapping[str, str]) -> Question:
    ids = [None if isinstance(text, str) else text["id"] for text in entry["texts"]]
    return Question(
        id=entry["id"],
        proves=entry["proves"],
        clause=entry["clause"],
        model=entry["model"],
        texts=[
            text if name is None else texts[name]
            for name, text in zip(ids, entry["texts"], strict=True)
        ],
        ids=ids,
        max_tokens=entry.get("max_tokens"),
        is_quick=entry.get("quick", False),
    )


# --- all-minilm-l6-v2: what sentence-transformers answered ----------------------------------------


def answer_of_minilm(question: Question, document: Json) -> Json:
    """The expected answer; every text must be one of the file's."""
    limit = question.max_tokens or document["limits"]["tokenizer_json"]
    entries = {text["id"]: text["embeddings"] for text in document["texts"]}
    found = [
        next(entry for entry in entries[name] if limit in entry["max_tokens"])
        for name in question.ids
    ]
    return {
        "embeddings": [entry["vector"] for entry in found],
        "usage": {"prompt_token_count": sum(entry["token_count"] for entry in found)},
    }


def tolerance_of_minilm(document: Json) -> Json:
    """As the file has it."""
    return dict(document["tolerance"])


# --- tiny-embed: what the plain BERT answers ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Computed:
    """A question's token ids, and the vectors in float64 from one padded batch: [N, D]."""

    question: Question
    token_ids: Sequence[Sequence[int]]
    exact: Vectors


def computed(question: Question, bert: PlainBert) -> Computed:
    """The plain BERT's; a question must have texts."""
    token_ids = token_ids_of(question, bert)
    return Computed(question, token_ids, bert.vectors(token_ids))


def token_ids_of(question: Question, bert: PlainBert) -> list[list[int]]:
    """Of each text, cut where the question says."""
    return [bert.token_ids(text, max_tokens=question.max_tokens) for text in question.texts]


def answer_of_tiny_embed(question: Question, known: Computed | None, bert: PlainBert) -> Json:
    """The expected answer, each text computed alone; ends the program where company matters."""
    if known is None:
        return {"embeddings": [], "usage": {"prompt_token_count": 0}}
    vectors = np.concatenate([bert.vectors([ids]) for ids in known.token_ids])  # [N, D]
    if np.abs(known.exact - vectors).max() > FLOAT64_ERROR:
        raise SystemExit(f"{question.id}: the vectors depend on padding; nothing written")
    return {
        "embeddings": [
            [hexadecimal(x) for x in row] for row in vectors.astype(np.float32).tolist()
        ],
        "usage": {"prompt_token_count": sum(map(len, known.token_ids))},
    }


def tolerance_of_tiny_embed(
    all_known: Sequence[Computed], bert: PlainBert, refllm: BertModel
) -> Json:
    """Between what float32 moves and what wrong formulas move, both measured over all questions."""
    rounding, by_another = 0.0, 0.0
    tanh, padding = float("inf"), float("inf")
    for known in all_known:
        asked, token_ids = known.question, known.token_ids
        own = refllm.embed(asked.texts, max_tokens=asked.max_tokens)  # [N, D]
        rounding = max(rounding, float(np.abs(own - known.exact).max()))
        in_float32 = bert.vectors(token_ids, np.float32)
        by_another = max(by_another, float(np.abs(in_float32 - known.exact).max()))
        tanh = min(tanh, float(_off(known, bert, Mistakes(tanh_gelu=True)).min()))
        is_padded = np.array([len(ids) < max(map(len, token_ids)) for ids in token_ids])  # [N]
        if is_padded.any():
            padded = _off(known, bert, Mistakes(pools_padding=True))[is_padded]
            padding = min(padding, float(padded.min()))
    if 2 * max(rounding, by_another) > TOLERANCE:
        raise SystemExit(f"float32 is off by {rounding:.2g} or {by_another:.2g}; nothing written")
    return {
        "absolute": TOLERANCE,
        "reason": (
            "per component; above twice what float32 rounding moves any component, so that two "
            "correct implementations agree, and below what GELU by tanh moves in every text, and "
            "what averaging over padding moves in every text that is padded"
        ),
        "largest_float32_float64_difference": two_digits(rounding),
        "smallest_tanh_gelu_difference": two_digits(tanh),
        "smallest_padded_mean_difference": two_digits(padding),
    }


def _off(known: Computed, bert: PlainBert, mistakes: Mistakes) -> Vectors:
    """By how much a mistake moves the component of each text that it moves most: [N]."""
    wrong = bert.vectors(known.token_ids, mistakes=mistakes)
    largest: Vectors = np.abs(wrong - known.exact).max(axis=1)
    return largest


# --- The file ------------------------------------------------------------------------------------


def main() -> None:
    """Write the file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    asked, document, bert = questions(), published(), bert_of_gguf(TINY_EMBED)
    refllm = load(TINY_EMBED)
    assert isinstance(refllm, BertModel)
    of_tiny_embed = {
        question.id: computed(question, bert)
        for question in asked
        if question.model == "tiny-embed" and question.texts
    }
    tolerances = {
        "tiny-embed": tolerance_of_tiny_embed(list(of_tiny_embed.values()), bert, refllm),
        "all-minilm-l6-v2": tolerance_of_minilm(document),
    }
    cases = []
    for question in asked:
        is_tiny = question.model == "tiny-embed"
        answer = (
            answer_of_tiny_embed(question, of_tiny_embed.get(question.id), bert)
            if is_tiny
            else answer_of_minilm(question, document)
        )
        cases.append(case_of(question, answer, tolerances[question.model]))
    file = {"$schema": "suite.schema.json", "group": "embeddings", "cases": cases}
    (folder / "cases.json").write_text(f"{layout(file)}\n", encoding="ascii")


def case_of(question: Question, answer: Json, tolerance: Json) -> Json:
    """One entry of the file."""
    limit = {} if question.max_tokens is None else {"max_tokens": question.max_tokens}
    return {
        "id": question.id,
        "proves": question.proves,
        "clause": question.clause,
        "models": [question.model],
        **({"quick": True} if question.is_quick else {}),
        "input": {"model": question.model, "texts": question.texts, **limit},
        "expected": answer,
        **({"tolerance": tolerance} if question.texts else {}),
    }


def two_digits(x: float) -> float:
    """The nearest number of two digits."""
    return float(f"{x:.2g}")


def layout(value: Any, indent: str = "") -> str:
    """JSON with a line for each member, but a list of plain values on one line."""
    deeper = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {layout(item, deeper)}" for key, item in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        items = [layout(item, deeper) for item in value]
    else:
        return json.dumps(value)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n" + ",\n".join(deeper + item for item in items) + f"\n{indent}{closing}"


if __name__ == "__main__":
    main()
