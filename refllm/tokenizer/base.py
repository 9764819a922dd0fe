"""The interface of all tokenizers, and the rule by which token ids become text.

A token writes bytes, and a text is the UTF-8 decoding of its tokens' bytes. Only the first token
that writes any bytes may write other ones, because vocabularies whose words begin with a space drop
the space of a text's first word:

    token       inside a text    opening a text
    ▁Once       " Once"          "Once"
    ing         "ing"            "ing"
    <0xE2>      one byte, E2     one byte, E2
    <s>         nothing          nothing

A stream applies that rule to one token at a time. When a generation continues a prompt, the rule
was already applied to the prompt: `" Once"` keeps its space after a prompt with text, and loses it
after BOS alone, as in llama2.c.
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

    Attributes:
        n_vocab: The size of the vocabulary.
        bos_id: The token that begins a text, or None.
        eos_ids: The tokens that end a generation.
        longest_token: The most characters of text that one token can stand for, or 0 if no bound is
            known (a normalizer that shortens text, a truncation).
        separators: Characters at which a text can be cut: the tokens of the part before one of them
            are the first tokens of the whole text. Empty if no such characters are known.
        text_limit: The file's own limit of tokens in a text, or None.
        cut_side: The side at which a longer text loses tokens.
        special_tokens: The special tokens that the files name, by transformers' names: "bos_token"
            to "<s>", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token",
            "mask_token", and by the files' own keys. `eos_token` is the named one, not every token
            of `eos_ids`.
        n_rows: How many tokens the model has embeddings of; None for a tokenizer without a model.
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
        """Return the ids of a text.

        Args:
            text: The text.
            add_special: Whether to add the file's special tokens around it (BOS, EOS, [CLS],
                [SEP]).
            parse_special: Whether "<s>" in the text is the token <s>, or three characters.
            max_tokens: The limit, special tokens included; a longer text loses tokens at its
                `cut_side`. None means the file's own limit, and `NO_LIMIT` none.

        Raises:
            InvalidInput: for a lone surrogate, naming its place; for `max_tokens` below the number
                of added tokens; for a token that the model has no embedding of.
        """

    @abstractmethod
    def piece(self, token_id: int) -> str:
        """Return the token's spelling in the vocabulary ("▁Once", "Ġthe", "##ing"), for traces.

        Raises:
            InvalidInput: for an id outside the vocabulary.
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a known token inside a text; none for a special token."""

    def opening_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a known token that is the first of a text to write any."""
        return self.token_bytes(token_id)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` from its beginning, special tokens removed.

        Bytes that are not UTF-8 become U+FFFD, one for each maximal subpart (Unicode 16, §3.9).

        Raises:
            InvalidInput: for an id outside the vocabulary.
        """
        return self.decode_continuation((), ids)

    def decode_continuation(self, previous: Sequence[int], ids: Sequence[int]) -> str:
        """Return what `ids` add to the text of `previous`, as `stream(previous=previous)`.

        decode(previous) + decode_continuation(previous, ids) == decode(previous + ids), unless a
        character has bytes in both: then either half is U+FFFD.
        """
        stream = self.stream(previous=previous)
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(self, *, previous: Sequence[int] = ()) -> TextStream:
        """Return a decoder that takes one id at a time and continues the text of `previous`."""
        return TextStream(self, previous)

    def minimum_tokens(self, text: str) -> int:
        """Return a lower bound of `len(encode(text))` from the text's length; 0 if unknown.

        By it, a prompt of a million characters is refused without tokenizing it.
        """
        return -(-len(text) // self.longest_token) if self.longest_token else 0

    def beginning(self, text: str, n_tokens: int) -> str:
        """Return a beginning of `text` that has its first `n_tokens` tokens, or all of it.

        Of a megabyte of text, only the part that is not cut off is tokenized.

        Raises:
            InvalidInput: for a lone surrogate anywhere in the text.
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
    """Return how many of `max_tokens` are left beside the tokens added around a text.

    Raises:
        InvalidInput: if the added tokens alone are more.
    """
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
        """Return the characters that this token completes, possibly none.

        Raises:
            InvalidInput: for an id outside the vocabulary.
        """
        self._tokenizer.check_id(token_id)
        inside = self._tokenizer.token_bytes(token_id)
        written = inside if self._is_open else self._tokenizer.opening_bytes(token_id)
        self._is_open = self._is_open or bool(inside)
        return self._utf8.decode(written)

    def finish(self) -> str:
        """Return U+FFFD for a character that is not complete when no token follows, or ""."""
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
    """Return the tokenizers library's encoding of a text, without added special tokens.

    Its `encode` holds Python's interpreter lock until it ends, and its `encode_batch_fast` does not
    (tokenizers 0.23.3); for a short text the first is faster.
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
