"""The files beside a vocabulary: special tokens, added tokens, options.

    tokenizer_config.json      the class whose options apply, special tokens by name, added tokens
    special_tokens_map.json    special tokens by name
    added_tokens.json          token to id
    generation_config.json     the ids that end a generation; config.json where it names none

Where files disagree, what `AutoTokenizer` of transformers 5.24.0 does decides:

- With `added_tokens_decoder` in tokenizer_config.json, special_tokens_map.json and
  added_tokens.json are not read.
- Without it, special_tokens_map.json overrides tokenizer_config.json, and the tokens of
  added_tokens.json are added, but for ids that tokenizer.json itself has as added tokens.
- A token that a file names as special is one, whatever the vocabulary has it as.

transformers adds a token that the files name as special and the vocabulary lacks, with an id that
no file has. Here such a token is an error if texts need it (bos, eos, unk, sep, cls, mask), and is
left out otherwise: a pad, since nothing is padded, and a placeholder such as CodeLlama's
`fill_token`. The tokens of `additional_special_tokens` and `extra_special_tokens` have no names,
and are added after the last one, as by transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken

from refllm.errors import LlmRuntimeError
from refllm.files.accounting.keys import Keys
from refllm.files.accounting.ledger import Ledger
from refllm.files.accounting.tokenizer_keys import (
    GENERATION_CONFIG,
    NO_PADDING,
    PLACEHOLDER,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
)
from refllm.files.reading import MAX_TOKENIZER_BYTES, read_json_object

__all__ = ["MAX_TOKEN_BYTES", "Added", "FolderFiles", "Named", "read_folder_files"]

# Of a token that is looked for in a text. Those that files add have names of some 30 bytes; the
# tokenizers library builds an automaton with up to a kilobyte for each of their bytes.
MAX_TOKEN_BYTES = 1000
ID = re.compile("[0-9]{1,10}")

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
NEEDED = frozenset(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "cls", "mask"))
EXTRA = ("additional_special_tokens", "extra_special_tokens")
# The class of a folder that names none, by config.json's model_type, where transformers 5.24 takes
# one with options of its own (models/auto/tokenization_auto.py).
CLASS_OF_MODEL_TYPE: Mapping[str, str] = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}


@dataclass(frozen=True, slots=True)
class Added:
    """A token that a file adds to a vocabulary.

    Attributes:
        token_id: Its id, None for the one that it has already, or else the next one.
        token: Its spelling, and how it is found in a text.
        path: The file.
        key: The file's key.
        must_exist: Whether the file only names it as special, and the vocabulary must have it.
    """

    token_id: int | None
    token: AddedToken
    path: Path
    key: str
    must_exist: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """A special token that a file names."""

    content: str
    path: Path
    key: str


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """The contents of one folder's files; empty for a folder without them.

    Attributes:
        tokenizer_class: transformers' class, without "Fast"; None if no file names one.
        config: tokenizer_config.json, with options for the reader of a vocabulary.
        special_map: special_tokens_map.json.
        special: Special tokens by name ("eos_token").
        added: Added tokens in the order of their ids; tokens without an id come last.
        bos_ids: The id of BOS in generation_config.json or config.json.
        eos_ids: The ids of the ends of a generation in one of them.
        id_sources: File and key of `bos_ids` and `eos_ids`, for error messages.
    """

    tokenizer_class: str | None
    config: Keys
    special_map: Keys
    special: Mapping[str, Named] = field(default_factory=dict)
    added: tuple[Added, ...] = ()
    bos_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    id_sources: Mapping[str, str] = field(default_factory=dict)

    def with_known(self, known: Iterable[str], vocabulary: Path) -> FolderFiles:
        """Return the same without the special tokens that a vocabulary lacks; dismiss these.

        Args:
            known: Every token of the vocabulary.
            vocabulary: Its file.

        Raises:
            LlmRuntimeError: for a missing one that texts need, naming file and key.
        """
        tokens = frozenset(known)
        missing = {n: one for n, one in self.special.items() if one.content not in tokens}
        for name, one in missing.items():
            if name in NEEDED:
                raise LlmRuntimeError(
                    f"{one.path}: {one.key} names the token {one.content!r:.80}, which is "
                    f"not in the vocabulary of {vocabulary.name}; add it there, or name another"
                )
            keys = self.config if one.path == self.config.path else self.special_map
            keys.dismiss(one.key, NO_PADDING if name == "pad_token" else PLACEHOLDER)
        special = {name: one for name, one in self.special.items() if name not in missing}
        return replace(self, special=special)

    def account(self) -> None:
        """Record each key of tokenizer_config.json and special_tokens_map.json, after all reads."""
        self.config.account(TOKENIZER_CONFIG, unknown="warn")
        if self.config.get("added_tokens_decoder") is None:
            self.special_map.account(SPECIAL_TOKENS_MAP, unknown="warn")

    def check_ids(self, n_vocab: int) -> None:
        """Raise `LlmRuntimeError` for an id of BOS or EOS outside a vocabulary of `n_vocab`."""
        for name, ids in (("bos", self.bos_ids), ("eos", self.eos_ids)):
            for token_id in ids:
                if not 0 <= token_id < n_vocab:
                    raise LlmRuntimeError(
                        f"{self.id_sources[name]} has {token_id}, but the ids of the tokenizer "
                        f"are 0 to {n_vocab - 1}"
                    )


def read_folder_files(
    folder: Path, ledger: Ledger, *, own_added: Mapping[int, str] = MappingProxyType({})
) -> FolderFiles:
    """Return the contents of the files beside a vocabulary.

    Args:
        folder: The model's folder.
        ledger: Where each key of the files is recorded; those of tokenizer_config.json and
            special_tokens_map.json when the caller calls `account`.
        own_added: The added tokens of tokenizer.json, by id.

    Raises:
        LlmRuntimeError: for a file that is damaged, naming file and key.
    """
    config = _keys(folder / "tokenizer_config.json", ledger)
    special_map = _keys(folder / "special_tokens_map.json", ledger)
    decoder = config.get("added_tokens_decoder")
    named = _named(config) | ({} if decoder is not None else _named(special_map))
    spelled = {one.content for one, _ in named.values()}
    extras = [
        extra
        for keys in ([config] if decoder is not None else [config, special_map])
        for extra in _extras(keys)
    ]
    spelled |= {str(extra.token.content) for extra in extras}
    if decoder is not None:
        added = _decoder(config, decoder)
        because = "transformers 5.24 does not read the file beside added_tokens_decoder"
        for name in special_map.values:
            ledger.dismiss("special_tokens_map.json", name, because)
        for name in _optional(folder / "added_tokens.json"):
            ledger.dismiss("added_tokens.json", name, because)
    else:
        added = _added_json(folder / "added_tokens.json", spelled, own_added, ledger)
    known = {str(one.token.content) for one in added}
    own = frozenset(own_added.values())
    for name, (one, flags) in named.items():
        # A named token is special; an added token of the same spelling gives its flags.
        if one.content not in known and (one.content not in own or flags is not None):
            token = AddedToken(one.content, special=True) if flags is None else flags
            added.append(Added(None, token, one.path, name, must_exist=True))
    added = [_special(one) if str(one.token.content) in spelled else one for one in added]
    known |= own
    added += [extra for extra in extras if str(extra.token.content) not in known]
    ids = _ids_of_ends(folder, ledger)
    return FolderFiles(
        tokenizer_class=_tokenizer_class(config, folder),
        config=config,
        special_map=special_map,
        special={name: one for name, (one, _) in named.items()},
        added=tuple(added),
        bos_ids=ids["bos"][0],
        eos_ids=ids["eos"][0],
        id_sources={name: source for name, (_, source) in ids.items()},
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path, max_bytes=MAX_TOKENIZER_BYTES) if path.is_file() else {}


def _keys(path: Path, ledger: Ledger) -> Keys:
    return Keys(path, _optional(path), ledger=ledger, where=path.name, by="tokenizer")


def _named(keys: Keys) -> dict[str, tuple[Named, AddedToken | None]]:
    """Return the special tokens that a file names, and their flags where it has them."""
    found: dict[str, tuple[Named, AddedToken | None]] = {}
    for key, value in keys.values.items():
        if not key.endswith("_token") or isinstance(value, bool) or value is None:
            continue
        token = _token(keys, key, keys.get(key))
        content = str(token.content)
        if not content:
            keys.dismiss(key, "an empty token counts as absent")
            continue
        flags = None if isinstance(value, str) else token
        found[key] = (Named(content, keys.path, key), flags)
    extra = keys.values.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        keys.get("extra_special_tokens")
        for key, value in extra.items():
            content = str(_token(keys, f"extra_special_tokens.{key}", value).content)
            found[key] = (Named(content, keys.path, f"extra_special_tokens.{key}"), None)
    return found


def _extras(keys: Keys) -> list[Added]:
    """Return the special tokens without a name, in the file's order."""
    found = []
    for key in EXTRA:
        values = keys.get(key)
        if values is None or (key == "extra_special_tokens" and isinstance(values, Mapping)):
            continue
        if not isinstance(values, list):
            raise keys.error(key, f"must be an array of tokens, is {values!r:.80}")
        for value in values:
            found.append(Added(None, _token(keys, key, value), keys.path, key))
    return [_special(one) for one in found]


