"""Byte-level BPE from a GGUF vocabulary of the kind `gpt2`, through the tokenizers library.

A token is spelled in 256 printable characters that stand for the 256 bytes ("Ġ" for a space, "Ċ"
for a line feed): the table of GPT-2's `bytes_to_unicode`. `tokenizer.ggml.merges` lists pairs of
tokens, the earliest merged first; `tokenizer.ggml.pre` names how text is cut into words before.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from refllm.errors import ModelNotSupported
from refllm.tokenizer.base import encoding_of, library_errors
from refllm.tokenizer.gguf_keys import (
    GgufKeys,
    read_special_ids,
    read_special_tokens,
    read_vocabulary,
)
from refllm.tokenizer.native_messages import hold_native_messages
from refllm.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from refllm.tokenizer.vocabulary import (
    SPECIAL_TYPES,
    SpecialIds,
    TokenType,
    Vocabulary,
    VocabularyTokenizer,
)

__all__ = ["BYTE_OF", "BytePairTokenizer", "bpe_from_gguf", "byte_level_bytes"]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`, inverted.

    A byte that is printable in Latin-1 stands for itself; the others, in order, are U+0100 and on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + index): byte for index, byte in enumerate(others)},
    }


BYTE_OF = _byte_of_character()
# The bytes that UTF-8 text can hold: never C0, C1 (overlong) nor F5 … FF (beyond U+10FFFF).
UTF8_BYTES = frozenset(range(0xF5)) - {0xC0, 0xC1}


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a token spells; a token with any other character is plain text."""
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


class BytePairTokenizer(VocabularyTokenizer):
    """The tokenizers library's BPE over a GGUF vocabulary."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        special: SpecialIds,
        merges: Sequence[tuple[str, str]],
        pre_tokenizer: PreTokenizer,
    ) -> None:
        super().__init__(vocabulary, special, vocabulary.ids_of({TokenType.USER_DEFINED}))
        self._library = Tokenizer(
            models.BPE(
                vocab=vocabulary.ids_of(frozenset(TokenType) - SPECIAL_TYPES),
                merges=list(merges),
                ignore_merges=pre_tokenizer.ignore_merges,
            )
        )
        if pre_tokenizer.nfc:
            self._library.normalizer = normalizers.NFC()
            self.longest_token = 0  # NFC makes one character of several
        words = [pre_tokenizers.Split(Regex(x), "isolated") for x in pre_tokenizer.expressions]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._library.pre_tokenizer = pre_tokenizers.Sequence([*words, to_bytes])

    def encode_plain(self, text: str, *, after: int | None = None) -> list[int]:
        """The library's ids of the merged words."""
        with library_errors(self.vocabulary.path, "tokenizers cannot tokenize the text"):
            return list(encoding_of(self._library, text).ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token spells; see `Tokenizer.token_bytes`."""
        if self.vocabulary.is_special(token_id):
            return b""
        token = self.vocabulary.tokens[token_id]
        is_text = self.vocabulary.types[token_id] == TokenType.USER_DEFINED
        return token.encode() if is_text else byte_level_bytes(token)


def bpe_from_gguf(keys: GgufKeys) -> BytePairTokenizer:
    """The tokenizer of a GGUF file whose `tokenizer.ggml.model` is `gpt2`.

    A file that names no `tokenizer.ggml.pre` means `default`, as in llama.cpp.
    """
    name = keys.text("pre", default="default")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise ModelNotSupported(
            f"{keys.path}: {keys.prefix}pre = {name!r:.80} is not supported: this rule for words "
            f"is not computed, those that are computed are {known}; take the model's folder "
            "instead, whose tokenizer.json has the rule itself"
        )
    pre_tokenizer = PRE_TOKENIZERS[name]
    vocabulary = read_vocabulary(keys)
    _check_bytes(keys, vocabulary)
    special = read_special_ids(
        keys,
        vocabulary,
        default_bos=None,
        default_eos=None,
        default_add_bos=pre_tokenizer.add_bos,
    )
    merges = _read_merges(keys)
    with (
        library_errors(keys.path, f"{keys.prefix}merges do not fit {keys.prefix}tokens"),
        hold_native_messages(),
    ):
        tokenizer = BytePairTokenizer(vocabulary, special, merges, pre_tokenizer)
    tokenizer.special_tokens = read_special_tokens(keys, vocabulary, {})
    return tokenizer


def _check_bytes(keys: GgufKeys, vocabulary: Vocabulary) -> None:
    """The library drops a byte without a token silently, so a text would lose letters."""
    spelled = vocabulary.ids_of(frozenset(TokenType) - SPECIAL_TYPES)
    missing = [
        b for character, b in BYTE_OF.items() if b in UTF8_BYTES and character not in spelled
    ]
    if missing:
        raise keys.error("tokens", f"has no token for the byte 0x{min(missing):02X}")


def _read_merges(keys: GgufKeys) -> list[tuple[str, str]]:
    merges = []
    for index, merge in enumerate(keys.strings("merges")):
        # The first token has at least one character, and that may be a space.
        left, space, right = merge[1:].partition(" ")
        if not space or not right:
            raise keys.error("merges", f"has {merge!r:.80} at index {index}, not two tokens")
        merges.append((merge[0] + left, right))
    return merges
