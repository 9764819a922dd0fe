"""Any `tokenizer.json`, through the tokenizers library that defines the format.

The file's own pipeline encodes: normalizer, words, model, BOS and EOS by its post-processor. Its
truncation holds unless a call has `max_tokens`. Padding is switched off: a text's ids never depend
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as LibraryTokenizer

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError
from refllm.files.accounting.ledger import Ledger
from refllm.files.accounting.tokenizer_keys import TOKENIZER_JSON
from refllm.tokenizer.base import Tokenizer, check_text, encoding_of, library_errors, room_for_text
from refllm.tokenizer.bpe import BYTE_OF, byte_level_bytes
from refllm.tokenizer.document import check_pipeline, growth_of, pipeline_steps, read_document
from refllm.tokenizer.folder import Added
from refllm.tokenizer.native_messages import hold_native_messages
from refllm.tokenizer.vocabulary import SpecialIds, ends_of_generation

__all__ = ["JsonTokenizer", "account_for_document"]

BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
MAX_NORMALIZED = 2**22  # bytes; the library takes up to 100 bytes, and a microsecond, for each
MAX_GROWN = 16  # times as many bytes as a text may be normalized to at any length
STRETCH = 1024  # characters that are normalized at once to measure how long a text becomes
MAX_DECODED = 2**20  # bytes of a token
# Each changes a character by itself, or together with combining marks behind it.
LOCAL_NORMALIZERS = ("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents")
# The steps that a decoder like Llama 2's may have behind its replacements.
AFTER_REPLACES: tuple[list[str], ...] = (
    *([], ["Fuse"], ["Fuse", "Strip"], ["ByteFallback", "Fuse"]),
    ["ByteFallback", "Fuse", "Strip"],
)
SPACES = " \n"
WORD = "a"  # a token before another one, which is then decoded as inside a text
PROBE = "Once upon a time, é 12\n"  # a library that panics for this panics for other texts, too


class JsonTokenizer(Tokenizer):
    """The tokenizers library over the text of a `tokenizer.json`.

    Before `declare`, BOS is the special token that the post-processor puts first, and a generation
    ends at special tokens with a well-known spelling.
    """

    def __init__(
        self,
        source: str,
        path: Path,
        *,
        added: Sequence[Added] = (),
        checked: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a tokenizer.

        Args:
            source: The text of the file.
            path: The file, for error messages.
            added: Tokens of the files beside it.
            checked: What `read_document` returns of the text, if that was called.

        Raises:
            LlmRuntimeError: naming the file.
        """
        document = read_document(source, path) if checked is None else checked
        own_added = document.get("added_tokens") or []
        self._source = source
        self._fails = False
        self.path = path
        self._added = added
        self._library = self._load()
        for token in own_added:
            # The library gives a token that is not in the vocabulary the next id, whatever its own.
            token_id = self._library.token_to_id(token["content"])
            if token_id != token["id"]:
                raise LlmRuntimeError(
                    f"{path}: added_tokens has {token['content']!r:.80} with id {token['id']}, but "
                    f"the vocabulary has it, or the library counts it, as {token_id}"
                )
        with library_errors(path, "not a usable tokenizer.json"), hold_native_messages():
            vocabulary = self._library.get_vocab()
            found_in_text = self._library.get_added_tokens_decoder()
            # The library's own rendering has every field, and one spelling for each.
            rendered = json.loads(self._library.to_str())
            self._n_added = int(self._library.num_special_tokens_to_add(is_pair=False))
        self._tokens = {token_id: token for token, token_id in vocabulary.items()}
        if len(self._tokens) < len(vocabulary):
            # Which of them an id decodes to would depend on the order of a hash table.
            shared = next(i for token, i in vocabulary.items() if self._tokens[i] != token)
            one, other, *_ = sorted(token for token, i in vocabulary.items() if i == shared)
            raise LlmRuntimeError(
                f"{path}: the tokens {one!r:.80} and {other!r:.80} have the same id, {shared}; an "
                "added token gets the number of tokens as its id, also where a token has it"
            )
        self._tokens |= {token_id: str(one.content) for token_id, one in found_in_text.items()}
        self._special = {
            token_id: str(one.content) for token_id, one in found_in_text.items() if one.special
        }
        if not self._tokens:
            raise LlmRuntimeError(f"{path}: the vocabulary is empty")
        self.n_vocab = max(self._tokens) + 1
        self.unknown: str | None = rendered["model"].get("unk_token")
        self.rendered = {**rendered, "model": {**rendered["model"], "vocab": {}, "merges": []}}
        self.longest_token = _longest_token(rendered, vocabulary)
        self.separators = _separators(rendered)
        self._decoder = rendered["decoder"]
        check_pipeline(rendered, self._tokens, path)
        self._growth = growth_of(rendered["normalizer"])
        truncation = rendered["truncation"] or {"max_length": None, "direction": "Right"}
        self.text_limit: int | None = truncation["max_length"]
        self.cut_side = "left" if truncation["direction"] == "Left" else "right"
        if self.text_limit is not None and self.text_limit < self._n_added:
            raise LlmRuntimeError(
                f"{path}: truncation.max_length is {self.text_limit}, "
                f"the special tokens alone are {self._n_added}"
            )
        self._library.no_truncation()
        with hold_native_messages():
            first = self.encode("")[:1]
        self._fails = self._fails_for(PROBE)
        self.bos_id = first[0] if first and first[0] in self._special else None
        self._spelled_ends: frozenset[int] = frozenset()
        if rendered["model"].get("type") != "WordPiece":
            # A BERT ends no text; its [PAD] is no end of a file.
            self._spelled_ends = ends_of_generation(self.tokens())
        self.eos_ids = self._spelled_ends

    def declare(self, special: SpecialIds, special_tokens: Mapping[str, str]) -> None:
        """Take BOS and the ends of a generation from the files beside this one."""
        self.bos_id = special.bos_id
        self.eos_ids = special.eos_ids
        self.special_tokens = special_tokens

    def tokens(self) -> dict[str, int]:
        """Return every token of the file, and its id."""
        return {token: token_id for token_id, token in self._tokens.items()}

    def document(self) -> dict[str, Any]:
        """Return the tokenizer.json as it is used: with what the files beside it change.

        It is the library's own rendering, with every field, and one spelling for each.
        """
        document: dict[str, Any] = json.loads(self._load().to_str())
        return document

    def lowercase_first(self) -> None:
        """Lower-case every text before the file's own normalizer, unless that begins so anyway."""
        document = json.loads(self._source)
        own = pipeline_steps(document.get("normalizer"))
        if any(step.get("type") == "Lowercase" for step in own):
            return
        steps = [{"type": "Lowercase"}, *own]
        document["normalizer"] = {"type": "Sequence", "normalizers": steps}
        self._source = json.dumps(document)
        self._library = self._load()
        self._library.no_truncation()
        self.__dict__.pop("_library_for_plain_text", None)
        self._fails = self._fails_for(PROBE)

    def find(self, token: str) -> int | None:
        """Return the id of the token with this spelling, or None."""
        token_id = self._library.token_to_id(token)
        return None if token_id is None else int(token_id)

    def _load(self) -> LibraryTokenizer:
        with library_errors(self.path, "not a usable tokenizer.json"), hold_native_messages():
            library = LibraryTokenizer.from_str(self._source)
            library.no_padding()
            # In transformers' order, because the library gives ids, and in one call, because each
            # call rebuilds the library's automaton of all added tokens.
            contents: set[str] = set()
            adding = []
            for one in self._added:
                content = str(one.token.content)
                is_known = content in contents or library.token_to_id(content) is not None
                if is_known or not one.must_exist:
                    contents.add(content)
                    adding.append(one.token)
            library.add_tokens(adding)
        for one in self._added:
            token_id = library.token_to_id(one.token.content)
            if one.token_id is not None and token_id != one.token_id:
                raise LlmRuntimeError(
                    f"{one.path}: {one.key} gives the token {one.token.content!r:.80} the id "
                    f"{one.token_id}, but in {self.path.name} it has, or as the next one would "
                    f"have, the id {token_id}"
                )
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
        """Return the ids of `text`; see `Tokenizer.encode`."""
        check_text(text)
        self._check_growth(text)
        library = self._library if parse_special else self._library_for_plain_text
        limit = self.text_limit if max_tokens is None else max_tokens
        n_added = self._n_added if add_special else 0
        with library_errors(self.path, "tokenizers cannot tokenize the text"), self._messages():
            encoding = encoding_of(library, text)
            if limit is not None:
                room = room_for_text(limit, n_added)
                # The library makes an encoding of each stretch that it cuts off. Of a text that is
                # cut in two steps these are fewer by far.
                between = isqrt(len(encoding) * room)
                if between > room > 0:
                    encoding.truncate(between, direction=self.cut_side)
                encoding.truncate(room, direction=self.cut_side)
            whole = library.post_process(encoding, add_special_tokens=add_special)
        ids = list(whole.ids)
        if ids and max(ids) >= self.n_vocab:
            raise LlmRuntimeError(
                f"{self.path}: the text gets the id {max(ids)}, which no token has"
            )
        return self.check_rows(ids)

    def _fails_for(self, text: str) -> bool:
        try:
            with hold_native_messages():
                self.encode(text)
        except LlmError:
            return True
        return False

    def _messages(self) -> AbstractContextManager[None]:
        """Hold back messages of a library that fails; that takes longer than a short text does."""
        return hold_native_messages() if self._fails else nullcontext()

    def _check_growth(self, text: str) -> None:
        """Refuse a text that the normalizer makes so long that the library runs out of memory."""
        n_bytes = len(text.encode())
        if n_bytes * self._growth <= MAX_NORMALIZED or self._library.normalizer is None:
            return
        most = max(MAX_NORMALIZED, MAX_GROWN * n_bytes)
        n_normalized = 0
        for start in range(0, len(text), STRETCH):
            with library_errors(self.path, "tokenizers cannot normalize"), self._messages():
                stretch = self._library.normalizer.normalize_str(text[start : start + STRETCH])
            n_normalized += len(stretch.encode())
            if n_normalized > most:
                raise InvalidInput(
                    f"{self.path}: the normalizer makes more than {most} bytes of the text, which "
                    f"has {n_bytes}; give a shorter text"
                )

    def piece(self, token_id: int) -> str:
        """Return the token as the file spells it; "" for an id that the file leaves out."""
        self.check_id(token_id)
        return self._tokens.get(token_id, "")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that the file's decoder writes for the token after another one."""
        if self._is_silent(token_id):
            return b""
        return self._writers[0](self._tokens[token_id])

    def opening_bytes(self, token_id: int) -> bytes:
        """Return the bytes that the file's decoder writes for the token as the first one."""
        if self._is_silent(token_id):
            return b""
        return self._writers[1](self._tokens[token_id])

    def _is_silent(self, token_id: int) -> bool:
        is_known = token_id in self._tokens
        return not is_known or token_id in self._special or token_id in self._spelled_ends

    @cached_property
    def _writers(self) -> tuple[Callable[[str], bytes], Callable[[str], bytes]]:
        """Two functions from a token to its bytes: inside a text, and as its first token."""
        decoder = _plainest(self._decoder)
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
                longest = max(len(token.encode()) for token in self._tokens.values())
                if longest * growth_of({"normalizers": steps}) > MAX_DECODED:
                    raise LlmRuntimeError(
                        f"{self.path}: decoder may write more than {MAX_DECODED} bytes for a token"
                    )
                space = b" " if any(step["type"] == "Strip" for step in steps) else b""
                return (
                    lambda token: _bytes_inside(steps, token),
                    lambda token: _bytes_inside(steps, token).removeprefix(space),
                )
        raise LlmRuntimeError(
            f"{self.path}: decoding token by token is not known for {json.dumps(decoder):.200}"
        )


