"""Faults of tokenizers: in what they add around a text, and in the text they give back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from refllm.conform.case import Case, Json
from refllm.conform.faults.catalog import Faults
from refllm.conform.faults.float64_models import tiny_chat_tokenizer

__all__ = ["REPLACEMENT", "TOKENIZER", "without_special_tokens"]

TOKENIZER = Faults("tokenizer")

# As the vocabularies of the suite's models, and many others, spell tokens that stand for no text.
SPECIAL = re.compile(r"</?s>|<unk>|\[(?:CLS|SEP|PAD|UNK|MASK)\]|<\|[a-z_]+\|>")
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
UNKNOWN = 0
REPLACEMENT = "\ufffd"


def without_special_tokens(text: str) -> str:
    """Return the text without what spells a special token."""
    return SPECIAL.sub("", text)


def _ids(name: str, cause: str, sees: Callable[[list[int], list[int]], bool]) -> None:
    """Add a fault that the expected and the found ids show."""
    TOKENIZER.seen(name, cause)(
        lambda case, got: sees(list(case.expected["ids"]), list(got["ids"]))
    )


def _text(name: str, cause: str, sees: Callable[[str, str], bool]) -> None:
    """Add a fault that the expected and the found text show."""
    TOKENIZER.seen(name, cause)(lambda case, got: sees(case.expected["text"], got["text"]))


_ids(
    "BOS missing",
    "The token that begins a text (BOS, [CLS]) is missing: the tokenizer's file says that it is "
    "added.",
    lambda expected, found: found == expected[1:],
)
_ids(
    "last token missing",
    "The token that ends a text ([SEP]) is missing: the tokenizer's file says that it is added.",
    lambda expected, found: found == expected[:-1],
)
_ids(
    "special tokens not added",
    "The tokens around a text ([CLS] and [SEP]) are missing: the tokenizer's file says that they "
    "are added.",
    lambda expected, found: len(expected) >= 2 and found == expected[1:-1],
)
_ids(
    "BOS twice",
    "The token that begins a text (BOS, [CLS]) is added twice.",
    lambda expected, found: found == [*expected[:1], *expected],
)
_ids(
    "EOS added",
    "A token is added at the end of a text (EOS): the tokenizer's file says that none is.",
    lambda expected, found: found[:-1] == expected,
)


@TOKENIZER.seen(
    "space before the first word missing",
    "The space that the tokenizer puts before a text's first word is missing "
    "(tokenizer.ggml.add_space_prefix, add_dummy_prefix).",
)
def _space_before_the_first_word_missing(case: Case, got: Json) -> bool:
    """tiny-chat's tokenizer gives the target's ids where its file has another value."""
    if case.input["model"] != "tiny-chat":
        return False
    wrong = tiny_chat_tokenizer(add_space_prefix=False).encode(case.input["text"])
    return bool(wrong == list(got["ids"]) != list(case.expected["ids"]))


@TOKENIZER.seen(
    "special tokens in text not read",
    "Special tokens that are spelled in a text are read as characters: read them as tokens.",
)
def _special_tokens_in_text_not_read(case: Case, got: Json) -> bool:
    if case.input["model"] != "tiny-chat" or not SPECIAL.search(case.input["text"]):
        return False
    wrong = tiny_chat_tokenizer().encode(case.input["text"], parse_special=False)
    return bool(wrong == list(got["ids"]) != list(case.expected["ids"]))


_ids(
    "byte fallback missing",
    "A character that is not in the vocabulary becomes the unknown token: spell it by the tokens "
    "of its UTF-8 bytes.",
    lambda expected, found: found.count(UNKNOWN) > expected.count(UNKNOWN),
)


def _same_words(left: str, right: str) -> bool:
    return left.split() == right.split()


@TOKENIZER.seen(
    "special tokens kept in text",
    "Special tokens are shown in the text: they stand for no text, so leave them out.",
)
def _special_tokens_kept_in_text(case: Case, got: Json) -> bool:
    """The words are right once what spells a special token is left out."""
    expected, found = case.expected["text"], got["text"]
    plain = without_special_tokens(found)
    return found not in (plain, expected) and _same_words(plain, expected)


@TOKENIZER.seen(
    "bytes not joined",
    "Each token becomes text by itself, so characters whose bytes are several tokens are broken: "
    "join the bytes first, and then read them as UTF-8.",
)
def _bytes_not_joined(case: Case, got: Json) -> bool:
    """The text has replacement characters, or spells bytes."""
    expected, found = case.expected["text"], got["text"]
    is_cut = found.count(REPLACEMENT) > expected.count(REPLACEMENT)
    return is_cut or bool(BYTE.search(found) and not BYTE.search(expected))


_text(
    "first space kept",
    "The text begins with the space that the tokenizer put before its first word: leave it out.",
    lambda expected, found: found == f" {expected}",
)
_text(
    "spaces at the ends lost",
    "Spaces at the beginning or the end of a text are lost: they are part of it.",
    lambda expected, found: found != expected and found in (expected.lstrip(" "), expected.strip()),
)
_text(
    "spaces collapsed",
    "Spaces inside a text are lost or added: they are part of it.",
    lambda expected, found: found != expected and _same_words(found, expected),
)
_text(
    "text normalized",
    "The text comes back in another Unicode normalization form: give its characters as they were.",
    lambda expected, found: (
        found != expected
        and any(found == unicodedata.normalize(f, expected) for f in ("NFC", "NFD", "NFKC", "NFKD"))
    ),
)