def _check_content(content: str, where: str) -> None:
    if LONE_SURROGATE.search(content):
        raise LlmRuntimeError(f"{where} has the token {content!r:.80}, which is not Unicode text")
    if len(content.encode()) > MAX_TOKEN_BYTES:
        raise LlmRuntimeError(
            f"{where} has a token of more than {MAX_TOKEN_BYTES} bytes, {content!r:.80}"
        )


def _token(keys: Keys, key: str, value: object) -> AddedToken:
    """Return a token that a file gives as its spelling, or as an object with flags."""
    content = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(content, str):
        raise keys.error(key, f"must be a token, is {value!r:.80}")
    _check_content(content, f"{keys.path}: {key}")
    if not isinstance(value, Mapping):
        return AddedToken(content, special=True)
    flags = {flag: value[flag] for flag in FLAGS if value.get(flag) is not None}
    for flag, is_set in flags.items():
        if not isinstance(is_set, bool):
            raise keys.error(key, f"{flag} must be true or false, is {is_set!r:.80}")
    return AddedToken(content, **flags)


def _special(added: Added) -> Added:
    token = added.token
    if token.special:
        return added
    flags = {flag: getattr(token, flag) for flag in FLAGS if flag != "special"}
    return replace(added, token=AddedToken(token.content, special=True, **flags))


