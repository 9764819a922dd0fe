"""Any `tokenizer.json`, through the tokenizers library that defines the format.

The file's own pipeline encodes: normalizer, words, model, BOS and EOS by its post-processor. Its
truncation holds unless a call says `max_tokens`. Padding is switched off: a text's ids never depend
on other texts.

Decoding asks the file's decoder what each token writes, so that text can come out token by token.
That needs a decoder whose result for a token depends on nothing but whether it is the first:
ByteLevel (GPT-2, Llama 3), Metaspace, WordPiece, none, and Llama 2's Sequence of Replace,
ByteFallback, Fuse and Strip. All of them agree with the library's own decode(), except that an
invalid run of ByteFallback bytes gives U+FFFD for each maximal subpart, not for each byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as LibraryTokenizer

from refllm.api import LlmRuntimeError
from refllm.tokenizer_base import Tokenizer, check_text, library_errors, room_for_text
from refllm.vocab_bpe import BYTE_OF, byte_level_bytes
from refllm.vocabulary import SpecialIds, ends_of_generation

__all__ = ["JsonTokenizer"]

BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
WORD = "a"  # a token that stands before another one, to see what the other writes inside a text


class JsonTokenizer(Tokenizer):
    """The tokenizers library over the text of a `tokenizer.json`.

    Unless told otherwise by `declare`, BOS is the special token that the post-processor puts first,
    and a generation ends at special tokens with a well-known spelling.
    """

    def __init__(self, source: str, path: Path) -> None:
        self._source = source
        self._path = path
        self._library = self._load()
        vocabulary = self._library.get_vocab()
        if not vocabulary:
            raise LlmRuntimeError(f"{path}: the vocabulary is empty")
        self._tokens = {token_id: token for token, token_id in vocabulary.items()}
        added = self._library.get_added_tokens_decoder()
        self._tokens |= {token_id: str(token.content) for token_id, token in added.items()}
        self._special = {
            token_id: str(token.content) for token_id, token in added.items() if token.special
        }
        self.n_vocab = max(self._tokens) + 1
        # The library's own rendering of the file has every field, and one spelling for each.
        document = json.loads(self._library.to_str())
        self.longest_token = _longest_token(document, vocabulary)
        self._decoder = document["decoder"]
        self._n_added = int(self._library.num_special_tokens_to_add(is_pair=False))
        truncation = document["truncation"] or {"max_length": None, "direction": "Right"}
        self.text_limit: int | None = truncation["max_length"]
        self._cut_side = str(truncation["direction"]).lower()
        if self.text_limit is not None and self.text_limit < self._n_added:
            raise LlmRuntimeError(
                f"{path}: truncation.max_length is {self.text_limit}, "
                f"the special tokens alone are {self._n_added}"
            )
        self._library.no_truncation()
        first = self.encode("")[:1]
        self.bos_id = first[0] if first and first[0] in self._special else None
        self.eos_ids = ends_of_generation({text: i for i, text in self._special.items()})

    def declare(self, special: SpecialIds) -> None:
        """Take BOS and the ends of a generation from the files beside this one."""
        self.bos_id = special.bos_id
        self.eos_ids = special.eos_ids

    def lowercase_first(self) -> None:
        """Lower-case every text before the file's own normalizer, unless that begins so anyway."""
        document = json.loads(self._source)
        own = _steps(document.get("normalizer"), "normalizers")
        if any(step["type"] == "Lowercase" for step in own):
            return
        steps = [{"type": "Lowercase"}, *own]
        document["normalizer"] = {"type": "Sequence", "normalizers": steps}
        self._source = json.dumps(document)
        self._library = self._load()
        self._library.no_truncation()
        self.__dict__.pop("_library_for_plain_text", None)

    def find(self, token: str) -> int | None:
        """The id of the token that is spelled so."""
        token_id = self._library.token_to_id(token)
        return None if token_id is None else int(token_id)

    def _load(self) -> LibraryTokenizer:
        with library_errors(self._path, "not a usable tokenizer.json"):
            library = LibraryTokenizer.from_str(self._source)
            library.no_padding()
            return library

    @cached_property
    def _library_for_plain_text(self) -> LibraryTokenizer:
        # A second object, because the switch belongs to the object and not to a call.
        library = self._load()
        library.no_truncation()
        library.encode_special_tokens = True
        return library

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
        library = self._library if parse_special else self._library_for_plain_text
        limit = self.text_limit if max_tokens is None else max_tokens
        n_added = self._n_added if add_special else 0
        with library_errors(self._path, "tokenizers cannot tokenize the text"):
            encoding = library.encode(text, add_special_tokens=False)
            if limit is not None:
                encoding.truncate(room_for_text(limit, n_added), direction=self._cut_side)
            return list(library.post_process(encoding, add_special_tokens=add_special).ids)

    def piece(self, token_id: int) -> str:
        """The token as the file spells it; "" for an id that the file leaves out."""
        self.check_id(token_id)
        return self._tokens.get(token_id, "")

    def token_bytes(self, token_id: int) -> bytes:
        """What the file's decoder writes for the token after another one."""
        if token_id in self._special or token_id not in self._tokens:
            return b""
        writes_inside, _ = self._writers
        return writes_inside(self._tokens[token_id])

    def opening_bytes(self, token_id: int) -> bytes:
        """What the file's decoder writes for the token as the first one."""
        if token_id in self._special or token_id not in self._tokens:
            return b""
        _, writes_opening = self._writers
        return writes_opening(self._tokens[token_id])

    @cached_property
    def _writers(self) -> tuple[Callable[[str], bytes], Callable[[str], bytes]]:
        """What the decoder writes for a token: inside a text, and opening it."""
        decoder = self._decoder
        match decoder:
            case None:
                return lambda token: f" {token}".encode(), str.encode
            case {"type": "ByteLevel"}:
                return byte_level_bytes, byte_level_bytes
            case {"type": "WordPiece" | "Metaspace"}:
                decode = self._library.decoder.decode
                return (
                    lambda token: str(decode([WORD, token])).removeprefix(WORD).encode(),
                    lambda token: str(decode([token])).encode(),
                )
            case {"type": "Sequence", "decoders": [*steps]} if _is_llama_like(steps):
                return lambda token: _fallback(steps, token), lambda token: _strip(steps, token)
        raise LlmRuntimeError(
            f"{self._path}: decoding token by token is not known for {json.dumps(decoder):.200}"
        )


