"""A model's tokenizer as the keys `tokenizer.*` of a GGUF file, its chat templates included.

    tokenizer.json, BPE with byte fallback   kind llama   refllm.export.sentencepiece
    tokenizer.model                          kind llama
    tokenizer.json, byte-level BPE           kind gpt2    by the rule that cuts words
    tokenizer.json, WordPiece                kind bert    "play" → "▁play", "##ing" → "ing"
    tokenizer.json, unigram                  kind t5      refllm.export.sentencepiece

llama.cpp has default ids for special tokens that a file does not name, finds some by their
spelling, and ends a generation at "</s>" even if the source does not. A tokenizer that it would
compute otherwise, and that no key can describe, is refused; a warning is logged for a small
difference: a space at an edge of a text, or "</s>".

Source of the keys: ggml's docs/gguf.md, llama.cpp's convert_hf_to_gguf.py, and `llama_vocab::impl`
in llama.cpp's src/llama-vocab.cpp, as in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refllm.checkpoints.open import Weights
from refllm.errors import ModelNotSupported
from refllm.export.model import TokenizerDescription, describe_tokenizer
from refllm.export.sentencepiece import (
    Pieces,
    merges_of,
    pair_of,
    pieces_of_json,
    pieces_of_model,
    pieces_of_tokenizer,
    tokens_by_id,
    unigram_steps,
)
from refllm.export.tokenizer_files import special_tokens_of
from refllm.tokenizer.bpe import PRE_TOKENIZERS
from refllm.tokenizer.document import pipeline_steps
from refllm.tokenizer.gguf_keys import DIRECTION, MAX_LENGTH, GgufKeys
from refllm.tokenizer.hf_json import JsonTokenizer
from refllm.tokenizer.vocabulary import (
    END_OF_GENERATION,
    SpecialIds,
    TokenType,
    Vocabulary,
    ends_of_generation,
)
from refllm.tokenizer.wordpiece import CONTINUES, WORD_START

__all__ = ["gguf_spelling", "missing_keys", "vocabulary_keys"]

logger = logging.getLogger("refllm")

PREFIX = "tokenizer.ggml."
ENDS = ("eos", "eot", "eom")  # as many ends as the keys can name
# A special token's name in transformers, in a GGUF key, and in BERT's spelling.
NAMES = (
    ("unk_token", "unknown", "[UNK]"),
    ("pad_token", "padding", "[PAD]"),
    ("cls_token", "cls", "[CLS]"),
    ("sep_token", "seperator", "[SEP]"),  # the key's own spelling
    ("mask_token", "mask", "[MASK]"),
)
SPACES = "it begins each stretch of text with a space, even before a space or a special token"
# llama.cpp's default id of EOS, by the kind of vocabulary.
DEFAULT_EOS = {"llama": 2, "gpt2": 11, "t5": 1}


def vocabulary_keys(
    words: TokenizerDescription, *, n_vocab: int, n_token_types: int | None = None
) -> dict[str, object]:
    """Return the metadata of a model's tokenizer and chat templates.

    Args:
        words: The tokenizer and the chat templates.
        n_vocab: V, the number of the model's embeddings. llama.cpp needs one token for each: the
            list of tokens is filled up with unused ones, and added ones without embedding go.
        n_token_types: The number of rows of an encoder's table of token types; None for a llama.

    Raises:
        LlmRuntimeError: for a damaged file, naming it.
        ModelNotSupported: for a tokenizer that the keys cannot describe.
    """
    bos_id = words.ends.bos_id if (words.ends.bos_id or 0) < n_vocab else None
    eos_ids = frozenset(token_id for token_id in words.ends.eos_ids if token_id < n_vocab)
    words = replace(words, ends=replace(words.ends, bos_id=bos_id, eos_ids=eos_ids))
    tokenizer = words.tokenizer
    if isinstance(tokenizer, JsonTokenizer):
        keys = _by_kind(tokenizer.document(), tokenizer.path, words, n_vocab)
    else:
        pieces = pieces_of_tokenizer(tokenizer)
        flags = ("lstrip", "rstrip", "single_word")
        added = [
            {"content": token, **{flag: getattr(one, flag) for flag in flags}}
            for token, one in pieces.flags.items()
        ]
        _refuse_flags(added, words)
        if pieces.scheme not in (None, "never"):
            _warn(words, SPACES)
        keys = _pieces(pieces, words, n_vocab)
    if len({*keys["tokens"]}) < n_vocab:  # type: ignore[misc]
        raise ModelNotSupported(
            f"{words.path}: two tokens have the same spelling in a GGUF file; only --format hf "
            "keeps both"
        )
    if n_token_types is not None:
        # llama.cpp's converter counts one row where there is no table at all.
        keys["token_type_count"] = max(n_token_types, 1)
    metadata: dict[str, object] = {PREFIX + key: value for key, value in keys.items()}
    if tokenizer.text_limit is not None:
        metadata |= {MAX_LENGTH: tokenizer.text_limit, DIRECTION: tokenizer.cut_side}
    for name, template in words.templates.items():
        metadata["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = template
    others = [name for name in words.templates if name != "default"]
    return {**metadata, "tokenizer.chat_templates": others} if others else metadata


def missing_keys(weights: Weights) -> dict[str, object]:
    """Return the keys that a GGUF file lacks, and that llama.cpp needs to compute the same.

    llama.cpp loads no encoder without the count of its token types. It reads [CLS] under the name
    of BOS, and has the default ids 101, 102, 100, 0 and 103 for special tokens that a WordPiece
    vocabulary does not name.
    """
    if weights.architecture == "llama":
        return {}
    keys = GgufKeys(weights.hparams, weights.path)
    table = weights.tensors.get("token_types.weight")
    expected: dict[str, object] = {}
    if keys.get("token_type_count") is None:
        expected["token_type_count"] = 1 if table is None else table.shape[0]
    if keys.text("model") == "bert":
        words = describe_tokenizer(weights)
        spelled = words.ids()
        named = {"bos": words.ends.prefix[0], "seperator": words.ends.suffix[0]}
        for _, key, spelling in NAMES:
            if keys.get(f"{key}_token_id") is None and spelling in spelled:
                named.setdefault(key, spelled[spelling])
        expected |= _id_keys(named)
    return {PREFIX + key: value for key, value in expected.items() if keys.get(key) != value}


def _by_kind(
    document: Mapping[str, Any], path: Path, words: TokenizerDescription, n_vocab: int
) -> dict[str, object]:
    _refuse_flags(document["added_tokens"], words)
    match document["model"]:
        case {"type": "WordPiece"}:
            return _wordpiece(document, path, words.ends, n_vocab)
        case {"type": "BPE", "byte_fallback": True}:
            cuts = pipeline_steps(document["pre_tokenizer"])
            if any(cut.get("prepend_scheme") in ("always", "first") for cut in cuts):
                _warn(words, SPACES)
            return _pieces(_with_scores(pieces_of_json(document, path)), words, n_vocab)
        case {"type": "BPE"}:
            vocabulary = _for_rows(_vocabulary(document, path), n_vocab)
            merges = [" ".join(pair_of(merge)) for merge in document["model"]["merges"]]
            return _tokens("gpt2", vocabulary, words, pre=_rule(document, path), merges=merges)
        case {"type": "Unigram", "byte_fallback": False}:
            return _unigram(document, path, words, n_vocab)
    raise ModelNotSupported(
        f"{path}: a vocabulary of the kind {document['model']['type']} cannot be written to a GGUF "
        "file here; llama.cpp's convert_hf_to_gguf.py knows more"
    )


def _refuse_flags(added: Iterable[Mapping[str, Any]], words: TokenizerDescription) -> None:
    """Refuse added tokens that take spaces with them, or are none inside a word.

    An encoder's mask may have these flags, because no text to embed has a mask.
    """
    masks = {"<mask>", special_tokens_of(words).get("mask_token")}
    is_encoder = words.weights.architecture != "llama"
    for token in added:
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if token[flag]]
        if flags and not (is_encoder and token["content"] in masks):
            raise ModelNotSupported(
                f"{words.path}: the added token {token['content']!r:.80} has {flags[0]}, which a "
                "GGUF file has no key for; only --format hf keeps it"
            )


def _warn(words: TokenizerDescription, what: str) -> None:
    logger.warning("%s: llama.cpp reads a GGUF file in another way: %s", words.path, what)


def _named_ends(
    words: TokenizerDescription, vocabulary: Vocabulary, kind: str
) -> dict[str, object]:
    """Return keys for BOS and EOS, whether they are added to a text, and further ends.

    llama.cpp finds some ends of a generation by their spelling, as refllm does; each other one
    needs a key.
    """
    ends, is_llama = words.ends, words.weights.architecture == "llama"
    if len(ends.prefix) > 1 or len(ends.suffix) > 1:
        raise ModelNotSupported(
            f"{words.path}: puts more than one token before or behind a text, which a GGUF file "
            "has no key for; only --format hf keeps it"
        )
    ids = vocabulary.ids
    named_eos = ids.get(words.tokenizer.special_tokens.get("eos_token", ""))
    first = [*ends.suffix, *([named_eos] if named_eos in ends.eos_ids else [])][:1]
    spelled = ends_of_generation(ids)
    # Beside EOS: ends that need a key, and ends with the spelling of the end of a turn.
    turns = {ids[token] for token in END_OF_GENERATION if token in ids}
    rest = [token_id for token_id in sorted(ends.eos_ids - {*first}) if token_id not in spelled]
    rest += sorted((ends.eos_ids & turns) - {*first, *rest})
    if not first and not rest and is_llama and DEFAULT_EOS[kind] < len(ids):
        other = vocabulary.tokens[DEFAULT_EOS[kind]]
        raise ModelNotSupported(
            f"{words.path}: names no token that ends a text, and llama.cpp would take "
            f"{other!r:.80} for one; name one as eos_token in tokenizer_config.json"
        )
    order = [*first, *rest]
    unfound = [token_id for token_id in order[len(ENDS) :] if token_id not in spelled]
    if unfound:
        raise ModelNotSupported(
            f"{words.path}: a generation ends at {len(order)} tokens, a GGUF file has keys for "
            f"{len(ENDS)}, and llama.cpp does not find {vocabulary.tokens[unfound[0]]!r:.80} by "
            "its spelling; only --format hf keeps it"
        )
    more = sorted(spelled - ends.eos_ids) if is_llama else []
    if more:
        _warn(words, f"it ends a generation at {vocabulary.tokens[more[0]]!r:.80}, too")
    named = {
        "bos": ends.prefix[0] if ends.prefix else ends.bos_id,
        **dict(zip(ENDS, order, strict=False)),
    }
    return {
        **_id_keys(named),
        "add_bos_token": bool(ends.prefix),
        "add_eos_token": bool(ends.suffix),
    }


def _id_keys(named: Mapping[str, int | None]) -> dict[str, object]:
    """Return the keys that name the ids of special tokens, without `PREFIX`."""
    return {f"{name}_token_id": i for name, i in named.items() if i is not None}


def _tokens(
    kind: str,
    vocabulary: Vocabulary,
    words: TokenizerDescription,
    *,
    pre: str = "default",
    scores: Iterable[float] | None = None,
    **more: object,
) -> dict[str, object]:
    """Return the keys of the tokens, of their types and scores, and of the ends of a text."""
    n_vocab = len(vocabulary.tokens)
    return {
        "model": kind,
        "pre": pre,
        "tokens": list(vocabulary.tokens),
        **({} if scores is None else {"scores": [*map(float, scores), *[0.0] * n_vocab][:n_vocab]}),
        "token_type": [int(token_type) for token_type in vocabulary.types],
        **more,
        **_named_ends(words, vocabulary, kind),
    }


# --- BPE -----------------------------------------------------------------------------------------


def _with_scores(pieces: Pieces) -> Pieces:
    """Return the pieces with the scores of the tokenizer.model beside them, if it merges alike.

    Other scores would give other ids than tokenizer.json, by which a folder is read.
    """
    path = pieces.vocabulary.path.with_name("tokenizer.model")
    if not path.is_file():
        return pieces
    trained = pieces_of_model(path)
    if list(trained.vocabulary.tokens) != list(pieces.vocabulary.tokens):
        return pieces
    scored = replace(pieces, scores=trained.scores)
    return scored if list(merges_of(scored)) == list(merges_of(pieces)) else pieces


def _pieces(pieces: Pieces, words: TokenizerDescription, n_vocab: int) -> dict[str, object]:
    vocabulary = _for_rows(pieces.vocabulary, n_vocab)
    unknown = vocabulary.ids_of({TokenType.UNKNOWN})
    return {
        **_tokens("llama", vocabulary, words, scores=pieces.scores),
        **_id_keys({"unknown": min(unknown.values(), default=None)}),
        "add_space_prefix": pieces.adds_space,
    }


def _rule(document: Mapping[str, Any], path: Path) -> str:
    """Return the name of the rule in `PRE_TOKENIZERS` that cuts words as tokenizer.json does."""
    expressions: list[str] = []
    for step in pipeline_steps(document["pre_tokenizer"]):
        match step:
            case {"type": "Split", "pattern": {"Regex": x}, "behavior": "Isolated"}:
                expressions.append(x)
            case {"type": "Digits", "individual_digits": True}:
                expressions.append(r"\p{N}")
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
                expressions += PRE_TOKENIZERS["gpt-2"].expressions
            case {"type": "ByteLevel", "add_prefix_space": False}:
                pass
            case _:
                raise ModelNotSupported(f"{path}: pre_tokenizer has a step that GGUF has not")
    ignores_merges = bool(document["model"].get("ignore_merges"))
    normalizers = pipeline_steps(document["normalizer"])
    nfc = [step["type"] for step in normalizers] == ["NFC"]
    for name, rule in PRE_TOKENIZERS.items():
        same_words = rule.expressions == tuple(expressions)
        if same_words and (rule.ignore_merges, rule.nfc) == (ignores_merges, nfc):
            if nfc or not normalizers:
                return name
            break
    raise ModelNotSupported(
        f"{path}: it prepares texts by a rule that is none of those known from llama.cpp"
    )


def _unigram(
    document: Mapping[str, Any], path: Path, words: TokenizerDescription, n_vocab: int
) -> dict[str, object]:
    steps = unigram_steps(document, path)
    if steps.keeps_last_space:
        _warn(words, "it drops a space at the end of a text")
    unknown = document["model"]["unk_id"]
    if unknown is None:
        raise ModelNotSupported(f"{path}: has no unknown token (unk_id), and a GGUF file needs one")
    tokens, scores = zip(*document["model"]["vocab"], strict=True)
    by_token = {token: token_id for token_id, token in enumerate(tokens)}
    vocabulary = _vocabulary({**document, "model": {"vocab": by_token}}, path)
    types = list(vocabulary.types)
    types[unknown] = TokenType.UNKNOWN
    vocabulary = _for_rows(replace(vocabulary, types=types), n_vocab)
    ids = vocabulary.ids
    special = special_tokens_of(words)
    named = {key: ids.get(special.get(name, "")) for name, key, _ in NAMES}
    named["unknown"] = unknown
    return {
        **_tokens("t5", vocabulary, words, scores=scores),
        **_id_keys(named),
        "add_space_prefix": steps.adds_space,
        "remove_extra_whitespaces": steps.merges_spaces,
        **({"precompiled_charsmap": steps.charsmap} if steps.charsmap else {}),
    }


def gguf_spelling(token: str) -> str:
    """Return a token as a GGUF file of the kind `bert` spells it; undoes `bert_spelling`."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token.removeprefix(CONTINUES) if token.startswith(CONTINUES) else WORD_START + token


