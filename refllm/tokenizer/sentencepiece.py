"""SentencePiece: from a `tokenizer.model`, or a GGUF vocabulary of the kinds `llama` and `t5`.

Both use the sentencepiece library. A GGUF file has the library's own pieces, scores and types, so
its `ModelProto` can be made again: BPE with byte fallback, no normalization, and a space before the
first word, which are Llama's settings.

As in llama.cpp, each stretch of plain text between special tokens gets the space before its first
word, not only the first stretch ("<s>Hi" and "Hi" have the same last token). User-defined tokens of
a GGUF file are cut out of a text as special ones are, write their spelling, and are a piece like
any other where merges give them; unused tokens are such pieces, too, but write nothing. For a
`tokenizer.model` the library decides: it never splits a user-defined piece and adds no space after
it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as LibraryTokenizer

from refllm.errors import LlmRuntimeError
from refllm.files.reading import read_file
from refllm.tokenizer.base import library_errors
from refllm.tokenizer.document import check_charsmap
from refllm.tokenizer.gguf_keys import (
    GgufKeys,
    read_special_ids,
    read_special_tokens,
    read_vocabulary,
)
from refllm.tokenizer.native_messages import hold_native_messages
from refllm.tokenizer.vocabulary import SpecialIds, TokenType, Vocabulary, VocabularyTokenizer

__all__ = [
    "AddedTokens",
    "SentencePieceTokenizer",
    "llama_model",
    "model_from_bytes",
    "read_model",
    "read_scores",
    "sentencepiece_from_gguf",
    "special_ids_of_model",
    "unigram_from_gguf",
    "vocabulary_of_model",
]

Model = Any  # a ModelProto: protobuf makes the class when it is imported

SPACE = "▁"  # how SentencePiece writes a space
NO_TEXT = "\U0010ffffunknown"  # beside a noncharacter
BETWEEN = "\0"
N_BYTES = 256
BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")
MAX_MODEL_BYTES = 2**24  # of a file; the largest that is published has 5 MB, and 256,000 pieces
MAX_PIECE_BYTES = 1000  # in one piece; published ones have up to about 100


class SentencePieceTokenizer(VocabularyTokenizer):
    """The sentencepiece library over a `ModelProto`.

    Unknown pieces write nothing, because they stand for no text (the library writes " ⁇ ").
    """

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary,
        special: SpecialIds,
        *,
        added: AddedTokens | None = None,
        scheme: str | None = None,
        of_gguf: bool = False,
    ) -> None:
        """Make a tokenizer.

        Args:
            model: The `ModelProto`.
            vocabulary: Its pieces, and the added tokens after them.
            special: BOS, EOS, and what is added to a text.
            added: Tokens of the files beside the model, found in a text before it is cut.
            scheme: Where a space is put before a word, as `refllm.tokenizer.options`; None for the
                model's own setting.
            of_gguf: Whether user-defined and unused tokens have their meaning in a GGUF file.
        """
        found_first = vocabulary.ids_of({TokenType.USER_DEFINED}) if of_gguf else {}
        super().__init__(vocabulary, special, found_first)
        self._of_gguf = of_gguf
        for token_id, piece in enumerate(model.pieces):
            _check_piece(token_id, piece.piece, piece, vocabulary.path)
        for name in ("normalizer_spec", "denormalizer_spec"):
            table = getattr(model, name).precompiled_charsmap
            if table:
                check_charsmap(table, f"{vocabulary.path}: {name}.precompiled_charsmap")
        self._scheme = scheme
        self._added = added
        normalizer = model.normalizer_spec
        own_prefix = bool(normalizer.add_dummy_prefix)
        self._drops_first_space = own_prefix or normalizer.remove_extra_whitespaces
        if scheme is not None:
            self._drops_first_space = scheme != "never"
        self._own_prefix = own_prefix
        self._processor = _processor(model, vocabulary.path)
        shortens = normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces
        self._n_pieces = len(model.pieces)
        strips = added is not None and added.strips
        if strips or shortens or vocabulary.types.count(TokenType.BYTE) < N_BYTES:
            # Without byte fallback a run of unknown characters, however long, is one token.
            self.longest_token = 0

    @cached_property
    def _without_prefix(self) -> sentencepiece.SentencePieceProcessor:
        model = _new_model()
        model.ParseFromString(self._processor.serialized_model_proto())
        model.normalizer_spec.add_dummy_prefix = False
        return _processor(model, self.vocabulary.path)

    def fragments(self, text: str, *, parse_special: bool) -> list[str | int]:
        """Return the text between special and added tokens, and their ids in its place."""
        if self._added is None:
            return super().fragments(text, parse_special=parse_special)
        return self._added.split(text, parse_special=parse_special)

    def encode_plain(self, text: str, *, after: int | None = None) -> list[int]:
        """Return the library's ids, with a space before the first word.

        The library puts one there even before a space. transformers' LlamaTokenizer does not, so a
        scheme of its options does not either, nor does text after an added token.
        """
        processor = self._processor
        after_added = after is not None and after >= self._n_pieces
        if self._scheme is not None or (after_added and self._own_prefix):
            processor = self._without_prefix
            scheme = self._scheme or "always"
            is_first = scheme == "always" or (scheme == "first" and after is None)
            if is_first and not text.startswith((" ", SPACE)):
                text = f" {text}"
        with library_errors(self.vocabulary.path, "sentencepiece cannot tokenize the text"):
            ids = [int(token_id) for token_id in processor.encode(text)]
        if ids and max(ids) >= self.n_vocab:
            raise LlmRuntimeError(
                f"{self.vocabulary.path}: the vocabulary has neither an unknown token (type 2) nor "
                "a token for each byte, and the text has a character that no token spells"
            )
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """Return the piece with its spaces, or its byte; see `Tokenizer.token_bytes`."""
        if self.vocabulary.is_special(token_id):
            return b""
        piece = self.vocabulary.tokens[token_id]
        if self.vocabulary.types[token_id] == TokenType.BYTE:
            return bytes.fromhex(piece[3:5])
        if self._of_gguf and self.vocabulary.types[token_id] == TokenType.USER_DEFINED:
            return piece.encode()
        if self._of_gguf and self.vocabulary.types[token_id] == TokenType.UNUSED:
            return b""
        return piece.replace(SPACE, " ").encode()

    def opening_bytes(self, token_id: int) -> bytes:
        """Return the bytes without the space that the library puts before the first word."""
        is_byte = self.vocabulary.types[token_id] == TokenType.BYTE
        inside = self.token_bytes(token_id)
        return inside.removeprefix(b" ") if self._drops_first_space and not is_byte else inside


def _processor(model: Model, path: Path) -> sentencepiece.SentencePieceProcessor:
    with library_errors(path, "not a usable SentencePiece model"), hold_native_messages():
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


class AddedTokens:
    """Tokens that are found in a text before it is cut into pieces, as by the tokenizers library.

    The library finds the leftmost and longest one that is not normalized, then normalized ones in
    the rest. A token with `lstrip` or `rstrip` takes the spaces on that side with it;
    one with `single_word` is none inside of a word.
    """

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self._ids: dict[str, int] = {str(one.content): i for i, one in tokens.items()}
        self.strips = any(one.lstrip or one.rstrip for one in tokens.values())
        self._libraries = {}
        self._contents: dict[int, str] = {}
        for parse_special in (False, True):
            # The text between two tokens is one word, of any name.
            library = LibraryTokenizer(models.WordLevel({BETWEEN: 0}, unk_token=BETWEEN))
            library.add_tokens(list(tokens.values()))
            library.encode_special_tokens = not parse_special
            self._libraries[parse_special] = library
            in_library = library.get_added_tokens_decoder()
            self._contents = {i: str(one.content) for i, one in in_library.items()}

    def split(self, text: str, *, parse_special: bool) -> list[str | int]:
        """Return what is between the tokens in the text, and their ids in place of them."""
        encoding = self._libraries[parse_special].encode(text, add_special_tokens=False)
        return [
            text[start:stop] if token_id == 0 else self._ids[self._contents[token_id]]
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]


def sentencepiece_from_gguf(keys: GgufKeys) -> SentencePieceTokenizer:
    """Return the tokenizer of a GGUF file whose `tokenizer.ggml.model` is `llama`.

    As in llama.cpp, missing scores are 0, and missing types are normal. The library also needs to
    know which tokens are bytes, by their spelling, and exactly one unknown token.

    Raises:
        LlmRuntimeError: naming a damaged key.
    """
    vocabulary = read_vocabulary(keys)
    special = read_special_ids(keys, vocabulary, default_bos=1, default_eos=2, default_add_bos=True)
    model = _model_for_the_library(keys, vocabulary, unknown=0)
    model.normalizer_spec.add_dummy_prefix = keys.flag("add_space_prefix", default=True)
    tokenizer = SentencePieceTokenizer(model, vocabulary, special, of_gguf=True)
    tokenizer.special_tokens = read_special_tokens(
        keys, vocabulary, {"bos_token": 1, "eos_token": 2, "unk_token": 0}
    )
    return tokenizer


def unigram_from_gguf(keys: GgufKeys) -> SentencePieceTokenizer:
    """Return the tokenizer of a GGUF file whose `tokenizer.ggml.model` is `t5`, as XLM-R's are.

    It takes the cut with the largest sum of scores, without merges, after normalizing a text by the
    file's `precompiled_charsmap`. By default EOS follows a text, as in llama.cpp.

    Raises:
        LlmRuntimeError: naming a damaged key.
    """
    vocabulary = read_vocabulary(keys)
    special = read_special_ids(
        keys,
        vocabulary,
        default_bos=None,
        default_eos=1,
        default_add_bos=False,
        default_add_eos=True,
    )
    model = _model_for_the_library(keys, vocabulary, unknown=2)
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.trainer_spec.byte_fallback = False
    normalizer = model.normalizer_spec
    normalizer.add_dummy_prefix = keys.flag("add_space_prefix", default=False)
    normalizer.remove_extra_whitespaces = keys.flag("remove_extra_whitespaces", default=False)
    normalizer.precompiled_charsmap = keys.octets("precompiled_charsmap")
    tokenizer = SentencePieceTokenizer(model, vocabulary, special, of_gguf=True)
    tokenizer.longest_token = 0  # a run of unknown characters, however long, is one token
    tokenizer.special_tokens = read_special_tokens(
        keys, vocabulary, {"eos_token": 1, "unk_token": 2, "pad_token": 0}
    )
    return tokenizer


def _model_for_the_library(keys: GgufKeys, vocabulary: Vocabulary, *, unknown: int) -> Model:
    with library_errors(keys.path, "the vocabulary is not one that SentencePiece can hold"):
        model = llama_model(
            replace(vocabulary, types=_types_for_the_library(keys, vocabulary, unknown)),
            read_scores(keys, len(vocabulary.tokens)),
        )
        if TokenType.UNKNOWN not in vocabulary.types:
            # The library finds no unknown piece in a text, and with a token for each byte nothing
            # is unknown to it.
            model.pieces.add(piece=NO_TEXT, score=0.0, type=int(TokenType.UNKNOWN))
            model.trainer_spec.unk_piece = NO_TEXT
    return model


def read_scores(keys: GgufKeys, n_vocab: int) -> list[float]:
    """Return the scores of a GGUF vocabulary; without any, each is 0, as in llama.cpp."""
    return [0.0] * n_vocab if keys.get("scores") is None else keys.numbers("scores", n_vocab)


def _types_for_the_library(
    keys: GgufKeys, vocabulary: Vocabulary, default_unknown: int
) -> list[int]:
    is_text = (TokenType.USER_DEFINED, TokenType.UNUSED)
    types = [TokenType.NORMAL if kind in is_text else kind for kind in vocabulary.types]
    unknown = [token_id for token_id, kind in enumerate(types) if kind == TokenType.UNKNOWN]
    named = keys.token_id("unknown_token_id", len(types), default=default_unknown, strict=False)
    for token_id in unknown:
        if token_id != (named if named in unknown else unknown[0]):
            types[token_id] = TokenType.CONTROL
    if TokenType.BYTE not in types:
        # llama.cpp finds the token of a byte by its spelling alone.
        spelled = [i for i, token in enumerate(vocabulary.tokens) if BYTE_PIECE.fullmatch(token)]
        if len(spelled) == N_BYTES:
            for token_id in spelled:
                types[token_id] = TokenType.BYTE
    return types


def llama_model(vocabulary: Vocabulary, scores: Iterable[float]) -> Model:
    """Return a `ModelProto` with Llama's settings and the vocabulary, a score for each token."""
    model = _new_model()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = TokenType.BYTE in vocabulary.types
    model.trainer_spec.vocab_size = len(vocabulary.tokens)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    for token, score, token_type in zip(vocabulary.tokens, scores, vocabulary.types, strict=True):
        model.pieces.add(piece=token, score=score, type=int(token_type))
    return model


