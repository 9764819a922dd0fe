"""Check a `tokenizer.json` before the tokenizers library reads it.

The library allocates memory by the file's numbers: a table as long as the largest id, an automaton
for the added tokens, a text as long as the normalizer makes it. A process that runs out of memory
cannot answer, so these numbers are limited here.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refllm.errors import LlmRuntimeError, ModelNotSupported
from refllm.files.reading import MAX_TOKENIZER_VALUES, parse_json_object
from refllm.tokenizer.folder import MAX_TOKEN_BYTES

__all__ = [
    "check_charsmap",
    "check_pipeline",
    "check_vocabulary",
    "growth_of",
    "pipeline_steps",
    "read_document",
]

MAX_ID = 2**32 - 1
MAX_SCORE = 2.0**128  # a score is a float32
MAX_HOLES = 4  # times as many ids as tokens: padded vocabularies have holes
MAX_ADDED_BYTES = 2**24  # of all added tokens; 200,000 tokens of a codec's sounds have 4 MB
MAX_STEPS = 1000  # of one stage; a file that replaces runs of spaces of each length has about 100
MAX_PATTERN = 2**13  # characters of all expressions of a stage; published files have some hundred
MAX_PIECE = 256  # characters of a unigram, the time for a text is the square of it; XLM-R has 48
MAX_WORD = 256  # characters of a word for WordPiece, whose time is the cube of it; BERT has 100
MAX_SPECIAL = 1000  # tokens that a post-processor puts around a text; a translator has 4
MAX_GROWTH = 2**14  # of `growth_of`; one that names runs of spaces of each length has 1000
WRITING = ("ByteLevel", "Metaspace")  # steps that write up to 4 bytes for one
MAX_WRITING = 3  # a published file has 2
CHARSMAP_UNIT_BYTES = 4
MAX_STRING_BYTES = 64  # of a charsmap; Unicode's longest compatibility mapping (U+FDFA) has 33
FORM_GROWTH = 11  # of U+FDFA in form KC: 3 bytes become 33

STAGES: Mapping[str, str] = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""The stages of the file, and the key of the steps that a step of the type Sequence has."""


def read_document(source: str, path: Path) -> dict[str, Any]:
    """Return the content of a tokenizer.json whose numbers are within the limits.

    Args:
        source: Its text.
        path: The file, for error messages.

    Raises:
        LlmRuntimeError: naming the file and the key.
    """
    document = parse_json_object(source, path=path, max_values=MAX_TOKENIZER_VALUES)
    n_tokens, largest = _check_vocabulary(document, path)
    n_added, largest_added = _check_added(document, path)
    _check_holes(n_tokens + n_added, max(largest, largest_added), path)
    for stage, plural in STAGES.items():
        steps = [*_checked_steps(document.get(stage), plural, f"{path}: {stage}")]
        _check_stage(steps, f"{path}: {stage}")
    return document


def check_vocabulary(tokens: Mapping[str, object], path: Path) -> None:
    """Refuse a vocab.json with something other than ids, or with ids that cannot be.

    Args:
        tokens: Token to id.
        path: The file.

    Raises:
        LlmRuntimeError: naming the file and the token.
    """
    _check_holes(len(tokens), _largest_id(tokens, str(path)), path)


def _largest_id(tokens: Mapping[str, object], where: str) -> int:
    largest = 0
    for token, token_id in tokens.items():
        if type(token_id) is not int or not 0 <= token_id <= MAX_ID:
            raise LlmRuntimeError(
                f"{where} gives {token!r:.80} the id {token_id!r:.80}; an id is a whole number "
                f"from 0 to {MAX_ID}"
            )
        largest = max(largest, token_id)
    return largest


def _check_holes(n_tokens: int, largest: int, path: Path) -> None:
    if n_tokens == 0:
        raise LlmRuntimeError(f"{path}: the vocabulary is empty")
    if largest >= MAX_HOLES * n_tokens:
        raise LlmRuntimeError(
            f"{path}: there are {n_tokens} tokens, but one has the id {largest}; ids count the "
            "tokens, with few holes between them"
        )


