"""Writes golden/tokenizer/cases.json: the answers to the questions in inputs.toml.

    python -m tools.golden_tokenizer [--stories FILE]

Each text is tokenized three times, and nothing is written where two of them differ:

    the library    sentencepiece or tokenizers, on a vocabulary put together here from the file
    the book       byte pair encoding or WordPiece in plain Python, as their authors describe them
    refllm

So it does not matter that refllm calls the same libraries. FILE is stories260K.gguf; without it
the cases of that model stay as the file has them.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from refllm.models.bundled import ROOT
from refllm.tokenizer import tokenizer_from_gguf
from tools.golden_tokenizer_readers import Reader, readers_of_metadata
from tools.make_sampling_goldens import on_lines

__all__ = ["DisagreementError", "agreed", "document", "expected_of", "readers_of"]

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "tokenizer"
TINY = {
    "tiny-chat": ROOT / "llama" / "tiny-chat.gguf",
    "tiny-embed": ROOT / "bert" / "tiny-embed.gguf",
}


class DisagreementError(Exception):
    """Two tokenizers read the same text differently, or a question has no answer."""


# --- The answers ----------------------------------------------------------------------------------


class Refllm:
    """What the package itself does with the file."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self._tokenizer = tokenizer_from_gguf(metadata, path=path)

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)


def readers_of(path: Path) -> Mapping[str, Reader]:
    """The three tokenizers of a GGUF file by name, the library first."""
    fields = GGUFReader(path).fields
    metadata = {key: fields[key].contents() for key in fields if key.startswith("tokenizer.ggml.")}
    return {**readers_of_metadata(metadata), "refllm": Refllm(metadata, path)}


def agreed(readers: Mapping[str, Reader], case_id: str, text: str) -> Mapping[str, Any]:
    """What all of them answer. Errors: `DisagreementError` names the two that differ."""
    answers = {}
    for who, reader in readers.items():
        ids = reader.ids(text)
        answers[who] = {"ids": ids, "text": reader.text(ids)}
    (first, answer), *others = answers.items()
    for who, other in others:
        if other != answer:
            raise DisagreementError(f"{case_id}: {answer} by {first}, {other} by {who}")
    return answer


def expected_of(
    case_id: str, text: str, readers: Mapping[str, Reader] | None, kept: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The answer, or where there are no readers the one that the file has.

    Errors: `DisagreementError`; also where the file has none for this text.
    """
    if readers is not None:
        return agreed(readers, case_id, text)
    if case_id not in kept or kept[case_id]["input"]["text"] != text:
        raise DisagreementError(f"{case_id} is new: give --stories stories260K.gguf")
    answer: Mapping[str, Any] = kept[case_id]["expected"]
    return answer


# --- The file -------------------------------------------------------------------------------------


def document(stories: Path | None = None) -> str:
    """The whole file; `stories` is stories260K.gguf. Errors: `DisagreementError`."""
    questions = tomllib.loads((FOLDER / "inputs.toml").read_text("utf-8"))["case"]
    output = FOLDER / "cases.json"
    written = json.loads(output.read_text("ascii"))["cases"] if output.exists() else []
    kept = {case["id"]: case for case in written}
    paths = TINY if stories is None else {**TINY, "stories260K": stories}
    readers = {model: readers_of(path) for model, path in paths.items()}
    cases = []
    for question in questions:
        for model in question["models"]:
            case_id = f"tokenizer/{model.lower()}-{question['name']}"
            expected = expected_of(case_id, question["text"], readers.get(model), kept)
            quick = {"quick": True} if model in question.get("quick", ()) else {}
            cases.append(
                {
                    "id": case_id,
                    "proves": question["proves"],
                    "clause": question["clause"],
                    "models": [model],
                    "input": {"model": model, "text": question["text"]},
                    "expected": expected,
                    **quick,
                }
            )
    return on_lines({"$schema": "schema.json", "group": "tokenizer", "cases": cases}) + "\n"


def main() -> None:
    """Write the file where all tokenizers agree."""
    parser = argparse.ArgumentParser(description="Tokenize the texts of golden/tokenizer.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="to write into")
    parser.add_argument("--stories", type=Path, metavar="FILE", help="stories260K.gguf")
    arguments = parser.parse_args()
    (arguments.folder / "cases.json").write_text(document(arguments.stories), encoding="ascii")


if __name__ == "__main__":
    main()