def _plainest(decoder: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the decoder with sequences within sequences as one, and a sequence of one as itself.

    Fuse after a step that depends on nothing but whether a token is the first joins what the whole
    text joins anyway.
    """
    if decoder is None or decoder["type"] != "Sequence":
        return decoder
    steps: list[dict[str, Any]] = []
    for step in decoder["decoders"]:
        plain = _plainest(step)
        if plain is not None:
            steps += plain["decoders"] if plain["type"] == "Sequence" else [plain]
    if steps and steps[0]["type"] in ("ByteLevel", "Metaspace", "WordPiece"):
        while len(steps) > 1 and steps[-1]["type"] == "Fuse":
            steps = steps[:-1]
        if len(steps) == 1:
            return steps[0]
    return {"type": "Sequence", "decoders": steps}


def account_for_document(
    document: Mapping[str, Any],
    changed: Mapping[str, Any],
    tokenizer: JsonTokenizer,
    ledger: Ledger,
) -> None:
    """Record each key of a tokenizer.json; the library drops one that it does not know silently.

    The library's own rendering of the file has all keys of the library.

    Args:
        document: The file.
        changed: The same with the options of tokenizer_config.json.
        tokenizer: The tokenizer of `changed`.
        ledger: Where the keys are recorded.
    """
    for key in document:
        if _type_of(changed[key]) == _type_of(document[key]):
            ledger.use("tokenizer.json", key, "tokenizer")
        else:
            ledger.dismiss("tokenizer.json", key, "tokenizer_config.json replaces it")
    for key, value in _unknown_keys(changed, tokenizer.rendered, ""):
        ruling = next((why for like, why in TOKENIZER_JSON.items() if fnmatchcase(key, like)), None)
        if isinstance(ruling, str):
            ledger.dismiss("tokenizer.json", key, ruling)
            continue
        ledger.unknown(
            "tokenizer.json",
            key,
            f"{tokenizer.path}: {key} = {value!r:.80} is a key that the tokenizers library does "
            "not know, and is ignored",
        )


def _type_of(stage: object) -> object:
    return stage.get("type") if isinstance(stage, dict) else None


def _unknown_keys(stated: object, rendered: object, prefix: str) -> list[tuple[str, object]]:
    if isinstance(stated, list) and isinstance(rendered, list):
        pairs = zip(stated, rendered, strict=False)
        return [found for pair in pairs for found in _unknown_keys(*pair, prefix)]
    if not isinstance(stated, dict) or not isinstance(rendered, dict):
        return []
    found: list[tuple[str, object]] = []
    for key, value in stated.items():
        name = f"{prefix}{key}"
        if name in ("model.vocab", "model.merges", "post_processor.special_tokens"):
            continue
        if key not in rendered:
            found.append((name, value))
        else:
            found += _unknown_keys(value, rendered[key], f"{name}.")
    return found


def _is_llama_like(steps: list[Any]) -> bool:
    """Return whether a decoder is Replace …, then [ByteFallback], [Fuse, [Strip of one space]]."""
    kinds = [step.get("type") for step in steps]
    n_replaces = kinds.count("Replace")
    rest = kinds[n_replaces:]
    strips = [step for step in steps if step.get("type") == "Strip"]
    return (
        kinds[:n_replaces] == ["Replace"] * n_replaces
        and all("String" in step["pattern"] for step in steps[:n_replaces])
        and rest
        in (
            [],
            ["Fuse"],
            ["Fuse", "Strip"],
            ["ByteFallback", "Fuse"],
            ["ByteFallback", "Fuse", "Strip"],
        )
        and all((step["content"], step["start"], step["stop"]) == (" ", 1, 0) for step in strips)
    )


def _bytes_inside(steps: list[Any], token: str) -> bytes:
    """Return the bytes of a token inside a text: its replacements, or its byte."""
    for step in steps:
        if step["type"] == "Replace":
            token = token.replace(step["pattern"]["String"], step["content"])
    falls_back = any(step["type"] == "ByteFallback" for step in steps)
    byte = BYTE_TOKEN.fullmatch(token) if falls_back else None
    return bytes.fromhex(byte[1]) if byte else token.encode()


def _longest_token(document: Mapping[str, Any], tokens: Iterable[str]) -> int:
    """Return how many characters of text a token can stand for: the longest token's, or 0.

    There is a bound if every step of the pipeline keeps every character of the text.
    """
    known = set(tokens)
    words = pipeline_steps(document.get("pre_tokenizer"))
    if document["model"].get("byte_fallback"):
        has_every_byte = all(f"<0x{byte:02X}>" in known for byte in range(256))
    else:
        is_byte_level = any(step["type"] == "ByteLevel" for step in words)
        has_every_byte = is_byte_level and known >= BYTE_OF.keys()
    keeps_all = (
        document.get("truncation") is None
        and document["model"].get("type") == "BPE"
        and all(
            step["type"] == "Prepend"
            or (
                step["type"] == "Replace"
                and "String" in step["pattern"]
                and len(step["content"]) >= len(step["pattern"]["String"])
            )
            for step in pipeline_steps(document.get("normalizer"))
        )
        and all(
            step["type"] in ("ByteLevel", "Digits", "Metaspace")
            or (step["type"] in ("Split", "Punctuation") and step["behavior"] != "Removed")
            for step in words
        )
        and not any(token["lstrip"] or token["rstrip"] for token in document["added_tokens"])
        and has_every_byte
    )
    return max(map(len, known)) if keeps_all else 0


def _separators(document: Mapping[str, Any]) -> str:
    """Return the spaces, if no token and no change by a normalizer crosses one; else "".

    That is known of BERT's pipeline and its relatives.
    """
    words = pipeline_steps(document.get("pre_tokenizer"))
    knows_all = (
        document["model"].get("type") == "WordPiece"
        and all(
            step["type"] in LOCAL_NORMALIZERS for step in pipeline_steps(document.get("normalizer"))
        )
        and bool(words)
        and words[0]["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
        and not any(s in token["content"] for token in document["added_tokens"] for s in SPACES)
    )
    return SPACES if knows_all else ""
