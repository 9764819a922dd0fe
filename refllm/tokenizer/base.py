"""What every tokenizer can do, and how token ids become text again.

Text out of tokens follows one rule for all of them: a token writes bytes, and a text is the UTF-8
reading of its tokens' bytes. Only the first token that writes anything may write something else,
because vocabularies whose words begin with a space drop the space of a text's first word:

    token       inside a text    opening a text
    ▁Once       " Once"          "Once"
    ing         "ing"            "ing"
    <0xE2>      one byte, E2     one byte, E2
    <s>         nothing          nothing

A stream is that rule, one token at a time. A text continued from a prompt does not open: the
prompt did. So `" Once"` generated after "…said." keeps its space, and generated after nothing but
BOS it loses it, as in llama2.c.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import tokenizers

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError

__all__ = [
    "NO_LIMIT",
    "TextStream",
    "Tokenizer",
    "check_text",
    "encoding_of",
    "library_errors",
    "room_for_text",
]

NO_LIMIT = 2**32 - 1
"""As `max_tokens`: a text loses no tokens."""
LONG_TEXT = 2**13  # characters; the library reads so many in some ten milliseconds
CHARACTERS_PER_TOKEN = 8  # more than most texts have, spaces included


class Tokenizer(ABC):
    """Text to token ids and back; the ids are 0 … n_vocab-1.

    `bos_id` begins a text, or is None; `eos_ids` are the tokens that end a generation.
    `text_limit` is how many tokens the file itself lets a text have, or None; a longer text loses
    tokens at its `cut_side`, "right" or "left".
    `longest_token` is how many characters of text one token can stand for at most, or 0 where no
    such bound is known (a normalizer that shortens text, a truncation).
    `separators` are characters at which a text can be parted: the tokens of what stands before one
    of them are those with which the whole text begins. Empty where no such characters are known.
    `special_tokens` are the special tokens that the files name, by the names that transformers
    gives them: "bos_token" to "<s>", "eos_token", "unk_token", "pad_token", "sep_token",
    "cls_token", "mask_token", and others by the files' own keys. `eos_token` is the one that the
    files name, not every token of `eos_ids`.
    `n_rows` is how many tokens the model has embeddings of, None where the tokenizer stands alone.
    """

    n_vocab: int
    bos_id: int | None
    eos_ids: frozenset[int]
    longest_token: int
    separators: str = ""
    text_limit: int | None = None
    cut_side: Literal["left", "right"] = "right"
    special_tokens: Mapping[str, str] = MappingProxyType({})
    n_rows: int | None = None

    @abstractmethod
    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = True,
        max_tokens: int | None = None,
    ) -> list[int]:
        """The ids of `text`.

        `add_special` puts around them what the file says (BOS, EOS, [CLS], [SEP]);
        `parse_special` reads "<s>" in the text as the token <s>, otherwise it is three characters.
        A text of more than `max_tokens`, special ones included, loses tokens at its `cut_side`;
        None means the limit that the file itself has, if any, and `NO_LIMIT` none.
        Errors: `InvalidInput` for a lone surrogate, naming where it is, for `max_tokens` that not
        even the added tokens fit, and for a token that the model has no embedding of.
        """

    @abstractmethod
    def piece(self, token_id: int) -> str:
        """How the token is written in the vocabulary ("▁Once", "Ġthe", "##ing"), for traces.

        Errors: `InvalidInput` for an id outside the vocabulary.
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """What a known token writes inside a text; nothing for a special token."""

    def opening_bytes(self, token_id: int) -> bytes:
        """What a known token writes as the first of a text that writes anything."""
        return self.token_bytes(token_id)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` from its beginning, special tokens removed.

        Bytes that are not UTF-8 become U+FFFD, one for each maximal subpart (Unicode 16, §3.9).
        Errors: `InvalidInput` for an id outside the vocabulary.
        """
        return self.decode_continuation((), ids)

    def decode_continuation(self, previous: Sequence[int], ids: Sequence[int]) -> str:
        """What `ids` add to the text of `previous`: the same as `stream(previous=previous)`.

        decode(previous) + decode_continuation(previous, ids) == decode(previous + ids), unless a
        character has bytes in both: then either half is U+FFFD.
        """
        stream = self.stream(previous=previous)
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(self, *, previous: Sequence[int] = ()) -> TextStream:
        """A decoder that takes one id at a time and continues the text of `previous`."""
        return TextStream(self, previous)

    def minimum_tokens(self, text: str) -> int:
        """A lower bound of `len(encode(text))` that only looks at the length; 0 if unknown.

        It refuses a prompt of a million characters before a tokenizer has to read it.
        """
        return -(-len(text) // self.longest_token) if self.longest_token else 0

    def beginning(self, text: str, n_tokens: int) -> str:
        """Return a beginning of `text` with as many of its first tokens as asked for, or all of it.

        So that of a megabyte of text a tokenizer reads only what is not cut off. Errors:
        `InvalidInput` for a lone surrogate anywhere in the text.
        """
        check_text(text)
        stop = CHARACTERS_PER_TOKEN * n_tokens
        if not self.separators or self.cut_side == "left":
            return text
        while stop < len(text):
            places = [text.find(separator, stop) for separator in self.separators]
            if max(places) < 0:
                return text
            stop = min(place for place in places if place >= 0)
            ids = self.encode(text[:stop], add_special=False, max_tokens=n_tokens)
            if len(ids) == n_tokens:
                return text[:stop]
            stop *= 2
        return text

    def check_rows(self, ids: list[int]) -> list[int]:
        """Return `ids`, or raise `InvalidInput` where the model has no embedding of one of them."""
        if self.n_rows is not None and ids and max(ids) >= self.n_rows:
            token_id = next(token_id for token_id in ids if token_id >= self.n_rows)
            raise InvalidInput(
                f"the text has the token {self.piece(token_id)!r:.80} with id {token_id}, but the "
                f"model has embeddings of {self.n_rows} tokens only"
            )
        return ids

    def check_id(self, token_id: int) -> None:
        """Raise `InvalidInput` unless the id is one of the vocabulary's."""
        if not 0 <= token_id < self.n_vocab:
            raise InvalidInput(f"token id {token_id} is outside the vocabulary of {self.n_vocab}")


def room_for_text(max_tokens: int, n_added: int) -> int:
    """How many of `max_tokens` are left beside the tokens added around a text."""
    if max_tokens < n_added:
        raise InvalidInput(f"max_tokens is {max_tokens}, the special tokens alone are {n_added}")
    return max_tokens - n_added


class TextStream:
    """Text from ids that arrive one at a time, never half a character."""

    def __init__(self, tokenizer: Tokenizer, previous: Sequence[int] = ()) -> None:
        for token_id in previous:
            tokenizer.check_id(token_id)
        self._tokenizer = tokenizer
        self._is_open = any(map(tokenizer.token_bytes, previous))
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes, possibly none.

        Errors: `InvalidInput` for an id outside the vocabulary.
        """
        self._tokenizer.check_id(token_id)
        inside = self._tokenizer.token_bytes(token_id)
        written = inside if self._is_open else self._tokenizer.opening_bytes(token_id)
        self._is_open = self._is_open or bool(inside)
        return self._utf8.decode(written)

    def finish(self) -> str:
        """What is left when no token follows: U+FFFD for an unfinished character, or nothing."""
        return self._utf8.decode(b"", final=True)


def check_text(text: str) -> None:
    """Raise `InvalidInput`, naming the index, if a character is half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        surrogate = ord(text[error.start])
        raise InvalidInput(
            f"the text has a lone surrogate, U+{surrogate:04X}, at character index {error.start}; "
            "it is not Unicode text and has no UTF-8 form"
        ) from error


def encoding_of(library: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    """Return what the tokenizers library makes of a text, without added special tokens.

    Its `encode` keeps all other threads of the process waiting until it ends, and its
    `encode_batch_fast` does not (tokenizers 0.23.3); for a short text the first is faster.
    """
    if len(text) < LONG_TEXT:
        return library.encode(text, add_special_tokens=False)
    return library.encode_batch_fast([text], add_special_tokens=False)[0]


@contextmanager
def library_errors(path: Path, failed: str) -> Iterator[None]:
    """Turn whatever a tokenizer library raises into `LlmRuntimeError("<path>: <failed>: …")`."""
    try:
        yield
    except (LlmError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # A panic in Rust arrives as a BaseException that no module exports.
        why = str(error) or type(error).__name__
        raise LlmRuntimeError(f"{path}: {failed}: {why}") from error
