"""A model's tokenizer as the files that Hugging Face's and Spin's tokenizers load.

    GGUF, kind llama   tokenizer.json and tokenizer.model     refllm.export.sentencepiece
    GGUF, kind t5      tokenizer.json, unigram                refllm.export.sentencepiece
    GGUF, kind gpt2    tokenizer.json, byte-level BPE
    GGUF, kind bert    tokenizer.json, WordPiece
    tokenizer.model    tokenizer.json and tokenizer.model     refllm.export.sentencepiece
    any other folder   tokenizer.json: the source's, with the changes of the files beside it

tokenizer.json is complete, so that Spin, which reads no other file, has the same ids as
transformers. tokenizer_config.json is written beside it: special tokens by name, the class that
reads a tokenizer.json as it is, the chat templates. Of a source's other files,
generation_config.json is kept with the ends of a generation that were found; the rest
(added_tokens.json, special_tokens_map.json, vocab.txt, …) is in tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from refllm.errors import LlmRuntimeError, ModelNotSupported
from refllm.export.model import TokenizerDescription
from refllm.export.sentencepiece import (
    Pieces,
    added_token,
    pieces_of_gguf,
    pieces_of_tokenizer,
    template,
    tokenizer_document,
    tokenizer_json,
    tokenizer_model,
    unigram_json,
)
from refllm.files.reading import MAX_TOKENIZER_BYTES, read_json_object
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.bpe import PRE_TOKENIZERS
from refllm.tokenizer.gguf_keys import GgufKeys
from refllm.tokenizer.hf_json import JsonTokenizer
from refllm.tokenizer.sentencepiece import model_from_bytes, vocabulary_of_model
from refllm.tokenizer.vocabulary import (
    SPECIAL_TYPES,
    SpecialIds,
    TokenType,
    Vocabulary,
    VocabularyTokenizer,
)
from refllm.tokenizer.wordpiece import CONTINUES, MAX_CHARACTERS_PER_WORD

__all__ = ["json_bytes", "special_tokens_of", "tokenizer_files", "vocabulary_files"]

# transformers' names of special tokens of any model, and the usual spellings of each.
NAMES: Mapping[str, tuple[str, ...]] = {
    "bos_token": (),
    "eos_token": (),
    "unk_token": ("[UNK]", "<unk>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("[MASK]", "<mask>"),
}


def tokenizer_files(
    words: TokenizerDescription, *, n_ctx: int, has_token_types: bool = False
) -> dict[str, bytes]:
    """Return file name to content.

    Args:
        words: The tokenizer and the chat templates.
        n_ctx: The length for tokenizer_config.json, unless the source's has a shorter one.
        has_token_types: Whether the model takes an array of token types in transformers.

    Raises:
        LlmRuntimeError: for a damaged file, naming it.
        ModelNotSupported: as `refllm.export.sentencepiece`.
    """
    types = ["token_type_ids"] if has_token_types else []
    source = words.path / "tokenizer_config.json"
    limit: object = None  # refllm itself does not use it
    if words.weights.source == "hf" and source.is_file():
        limit = read_json_object(source, max_bytes=MAX_TOKENIZER_BYTES).get("model_max_length")
    if isinstance(limit, int | float) and limit >= 1:
        n_ctx = min(n_ctx, int(limit))
    special = special_tokens_of(words)
    others = {name: token for name, token in special.items() if name not in NAMES}
    special = {name: token for name, token in special.items() if name in NAMES}
    config: dict[str, object] = {
        **special,
        **({"extra_special_tokens": others} if others else {}),
        # The class that builds no pipeline of its own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", *types, "attention_mask"],
    }
    if words.weights.architecture == "llama":
        config["add_bos_token"] = bool(words.ends.prefix)
        config["add_eos_token"] = bool(words.ends.suffix)
    if words.templates:
        named = [{"name": name, "template": text} for name, text in words.templates.items()]
        config["chat_template"] = named if len(named) > 1 else named[0]["template"]
    files = {
        **vocabulary_files(words),
        "tokenizer_config.json": json_bytes(config),
        "special_tokens_map.json": json_bytes(special),
    }
    generation = words.path / "generation_config.json"
    if words.weights.source == "hf" and generation.is_file():
        ends = {"bos_token_id": words.ends.bos_id, "eos_token_id": sorted(words.ends.eos_ids)}
        own = read_json_object(generation)
        kept = {key: value for key, value in own.items() if key not in ends}
        found = {key: value for key, value in ends.items() if value not in (None, [])}
        files["generation_config.json"] = json_bytes({**found, **kept})
    return files


def vocabulary_files(words: TokenizerDescription) -> dict[str, bytes]:
    """Return tokenizer.json, and a tokenizer.model of the same vocabulary, as name to content.

    Raises:
        LlmRuntimeError: for a damaged file, naming it.
        ModelNotSupported: as `refllm.export.sentencepiece`.
    """
    tokenizer, weights = words.tokenizer, words.weights
    if weights.source == "hf":
        if not isinstance(tokenizer, JsonTokenizer):
            return _both(pieces_of_tokenizer(tokenizer), words)
        document = tokenizer.document()
        model = words.path / "tokenizer.model"
        files = {"tokenizer.json": json_bytes(document)}
        # Programs that convert a model read its scores, if it is of the same vocabulary.
        if model.is_file() and _begins_with(words, model.read_bytes()):
            files["tokenizer.model"] = model.read_bytes()
        return files
    keys = GgufKeys(weights.hparams, weights.path)
    kind = keys.text("model")
    if kind == "llama":
        return _both(pieces_of_gguf(keys), words)
    if kind == "t5":
        return {"tokenizer.json": _with_truncation(unigram_json(keys, words.ends), tokenizer)}
    if kind not in ("gpt2", "bert") or not isinstance(tokenizer, VocabularyTokenizer):
        raise ModelNotSupported(f"{weights.path}: a vocabulary of the kind {kind} has no files")
    write = _byte_level if kind == "gpt2" else _wordpiece
    document = write(keys, tokenizer.vocabulary, words.ends)
    return {"tokenizer.json": _with_truncation(document, tokenizer)}


def special_tokens_of(words: TokenizerDescription) -> dict[str, str]:
    """Return the spelling of each special token that the model has: bos_token, eos_token, …"""
    ids = words.ids()
    named = dict(words.tokenizer.special_tokens)
    is_encoder = words.weights.architecture != "llama"
    if is_encoder and len(words.ends.prefix) == len(words.ends.suffix) == 1:
        named.setdefault("cls_token", words.tokenizer.piece(words.ends.prefix[0]))
        named.setdefault("sep_token", words.tokenizer.piece(words.ends.suffix[0]))
    if is_encoder and named.get("bos_token") == named.get("cls_token") == "[CLS]":
        # BERT has no BOS: only llama.cpp calls [CLS] so.
        del named["bos_token"]
    for name, spellings in NAMES.items():
        found = next((token for token in spellings if token in ids), None)
        if found is not None:
            named.setdefault(name, found)
    return {name: token for name, token in named.items() if token in ids}


def json_bytes(content: Mapping[str, object] | Sequence[object]) -> bytes:
    """Return JSON, indented, as Hugging Face's tools write it."""
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def _begins_with(words: TokenizerDescription, data: bytes) -> bool:
    """Return whether the first tokens are those of a tokenizer.model; a damaged one has none."""
    path = words.path / "tokenizer.model"
    try:
        tokens = vocabulary_of_model(model_from_bytes(data, path), path).tokens
    except LlmRuntimeError:
        return False
    n_vocab = words.tokenizer.n_vocab
    return len(tokens) <= n_vocab and all(
        words.tokenizer.piece(i) == token for i, token in enumerate(tokens)
    )


def _both(pieces: Pieces, words: TokenizerDescription) -> dict[str, bytes]:
    document = tokenizer_json(pieces, words.ends)
    return {
        "tokenizer.json": _with_truncation(document, words.tokenizer),
        "tokenizer.model": tokenizer_model(pieces, words.ends),
    }


def _with_truncation(document: Mapping[str, object], tokenizer: Tokenizer) -> bytes:
    """Return a tokenizer.json that cuts texts where the tokenizer does."""
    if tokenizer.text_limit is None:
        return json_bytes(document)
    truncation = {
        "direction": tokenizer.cut_side.capitalize(),
        "max_length": tokenizer.text_limit,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    return json_bytes({**document, "truncation": truncation})


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
    """Return a tokenizer.json of these steps; it finds special and user-defined tokens first."""
    found_first = vocabulary.ids_of({*SPECIAL_TYPES, TokenType.USER_DEFINED})
    return tokenizer_document(
        [
            added_token(token_id, token, is_special=vocabulary.is_special(token_id))
            for token, token_id in found_first.items()
        ],
        **steps,
        post_processor=template(vocabulary.tokens, ends),
        model={**model, "vocab": vocabulary.ids},
    )