def _wordpiece(
    document: Mapping[str, Any], path: Path, ends: SpecialIds, n_vocab: int
) -> dict[str, object]:
    normalizer = document["normalizer"]
    kinds = [(document[stage] or {}).get("type") for stage in ("normalizer", "pre_tokenizer")]
    is_bert = (
        kinds == ["BertNormalizer", "BertPreTokenizer"]
        # llama.cpp does both, without a key for them.
        and normalizer["clean_text"] is True
        and normalizer["handle_chinese_chars"] is True
        and document["model"]["continuing_subword_prefix"] == CONTINUES
        and (len(ends.prefix), len(ends.suffix)) == (1, 1)
    )
    if not is_bert:
        raise ModelNotSupported(f"{path}: its steps are not those of BERT, which GGUF stands for")
    vocabulary = _for_rows(_vocabulary(document, path), n_vocab)
    ids = vocabulary.ids
    named = {key: ids.get(spelling) for _, key, spelling in NAMES}
    named["unknown"] = ids.get(document["model"]["unk_token"])
    # llama.cpp reads [CLS] under the name of BOS, with the default 101, BERT's own.
    named["bos"] = named["cls"] = ends.prefix[0]
    named["seperator"] = ends.suffix[0]
    # Without a value, accents go when capitals do: in BERT, and where the key is missing.
    strips = normalizer["strip_accents"]
    return {
        "model": "bert",
        "tokens": [
            gguf_spelling(token) if kind == TokenType.NORMAL else token
            for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        ],
        "token_type": [int(kind) for kind in vocabulary.types],
        **_id_keys(named),
        "normalizer.lowercase": normalizer["lowercase"],
        **({} if strips is None else {"normalizer.strip_accents": strips}),
    }


