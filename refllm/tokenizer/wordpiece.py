"""WordPiece from a GGUF vocabulary of the kind `bert`, through the tokenizers library.

A GGUF file marks the other tokens than BERT: one that begins a word has "▁" before it, and one that
continues a word has no "##".

    in the GGUF file    ▁play    ing      [CLS]
    here, as in BERT    play     ##ing    [CLS]

A word of more than 100 characters is [UNK], as in BERT; llama.cpp has no such limit.
"""

from __future__ import annotations

from dataclasses import replace

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from refllm.tokenizer.base import library_errors
from refllm.tokenizer.gguf_keys import GgufKeys, read_special_tokens, read_vocabulary
from refllm.tokenizer.native_messages import hold_native_messages
from refllm.tokenizer.vocabulary import SpecialIds, TokenType, Vocabulary, VocabularyTokenizer

__all__ = [
    "CONTINUES",
    "MAX_CHARACTERS_PER_WORD",
    "WORD_START",
    "WordPieceTokenizer",
    "bert_spelling",
    "wordpiece_from_gguf",
]

WORD_START = "▁"
CONTINUES = "##"
SPACES = " \n"
MAX_CHARACTERS_PER_WORD = 100


class WordPieceTokenizer(VocabularyTokenizer):
    """The tokenizers library's WordPiece over a vocabulary in BERT's spelling."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        special: SpecialIds,
        *,
        unknown: str,
        lowercase: bool,
        strip_accents: bool,
    ) -> None:
        super().__init__(vocabulary, special, vocabulary.ids_of({TokenType.USER_DEFINED}))
        self.longest_token = 0  # spaces stand for no token, and an unknown word is one
        # Neither a word nor a change by the normalizer crosses a space.
        if not any(space in token for token in self._in_text for space in SPACES):
            self.separators = SPACES
        self._library = Tokenizer(
            models.WordPiece(
                vocab=vocabulary.ids,
                unk_token=unknown,
                max_input_chars_per_word=MAX_CHARACTERS_PER_WORD,
                continuing_subword_prefix=CONTINUES,
            )
        )
        self._library.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=True,
            strip_accents=strip_accents,
            lowercase=lowercase,
        )
        self._library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def token_bytes(self, token_id: int) -> bytes:
        """Return a space and the word, or a continuation; see `Tokenizer.token_bytes`."""
        if self.vocabulary.is_special(token_id):
            return b""
        token = self.vocabulary.tokens[token_id]
        return (token[2:] if token.startswith(CONTINUES) else f" {token}").encode()

    def opening_bytes(self, token_id: int) -> bytes:
        """Return the token's spelling, as the library's WordPiece decoder."""
        is_special = self.vocabulary.is_special(token_id)
        return b"" if is_special else self.vocabulary.tokens[token_id].encode()


def bert_spelling(token: str, token_type: int) -> str:
    """Return a GGUF token as BERT spells it; tokens in brackets and special ones are the same."""
    in_brackets = token.startswith("[") and token.endswith("]")
    if in_brackets or token_type in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED):
        return token
    if token.startswith(WORD_START) and token != WORD_START:
        return token.removeprefix(WORD_START)
    return CONTINUES + token


def wordpiece_from_gguf(keys: GgufKeys) -> WordPieceTokenizer:
    """Return the tokenizer of a GGUF file whose `tokenizer.ggml.model` is `bert`.

    [CLS] and [SEP] go around a text. They and [UNK] are the tokens of the keys bos (or cls),
    seperator (the key's own spelling) and unknown, else the tokens with these spellings.

    Raises:
        LlmRuntimeError: naming a damaged or missing key.
    """
    stored = read_vocabulary(keys)
    tokens = [bert_spelling(*token) for token in zip(stored.tokens, stored.types, strict=True)]
    vocabulary = replace(stored, tokens=tokens)
    if len(set(tokens)) < len(tokens):
        raise keys.error("tokens", "has two tokens that are the same in BERT's spelling")
    cls = _named_or_spelled(keys, vocabulary, ("bos_token_id", "cls_token_id"), "[CLS]")
    sep = _named_or_spelled(keys, vocabulary, ("seperator_token_id",), "[SEP]")
    unknown = _named_or_spelled(keys, vocabulary, ("unknown_token_id",), "[UNK]")
    lowercase = keys.flag("normalizer.lowercase", default=True)
    with (
        library_errors(keys.path, "the vocabulary is not one that WordPiece can hold"),
        hold_native_messages(),
    ):
        tokenizer = WordPieceTokenizer(
            vocabulary,
            SpecialIds(bos_id=cls, eos_ids=frozenset(), prefix=(cls,), suffix=(sep,)),
            unknown=tokens[unknown],
            lowercase=lowercase,
            strip_accents=keys.flag("normalizer.strip_accents", default=lowercase),
        )
    own = {"cls_token": cls, "sep_token": sep, "unk_token": unknown}
    tokenizer.special_tokens = read_special_tokens(keys, vocabulary, own)
    return tokenizer


def _named_or_spelled(
    keys: GgufKeys, vocabulary: Vocabulary, names: tuple[str, ...], spelling: str
) -> int:
    for name in names:
        token_id = keys.token_id(name, len(vocabulary.tokens))
        if token_id is not None:
            return token_id
    if spelling not in vocabulary.tokens:
        raise keys.error(names[0], f"is missing, and no token is {spelling}")
    return list(vocabulary.tokens).index(spelling)