def _check_vocabulary(document: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Return how many tokens the model has, and the largest id."""
    model = document.get("model")
    if not isinstance(model, dict):
        raise LlmRuntimeError(f"{path}: model must be an object, is {model!r:.80}")
    _check_merges(model, path)
    if model.get("dropout"):
        raise ModelNotSupported(
            f"{path}: model.dropout = {model['dropout']!r:.80} leaves merges out at random, "
            "so that a text has other tokens each time; set it to null"
        )
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        return len(vocabulary), _largest_id(vocabulary, f"{path}: model.vocab")
    if not isinstance(vocabulary, list):
        raise LlmRuntimeError(f"{path}: model.vocab must have the tokens, is {vocabulary!r:.80}")
    for index, piece in enumerate(vocabulary):
        match piece:
            case [str() as token, int() | float() as score] if abs(score) < MAX_SCORE:
                if len(token) <= MAX_PIECE:
                    continue
        raise LlmRuntimeError(
            f"{path}: model.vocab has {piece!r:.80} at index {index}, and must have a token of "
            f"at most {MAX_PIECE} characters and its score"
        )
    unknown = model.get("unk_id")
    if unknown is not None and (
        type(unknown) is not int or not 0 <= unknown < max(len(vocabulary), 1)
    ):
        raise LlmRuntimeError(
            f"{path}: model.unk_id is {unknown!r:.80}, but there are {len(vocabulary)} tokens"
        )
    return len(vocabulary), max(len(vocabulary) - 1, 0)


def _check_merges(model: Mapping[str, Any], path: Path) -> None:
    """Refuse merges whose second token lacks the prefix that the library cuts off.

    The library cuts as many bytes as the prefix has characters, and ends the process if that is no
    boundary of a character.
    """
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not isinstance(prefix, str) or not prefix or not isinstance(merges, list):
        return
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        match pair:
            case [str(), str(second)] if second.startswith(prefix) and prefix.isascii():
                continue
        raise LlmRuntimeError(
            f"{path}: model.merges has {merge!r:.80}, whose second token does not begin with "
            f"model.continuing_subword_prefix, {prefix!r:.80}"
        )


def _check_added(document: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Return how many added tokens there are, and the largest id."""
    added = document.get("added_tokens")
    if added is None:
        return 0, 0
    if not isinstance(added, list):
        raise LlmRuntimeError(f"{path}: added_tokens must be an array, is {added!r:.80}")
    largest = n_bytes = 0
    for index, token in enumerate(added):
        match token:
            case {"id": int() as token_id, "content": str() as content} if (
                type(token_id) is int and 0 <= token_id <= MAX_ID
            ):
                n_token_bytes = len(content.encode("utf-8", "surrogatepass"))
            case _:
                raise LlmRuntimeError(
                    f"{path}: added_tokens has {token!r:.80} at index {index}, and must have an "
                    f"object with a content and an id, a whole number from 0 to {MAX_ID}"
                )
        _check_limit(
            f"{path}: added_tokens: {content!r:.80}", n_token_bytes, "bytes", MAX_TOKEN_BYTES
        )
        largest = max(largest, token_id)
        n_bytes += n_token_bytes
    _check_limit(f"{path}: added_tokens", n_bytes, "bytes", MAX_ADDED_BYTES)
    return len(added), largest


def _checked_steps(stage: object, plural: str, where: str) -> Iterator[dict[str, Any]]:
    if stage is None:
        return
    if not isinstance(stage, dict):
        raise LlmRuntimeError(f"{where} must be an object, is {stage!r:.80}")
    if not isinstance(stage.get("type", ""), str):
        raise LlmRuntimeError(f"{where}.type must be a string, is {stage['type']!r:.80}")
    yield stage
    inner = stage.get(plural, [])
    if not isinstance(inner, list):
        raise LlmRuntimeError(f"{where}.{plural} must be an array, is {inner!r:.80}")
    for index, step in enumerate(inner):
        if step is None:
            raise LlmRuntimeError(f"{where}.{plural} has null at index {index}")
        yield from _checked_steps(step, plural, f"{where}.{plural}")


def _check_stage(steps: Sequence[Mapping[str, Any]], where: str) -> None:
    _check_limit(where, len(steps), "steps", MAX_STEPS)
    patterns = [step["pattern"] for step in steps if isinstance(step.get("pattern"), dict)]
    n_characters = sum(len(str(pattern.get("Regex", ""))) for pattern in patterns)
    _check_limit(f"{where}: pattern.Regex", n_characters, "characters", MAX_PATTERN)
    for step in steps:
        if step.get("type") == "FixedLength" and step.get("length") == 0:
            raise LlmRuntimeError(f"{where} has FixedLength with length 0; the least is 1")
        table = step.get("precompiled_charsmap")
        if isinstance(table, str) and table:
            try:
                data = binascii.a2b_base64(table, strict_mode=True)
            except ValueError as error:
                raise LlmRuntimeError(
                    f"{where}: precompiled_charsmap is not base64: {error}"
                ) from error
            check_charsmap(data, f"{where}: precompiled_charsmap")


def pipeline_steps(stage: object) -> list[dict[str, Any]]:
    """Return the steps of a stage of a tokenizer.json, those of a Sequence in its place."""
    if not isinstance(stage, dict):
        return []
    inner = next((stage[key] for key in STAGES.values() if isinstance(stage.get(key), list)), None)
    if inner is None:
        return [stage]
    return [step for part in inner for step in pipeline_steps(part)]


def check_pipeline(document: Mapping[str, Any], known: Mapping[int, str], path: Path) -> None:
    """Refuse a pipeline that makes a text too long, or adds tokens that do not exist.

    Args:
        document: The file as the library renders it, with every key.
        known: The tokens by id.
        path: The file, for error messages.

    Raises:
        LlmRuntimeError: naming the file and the key.
    """
    growth = growth_of(document.get("normalizer"))
    if growth > MAX_GROWTH:
        raise LlmRuntimeError(
            f"{path}: normalizer may make a text {growth:.3g} times as long, and may make it "
            f"{MAX_GROWTH} times as long"
        )
    words = pipeline_steps(document.get("pre_tokenizer"))
    n_writing = sum(step["type"] in WRITING for step in words)
    _check_limit(f"{path}: pre_tokenizer", n_writing, "steps that write characters", MAX_WRITING)
    n_characters = document["model"].get("max_input_chars_per_word") or 0
    if n_characters > MAX_WORD:
        raise LlmRuntimeError(
            f"{path}: model.max_input_chars_per_word is {n_characters}, and may be {MAX_WORD}"
        )
    n_special = 0
    for step in pipeline_steps(document.get("post_processor")):
        ids = [step[end][1] for end in ("sep", "cls") if end in step]
        if step["type"] == "TemplateProcessing":
            tokens = step["special_tokens"]
            put = [part["SpecialToken"]["id"] for part in step["single"] if "SpecialToken" in part]
            unknown = [name for name in put if name not in tokens]
            if unknown:
                raise LlmRuntimeError(
                    f"{path}: post_processor.single has {unknown[0]!r:.80}, which special_tokens "
                    "does not have"
                )
            if len(step["single"]) - len(put) != 1:
                raise LlmRuntimeError(
                    f"{path}: post_processor.single must have the text once, and has it "
                    f"{len(step['single']) - len(put)} times"
                )
            ids = [token_id for name in tokens for token_id in tokens[name]["ids"]]
            n_special += sum(len(tokens[name]["ids"]) for name in put)
        for token_id in ids:
            if token_id not in known:
                raise LlmRuntimeError(
                    f"{path}: post_processor has the id {token_id}, which no token has"
                )
    _check_limit(f"{path}: post_processor", n_special, "tokens around a text", MAX_SPECIAL)


def _check_limit(where: str, number: int, what: str, maximum: int) -> None:
    if number > maximum:
        raise LlmRuntimeError(f"{where} has {number} {what}, and may have {maximum}")


def growth_of(normalizer: Mapping[str, Any] | None) -> float:
    """Return an upper bound of the bytes that a normalizer writes for each byte of a text.

    Args:
        normalizer: As the library renders it.
    """
    growth = 1.0
    in_form = False  # what is in a form of Unicode does not grow by another one
    for step in pipeline_steps(normalizer):
        content = len(str(step.get("content", "")).encode())
        is_form = False
        match step:
            case {"type": "Replace", "pattern": {"String": str(pattern)}} if pattern:
                growth *= max(1.0, content / len(pattern.encode()))
            case {"type": "Replace"}:  # the expression may match nothing, between two characters
                growth *= 1 + content
            case {"type": "Prepend", "prepend": str(prefix)}:  # between any two added tokens
                growth *= 1 + len(prefix.encode())
            case {"type": "ByteLevel"}:
                growth *= 2
            case {"type": "Precompiled"}:
                growth *= MAX_STRING_BYTES
            case _:
                is_form = True
                growth *= 1 if in_form else FORM_GROWTH
        in_form = is_form
    return growth


def check_charsmap(table: bytes, where: str) -> None:
    """Refuse SentencePiece's table of characters in which the lookup of some text leaves the table.

    The table (`precompiled_charsmap`) defines how a text is normalized. It is a tree over the
    bytes of UTF-8, the double array of Darts-clone, and the strings that its leaves name:

        4 bytes          size of the tree in bytes, little endian
        units, 4 bytes   a node: label (bits 0 … 7), has a leaf (8), offset (10 … 30; * 256 if
                         bit 9)
                         a leaf: bit 31, and where its string begins (bits 0 … 30)
        strings          UTF-8, a NUL byte after each

    From the node at index i the byte b leads to the index i ^ offset ^ b, and b = 0 to the leaf.
    The libraries follow that without a check against the end of the array.

    Args:
        table: The table, not empty.
        where: The file and the key, with which the error begins.

    Raises:
        LlmRuntimeError: naming what is damaged.
    """
    size = int.from_bytes(table[:CHARSMAP_UNIT_BYTES], "little")
    strings = table[CHARSMAP_UNIT_BYTES + size :]
    if size < CHARSMAP_UNIT_BYTES or size % CHARSMAP_UNIT_BYTES or not strings:
        raise LlmRuntimeError(
            f"{where} is damaged: it has {len(table)} bytes, and says that {size} of them are a "
            "tree, with strings after it"
        )
    try:
        longest = max(map(len, strings.decode("utf-8").encode().split(b"\0")))
    except UnicodeDecodeError as error:
        raise LlmRuntimeError(f"{where} is damaged: its strings are not UTF-8: {error}") from error
    if longest > MAX_STRING_BYTES:
        raise LlmRuntimeError(
            f"{where} writes {longest} bytes for one character, and may write {MAX_STRING_BYTES}"
        )
    n_units = size // CHARSMAP_UNIT_BYTES
    units = np.frombuffer(table, "<u4", n_units, CHARSMAP_UNIT_BYTES).astype(np.int64)
    nodes = np.flatnonzero(units < 2**31)
    of_nodes = units[nodes]
    below = nodes ^ (of_nodes >> 10 << ((of_nodes & 0x200) >> 6))
    if below.size == 0 or int((below | 0xFF).max()) >= units.size:
        raise LlmRuntimeError(f"{where} is damaged: a node of its tree leads out of it")
    begins = units[below[of_nodes & 0x100 != 0]] & (2**31 - 1)
    is_outside = begins.size > 0 and int(begins.max()) >= len(strings)
    if is_outside or not strings.endswith(b"\0"):
        raise LlmRuntimeError(f"{where} is damaged: a string lies beyond its end")
    if bool((np.frombuffer(strings, np.uint8)[begins] & 0xC0 == 0x80).any()):
        raise LlmRuntimeError(f"{where} is damaged: a string begins inside of a character")
