"""A vocabulary as a list of tokens with types, and special tokens found inside text.

GGUF files and SentencePiece models describe a vocabulary alike: a token's id is its place in the
list, and its type has the same number in both (SentencePiece's `ModelProto.SentencePiece.Type`,
GGUF's `tokenizer.ggml.token_type`). What remains to a kind of tokenizer is plain text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from refllm.tokenizer_base import Tokenizer, check_text, room_for_text

__all__ = [
    "END_OF_GENERATION",
    "SpecialIds",
    "TokenType",
    "Vocabulary",
    "VocabularyTokenizer",
    "ends_of_generation",
    "split_at_tokens",
]

# Tokens that end a generation whatever the file names as EOS. A chat model's file often names only
# the end of a document; its turns end with one of these. The spellings are llama.cpp's.
END_OF_GENERATION = frozenset(
    {
        "</s>",
        "<EOT>",
        "<eos>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<|call|>",
        "<|end_of_text|>",
        "<|end|>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|im_end|>",
        "<|return|>",
        "<｜end▁of▁sentence｜>",
    }
)


class TokenType(IntEnum):
    """What a token is for, numbered as in SentencePiece and GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL_TYPES = frozenset({TokenType.UNKNOWN, TokenType.CONTROL})


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Which tokens begin and end a text, and which of them `encode` adds by itself."""

    bos_id: int | None
    eos_ids: frozenset[int]
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of the file at `path` in the order of their ids, and their types."""

    path: Path
    tokens: Sequence[str]
    types: Sequence[int]

    def ids_of(self, types: Collection[int]) -> dict[str, int]:
        """Token to id, for the tokens of these types."""
        return {
            token: token_id
            for token_id, (token, token_type) in enumerate(
                zip(self.tokens, self.types, strict=True)
            )
            if token_type in types
        }

    def is_special(self, token_id: int) -> bool:
        """True for a token that stands for no text: control and unknown."""
        return self.types[token_id] in SPECIAL_TYPES


class VocabularyTokenizer(Tokenizer):
    """A tokenizer over a `Vocabulary`: the special tokens are found here, the rest is plain text.

    `indivisible` are the tokens that plain text is split at too (user-defined ones, where the
    library that does the rest does not know them).
    """

    def __init__(
        self, vocabulary: Vocabulary, special: SpecialIds, indivisible: Mapping[str, int]
    ) -> None:
        self.n_vocab = len(vocabulary.tokens)
        self.bos_id = special.bos_id
        self.eos_ids = special.eos_ids
        self.longest_token = max(map(len, vocabulary.tokens))
        self.vocabulary = vocabulary
        self._special = special
        self._indivisible = _longest_first(indivisible)
        self._in_text = _longest_first({**vocabulary.ids_of(SPECIAL_TYPES), **indivisible})

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = True,
        max_tokens: int | None = None,
    ) -> list[int]:
        """The ids of `text`; see `Tokenizer.encode`."""
        check_text(text)
        prefix = self._special.prefix if add_special else ()
        suffix = self._special.suffix if add_special else ()
        ids: list[int] = []
        for fragment in split_at_tokens(
            text, self._in_text if parse_special else self._indivisible
        ):
            ids += [fragment] if isinstance(fragment, int) else self.encode_plain(fragment)
        if max_tokens is not None:
            ids = ids[: room_for_text(max_tokens, len(prefix) + len(suffix))]
        return [*prefix, *ids, *suffix]

    @abstractmethod
    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text that is not empty and has no special token in it."""

    def piece(self, token_id: int) -> str:
        """The token as the vocabulary spells it; see `Tokenizer.piece`."""
        self.check_id(token_id)
        return self.vocabulary.tokens[token_id]


def split_at_tokens(text: str, tokens: Mapping[str, int]) -> list[str | int]:
    """What is between `tokens` in the text, and their ids in place of them; no part is empty.

    Tokens are looked for in the mapping's order, each in all that is left; with the longest first
    this is what llama.cpp does.

        split_at_tokens("<s>Hi</s>", {"</s>": 2, "<s>": 1})  ->  [1, "Hi", 2]
    """
    fragments: list[str | int] = [text] if text else []
    for token, token_id in tokens.items():
        if token in text:
            fragments = [
                part for fragment in fragments for part in _split(fragment, token, token_id)
            ]
    return fragments


def _split(fragment: str | int, token: str, token_id: int) -> Iterator[str | int]:
    if isinstance(fragment, int):
        yield fragment
        return
    for index, part in enumerate(fragment.split(token)):
        if index > 0:
            yield token_id
        if part:
            yield part


def _longest_first(tokens: Mapping[str, int]) -> dict[str, int]:
    by_length = sorted(tokens.items(), key=lambda item: (-len(item[0].encode()), item[1]))
    return dict(by_length)


def ends_of_generation(special_tokens: Mapping[str, int]) -> frozenset[int]:
    """The ids of those special tokens whose spelling is one of `END_OF_GENERATION`."""
    return frozenset(
        token_id for token, token_id in special_tokens.items() if token in END_OF_GENERATION
    )
