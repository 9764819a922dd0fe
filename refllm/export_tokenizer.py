"""The tokenizer of any model as the files that Hugging Face's and Spin's tokenizers load.

    GGUF, kind llama   tokenizer.json and tokenizer.model     refllm.export_pieces
    GGUF, kind gpt2    tokenizer.json, byte-level BPE
    GGUF, kind bert    tokenizer.json, WordPiece
    a folder           its own files; a tokenizer.json for a tokenizer.model that is alone

The files that say what is special (tokenizer_config.json, special_tokens_map.json) come along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refllm.api import ModelNotSupported
from refllm.chat_template import chat_template_of
from refllm.export_pieces import (
    Pieces,
    added_token,
    pieces_of_gguf,
    pieces_of_tokenizer,
    template,
    tokenizer_json,
    tokenizer_model,
)
from refllm.pretokenizers import PRE_TOKENIZERS
from refllm.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_gguf
from refllm.vocab_gguf import GgufKeys
from refllm.vocab_json import JsonTokenizer
from refllm.vocab_wordpiece import CONTINUES, MAX_CHARACTERS_PER_WORD
from refllm.vocabulary import SPECIAL_TYPES, SpecialIds, TokenType, Vocabulary, VocabularyTokenizer
from refllm.weights import Weights

__all__ = ["json_bytes", "special_ids_of", "tokenizer_files", "tokenizer_of"]

# What belongs to a tokenizer in a folder.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.txt",
)
# A special token's name in tokenizer_config.json, in a GGUF key, and in BERT's spelling.
NAMES = (
    ("unk_token", "unknown", "[UNK]"),
    ("pad_token", "padding", "[PAD]"),
    ("cls_token", "cls", "[CLS]"),
    ("sep_token", "seperator", "[SEP]"),  # the key's own spelling
    ("mask_token", "mask", "[MASK]"),
)
PROBE = "a"


def tokenizer_of(weights: Weights) -> Tokenizer:
    """The tokenizer that belongs to the weights. Errors: `LlmRuntimeError` naming the file."""
    if weights.source == "gguf":
        return tokenizer_from_gguf(weights.hparams, path=weights.path)
    return tokenizer_from_folder(weights.path)


def special_ids_of(tokenizer: Tokenizer) -> SpecialIds:
    """BOS, EOS, and what the tokenizer puts around a text, found out with one."""
    inside = tokenizer.encode(PROBE, add_special=False)
    whole = tokenizer.encode(PROBE)
    n_added = len(whole) - len(inside)
    start = next(i for i in range(n_added + 1) if whole[i : i + len(inside)] == inside)
    suffix = whole[start + len(inside) :]
    return SpecialIds(tokenizer.bos_id, tokenizer.eos_ids, tuple(whole[:start]), tuple(suffix))


def tokenizer_files(weights: Weights, *, n_ctx: int) -> dict[str, bytes]:
    """File name to content. `n_ctx` is the length that tokenizer_config.json names.

    Errors: `LlmRuntimeError` naming what is damaged, `ModelNotSupported` as
    `refllm.export_pieces`.
    """
    tokenizer = tokenizer_of(weights)
    ends = special_ids_of(tokenizer)
    files = {} if weights.source == "gguf" else _files_of(weights.path)
    if "tokenizer.json" not in files:
        files |= _made(weights, tokenizer, ends)
    if "tokenizer_config.json" not in files:
        special = _special_tokens(weights, tokenizer, ends)
        config = special | _tokenizer_config(weights, ends, n_ctx)
        files["tokenizer_config.json"] = json_bytes(config)
        files.setdefault("special_tokens_map.json", json_bytes(special))
    return files


def json_bytes(content: Mapping[str, object] | Sequence[object]) -> bytes:
    """JSON, indented, as Hugging Face's tools write it."""
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def _files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def _made(weights: Weights, tokenizer: Tokenizer, ends: SpecialIds) -> dict[str, bytes]:
    """tokenizer.json where there is none; tokenizer.model, too, where it can say the same."""
    if weights.source == "hf":
        if isinstance(tokenizer, JsonTokenizer):
            return {"tokenizer.json": json_bytes(tokenizer.document())}
        pieces = pieces_of_tokenizer(tokenizer)
        return {"tokenizer.json": json_bytes(tokenizer_json(pieces, ends))}
    keys = GgufKeys(weights.hparams, weights.path)
    kind = keys.text("model")
    if kind == "llama":
        pieces = pieces_of_gguf(keys)
        return _both(pieces, ends)
    if kind not in ("gpt2", "bert") or not isinstance(tokenizer, VocabularyTokenizer):
        raise ModelNotSupported(f"{weights.path}: a vocabulary of the kind {kind} has no files")
    write = _byte_level if kind == "gpt2" else _wordpiece
    return {"tokenizer.json": json_bytes(write(keys, tokenizer.vocabulary, ends))}


