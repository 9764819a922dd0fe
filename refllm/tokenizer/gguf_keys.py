"""The tokenizer's part of GGUF metadata: the keys `tokenizer.ggml.*`, checked.

The keys are those of the GGUF specification (ggml, docs/gguf.md, "Tokenizer"), the defaults are
llama.cpp's. Every error names the file and the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

from refllm.errors import LlmRuntimeError
from refllm.files.accounting.keys import Keys
from refllm.files.accounting.ledger import Ledger
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.vocabulary import (
    FILL_IN_THE_MIDDLE,
    SpecialIds,
    TokenType,
    Vocabulary,
    ends_of_generation,
    types_by_spelling,
)

__all__ = [
    "DIRECTION",
    "MAX_LENGTH",
    "GgufKeys",
    "read_special_ids",
    "read_special_tokens",
    "read_truncation",
    "read_vocabulary",
]

# Names of special tokens in transformers, and the GGUF key that names the same token's id
# ("seperator" is the key's own spelling).
SPECIAL_TOKENS: Mapping[str, str] = {
    "bos_token": "bos",
    "eos_token": "eos",
    "eot_token": "eot",
    "eom_token": "eom",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}

# The truncation of the tokenizer.json that the vocabulary was made of. These two keys are refllm's:
# neither the specification nor llama.cpp has one for it, and llama.cpp cuts no text.
MAX_LENGTH = "tokenizer.huggingface.truncation.max_length"
DIRECTION = "tokenizer.huggingface.truncation.direction"

MAX_TOKENS = 2**19  # the largest vocabularies have 262,144
NO_TOKEN = 0xFFFFFFFF  # the 32-bit id that means "no such token" in a GGUF file


class GgufKeys(Keys):
    """The tokenizer's keys in the metadata of a GGUF file; `prefix` may be left out of a key.

    Args:
        metadata: Every key of the file.
        path: The file, for error messages.
        ledger: Where `account` records each `tokenizer.*` key, but for those of chat templates.
    """

    prefix = "tokenizer.ggml."

    def __init__(
        self, metadata: Mapping[str, Any], path: Path, *, ledger: Ledger | None = None
    ) -> None:
        own = {
            key: value
            for key, value in metadata.items()
            if key.startswith("tokenizer.") and not key.startswith("tokenizer.chat_template")
        }
        super().__init__(path, own, ledger=ledger, by="tokenizer")

    def get(self, key: str, default: object = None) -> Any:
        """Return the value as the file has it, or `default` where it is absent."""
        return super().get(self._whole(key), default)

    def error(self, key: str, what: str) -> LlmRuntimeError:
        """Return the error that names the file and the key."""
        return super().error(self._whole(key), what)

    def _whole(self, key: str) -> str:
        return key if key.startswith("tokenizer.") else self.prefix + key

    def strings(self, key: str) -> list[str]:
        """Return an array of strings, which must be there and may be empty."""
        return [str(value) for value in self._array(key, str)]

    def numbers(self, key: str, count: int) -> list[float]:
        """Return an array of numbers, which must be there, one for each of `count` tokens."""
        values = self._array(key, int | float)
        if len(values) != count:
            raise self.error(key, f"has {len(values)} entries for {count} tokens")
        return list(values)

    def octets(self, key: str) -> bytes:
        """Return an array of numbers of 8 bits, with a sign or not; empty where it is absent."""
        if self.get(key) is None:
            return b""
        values = self._array(key, int)
        if any(not -0x80 <= value <= 0xFF for value in values):
            raise self.error(key, "has a number of more than 8 bits")
        return bytes(value & 0xFF for value in values)

    def _array(self, key: str, item_type: type | UnionType) -> Sequence[Any]:
        values = self._required(key, None)
        if not isinstance(values, Sequence) or isinstance(values, str | bytes):
            raise self.error(key, f"must be an array, is {values!r:.80}")
        for index, value in enumerate(values):
            if not isinstance(value, item_type):
                raise self.error(key, f"has {value!r:.80} at index {index}, of a wrong type")
        return values

    def token_id(
        self, key: str, n_vocab: int, *, default: int | None = None, strict: bool = True
    ) -> int | None:
        """Return the id of a token, or None where the file names none.

        An id outside the vocabulary is an error, or, as in llama.cpp, none where not `strict`.
        """
        value = self.get(key)
        if value is None:
            return default if default is not None and default < n_vocab else None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, f"must be a token id, is {value!r:.80}")
        if value in (NO_TOKEN, -1):
            return None
        if not 0 <= value < n_vocab:
            if not strict:
                return None
            raise self.error(key, f"is {value}, but there are {n_vocab} tokens")
        return value


def read_vocabulary(keys: GgufKeys) -> Vocabulary:
    """Return the tokens and their types; a token without a type is a normal one.

    As in llama.cpp an empty token is called `[EMPTY_<id>]`, two equal tokens are an error, and the
    spelling of a few tokens overrules their type: see `types_by_spelling`.
    """
    tokens = keys.strings("tokens")
    if not tokens:
        raise keys.error("tokens", "is empty")
    if len(tokens) > MAX_TOKENS:
        raise keys.error("tokens", f"has {len(tokens)} tokens; no model has more than {MAX_TOKENS}")
    tokens = [token or f"[EMPTY_{token_id}]" for token_id, token in enumerate(tokens)]
    first_ids: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        if first_ids.setdefault(token, token_id) != token_id:
            both = f"{first_ids[token]} and {token_id}"
            raise keys.error("tokens", f"has the token {token!r:.80} twice, at {both}")
    types: list[int] = [TokenType.NORMAL] * len(tokens)
    if keys.get("token_type") is not None:
        known = frozenset(TokenType)
        numbers = keys.numbers("token_type", len(tokens))
        types = [int(number) if number in known else TokenType.NORMAL for number in numbers]
    types = types_by_spelling(first_ids, types, _roles(keys, len(tokens)))
    return Vocabulary(keys.path, tokens, types)


def _roles(keys: GgufKeys, n_vocab: int) -> dict[str, int | None]:
    """Return the ids that the file names for filling in the middle of a text, by role."""
    roles = {
        role: keys.token_id(f"fim_{role}_token_id", n_vocab, strict=False)
        for role in FILL_IN_THE_MIDDLE
    }
    deprecated = {"pre": "prefix", "suf": "suffix", "mid": "middle"}
    for role, name in deprecated.items():
        token_id = keys.token_id(f"{name}_token_id", n_vocab, strict=False)
        roles[role] = roles[role] if token_id is None else token_id
    return roles


def read_special_ids(
    keys: GgufKeys,
    vocabulary: Vocabulary,
    *,
    default_bos: int | None,
    default_eos: int | None,
    default_add_bos: bool,
    default_add_eos: bool = False,
) -> SpecialIds:
    """Return BOS, every token that ends a generation, and which of them are added to a text.

    The ends are the tokens of the keys eos, eot and eom, and tokens of any type with a well-known
    spelling: see `ends_of_generation`.
    """
    n_vocab = len(vocabulary.tokens)
    bos_id = keys.token_id("bos_token_id", n_vocab, default=default_bos)
    eos_id = keys.token_id("eos_token_id", n_vocab, default=default_eos)
    ends = [eos_id, *(keys.token_id(f"{end}_token_id", n_vocab) for end in ("eot", "eom"))]
    prefix = _added(keys, "add_bos_token", "bos_token_id", bos_id, default=default_add_bos)
    suffix = _added(keys, "add_eos_token", "eos_token_id", eos_id, default=default_add_eos)
    return SpecialIds(
        bos_id,
        ends_of_generation(
            vocabulary.ids,
            named=[token_id for token_id in ends if token_id is not None],
            roles=_roles(keys, n_vocab),
        ),
        prefix,
        suffix,
    )


def read_special_tokens(
    keys: GgufKeys, vocabulary: Vocabulary, defaults: Mapping[str, int | None]
) -> dict[str, str]:
    """Return the tokens that the file names: "bos_token" to "<s>", and so on.

    Args:
        keys: The metadata.
        vocabulary: The tokens.
        defaults: The ids of tokens that the file does not name, by the same names.
    """
    n_vocab = len(vocabulary.tokens)
    special = {}
    for name, key in SPECIAL_TOKENS.items():
        token_id = keys.token_id(
            f"{key}_token_id", n_vocab, default=defaults.get(name), strict=False
        )
        if token_id is not None:
            special[name] = vocabulary.tokens[token_id]
    return special


def read_truncation(keys: GgufKeys, tokenizer: Tokenizer) -> None:
    """Set the tokenizer's limit of a text, and the side that it loses, from the file's keys.

    Raises:
        LlmRuntimeError: for a key of a wrong type, or a length that no text fits.
    """
    limit, side = keys.get(MAX_LENGTH), keys.get(DIRECTION, "right")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise keys.error(MAX_LENGTH, f"must be a number, is {limit!r:.80}")
    if side not in ("left", "right"):
        raise keys.error(DIRECTION, f"must be left or right, is {side!r:.80}")
    tokenizer.cut_side = side
    n_added = len(tokenizer.encode(""))
    if limit is not None and limit < n_added:
        raise keys.error(MAX_LENGTH, f"is {limit}, the special tokens alone are {n_added}")
    if limit is not None:
        tokenizer.text_limit = limit
        tokenizer.longest_token = 0  # a text of any length is cut


def _added(
    keys: GgufKeys, flag: str, id_key: str, token_id: int | None, *, default: bool
) -> tuple[int, ...]:
    if not keys.flag(flag, default=default):
        return ()
    if token_id is not None:
        return (token_id,)
    if keys.get(flag) is None and keys.get(id_key) is not None:
        return ()  # the file names no such token, and only the default adds it
    raise keys.error(id_key, f"names no token, but {keys.prefix}{flag} is true")
