"""Mistakes of tokenizers: in what they add around a text, and in the text they give back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from refllm.checkpoints.open import open_weights
from refllm.conform.case import Case, Json
from refllm.conform.faults.symptom import Symptom, seen
from refllm.conform.models import suite_model
from refllm.tokenizer import tokenizer_from_gguf
from refllm.tokenizer.base import Tokenizer

__all__ = ["TOKENIZER", "TOKENIZER_CAUSES", "tiny_chat_tokenizer", "without_special_tokens"]

# As the vocabularies of the suite's models, and many others, spell tokens that stand for no text.
SPECIAL = re.compile(r"</?s>|<unk>|\[(?:CLS|SEP|PAD|UNK|MASK)\]|<\|[a-z_]+\|>")
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
UNKNOWN = 0
REPLACEMENT = "\ufffd"


@cache
def tiny_chat_tokenizer(**changed: bool) -> Tokenizer:
    """tiny-chat's tokenizer, with other values of these `tokenizer.ggml.` keys."""
    path = suite_model("tiny-chat", Path())  # it ships: nothing is made
    assert path is not None
    said = {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    return tokenizer_from_gguf({**open_weights(path).hparams, **said}, path=path)


def without_special_tokens(text: str) -> str:
    """The text without what spells a special token."""
    return SPECIAL.sub("", text)


def _ids(case: Case, got: Json) -> tuple[list[int], list[int]]:
    return list(case.expected["ids"]), list(got["ids"])


def _texts(case: Case, got: Json) -> tuple[str, str]:
    return case.expected["text"], got["text"]


def _first_missing(case: Case, got: Json) -> bool:
    expected, found = _ids(case, got)
    return found == expected[1:]


def _last_missing(case: Case, got: Json) -> bool:
    expected, found = _ids(case, got)
    return found == expected[:-1]


def _both_missing(case: Case, got: Json) -> bool:
    expected, found = _ids(case, got)
    return len(expected) >= 2 and found == expected[1:-1]


def _first_twice(case: Case, got: Json) -> bool:
    expected, found = _ids(case, got)
    return found == [*expected[:1], *expected]


def _one_added(case: Case, got: Json) -> bool:
    expected, found = _ids(case, got)
    return found[:-1] == expected


def _by_tokenizer(**changed: bool) -> Callable[[Case, Json], bool]:
    """Whether tiny-chat's tokenizer gives the target's ids where its file says something else."""

    def sees(case: Case, got: Json) -> bool:
        if case.input["model"] != "tiny-chat":
            return False
        mistaken = tiny_chat_tokenizer(**changed).encode(case.input["text"])
        expected, found = _ids(case, got)
        return mistaken == found != expected

    return sees


def _special_not_read(case: Case, got: Json) -> bool:
    if case.input["model"] != "tiny-chat" or not SPECIAL.search(case.input["text"]):
        return False
    mistaken = tiny_chat_tokenizer().encode(case.input["text"], parse_special=False)
    expected, found = _ids(case, got)
    return mistaken == found != expected


def _no_byte_fallback(case: Case, got: Json) -> bool:
    expected, found = _ids(case, got)
    return found.count(UNKNOWN) > expected.count(UNKNOWN)


def _special_kept(case: Case, got: Json) -> bool:
    expected, found = _texts(case, got)
    plain = without_special_tokens(found)
    return found not in (plain, expected) and _same_words(plain, expected)


def _same_words(left: str, right: str) -> bool:
    return left.split() == right.split()


def _bytes_not_joined(case: Case, got: Json) -> bool:
    expected, found = _texts(case, got)
    is_cut = found.count(REPLACEMENT) > expected.count(REPLACEMENT)
    return is_cut or bool(BYTE.search(found) and not BYTE.search(expected))


def _first_space_kept(case: Case, got: Json) -> bool:
    expected, found = _texts(case, got)
    return found == f" {expected}"


def _spaces_lost(case: Case, got: Json) -> bool:
    expected, found = _texts(case, got)
    return found != expected and found in (expected.lstrip(" "), expected.strip())


def _spaces_collapsed(case: Case, got: Json) -> bool:
    expected, found = _texts(case, got)
    return found != expected and _same_words(found, expected)


def _normalized(case: Case, got: Json) -> bool:
    expected, found = _texts(case, got)
    forms = (unicodedata.normalize(form, expected) for form in ("NFC", "NFD", "NFKC", "NFKD"))
    return found != expected and found in set(forms)


Sees = Callable[[Case, Json], bool]
SEEN: tuple[tuple[str, str, Sees], ...] = (
    (
        "BOS missing",
        "The token that begins a text (BOS, [CLS]) is missing: the tokenizer's file says that it "
        "is added.",
        _first_missing,
    ),
    (
        "last token missing",
        "The token that ends a text ([SEP]) is missing: the tokenizer's file says that it is "
        "added.",
        _last_missing,
    ),
    (
        "special tokens not added",
        "The tokens around a text ([CLS] and [SEP]) are missing: the tokenizer's file says that "
        "they are added.",
        _both_missing,
    ),
    (
        "BOS twice",
        "The token that begins a text (BOS, [CLS]) is added twice.",
        _first_twice,
    ),
    (
        "EOS added",
        "A token is added at the end of a text (EOS): the tokenizer's file says that none is.",
        _one_added,
    ),
    (
        "space before the first word missing",
        "The space that the tokenizer puts before a text's first word is missing "
        "(tokenizer.ggml.add_space_prefix, add_dummy_prefix).",
        _by_tokenizer(add_space_prefix=False),
    ),
    (
        "special tokens in text not read",
        "Special tokens that are spelled in a text are read as characters: read them as tokens.",
        _special_not_read,
    ),
    (
        "byte fallback missing",
        "A character that is not in the vocabulary becomes the unknown token: spell it by the "
        "tokens of its UTF-8 bytes.",
        _no_byte_fallback,
    ),
    (
        "special tokens kept in text",
        "Special tokens are shown in the text: they stand for no text, so leave them out.",
        _special_kept,
    ),
    (
        "bytes not joined",
        "Each token becomes text by itself, so characters whose bytes are several tokens are "
        "broken: join the bytes first, and then read them as UTF-8.",
        _bytes_not_joined,
    ),
    (
        "first space kept",
        "The text begins with the space that the tokenizer put before its first word: leave it "
        "out.",
        _first_space_kept,
    ),
    (
        "spaces at the ends lost",
        "Spaces at the beginning or the end of a text are lost: they are part of it.",
        _spaces_lost,
    ),
    (
        "spaces collapsed",
        "Spaces inside a text are lost or added: they are part of it.",
        _spaces_collapsed,
    ),
    (
        "text normalized",
        "The text comes back in another Unicode normalization form: give its characters as they "
        "were.",
        _normalized,
    ),
)
TOKENIZER_CAUSES: Mapping[str, str] = {name: cause for name, cause, _ in SEEN}
TOKENIZER: tuple[Symptom, ...] = tuple(
    seen(name, cause, "tokenizer", sees) for name, cause, sees in SEEN
)