def read_model(path: Path) -> Model:
    """Return the `ModelProto` in a file; raise as `model_from_bytes`."""
    return model_from_bytes(read_file(path, max_bytes=MAX_MODEL_BYTES), path)


def model_from_bytes(data: bytes, path: Path) -> Model:
    """Return the `ModelProto` in `data`, the contents of a `tokenizer.model`.

    Raises:
        LlmRuntimeError: naming the file, and a piece or a field with an impossible value.
    """
    model = _new_model()
    with library_errors(path, "not a SentencePiece model"):
        model.ParseFromString(data)
    if not model.pieces:
        raise LlmRuntimeError(f"{path}: not a SentencePiece model: it has no pieces")
    seen: dict[str, int] = {}
    for token_id, piece in enumerate(model.pieces):
        token = piece.piece
        if not isinstance(token, str):  # protobuf gives bytes where they are not UTF-8
            raise LlmRuntimeError(f"{path}: token {token_id}, {token!r:.80}, is not UTF-8")
        n_bytes = len(token.encode())
        if not 1 <= n_bytes <= MAX_PIECE_BYTES:
            raise LlmRuntimeError(
                f"{path}: token {token_id}, {token!r:.80}, has {n_bytes} bytes, and must have 1 to "
                f"{MAX_PIECE_BYTES}"
            )
        if seen.setdefault(token, token_id) != token_id:
            both = f"{seen[token]} and {token_id}"
            raise LlmRuntimeError(f"{path}: has the token {token!r:.80} twice, at {both}")
        _check_piece(token_id, token, piece, path)
    model.DiscardUnknownFields()  # such as texts that the library encodes when it loads a model
    return model


