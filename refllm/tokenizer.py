"""Tokenizers by where they come from: GGUF metadata, a file, or a model's folder.

The interface is in `tokenizer_base`; one module for each kind of vocabulary does the work:

    GGUF  tokenizer.ggml.model = llama    vocab_spm        the sentencepiece library
          tokenizer.ggml.model = gpt2     vocab_bpe        the tokenizers library
          tokenizer.ggml.model = bert     vocab_wordpiece  the tokenizers library
    tokenizer.model                       vocab_spm
    tokenizer.json                        vocab_json       the tokenizers library
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from refllm.accounting.keys import Known
from refllm.accounting.ledger import Ledger
from refllm.accounting.tokenizer_keys import (
    GGUF_BERT_TOKENIZER,
    GGUF_LLAMA_TOKENIZER,
    GGUF_TOKENIZER,
)
from refllm.api import LlmRuntimeError, ModelNotSupported
from refllm.tokenizer_base import TextStream, Tokenizer
from refllm.vocab_bpe import bpe_from_gguf
from refllm.vocab_gguf import GgufKeys
from refllm.vocab_json import JsonTokenizer
from refllm.vocab_spm import (
    SentencePieceTokenizer,
    model_from_bytes,
    sentencepiece_from_gguf,
    special_ids_of_model,
    vocabulary_of_model,
)
from refllm.vocab_wordpiece import wordpiece_from_gguf
from refllm.vocabulary import SpecialIds

__all__ = [
    "TextStream",
    "Tokenizer",
    "tokenizer_from_file",
    "tokenizer_from_folder",
    "tokenizer_from_gguf",
]

GGUF_KINDS: Mapping[str, tuple[Callable[[GgufKeys], Tokenizer], Known]] = MappingProxyType(
    {
        "llama": (sentencepiece_from_gguf, GGUF_LLAMA_TOKENIZER),
        "gpt2": (bpe_from_gguf, GGUF_LLAMA_TOKENIZER),
        "bert": (wordpiece_from_gguf, GGUF_BERT_TOKENIZER),
    }
)
# The other kinds of llama.cpp (src/llama-vocab.cpp in llama-cpp-python 0.3.36).
OTHER_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "t5": "a unigram vocabulary",
        "rwkv": "the vocabulary of an RWKV model",
        "plamo2": "the vocabulary of a PLaMo 2 model",
        "gemma4": "the vocabulary of a Gemma 4 model",
        "hybriddna": "a vocabulary of DNA",
        "whitespace": "a vocabulary of whole words",
        "none": "a file without a vocabulary",
        "no_vocab": "a file without a vocabulary",
    }
)
# The files beside a tokenizer that name BOS and EOS, the one that speaks first first: Hugging
# Face's generate() reads generation_config.json and falls back to config.json.
CONFIG_FILES = ("generation_config.json", "config.json", "tokenizer_config.json")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

Find = Callable[[str], int | None]


def tokenizer_from_gguf(
    metadata: Mapping[str, Any], *, path: Path, ledger: Ledger | None = None
) -> Tokenizer:
    """Return the tokenizer that the `tokenizer.*` keys of a GGUF file describe.

    Args:
        metadata: Every key of the file.
        path: The file, for error messages.
        ledger: Where each `tokenizer.*` key is recorded, but for those of the chat template.

    Raises:
        LlmRuntimeError: for a key that is damaged, naming it.
        ModelNotSupported: for a kind of vocabulary or a key that is not computed.
    """
    keys = GgufKeys(metadata, path, ledger=ledger)
    kind = keys.text("model")
    if kind not in GGUF_KINDS:
        problem = OTHER_KINDS.get(kind, "a kind that refllm does not know")
        raise ModelNotSupported(
            f"{path}: {keys.prefix}model = {kind!r:.80} is not supported: {problem}; "
            f"those that are computed are {', '.join(GGUF_KINDS)}"
        )
    read, table = GGUF_KINDS[kind]
    tokenizer = read(keys)
    keys.account(GGUF_TOKENIZER, table)
    return tokenizer


def tokenizer_from_file(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json` or, under any other name, a SentencePiece model.

    Only this file is read. Errors: `LlmRuntimeError`, naming the file.
    """
    if path.suffix == ".json":
        return _load_json(path)
    return _load_model(path, folder=None)


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a model's folder: its `tokenizer.json`, else its `tokenizer.model`.

    BOS and EOS are what the first of generation_config.json, config.json and tokenizer_config.json
    that names them says. What `encode` adds is up to tokenizer.json itself; for a tokenizer.model
    `add_bos_token` and `add_eos_token` of tokenizer_config.json decide, by default BOS alone.
    Errors: `LlmRuntimeError`, naming the file and, where it applies, the key.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer = _load_json(folder / "tokenizer.json")
        own = SpecialIds(tokenizer.bos_id, tokenizer.eos_ids)
        tokenizer.declare(_declared(folder, own, tokenizer.find, tokenizer.n_vocab))
        return tokenizer
    if (folder / "tokenizer.model").is_file():
        return _load_model(folder / "tokenizer.model", folder=folder)
    raise LlmRuntimeError(f"{folder}: there is neither a tokenizer.json nor a tokenizer.model")