def _is_llama_like(steps: list[Any]) -> bool:
    """Replace …, then at most one each of ByteFallback, Fuse, and after Fuse Strip of one space."""
    kinds = [step.get("type") for step in steps]
    replaces = [step for step in steps if step.get("type") == "Replace"]
    strips = [step for step in steps if step.get("type") == "Strip"]
    rest = kinds[len(replaces) :]
    ends: tuple[list[str], ...] = (
        ["ByteFallback", "Fuse", "Strip"],
        ["ByteFallback", "Fuse"],
        ["Fuse"],
        [],
    )
    return (
        all("String" in step["pattern"] for step in replaces)
        and "Replace" not in rest
        and rest in (*ends, ["Fuse", "Strip"])
        and all((step["content"], step["start"], step["stop"]) == (" ", 1, 0) for step in strips)
    )


def _fallback(steps: list[Any], token: str) -> bytes:
    """A token inside a text: its replacements, or its byte."""
    kinds = [step["type"] for step in steps]
    for step in steps:
        if step["type"] == "Replace":
            token = token.replace(step["pattern"]["String"], step["content"])
    byte = BYTE_TOKEN.fullmatch(token) if "ByteFallback" in kinds else None
    return bytes.fromhex(byte[1]) if byte else token.encode()


def _strip(steps: list[Any], token: str) -> bytes:
    """A token that opens a text: without the space that Strip takes from the whole."""
    inside = _fallback(steps, token)
    return inside.removeprefix(b" ") if any(step["type"] == "Strip" for step in steps) else inside


def _longest_token(document: Mapping[str, Any], tokens: Iterable[str]) -> int:
    """How many characters of text a token can stand for: the longest token's, or 0 for no bound.

    There is a bound where every step of the pipeline keeps every character of the text.
    """
    known = set(tokens)
    keeps_all = (
        document.get("truncation") is None
        and document["model"].get("type") == "BPE"
        and all(
            _normalizer_keeps(step) for step in _steps(document.get("normalizer"), "normalizers")
        )
        and all(
            _words_keep(step) for step in _steps(document.get("pre_tokenizer"), "pretokenizers")
        )
        and not any(token["lstrip"] or token["rstrip"] for token in document["added_tokens"])
        and _has_every_byte(document, known)
    )
    return max(map(len, known)) if keeps_all else 0


def _steps(stage: dict[str, Any] | None, plural: str) -> list[dict[str, Any]]:
    if stage is None:
        return []
    return list(stage[plural]) if stage["type"] == "Sequence" else [stage]


def _normalizer_keeps(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return pattern is not None and len(step["content"]) >= len(pattern)
    return bool(step["type"] == "Prepend")


def _words_keep(step: Mapping[str, Any]) -> bool:
    if step["type"] in ("Split", "Punctuation"):
        return bool(step["behavior"] != "Removed")
    return step["type"] in ("ByteLevel", "Digits", "Metaspace")


def _has_every_byte(document: Mapping[str, Any], known: set[str]) -> bool:
    if document["model"].get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in known for byte in range(256))
    words = _steps(document.get("pre_tokenizer"), "pretokenizers")
    return any(step["type"] == "ByteLevel" for step in words) and known >= BYTE_OF.keys()
