"""Tokenizers to check one against the other: two libraries, and the same in plain Python.

A text is cut at the special tokens inside it, then each part is tokenized by itself; a llama's part
begins with a space. Only the tokenizers library finds special tokens by itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

__all__ = ["Reader", "readers_of_metadata"]

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # the types of tokens in a GGUF file
SPACE = "▁"
CONTINUES = "##"
LONGEST_WORD = 100
CLS, SEP, UNK = "[CLS]", "[SEP]", "[UNK]"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a GGUF file in the order of their ids; `scores` of a llama only."""

    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    first: int  # BOS or [CLS], put before a text

    @property
    def special(self) -> dict[str, int]:
        """The tokens that stand for no text."""
        return {t: i for i, t in enumerate(self.tokens) if self.types[i] in (UNKNOWN, CONTROL)}

    def parts(self, text: str) -> Iterator[str | int]:
        """The ids of special tokens in the text, and what is between them."""
        special = self.special
        longest_first = sorted(special, key=len, reverse=True)
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            if part in special:
                yield special[part]
            elif part:
                yield part


class Reader(Protocol):
    """One way from text to ids and back."""

    def ids(self, text: str) -> list[int]:
        """The text's ids, with what is added around them."""

    def text(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens removed."""


# --- SentencePiece --------------------------------------------------------------------------------


class SentencePieceLibrary:
    """The sentencepiece library, on a model made of the file's pieces, scores and types.

    Control tokens are nothing that the library finds in a text, so the text is cut at them.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        model.trainer_spec.model_type = model.trainer_spec.BPE
        model.trainer_spec.byte_fallback = True
        model.normalizer_spec.name = "identity"
        model.normalizer_spec.remove_extra_whitespaces = False
        for token, kind, score in zip(
            vocabulary.tokens, vocabulary.types, vocabulary.scores, strict=True
        ):
            model.pieces.add(piece=token, type=kind, score=score)
        self._vocabulary = vocabulary
        self._processor = sentencepiece.SentencePieceProcessor(
            model_proto=model.SerializeToString()
        )

    def ids(self, text: str) -> list[int]:
        ids = [self._vocabulary.first]
        for part in self._vocabulary.parts(text):
            ids += [part] if isinstance(part, int) else self._processor.encode(part)
        return ids

    def text(self, ids: Sequence[int]) -> str:
        # The library writes " ⁇ " for the unknown token.
        known = [i for i in ids if self._vocabulary.types[i] != UNKNOWN]
        return str(self._processor.decode(known))


class BpeByTheBook:
    """Byte pair encoding: neighbors that together are a piece are merged, until there are none.

    The pair of the best score goes first, of equals the leftmost. What is no piece in the end is
    its UTF-8 bytes. Source: Sennrich et al. 2016, arXiv:1508.07909, section 3.2, with scores for
    the order of merges, as in Kudo and Richardson 2018, arXiv:1808.06226.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        named = list(enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)))
        self._pieces = {token: i for i, (token, kind) in named if kind == NORMAL}
        self._bytes = {int(token[3:5], 16): i for i, (token, kind) in named if kind == BYTE}
        self._byte_of = {i: byte for byte, i in self._bytes.items()}

    def ids(self, text: str) -> list[int]:
        ids = [self._vocabulary.first]
        for part in self._vocabulary.parts(text):
            ids += [part] if isinstance(part, int) else self._merged(part)
        return ids

    def _merged(self, text: str) -> list[int]:
        symbols = list(SPACE + text.replace(" ", SPACE))
        while True:
            merges = [
                (-self._vocabulary.scores[self._pieces[pair]], at)
                for at, pair in enumerate(map("".join, pairwise(symbols)))
                if pair in self._pieces
            ]
            if not merges:
                break
            _, at = min(merges)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return [i for symbol in symbols for i in self._ids_of_symbol(symbol)]

    def _ids_of_symbol(self, symbol: str) -> list[int]:
        if symbol in self._pieces:
            return [self._pieces[symbol]]
        return [self._bytes[byte] for byte in symbol.encode()]

    def text(self, ids: Sequence[int]) -> str:
        special = self._vocabulary.special.values()
        pieces = [
            bytes([self._byte_of[i]])
            if i in self._byte_of
            else self._vocabulary.tokens[i].replace(SPACE, " ").encode()
            for i in ids
            if i not in special
        ]
        if pieces:
            pieces[0] = pieces[0].removeprefix(b" ")
        return b"".join(pieces).decode()


# --- WordPiece ------------------------------------------------------------------------------------


class WordPieceLibrary:
    """The tokenizers library with BERT's normalizer, which finds special tokens by itself."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids = {token: i for i, token in enumerate(vocabulary.tokens)}
        self._library = tokenizers.Tokenizer(
            models.WordPiece(
                vocab=ids,
                unk_token=UNK,
                max_input_chars_per_word=LONGEST_WORD,
                continuing_subword_prefix=CONTINUES,
            )
        )
        self._library.normalizer = normalizers.BertNormalizer()
        self._library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._library.post_processor = processors.BertProcessing((SEP, ids[SEP]), (CLS, ids[CLS]))
        self._library.decoder = decoders.WordPiece(prefix=CONTINUES, cleanup=False)
        self._library.add_special_tokens(list(vocabulary.special))

    def ids(self, text: str) -> list[int]:
        return list(self._library.encode(text).ids)

    def text(self, ids: Sequence[int]) -> str:
        return str(self._library.decode(list(ids), skip_special_tokens=True))


class WordPieceByTheBook:
    """BERT's basic tokenizer, then the longest piece that fits, again and again.

    Source: Devlin et al. 2018, arXiv:1810.04805, and `tokenization.py` beside it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids = {token: i for i, token in enumerate(vocabulary.tokens)}

    def ids(self, text: str) -> list[int]:
        ids = [self._vocabulary.first]
        for part in self._vocabulary.parts(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += [i for word in _words(part) for i in self._pieces(word)]
        return [*ids, self._ids[SEP]]

    def _pieces(self, word: str) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = CONTINUES if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self._ids), None)
            if end is None or len(word) > LONGEST_WORD:
                return [self._ids[UNK]]
            ids.append(self._ids[prefix + word[start:end]])
            start = end
        return ids

    def text(self, ids: Sequence[int]) -> str:
        special = self._vocabulary.special.values()
        tokens = [self._vocabulary.tokens[i] for i in ids if i not in special]
        return "".join(
            token.removeprefix(CONTINUES) if at and token.startswith(CONTINUES) else f" {token}"
            for at, token in enumerate(tokens)
        ).removeprefix(" ")


def _words(text: str) -> list[str]:
    """Small letters without accents, cut at white space, punctuation and Chinese characters."""
    cleaned = "".join(map(_cleaned, text))
    letters = [c for c in unicodedata.normalize("NFD", cleaned) if unicodedata.category(c) != "Mn"]
    parted = (f" {c} " if _is_punctuation(c) else c for c in "".join(letters).lower())
    return "".join(parted).split()


def _cleaned(c: str) -> str:
    if c in "\t\n\r" or unicodedata.category(c) in ("Zs", "Zl", "Zp"):
        return " "
    if c == "\ufffd" or unicodedata.category(c).startswith("C"):
        return ""
    return f" {c} " if _is_chinese(ord(c)) else c


def _is_punctuation(c: str) -> bool:
    is_ascii = c.isascii() and c.isprintable() and not c.isalnum() and c != " "
    return is_ascii or unicodedata.category(c).startswith("P")


def _is_chinese(code: int) -> bool:
    blocks = (
        *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
        *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
    )
    return any(first <= code <= last for first, last in blocks)


def _in_berts_spelling(token: str, kind: int) -> str:
    """A GGUF file marks the pieces that begin a word, BERT those that do not."""
    if kind != NORMAL:
        return token
    return token.removeprefix(SPACE) if token.startswith(SPACE) else CONTINUES + token


def readers_of_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Reader]:
    """Two tokenizers of a GGUF file's `tokenizer.ggml.*`, by name, the library first."""

    def value(key: str) -> Any:
        return metadata[f"tokenizer.ggml.{key}"]

    tokens, types = value("tokens"), value("token_type")
    if value("model") == "llama":
        vocabulary = Vocabulary(tokens, types, value("scores"), value("bos_token_id"))
        return {
            "sentencepiece": SentencePieceLibrary(vocabulary),
            "the book": BpeByTheBook(vocabulary),
        }
    spelled = list(map(_in_berts_spelling, tokens, types))
    vocabulary = Vocabulary(spelled, types, (), value("cls_token_id"))
    return {
        "tokenizers": WordPieceLibrary(vocabulary),
        "the book": WordPieceByTheBook(vocabulary),
    }