# --- Vocabularies --------------------------------------------------------------------------------


def _vocabulary(document: Mapping[str, Any], path: Path) -> Vocabulary:
    """Return all tokens of a tokenizer.json; added ones are found in a text first."""
    is_special = {added["content"]: added["special"] for added in document["added_tokens"]}
    kinds = {True: TokenType.CONTROL, False: TokenType.USER_DEFINED, None: TokenType.NORMAL}
    tokens = tokens_by_id(document)
    return Vocabulary(path, tokens, [kinds[is_special.get(token)] for token in tokens])


def _for_rows(vocabulary: Vocabulary, n_vocab: int) -> Vocabulary:
    """Return the vocabulary with a token for each embedding, as llama.cpp needs it.

    Unused tokens fill it up. Added tokens without an embedding go: a text that names one is an
    error of the source, and text for llama.cpp. Tokens that texts are cut into cannot go.
    """
    names = [f"[PAD{i}]" for i in range(len(vocabulary.tokens), n_vocab)]
    kept = replace(
        vocabulary,
        tokens=[*vocabulary.tokens, *names][:n_vocab],
        types=[*vocabulary.types, *[TokenType.UNUSED] * len(names)][:n_vocab],
    )
    lost = zip(vocabulary.tokens[n_vocab:], vocabulary.types[n_vocab:], strict=True)
    for token, kind in lost:
        if kind not in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED):
            raise ModelNotSupported(
                f"{vocabulary.path}: the tokenizer has {len(vocabulary.tokens)} tokens, the model "
                f"only {n_vocab}, and {token!r:.80} is one that texts are cut into; a GGUF file "
                "has an embedding for each token"
            )
    return kept
