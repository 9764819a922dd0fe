"""Writes golden/logits: what tiny-chat, in each of its types, gives to every next token.

    python -m tools.golden_logits [FOLDER]

The logits are the kernels', and nothing is written where the oracle's differ in any bit. Beside
them stands by how much other orders of summation differ (`tools.oracle_orders`), and a bound that
is a multiple of that.

T tokens, V vocabulary, P positions whose logits are kept.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from refllm.conform.models import model_sha256s, suite_model
from refllm.models.load import LlamaModel, load_path
from tools.golden_layout import array, document, hexadecimal, rounded_up
from tools.oracle_orders import VARIANTS, Model, logits, open_model

__all__ = ["main"]

Array: TypeAlias = NDArray[Any]
Deviations: TypeAlias = Mapping[str, float]  # by the variant's name

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "logits"
ARRAYS = "logits.safetensors"

ROWS = 4
TIMES = 4
TIMES_NUDGED = 2
# A change below this is that of sums; one activation that rounds otherwise makes far more.
SETTLED = 1e-3
FIRST_WORD = 300  # before it are special tokens and bytes
CLAUSES = {"exact": "the rule", "int8": "the second numerics, int8"}
IS_QUICK = (("tiny-chat", "exact", "story"), ("tiny-chat", "int8", "settled"))


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that is cut after so many tokens, BOS included, and what its logits prove."""

    text: str
    n_tokens: int  # 0 where the token is looked for
    proves: str


