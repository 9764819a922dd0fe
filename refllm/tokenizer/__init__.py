"""Tokenizers, by their source: GGUF metadata, a file, or a model's folder.

The three functions `tokenizer_from_…` are here, the interface `Tokenizer` is in `base.py`, and a
module for each kind of vocabulary implements it through a library:

    GGUF, tokenizer.ggml.model = llama, t5    sentencepiece.py    sentencepiece
    GGUF, tokenizer.ggml.model = gpt2         bpe.py              tokenizers
    GGUF, tokenizer.ggml.model = bert         wordpiece.py        tokenizers
    tokenizer.model                           sentencepiece.py    sentencepiece
    tokenizer.json                            hf_json.py          tokenizers
    vocab.txt and other older files           older_files.py      a tokenizer.json made of them

`gguf_keys.py`, `folder.py` and `options.py` read the keys and files beside a vocabulary,
`document.py` checks it before a library reads it. `grammar.py` binds answers to a grammar. May
import `refllm.files` and nothing above it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from refllm.errors import LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.keys import Known
from refllm.files.accounting.ledger import Ledger
from refllm.files.accounting.tokenizer_keys import (
    GGUF_BERT_TOKENIZER,
    GGUF_LLAMA_TOKENIZER,
    GGUF_TOKENIZER,
)
from refllm.files.reading import MAX_TOKENIZER_BYTES, read_text
from refllm.tokenizer.base import NO_LIMIT, TextStream, Tokenizer
from refllm.tokenizer.bpe import bpe_from_gguf
from refllm.tokenizer.document import read_document
from refllm.tokenizer.folder import FolderFiles, read_folder_files
from refllm.tokenizer.gguf_keys import GgufKeys, read_truncation
from refllm.tokenizer.hf_json import JsonTokenizer, account_for_document
from refllm.tokenizer.older_files import document_from_vocabulary
from refllm.tokenizer.options import prepend_scheme, with_options
from refllm.tokenizer.sentencepiece import (
    AddedTokens,
    SentencePieceTokenizer,
    read_model,
    sentencepiece_from_gguf,
    special_ids_of_model,
    unigram_from_gguf,
    vocabulary_of_model,
)
from refllm.tokenizer.vocabulary import (
    SPECIAL_TYPES,
    SpecialIds,
    TokenType,
    Vocabulary,
    ends_of_generation,
)
from refllm.tokenizer.wordpiece import wordpiece_from_gguf

__all__ = [
    "NO_LIMIT",
    "TextStream",
    "Tokenizer",
    "tokenizer_from_file",
    "tokenizer_from_folder",
    "tokenizer_from_gguf",
]

GGUF_KINDS: Mapping[str, tuple[Callable[[GgufKeys], Tokenizer], Known]] = {
    "llama": (sentencepiece_from_gguf, GGUF_LLAMA_TOKENIZER),
    "gpt2": (bpe_from_gguf, GGUF_LLAMA_TOKENIZER),
    "bert": (wordpiece_from_gguf, GGUF_BERT_TOKENIZER),
    "t5": (unigram_from_gguf, GGUF_LLAMA_TOKENIZER),
}
# The other kinds of llama.cpp (src/llama-vocab.cpp in llama-cpp-python 0.3.36).
OTHER_KINDS: Mapping[str, str] = {
    "rwkv": "the vocabulary of an RWKV model",
    "plamo2": "the vocabulary of a PLaMo 2 model",
    "gemma4": "the vocabulary of a Gemma 4 model",
    "hybriddna": "a vocabulary of DNA",
    "whitespace": "a vocabulary of whole words",
    "none": "a file without a vocabulary",
    "no_vocab": "a file without a vocabulary",
}
# Vocabularies of a folder without tokenizer.json and tokenizer.model, the first one first.
VOCABULARY_FILES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model")


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
        problem = OTHER_KINDS.get(kind, "a kind that is not computed")
        raise ModelNotSupported(
            f"{path}: {keys.prefix}model = {kind!r:.80} is not supported: {problem}; "
            f"those that are computed are {', '.join(GGUF_KINDS)}"
        )
    read, table = GGUF_KINDS[kind]
    tokenizer = read(keys)
    read_truncation(keys, tokenizer)
    keys.account(GGUF_TOKENIZER, table, unknown="refuse")
    return tokenizer


def tokenizer_from_file(path: Path) -> Tokenizer:
    """Return the tokenizer in a `tokenizer.json` or, under any other name, a SentencePiece model.

    Only this file is read.

    Raises:
        LlmRuntimeError: naming the file.
    """
    if path.suffix == ".json":
        return JsonTokenizer(read_text(path, max_bytes=MAX_TOKENIZER_BYTES), path)
    return _load_model(path)


def tokenizer_from_folder(folder: Path, ledger: Ledger | None = None) -> Tokenizer:
    """Return the tokenizer of a model's folder.

    The first of these files that exists is read: tokenizer.json; tokenizer.model; vocab.txt (BERT);
    vocab.json and merges.txt (GPT-2, RoBERTa); sentencepiece.bpe.model (XLM-R).

    A tokenizer.json itself defines which special tokens `encode` adds to a text; for a
    tokenizer.model `add_bos_token` and `add_eos_token` of tokenizer_config.json do, by default BOS
    alone.

    Args:
        folder: The model's folder.
        ledger: Where each key of the files is recorded, but for config.json's.

    Raises:
        LlmRuntimeError: for a damaged file, naming the file and the key, if any.
        ModelNotSupported: for a tokenizer that is not computed.
    """
    ledger = Ledger() if ledger is None else ledger
    names = ("tokenizer.json", "tokenizer.model", *VOCABULARY_FILES)
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise LlmRuntimeError(
            f"{folder}: there is neither a tokenizer.json nor a tokenizer.model, nor one of "
            f"{', '.join(VOCABULARY_FILES)}; transformers' save_pretrained writes a tokenizer.json"
        )
    tokenizer: Tokenizer
    if path.name == "tokenizer.json":
        source = read_text(path, max_bytes=MAX_TOKENIZER_BYTES)
        document = read_document(source, path)
        own = {token["id"]: token["content"] for token in document.get("added_tokens") or []}
        files = read_folder_files(folder, ledger, own_added=own)
        changed = with_options(document, files.tokenizer_class, files.config)
        json_tokenizer = _json_tokenizer(
            source if changed == document else json.dumps(changed), path, files, checked=changed
        )
        account_for_document(document, changed, json_tokenizer, ledger)
        tokenizer = json_tokenizer
    else:
        files = read_folder_files(folder, ledger)
        if path.name == "tokenizer.model":
            tokenizer = _load_model(path, files)
        else:
            made = document_from_vocabulary(path, files)
            tokenizer = _json_tokenizer(json.dumps(made), path, files)
    files.account()
    return tokenizer


def _json_tokenizer(
    source: str, path: Path, files: FolderFiles, *, checked: Mapping[str, Any] | None = None
) -> JsonTokenizer:
    tokenizer = JsonTokenizer(source, path, added=files.added, checked=checked)
    tokens = tokenizer.tokens()
    files = files.with_known(tokens, path)
    files.check_ids(tokenizer.n_vocab)
    special = _ends(files, tokens, bos_id=tokenizer.bos_id, spelled=tokenizer.eos_ids)
    tokenizer.declare(special, _special_tokens(files, special, tokenizer, tokenizer.unknown))
    return tokenizer


def _ends(
    files: FolderFiles, tokens: Mapping[str, int], *, bos_id: int | None, spelled: frozenset[int]
) -> SpecialIds:
    """Return BOS and the ends of a generation as the files name them, else as the vocabulary does.

    A generation ends at each token that the files name, and at each token with the spelling of an
    end. But `</s>`, which many vocabularies keep from the model that they were made of, is an end
    by its spelling only if the files name none.
    """
    named = {name: tokens[one.content] for name, one in files.special.items()}
    bos_ids = [*files.bos_ids, *(named[key] for key in ("bos_token",) if key in named)]
    ends = {*files.eos_ids, *(named[key] for key in ("eos_token",) if key in named)}
    if ends:
        spelled -= {tokens.get("</s>", -1)}
    return SpecialIds(next(iter(bos_ids), bos_id), frozenset(ends | spelled))


def _special_tokens(
    files: FolderFiles | None, special: SpecialIds, tokenizer: Tokenizer, unknown: str | None
) -> dict[str, str]:
    """Return the special tokens by name, by default those of the vocabulary."""
    found = {} if files is None else {name: one.content for name, one in files.special.items()}
    if unknown is not None:
        found.setdefault("unk_token", unknown)
    if special.bos_id is not None:
        found.setdefault("bos_token", tokenizer.piece(special.bos_id))
    eos_ids = [*(() if files is None else files.eos_ids), *sorted(special.eos_ids)]
    if eos_ids:
        found.setdefault("eos_token", tokenizer.piece(eos_ids[0]))
    return found


def _load_model(path: Path, files: FolderFiles | None = None) -> SentencePieceTokenizer:
    model = read_model(path)
    own_vocabulary = vocabulary_of_model(model, path)
    own = special_ids_of_model(model, own_vocabulary)
    unknown = next(iter(own_vocabulary.ids_of({TokenType.UNKNOWN})), None)
    if files is None:
        alone = SentencePieceTokenizer(model, own_vocabulary, own)
        alone.special_tokens = _special_tokens(None, own, alone, unknown)
        return alone
    vocabulary, added = _with_added(own_vocabulary, files)
    tokens = vocabulary.ids
    files = files.with_known(tokens, path)
    files.check_ids(len(tokens))
    special = _ends(
        files, tokens, bos_id=own.bos_id, spelled=ends_of_generation(tokens, named=own.eos_ids)
    )
    # The one EOS that is added to a text: by name, else by id, else the model's own.
    by_name = [tokens[files.special["eos_token"].content]] if "eos_token" in files.special else []
    eos_ids = [*by_name, *files.eos_ids, *own.eos_ids][:1]
    adds_bos = files.config.flag("add_bos_token", default=True) and special.bos_id is not None
    special = replace(
        special,
        prefix=(special.bos_id,) if adds_bos and special.bos_id is not None else (),
        suffix=tuple(eos_ids) if files.config.flag("add_eos_token", default=False) else (),
    )
    tokenizer = SentencePieceTokenizer(
        model, vocabulary, special, added=added, scheme=prepend_scheme(files.config)
    )
    tokenizer.special_tokens = _special_tokens(
        files, replace(special, eos_ids=frozenset(eos_ids)), tokenizer, unknown
    )
    return tokenizer


def _with_added(
    vocabulary: Vocabulary, files: FolderFiles
) -> tuple[Vocabulary, AddedTokens | None]:
    """Return the vocabulary with the files' added tokens, and the finder of these in a text.

    An added token with the id of another piece replaces it, as in transformers: a vocabulary may
    reserve pieces for this.
    """
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    in_text = {
        token_id: AddedToken(token, special=True)
        for token, token_id in vocabulary.ids_of(SPECIAL_TYPES).items()
    }
    changes = False
    for one in files.added:
        content = str(one.token.content)
        next_id = ids.get(content, len(tokens))
        token_id = next_id if one.token_id is None else one.token_id
        if content not in ids and one.must_exist:
            continue  # a named token that the vocabulary lacks: see `with_known`
        if token_id > len(tokens) or ids.get(content, token_id) != token_id:
            raise LlmRuntimeError(
                f"{one.path}: {one.key} gives the token {content!r:.80} the id {token_id}, but in "
                f"{vocabulary.path.name} it has, or as the next one would have, the id {next_id}"
            )
        kind = TokenType.CONTROL if one.token.special else TokenType.USER_DEFINED
        is_own = token_id < len(tokens) and tokens[token_id] == content
        if is_own and types[token_id] in SPECIAL_TYPES:
            kind = TokenType(types[token_id])
        else:
            changes = True
        if token_id == len(tokens):
            tokens.append(content)
            types.append(kind)
        else:
            ids.pop(tokens[token_id], None)
            tokens[token_id], types[token_id] = content, kind
        ids[content] = token_id
        in_text[token_id] = one.token
    if not changes:
        return vocabulary, None
    return replace(vocabulary, tokens=tokens, types=types), AddedTokens(in_text)