def _decoder(config: Keys, decoder: object) -> list[Added]:
    """Return the tokens of `added_tokens_decoder`: id, as a string, to token."""
    key = "added_tokens_decoder"
    if not isinstance(decoder, Mapping):
        raise config.error(key, f"must be an object, is {decoder!r:.80}")
    added = []
    for name, value in decoder.items():
        if not ID.fullmatch(name):
            raise config.error(key, f"has the id {name!r:.80}, which is not a number")
        token = _token(config, f"{key}.{name}", value)
        added.append(Added(int(name), token, config.path, f"{key}.{name}"))
    return sorted(added, key=lambda one: one.token_id or 0)


def _added_json(
    path: Path, special: set[str], own_added: Mapping[int, str], ledger: Ledger
) -> list[Added]:
    """Return the tokens of added_tokens.json; only those that are named as special are special."""
    added = []
    for content, token_id in _optional(path).items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise LlmRuntimeError(f"{path}: {content!r:.80} must be an id, is {token_id!r:.80}")
        _check_content(content, f"{path}:")
        if token_id in own_added:
            ledger.dismiss(path.name, content, "tokenizer.json has the token with this id")
            continue
        ledger.use(path.name, content, "tokenizer")
        is_special = content in special
        token = AddedToken(content, normalized=not is_special, special=is_special)
        added.append(Added(token_id, token, path, repr(content)))
    return sorted(added, key=lambda one: one.token_id or 0)


def _ids_of_ends(folder: Path, ledger: Ledger) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the ids of BOS and EOS that generation_config.json names, else config.json.

    Hugging Face's generate() reads generation_config.json and falls back to config.json.
    """
    generation = _keys(folder / "generation_config.json", ledger)
    config = _keys(folder / "config.json", Ledger())  # the network accounts for its keys
    found: dict[str, tuple[tuple[int, ...], str]] = {"bos": ((), ""), "eos": ((), "")}
    for keys in (config, generation):
        for end in ("bos", "eos"):
            key = f"{end}_token_id"
            named = keys.get(key)
            listed = named if isinstance(named, list) else [named]
            ids = [token_id for token_id in listed if token_id is not None and token_id != -1]
            for token_id in ids:
                if isinstance(token_id, bool) or not isinstance(token_id, int):
                    raise keys.error(key, f"has {token_id!r:.80}, which is not a token id")
            if ids:
                found[end] = tuple(ids), f"{keys.path}: {key}"
    generation.account(GENERATION_CONFIG, unknown="warn")
    return found


def _tokenizer_class(config: Keys, folder: Path) -> str | None:
    """Return transformers' class whose options apply: the file's own, or that of the model type."""
    model = _keys(folder / "config.json", Ledger())
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if name is None:
        model_type = model.get("model_type")
        return CLASS_OF_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
    if not isinstance(name, str):
        raise config.error("tokenizer_class", f"must be a string, is {name!r:.80}")
    return name.removesuffix("Fast")