def _both(pieces: Pieces, ends: SpecialIds) -> dict[str, bytes]:
    return {
        "tokenizer.json": json_bytes(tokenizer_json(pieces, ends)),
        "tokenizer.model": tokenizer_model(pieces, ends),
    }


def _byte_level(keys: GgufKeys, vocabulary: Vocabulary, ends: SpecialIds) -> dict[str, Any]:
    """The pipeline of GPT-2 and Llama 3: words by regular expressions, then merged bytes."""
    rule = PRE_TOKENIZERS[keys.text("pre", default="default")]
    words = [
        {"type": "Split", "pattern": {"Regex": x}, "behavior": "Isolated", "invert": False}
        for x in rule.expressions
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    to_bytes = {**byte_level, "use_regex": False}
    return _document(
        vocabulary,
        ends,
        normalizer={"type": "NFC"} if rule.nfc else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*words, to_bytes]},
        decoder=to_bytes,
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rule.ignore_merges,
            "merges": keys.strings("merges"),
        },
    )


def _wordpiece(keys: GgufKeys, vocabulary: Vocabulary, ends: SpecialIds) -> dict[str, Any]:
    """The pipeline of BERT: words, each cut into the longest tokens from its left."""
    lowercase = keys.flag("normalizer.lowercase", default=True)
    unknown = keys.token_id("unknown_token_id", len(vocabulary.tokens))
    return _document(
        vocabulary,
        ends,
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": keys.flag("normalizer.strip_accents", default=lowercase),
            "lowercase": lowercase,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": CONTINUES, "cleanup": False},
        model={
            "type": "WordPiece",
            "unk_token": "[UNK]" if unknown is None else vocabulary.tokens[unknown],
            "continuing_subword_prefix": CONTINUES,
            "max_input_chars_per_word": MAX_CHARACTERS_PER_WORD,
        },
    )


def _document(
    vocabulary: Vocabulary, ends: SpecialIds, *, model: Mapping[str, Any], **steps: object
) -> dict[str, Any]:
    """A tokenizer.json of these steps, in which special and user-defined tokens are found first."""
    found_first = vocabulary.ids_of({*SPECIAL_TYPES, TokenType.USER_DEFINED})
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(token_id, token, is_special=vocabulary.is_special(token_id))
            for token, token_id in found_first.items()
        ],
        **steps,
        "post_processor": template(vocabulary.tokens, ends),
        "model": {**model, "vocab": ids},
    }


# What is special


def _tokenizer_config(weights: Weights, ends: SpecialIds, n_ctx: int) -> dict[str, object]:
    """How transformers is to use tokenizer.json: as it is."""
    config: dict[str, object] = {
        # The class that builds no pipeline of its own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
    }
    if weights.architecture == "llama":
        config["add_bos_token"] = bool(ends.prefix)
        config["add_eos_token"] = bool(ends.suffix)
    chat_template = chat_template_of(weights)
    return config if chat_template is None else config | {"chat_template": chat_template}


def _special_tokens(weights: Weights, tokenizer: Tokenizer, ends: SpecialIds) -> dict[str, str]:
    """bos_token, eos_token, … to the token's spelling, for those that there are."""
    keys = GgufKeys(weights.hparams, weights.path)
    named: dict[str, int | None] = {}
    if weights.architecture == "llama":
        eos_id = keys.token_id("eos_token_id", tokenizer.n_vocab)
        some_eos_id = min(ends.eos_ids, default=None)
        named = {"bos_token": ends.bos_id, "eos_token": some_eos_id if eos_id is None else eos_id}
    spelled = {tokenizer.piece(token_id): token_id for token_id in range(tokenizer.n_vocab)}
    for name, key, spelling in NAMES:
        own = keys.token_id(f"{key}_token_id", tokenizer.n_vocab)
        named[name] = spelled.get(spelling) if own is None else own
    if weights.architecture == "llama" and named["unk_token"] is None:
        named["unk_token"] = spelled.get("<unk>")
    return {name: tokenizer.piece(i) for name, i in named.items() if i is not None}
