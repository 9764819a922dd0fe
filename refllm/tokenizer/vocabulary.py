"""A vocabulary as a list of tokens with types, and special tokens found inside text.

GGUF files and SentencePiece models describe a vocabulary alike: a token's id is its place in the
list, and its type has the same number in both (SentencePiece's `ModelProto.SentencePiece.Type`,
GGUF's `tokenizer.ggml.token_type`). The text between special tokens is left to each kind of
tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType

from tokenizers import Tokenizer as LibraryTokenizer

from refllm.tokenizer.base import Tokenizer, check_text, encoding_of, library_errors, room_for_text

__all__ = [
    "END_OF_GENERATION",
    "FILL_IN_THE_MIDDLE",
    "SPECIAL_TYPES",
    "SpecialIds",
    "TokenType",
    "Vocabulary",
    "VocabularyTokenizer",
    "ends_of_generation",
    "split_at_tokens",
    "types_by_spelling",
]

# Tokens that end a generation beside the file's EOS: a chat model's file often names only the end
# of a document, and its turns end with one of these. The spellings, and the three tables below, are
# those of llama.cpp as in llama-cpp-python 0.3.36 (src/llama-vocab.cpp, llama_vocab_is_eog).
END_OF_GENERATION = frozenset(
    {
        *("</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~[", "<eos>", "<end_of_turn>"),
        *("<end_of_utterance>", "<turn|>", "<|tool_response>", "<|call|>", "<|calls|>"),
        *("<|end_of_text|>", "<|end|>", "<|endoftext|>", "<|eom_id|>", "<|eot_id|>", "<|flush|>"),
        *("<|im_end|>", "<|return|>", "<｜end▁of▁sentence｜>"),
    }
)

# Tokens of a model that fills in the middle of a text. Each of them is a control token. A model
# asked to go on with a text also ends it at "pad", "rep" and "sep": what follows is another file.
FILL_IN_THE_MIDDLE: Mapping[str, tuple[str, ...]] = {
    "pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>"),
        *("▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    ),
    "suf": (
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>"),
        *("▁<SUF>", "<|code_suffix|>", "<|suffix|>"),
    ),
    "mid": (
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>"),
        *("▁<MID>", "<|code_middle|>", "<|middle|>"),
    ),
    "pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "sep": ("<|file_sep|>",),
}
ENDING_ROLES = ("pad", "rep", "sep")

# gpt-oss writes these around its channels; they are text for the caller.
ALWAYS_TEXT = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})


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
    """The tokens that begin and end a text, and the ones that `encode` adds to it."""

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

    @property
    def ids(self) -> dict[str, int]:
        """Return token to id."""
        return {token: token_id for token_id, token in enumerate(self.tokens)}

    def ids_of(self, types: Collection[int]) -> dict[str, int]:
        """Return token to id for the tokens of these types."""
        return {
            token: token_id
            for token_id, (token, token_type) in enumerate(
                zip(self.tokens, self.types, strict=True)
            )
            if token_type in types
        }

    def is_special(self, token_id: int) -> bool:
        """Return whether a token stands for no text: control and unknown."""
        return self.types[token_id] in SPECIAL_TYPES


class VocabularyTokenizer(Tokenizer):
    """A tokenizer over a `Vocabulary` that finds special tokens; a library encodes plain text.

    `indivisible` are tokens that plain text is split at, too: user-defined ones that the library
    does not know.
    """

    _library: LibraryTokenizer

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
        """Return the ids of `text`; see `Tokenizer.encode`."""
        check_text(text)
        prefix = self._special.prefix if add_special else ()
        suffix = self._special.suffix if add_special else ()
        ids: list[int] = []
        after: int | None = None
        for fragment in self.fragments(text, parse_special=parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
                after = fragment
            else:
                ids += self.encode_plain(fragment, after=after)
        limit = self.text_limit if max_tokens is None else max_tokens
        if limit is not None:
            room = room_for_text(limit, len(prefix) + len(suffix))
            ids = ids[:room] if self.cut_side == "right" else ids[max(len(ids) - room, 0) :]
        return self.check_rows([*prefix, *ids, *suffix])

    def fragments(self, text: str, *, parse_special: bool) -> list[str | int]:
        """Return what is between the special tokens in the text, and their ids in place of them."""
        return split_at_tokens(text, self._in_text if parse_special else self._indivisible)

    def encode_plain(self, text: str, *, after: int | None = None) -> list[int]:
        """Return the library's ids of a text that is not empty and has no special token in it.

        `after` is the special token before it, None at the beginning.
        """
        with library_errors(self.vocabulary.path, "tokenizers cannot tokenize the text"):
            return list(encoding_of(self._library, text).ids)

    def piece(self, token_id: int) -> str:
        """Return the token as the vocabulary spells it; see `Tokenizer.piece`."""
        self.check_id(token_id)
        return self.vocabulary.tokens[token_id]


def split_at_tokens(text: str, tokens: Mapping[str, int]) -> list[str | int]:
    """Return what is between `tokens` in the text, and their ids in place of them.

    No part is empty. Tokens are searched in the mapping's order, each in all that is left; with the
    longest first, llama.cpp does the same.

    Example:
        >>> split_at_tokens("<s>Hi</s>", {"</s>": 2, "<s>": 1})
        [1, 'Hi', 2]
    """
    fragments: list[str | int] = [text] if text else []
    for token, token_id in tokens.items():
        if token not in text:
            continue
        whole, fragments = fragments, []
        for fragment in whole:
            if isinstance(fragment, int):
                fragments.append(fragment)
                continue
            first, *rest = fragment.split(token)
            fragments += [first] if first else []
            for part in rest:
                fragments += [token_id, part] if part else [token_id]
    return fragments


def _longest_first(tokens: Mapping[str, int]) -> dict[str, int]:
    by_length = sorted(tokens.items(), key=lambda item: (-len(item[0].encode()), item[1]))
    return dict(by_length)


def ends_of_generation(
    tokens: Mapping[str, int],
    *,
    named: Collection[int] = (),
    roles: Mapping[str, int | None] = MappingProxyType({}),
) -> frozenset[int]:
    """Return the ids of the tokens that end a generation: as named, or by spelling of any type.

    Args:
        tokens: Token to id, for the whole vocabulary.
        named: The ids that a file names as ends.
        roles: The ids that a file names for roles of `FILL_IN_THE_MIDDLE`.
    """
    ends = {tokens[spelling] for spelling in END_OF_GENERATION if spelling in tokens}
    fill = fill_in_the_middle(tokens, roles)
    ends |= {fill[role] for role in ENDING_ROLES if role in fill}
    inner = {tokens[spelling] for spelling in inner_tokens(tokens)}
    return frozenset((ends | {*named}) - inner)


def fill_in_the_middle(
    tokens: Mapping[str, int], roles: Mapping[str, int | None]
) -> dict[str, int]:
    """Return role to id: as named, else the token with the lowest id that is spelled so.

    llama.cpp takes any one of several tokens that are spelled so, in no stated order.
    """
    found: dict[str, int] = {}
    for role, spellings in FILL_IN_THE_MIDDLE.items():
        named = roles.get(role)
        spelled = min((tokens[token] for token in spellings if token in tokens), default=None)
        token_id = spelled if named is None else named
        if token_id is not None:
            found[role] = token_id
    return found


def inner_tokens(tokens: Collection[str]) -> frozenset[str]:
    """Return which of `<|end|>` and `</s>` end nothing in a vocabulary with these tokens.

    Beside `<|return|>` and `<|call|>` (gpt-oss), or `<|flush|>` and `<|calls|>` (Solar Open),
    `<|end|>` ends a message within a generation. Beside `<|tool_response>` (Gemma 4), `</s>` is a
    normal token.
    """
    calls = "<|call|>" in tokens or "<|calls|>" in tokens
    inner = set()
    if "<|end|>" in tokens and calls and ("<|return|>" in tokens or "<|flush|>" in tokens):
        inner.add("<|end|>")
    if "</s>" in tokens and "<|tool_response>" in tokens:
        inner.add("</s>")
    return frozenset(inner)


def types_by_spelling(
    tokens: Mapping[str, int], types: Sequence[int], roles: Mapping[str, int | None]
) -> list[int]:
    """Return the types of a GGUF vocabulary as llama.cpp corrects them by the tokens' spelling.

    A token that ends a generation or has a role in filling in is a control token, and so writes no
    text; a token of gpt-oss's channels is text, and so is `<|end|>` where it is an inner token.
    """
    corrected = list(types)
    for spelling in END_OF_GENERATION & tokens.keys():
        corrected[tokens[spelling]] = TokenType.CONTROL
    spelled = {s for spellings in FILL_IN_THE_MIDDLE.values() for s in spellings} & tokens.keys()
    by_role = fill_in_the_middle(tokens, roles)
    for spelling in spelled:
        if tokens[spelling] in by_role.values():
            corrected[tokens[spelling]] = TokenType.CONTROL
    for spelling in ALWAYS_TEXT & tokens.keys():
        corrected[tokens[spelling]] = TokenType.USER_DEFINED
    for spelling in inner_tokens(tokens.keys()):
        is_end = spelling == "<|end|>"
        corrected[tokens[spelling]] = TokenType.USER_DEFINED if is_end else TokenType.NORMAL
    return corrected
