"""Writes golden/embeddings/all-minilm-l6-v2.json: what sentence-transformers answers, once.

    pip install sentence-transformers
    python tools/make_embedding_goldens.py MODEL_DIR

MODEL_DIR is a folder of all-MiniLM-L6-v2 as sentence-transformers saves it. Every text runs alone
(so nothing is padded), on one thread, on the CPU, in float32; then once more in float64, to know
how far rounding alone moves the answer. Two limits on a text's length are in use for this model
and both are recorded: that of tokenizer.json, and `max_seq_length` of sentence_bert_config.json.

Letters: N texts, D vector length.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import platform
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer, util
from tokenizers import Tokenizer

__all__ = ["main"]

JSON: TypeAlias = "Mapping[str, JSON] | Sequence[JSON] | str | int | float"

OUTPUT = Path(__file__).resolve().parent.parent / "golden" / "embeddings" / "all-minilm-l6-v2.json"
LIBRARIES = ("sentence-transformers", "transformers", "tokenizers", "torch", "numpy")
MODEL_FILES = ("model.safetensors", "tokenizer.json", "config.json", "sentence_bert_config.json")
TOLERANCE = 1e-6

# Any n words in a row of these make a long text; see `passage`.
SENTENCES = (
    "Before dawn the baker on the corner lights her oven and weighs the flour for forty loaves.",
    "She keeps a notebook in which every batch has a number, a temperature and a short remark.",
    "When the crust turns out too pale, she writes down the humidity and tries again.",
    "Her neighbor repairs clocks, and he says that bread and pendulums obey the same impatience.",
    "Across the river a glassblower turns molten silica on a long pipe, humming as it cools.",
    "The trick, he explains to visitors, is to stop turning one breath later than seems wise.",
    "On market days the square fills with beekeepers, weavers, tinkers and two rival cheesemakers.",
    "One of them ages her wheels in an abandoned railway tunnel, where the air never changes.",
    "The other swears by a limestone cellar that his great-grandmother dug with a borrowed shovel.",
    "Children chase each other between the stalls while a brass band rehearses its only waltz.",
    "By noon the harbor bell announces the ferry, and the fishermen mend nets in the shade.",
    "A marine biologist counts barnacles on the pilings; there are twelve percent fewer this year.",
    "She suspects the dredging upstream, but a hypothesis is not yet a measurement.",
    "In the library an archivist scans letters from a lighthouse keeper who loved astronomy.",
    "He drew the moons of Jupiter night after night, and his ink has hardly faded.",
    "The schoolteacher borrows those drawings to show how patience becomes knowledge.",
    "Toward evening the wind shifts, the windmills creak, and laundry snaps on the balconies.",
    "An electrician climbs the tower to replace a fuse that a curious jackdaw had stolen.",
    "Somebody has left a chessboard by the fountain with a note: white to move, please be kind.",
    "A postman considers the position for a minute and quietly advances the bishop's pawn.",
    "Snow is forecast for the passes, so the shepherds bring their flocks down early.",
    "The veterinarian checks every hoof by lantern light and finds only one loose stone.",
    "Late at night the observatory opens its dome, squeaking like an old accordion.",
    "And the baker, who never sleeps quite enough, sets her alarm and dreams of rye.",
)

ACCENTS = "Crème brûlée und Äpfel: naïve piñata, façade, Ångström, żółć, São Tomé, tiếng Việt."


def passage(first: int, n_words: int) -> str:
    """`n_words` words of SENTENCES, from number `first` on and around as often as it takes."""
    words = " ".join(SENTENCES[first:] + SENTENCES[:first]).split()
    rounds = -(-n_words // len(words))
    return " ".join((words * rounds)[:n_words])


TEXTS: dict[str, str] = {
    "one-word": "Lighthouse",
    "short-sentence": "The ferry leaves at noon.",
    "upper-case": "THE FERRY LEAVES AT NOON.",
    "sentence": "A boy is feeding the ducks by the pond.",
    "paraphrase": "Near the water, a child gives bread to some ducks.",
    "unrelated": "The central bank raised its interest rate by half a percentage point.",
    "accents": unicodedata.normalize("NFC", ACCENTS),
    "accents-decomposed": unicodedata.normalize("NFD", ACCENTS),
    "cjk": "東京タワーは赤い。 北京的冬天很冷，但是阳光很好。 서울에는 비가 온다.",
    "scripts": "Привет, мир! Καλημέρα κόσμε. مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดี",
    "emoji": "Great job 👍🏽 🎉🎉 the family 👩‍👩‍👧‍👦 is back ❤️ from 🇵🇹 :-) ☕",
    "code": (
        "def mean(xs: list[float]) -> float:\n"
        '    """The average."""\n'
        "    return sum(xs) / len(xs)  # ZeroDivisionError if empty\n\n"
        "assert mean([1.5, 2.5]) == 2.0 and x[i+1] != '\\t'"
    ),
    "numbers": "On 2024-02-29 at 07:45, 1,234,567.89 units at -3.5e-12 °C cost $0.99, 50% of €2½.",
    "spaces": "  Two   spaces,\ta tab,\n\na blank line,\u00a0a hard space \u200b and  a last one. ",
    "long-word": "An unbroken run of " + "ab" * 60 + " letters is one unknown word.",
    # At both limits exactly, and one token beyond the lower: 128, 129 and 256 tokens.
    "passage-100": passage(4, 100),
    "passage-101": passage(4, 101),
    "passage-202": passage(8, 202),
    "passage-300": passage(12, 300),
    "passage-600": passage(6, 600),
}


@dataclass(frozen=True, slots=True)
class Embedding:
    """One text's token ids (special tokens included) and its vector, float32 [D]."""

    token_ids: tuple[int, ...]
    vector: NDArray[np.float32]