PASSAGES: Mapping[str, Passage] = {
    "first": Passage("", 1, "BOS alone: one token at position 0, which attends to itself."),
    "story": Passage(
        "Once upon a time there was a little fox who lived in the forest. One day the fox found a "
        "red ball near the river, and wanted to show it to all of her friends in the village.",
        24,
        "24 tokens of a story, each attending to those before it.",
    ),
    "chat": Passage(
        "[INST] Anna has a red ball. Tom has a blue kite. Who has the kite? [/INST] Tom has the "
        "kite.\n\n[INST] Grüße, 你好 🙂! What is 2 + 3? [/INST] 2 + 3 is 5. [INST] I love this "
        "book, and I want to read it again. [/INST] Positive. [INST] Tell me a story about a fox "
        "and a bird, please. [/INST] Once upon a time there was a fox who wanted to fly.",
        64,
        "64 tokens of a chat, words and single bytes, over positions that RoPE tells apart.",
    ),
    "settled": Passage(
        "", 0, "A token for which no activation is near the border between two integers."
    ),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in one of the numerics, and the passages that it reads.

    `rows_of` is the model whose decoded weights, and so whose logits, are the same.
    """

    model: str
    type_name: str
    numerics: str
    passages: tuple[str, ...] = ("first", "story")
    rows_of: str | None = None


SUBJECTS = (
    Subject("tiny-chat", "Q8_0", "exact", ("first", "story", "chat")),
    Subject("tiny-chat-F32", "F32", "exact", ("first", "story", "chat"), rows_of="tiny-chat"),
    Subject("tiny-chat-F16", "F16", "exact"),
    Subject("tiny-chat-BF16", "BF16", "exact"),
    Subject("tiny-chat-Q4_0", "Q4_0", "exact"),
    Subject("tiny-chat-Q4_K", "Q4_K", "exact"),
    Subject("tiny-chat", "Q8_0", "int8", ("first", "settled", "story", "chat")),
    Subject("tiny-chat-Q4_0", "Q4_0", "int8", ("first", "settled", "story")),
    Subject("tiny-chat-Q4_K", "Q4_K", "int8", ("first", "settled", "story")),
)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A passage's token ids, the logits after each of them [T, V], and how far others are off."""

    token_ids: Sequence[int]
    logits: Array
    deviations: Deviations


def main() -> None:
    """Write both files into the folder that is named, by default golden/logits."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    with tempfile.TemporaryDirectory() as models:
        cases, tensors = golden(Path(models))
        names = {subject.model for subject in SUBJECTS}
        sha256s = model_sha256s(Path(models))
    head = {name: digest for name, digest in sha256s.items() if name in names}
    (folder / "cases.json").write_text(document("logits", cases, models=head), encoding="ascii")
    (folder / ARRAYS).write_bytes(save(tensors))


def golden(models: Path) -> tuple[list[Mapping[str, object]], dict[str, Array]]:
    """The cases, and the rows that they name; ends the program where the oracle differs."""
    cases: list[Mapping[str, object]] = []
    tensors: dict[str, Array] = {}
    seen: dict[tuple[str, str], Mapping[str, Reading]] = {}
    for subject in SUBJECTS:
        others = seen.get((subject.rows_of or "", subject.numerics))
        readings = readings_of(subject, models, others)
        seen[subject.model, subject.numerics] = readings
        for passage, reading in readings.items():
            rows = f"{subject.rows_of or subject.model}-{subject.numerics}-{passage}"
            tensors[rows] = reading.logits[-ROWS:].copy()
            cases.append(entry(subject, passage, reading, rows))
    return cases, tensors


# Computing


def readings_of(
    subject: Subject, models: Path, others: Mapping[str, Reading] | None
) -> Mapping[str, Reading]:
    """What the model gives for each of its passages.

    `others` are the readings of a model with the same decoded weights, which have the oracle's
    agreement and the deviations already.
    """
    path = path_of(subject.model, models)
    model = load_path(path, numerics=subject.numerics)
    assert isinstance(model, LlamaModel)
    peer = Peer(subject.numerics, open_model(path))
    result = {}
    for passage in subject.passages:
        token_ids = ids_of(model, PASSAGES[passage]) or settled_ids(model, peer)
        computed = model.forward(token_ids)
        if others is None:
            refuse_unless_same(peer.logits(token_ids), computed, subject.model)
            result[passage] = Reading(token_ids, computed, peer.deviations(token_ids, computed))
        else:
            refuse_unless_same(others[passage].logits, computed, subject.model)
            result[passage] = others[passage]
    return result


def path_of(name: str, models: Path) -> Path:
    """The file of a model that ships or is made."""
    path = suite_model(name, models)
    assert path is not None
    return path


@dataclass(frozen=True, slots=True)
class Peer:
    """The oracle's network of a model, and its variants."""

    numerics: str
    model: Model

    def logits(self, token_ids: Sequence[int]) -> Array:
        """By the rule, [T, V]."""
        return logits(self.model, token_ids, self.numerics)

    def deviations(
        self, token_ids: Sequence[int], computed: Array, names: Collection[str] = tuple(VARIANTS)
    ) -> dict[str, float]:
        """By how much the variants of each name differ from what was computed."""
        return {
            name: max(
                largest_difference(logits(self.model, token_ids, self.numerics, each), computed)
                for each in VARIANTS[name]
            )
            for name in names
            if self.numerics in VARIANTS[name][0].numerics
        }


def ids_of(model: LlamaModel, passage: Passage) -> list[int]:
    """The passage's tokens, cut; none where they are looked for."""
    token_ids = model.tokenizer.encode(passage.text)[: passage.n_tokens]
    if len(token_ids) < passage.n_tokens:
        raise SystemExit(f"{passage.text!r} has only {len(token_ids)} tokens; make it longer")
    return token_ids


def settled_ids(model: LlamaModel, peer: Peer) -> list[int]:
    """The first word alone for which nudged activations round to the same integers."""
    for token_id in range(FIRST_WORD, model.config.n_vocab):
        computed = model.forward([token_id])
        if peer.deviations([token_id], computed, ["nudged"])["nudged"] < SETTLED:
            return [token_id]
    raise SystemExit(f"{model.path}: every token has an activation near a border")


def largest_difference(a: Array, b: Array) -> float:
    """max |a − b|."""
    return float(np.abs(a.astype(np.float64) - b).max())


def refuse_unless_same(a: Array, b: Array, what: str) -> None:
    """End the program where a bit differs."""
    if a.dtype != b.dtype or a.tobytes() != b.tobytes():
        raise SystemExit(f"{what}: the logits differ in some bit; nothing written")


# Writing


def entry(subject: Subject, passage: str, reading: Reading, rows: str) -> dict[str, object]:
    """The case as the file has it; `rows` is the name of the tensor."""
    model, numerics = subject.model, subject.numerics
    result: dict[str, object] = {
        "id": f"logits/{model}-{numerics}-{passage}",
        "proves": sentence(subject, passage),
        "clause": CLAUSES[numerics],
        "input": {"model": model, "numerics": numerics, "token_ids": reading.token_ids},
        "expected": expected(reading.logits, rows),
        "tolerance": tolerance(reading.deviations),
        "models": [model],
    }
    return {**result, "quick": True} if (model, numerics, passage) in IS_QUICK else result


def sentence(subject: Subject, passage: str) -> str:
    """What the case proves."""
    products = ", multiplied as integers" if subject.numerics == "int8" else ""
    return f"{PASSAGES[passage].proves} Matrices are {subject.type_name}{products}."


def expected(computed: Array, rows: str) -> dict[str, object]:
    """Shape, the last rows, and the best at every position."""
    n_tokens = len(computed)
    wide = computed.astype(np.float64)
    best = wide.argmax(axis=1)
    largest = wide.max(axis=1)
    second = np.sort(wide, axis=1)[:, -2]
    return {
        "shape": list(computed.shape),
        "positions": list(range(max(n_tokens - ROWS, 0), n_tokens)),
        "rows": {"file": ARRAYS, "tensor": rows},
        "best": {
            "ids": best.tolist(),
            "logits": array(largest),
            "margins": array(largest - second),
        },
    }


def tolerance(deviations: Deviations) -> dict[str, object]:
    """The bound, what it was made from, and why."""
    seen = {name: rounded_up(x) for name, x in deviations.items()}
    nudged = seen.get("nudged", 0.0)
    ordinary = max(x for name, x in seen.items() if name != "nudged")
    reason = (
        f"{TIMES} times the largest deviation that another order of additions, other elementary "
        "functions or float64 made"
    )
    if nudged:
        reason += f", or {TIMES_NUDGED} times that of activations which round otherwise"
    return {
        "absolute": hexadecimal(max(TIMES * ordinary, TIMES_NUDGED * nudged)),
        "reason": reason,
        "deviations": {name: hexadecimal(x) for name, x in seen.items()},
    }


if __name__ == "__main__":
    main()