def _load_json(path: Path) -> JsonTokenizer:
    data = _read(path)
    try:
        source = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LlmRuntimeError(f"{path}: not UTF-8 text: {error}") from error
    return JsonTokenizer(source, path)


def _load_model(path: Path, *, folder: Path | None) -> SentencePieceTokenizer:
    model = model_from_bytes(_read(path), path)
    vocabulary = vocabulary_of_model(model, path)
    special = special_ids_of_model(model, vocabulary)
    if folder is not None:
        ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
        special = _declared(folder, special, ids.get, len(ids))
    return SentencePieceTokenizer(model, vocabulary, special)


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LlmRuntimeError(f"{path}: cannot be read: {error.strerror}") from error
    if not data:
        raise LlmRuntimeError(f"{path}: the file is empty")
    if data.startswith(LFS_POINTER):
        raise LlmRuntimeError(
            f"{path}: a Git LFS pointer, not the file itself; `git lfs pull` fetches it"
        )
    return data


def _declared(folder: Path, own: SpecialIds, find: Find, n_vocab: int) -> SpecialIds:
    """BOS and EOS as the folder's configuration files say, else the tokenizer's own."""
    configs = [(folder / name, _read_config(folder / name)) for name in CONFIG_FILES]
    bos_id, eos_ids = own.bos_id, sorted(own.eos_ids)
    for path, config in reversed(configs):
        bos_id = next(iter(_named_ids(path, config, "bos", find, n_vocab)), bos_id)
        eos_ids = _named_ids(path, config, "eos", find, n_vocab) or eos_ids
    _, tokenizer_config = configs[-1]
    adds_bos = tokenizer_config.get("add_bos_token") is not False
    adds_eos = tokenizer_config.get("add_eos_token") is True
    return replace(
        own,
        bos_id=bos_id,
        eos_ids=frozenset(eos_ids),
        prefix=(bos_id,) if adds_bos and bos_id is not None else (),
        suffix=tuple(eos_ids[:1]) if adds_eos else (),
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise LlmRuntimeError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise LlmRuntimeError(f"{path}: not a JSON object")
    return config


def _named_ids(
    path: Path, config: Mapping[str, Any], end: str, find: Find, n_vocab: int
) -> list[int]:
    """The ids under `bos_token_id` (one or a list), or of the token spelled under `bos_token`."""
    spelled = config.get(f"{end}_token")
    if isinstance(spelled, dict):
        spelled = spelled.get("content")
    named = config.get(f"{end}_token_id")
    if named is None and isinstance(spelled, str):
        named = find(spelled)
    listed: list[Any] = named if isinstance(named, list) else [named]
    ids = [token_id for token_id in listed if token_id is not None and token_id != -1]
    for token_id in ids:
        is_id = isinstance(token_id, int) and not isinstance(token_id, bool)
        if not is_id or not 0 <= token_id < n_vocab:
            raise LlmRuntimeError(
                f"{path}: {end}_token_id has {token_id!r:.80}, but the ids of the tokenizer "
                f"are 0 to {n_vocab - 1}"
            )
    return ids