def main() -> None:
    """Write the golden file from the model in the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Write the golden embeddings.")
    parser.add_argument("model_dir", type=Path, help="a folder of all-MiniLM-L6-v2")
    model_dir: Path = parser.parse_args().model_dir

    torch.set_num_threads(1)
    model = SentenceTransformer(str(model_dir), device="cpu", local_files_only=True).float()
    limits = {
        "tokenizer_json": _number(model_dir / "tokenizer.json", "truncation", "max_length"),
        "sentence_transformers": _number(model_dir / "sentence_bert_config.json", "max_seq_length"),
    }
    if model.max_seq_length != limits["sentence_transformers"]:
        raise SystemExit(f"sentence-transformers itself would cut at {model.max_seq_length} tokens")

    goldens = {limit: _embed_each(model, limit) for limit in limits.values()}
    for limit, embeddings in goldens.items():
        _check_token_ids(model_dir / "tokenizer.json", limit, embeddings)

    document: dict[str, JSON] = {
        "$schema": "schema.json",
        "model": {
            "name": "all-MiniLM-L6-v2",
            "license": "Apache-2.0",
            "sha256": {name: _sha256(model_dir / name) for name in MODEL_FILES},
        },
        "made_with": {
            "command": "python tools/make_embedding_goldens.py MODEL_DIR",
            "python": platform.python_version(),
            "machine": platform.machine(),
            **{name: version(name) for name in LIBRARIES},
        },
        "limits": limits,
        "tolerance": _tolerance(model, goldens),
        "texts": [
            {"id": name, "text": text, "embeddings": _entries(goldens, number)}
            for number, (name, text) in enumerate(TEXTS.items())
        ],
        "cosine": _cosine(goldens[limits["sentence_transformers"]]),
    }
    OUTPUT.write_text(_layout(document) + "\n", encoding="ascii")


def _number(path: Path, *keys: str) -> int:
    value = json.loads(path.read_text(encoding="utf-8"))
    for key in keys:
        value = value[key]
    return int(value)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _embed_each(model: SentenceTransformer, limit: int) -> list[Embedding]:
    model.max_seq_length = limit
    return [
        Embedding(
            tuple(model.preprocess([text])["input_ids"][0].tolist()),
            np.asarray(model.encode(text, normalize_embeddings=True), dtype=np.float32),
        )
        for text in TEXTS.values()
    ]


def _vectors(model: SentenceTransformer, limit: int) -> NDArray[np.float64]:
    """The vectors of all texts as the model computes them, float64 [N, D]."""
    model.max_seq_length = limit
    rows = [
        model.encode(text, normalize_embeddings=True, convert_to_tensor=True)
        for text in TEXTS.values()
    ]
    return np.stack([row.double().numpy() for row in rows])


def _check_token_ids(tokenizer_json: Path, limit: int, embeddings: Sequence[Embedding]) -> None:
    """Stop unless tokenizer.json, read by the tokenizers library alone, gives the same ids."""
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    for (name, text), embedding in zip(TEXTS.items(), embeddings, strict=True):
        if tuple(tokenizer.encode(text).ids) != embedding.token_ids:
            raise SystemExit(f"{name}: sentence-transformers did not use {tokenizer_json}")


def _tolerance(model: SentenceTransformer, goldens: Mapping[int, Sequence[Embedding]]) -> JSON:
    """How far an answer may be off, between what rounding does and what a wrong formula does."""
    float64 = copy.deepcopy(model).double()
    tanh_gelu = copy.deepcopy(float64)
    for module in tanh_gelu.modules():
        if hasattr(module, "intermediate_act_fn"):
            module.intermediate_act_fn = torch.nn.GELU(approximate="tanh")

    rounding, wrong = 0.0, float("inf")
    for limit, embeddings in goldens.items():
        exact = _vectors(float64, limit)  # [N, D]
        golden = np.stack([embedding.vector for embedding in embeddings])  # [N, D]
        off = np.abs(_vectors(tanh_gelu, limit) - exact).max(axis=1)  # [N]
        rounding = max(rounding, float(np.abs(golden - exact).max()))
        wrong = min(wrong, float(off.min()))
    return {
        "absolute": TOLERANCE,
        "reason": (
            "per component; above twice what float32 rounding moves any component, so that two "
            "correct implementations agree, and below what a wrong GELU moves in every text"
        ),
        "largest_float32_float64_difference": float(f"{rounding:.3g}"),
        "smallest_tanh_gelu_difference": float(f"{wrong:.3g}"),
    }


def _entries(goldens: Mapping[int, Sequence[Embedding]], number: int) -> list[JSON]:
    """Text `number` under every limit; limits that cut the text alike share one entry."""
    limits_of: dict[tuple[int, ...], list[int]] = {}
    for limit, embeddings in goldens.items():
        limits_of.setdefault(embeddings[number].token_ids, []).append(limit)
    return [
        {
            "max_tokens": limits,
            "token_count": len(token_ids),
            "token_ids": token_ids,
            "vector": [_c99_hex(value) for value in goldens[limits[0]][number].vector.tolist()],
        }
        for token_ids, limits in limits_of.items()
    ]


def _cosine(embeddings: Sequence[Embedding]) -> JSON:
    vectors = np.stack([embedding.vector for embedding in embeddings])  # [N, D]
    return [[_c99_hex(value) for value in row] for row in util.cos_sim(vectors, vectors).tolist()]


def _c99_hex(value: float) -> str:
    """The number as C's %a prints it: float.hex without the zeros at the end."""
    mantissa, exponent = value.hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}"


def _layout(value: JSON, indent: str = "") -> str:
    """JSON with a line for each member, but a list of plain values on one line."""
    inner = indent + "  "
    if isinstance(value, Mapping):
        members = [f"{json.dumps(key)}: {_layout(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + member for member in members) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and isinstance(value[0], Mapping | list):
        items = [inner + _layout(item, inner) for item in value]
        return "[\n" + ",\n".join(items) + f"\n{indent}]"
    return json.dumps(value)


if __name__ == "__main__":
    main()