def _new_model() -> Model:
    return sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]


def _check_piece(token_id: int, token: str, piece: Any, path: Path) -> None:
    if not math.isfinite(piece.score):
        raise LlmRuntimeError(
            f"{path}: the score of token {token_id}, {token!r:.80}, is {piece.score}, and must be "
            "a finite number"
        )
    if piece.type == TokenType.BYTE and not BYTE_PIECE.fullmatch(token):
        raise LlmRuntimeError(
            f"{path}: token {token_id}, {token!r:.80}, has the type of a byte but is not written "
            "like one, as <0x0A> is"
        )


def vocabulary_of_model(model: Model, path: Path) -> Vocabulary:
    """Return the pieces of a `ModelProto` as a vocabulary."""
    tokens = [piece.piece for piece in model.pieces]
    return Vocabulary(path, tokens, [piece.type for piece in model.pieces])


def special_ids_of_model(model: Model, vocabulary: Vocabulary) -> SpecialIds:
    """Return special ids by Llama's convention: BOS is added to a text, EOS is not.

    The model names the two pieces, by default "<s>" and "</s>".
    """
    control = vocabulary.ids_of({TokenType.CONTROL})
    bos_id = control.get(model.trainer_spec.bos_piece)
    eos_id = control.get(model.trainer_spec.eos_piece)
    return SpecialIds(
        bos_id,
        frozenset() if eos_id is None else frozenset({eos_id}),
        prefix=() if bos_id is None else (bos_id,),
    )
