"""The tokenizer of a Hugging Face folder as the keys `tokenizer.ggml.*` of a GGUF file.

    tokenizer.json, BPE with byte fallback   kind llama   refllm.export_pieces
    tokenizer.model                          kind llama
    tokenizer.json, byte-level BPE           kind gpt2    by the rule that cuts words
    tokenizer.json, WordPiece                kind bert    "play" → "▁play", "##ing" → "ing"

Source of the keys: ggml's docs/gguf.md, and llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refllm.api import LlmRuntimeError, ModelNotSupported
from refllm.chat_template import chat_template_of
from refllm.export_pieces import (
    Pieces,
    merges_of,
    pair_of,
    pieces_of_json,
    pieces_of_model,
    pieces_of_tokenizer,
    steps_of,
    tokens_by_id,
)
from refllm.export_tokenizer import NAMES, special_ids_of, tokenizer_of
from refllm.parameters import Parameters
from refllm.pretokenizers import PRE_TOKENIZERS
from refllm.vocab_gguf import GgufKeys
from refllm.vocab_json import JsonTokenizer
from refllm.vocab_wordpiece import CONTINUES, WORD_START
from refllm.vocabulary import SpecialIds, TokenType, Vocabulary
from refllm.weights import Weights

__all__ = ["gguf_spelling", "missing_keys", "vocabulary_keys"]

PREFIX = "tokenizer.ggml."
ENDS = ("eos", "eot", "eom")  # as many ends as the keys can name


def vocabulary_keys(weights: Weights, *, n_vocab: int) -> dict[str, object]:
    """Key to value, the chat template included; a list of `n_vocab` tokens, which is filled up.

    Errors: `LlmRuntimeError` naming a damaged file, or a vocabulary larger than the model's;
    `ModelNotSupported` for a tokenizer that the keys cannot describe.
    """
    tokenizer = tokenizer_of(weights)
    ends = special_ids_of(tokenizer)
    if isinstance(tokenizer, JsonTokenizer):
        keys = _by_kind(tokenizer.document(), tokenizer.path, ends, n_vocab)
    else:
        keys = _pieces(pieces_of_tokenizer(tokenizer), ends, n_vocab)
    if weights.architecture == "bert":
        parameters = Parameters(weights.path, weights.tensors)
        keys["token_type_count"] = parameters.n_rows("token_types.weight")
    said: dict[str, object] = {PREFIX + key: value for key, value in keys.items()}
    chat_template = chat_template_of(weights)
    return said if chat_template is None else said | {"tokenizer.chat_template": chat_template}


def missing_keys(weights: Weights) -> dict[str, object]:
    """Return the keys that a GGUF file lacks, where llama.cpp would take another token instead.

    llama.cpp reads [CLS] under the name of BOS, and has numbers of its own for tokens that a file
    does not name: 101, 102, 100, 0 and 103 in a BERT, whichever tokens these are.
    Source: `llama_vocab::impl::load` in llama.cpp's src/llama-vocab.cpp.
    """
    keys = GgufKeys(weights.hparams, weights.path)
    if keys.text("model") != "bert":
        return {}
    tokenizer = tokenizer_of(weights)
    ends = special_ids_of(tokenizer)
    spelled = {tokenizer.piece(token_id): token_id for token_id in range(tokenizer.n_vocab)}
    named = {"bos": ends.prefix[0], "seperator": ends.suffix[0]}
    for _, key, spelling in NAMES:
        if keys.get(f"{key}_token_id") is None and spelling in spelled:
            named.setdefault(key, spelled[spelling])
    said: dict[str, object] = {f"{PREFIX}{name}_token_id": each for name, each in named.items()}
    return {key: value for key, value in said.items() if weights.hparams.get(key) != value}


def _by_kind(
    document: Mapping[str, Any], path: Path, ends: SpecialIds, n_vocab: int
) -> dict[str, object]:
    match document["model"]:
        case {"type": "WordPiece"}:
            return _wordpiece(document, path, ends, n_vocab)
        case {"type": "BPE", "byte_fallback": True}:
            return _pieces(_with_scores(pieces_of_json(document, path)), ends, n_vocab)
        case {"type": "BPE"}:
            return _byte_level(document, path, ends, n_vocab)
    raise ModelNotSupported(
        f"{path}: a vocabulary of the kind {document['model']['type']} cannot be written to a GGUF "
        "file here; llama.cpp's convert_hf_to_gguf.py knows more"
    )


def _named_ends(ends: SpecialIds) -> dict[str, object]:
    """BOS and EOS, and whether they are put around a text."""
    named = {"bos": ends.bos_id, **dict(zip(ENDS, sorted(ends.eos_ids), strict=False))}
    return {
        **{
            f"{name}_token_id": token_id for name, token_id in named.items() if token_id is not None
        },
        "add_bos_token": bool(ends.prefix),
        "add_eos_token": bool(ends.suffix),
    }


# BPE


def _with_scores(pieces: Pieces) -> Pieces:
    """The pieces with the scores of a tokenizer.model beside them that merges in the same order.

    One that does not would give other ids than tokenizer.json, which is what a folder is read by.
    """
    path = pieces.vocabulary.path.with_name("tokenizer.model")
    if not path.is_file():
        return pieces
    trained = pieces_of_model(path)
    if list(trained.vocabulary.tokens) != list(pieces.vocabulary.tokens):
        return pieces
    scored = replace(pieces, scores=trained.scores)
    return scored if list(merges_of(scored)) == list(merges_of(pieces)) else pieces


def _pieces(pieces: Pieces, ends: SpecialIds, n_vocab: int) -> dict[str, object]:
    vocabulary = _filled_up(pieces.vocabulary, n_vocab)
    no_scores = [0.0] * (n_vocab - len(pieces.scores))
    unknown = vocabulary.ids_of({TokenType.UNKNOWN})
    return {
        "model": "llama",
        "pre": "default",
        "tokens": list(vocabulary.tokens),
        "scores": [*map(float, pieces.scores), *no_scores],
        "token_type": [int(kind) for kind in vocabulary.types],
        **_named_ends(ends),
        **({"unknown_token_id": min(unknown.values())} if unknown else {}),
        "add_space_prefix": pieces.adds_space,
    }


def _byte_level(
    document: Mapping[str, Any], path: Path, ends: SpecialIds, n_vocab: int
) -> dict[str, object]:
    vocabulary = _filled_up(_vocabulary(document, path), n_vocab)
    return {
        "model": "gpt2",
        "pre": _rule(document, path),
        "tokens": list(vocabulary.tokens),
        "token_type": [int(kind) for kind in vocabulary.types],
        "merges": [" ".join(pair_of(merge)) for merge in document["model"]["merges"]],
        **_named_ends(ends),
    }


def _rule(document: Mapping[str, Any], path: Path) -> str:
    """The name of the rule in `PRE_TOKENIZERS` that cuts words as tokenizer.json does."""
    expressions: list[str] = []
    for step in steps_of(document["pre_tokenizer"]):
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
    normalizers = steps_of(document["normalizer"])
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


# WordPiece


def gguf_spelling(token: str) -> str:
    """A token as a GGUF file of the kind `bert` spells it; undoes `bert_spelling`."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token.removeprefix(CONTINUES) if token.startswith(CONTINUES) else WORD_START + token


def _wordpiece(
    document: Mapping[str, Any], path: Path, ends: SpecialIds, n_vocab: int
) -> dict[str, object]:
    normalizer = document["normalizer"]
    _check_steps_of_bert(document, path, ends)
    vocabulary = _filled_up(_vocabulary(document, path), n_vocab)
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    named = {key: ids.get(spelling) for _, key, spelling in NAMES}
    named["unknown"] = ids.get(document["model"]["unk_token"])
    # llama.cpp reads [CLS] under the name of BOS, and without it takes 101, BERT's own.
    named["bos"] = named["cls"] = ends.prefix[0]
    named["seperator"] = ends.suffix[0]
    # Where nothing is said, accents go when capitals do: in BERT, and where the key is missing.
    strips = normalizer["strip_accents"]
    return {
        "model": "bert",
        "tokens": [
            gguf_spelling(token) if kind == TokenType.NORMAL else token
            for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        ],
        "token_type": [int(kind) for kind in vocabulary.types],
        **{
            f"{name}_token_id": token_id for name, token_id in named.items() if token_id is not None
        },
        "normalizer.lowercase": normalizer["lowercase"],
        **({} if strips is None else {"normalizer.strip_accents": strips}),
    }


def _check_steps_of_bert(document: Mapping[str, Any], path: Path, ends: SpecialIds) -> None:
    """Refuse what the keys have no word for: anything but BERT's own steps."""
    kinds = [(document[stage] or {}).get("type") for stage in ("normalizer", "pre_tokenizer")]
    is_bert = kinds == ["BertNormalizer", "BertPreTokenizer"]
    prefix = document["model"]["continuing_subword_prefix"]
    if not is_bert or prefix != CONTINUES or (len(ends.prefix), len(ends.suffix)) != (1, 1):
        raise ModelNotSupported(f"{path}: its steps are not those of BERT, which GGUF stands for")


# Vocabularies


def _vocabulary(document: Mapping[str, Any], path: Path) -> Vocabulary:
    """All tokens of a tokenizer.json; those that are added are found in a text first."""
    is_special = {added["content"]: added["special"] for added in document["added_tokens"]}
    kinds = {True: TokenType.CONTROL, False: TokenType.USER_DEFINED, None: TokenType.NORMAL}
    tokens = tokens_by_id(document)
    return Vocabulary(path, tokens, [kinds[is_special.get(token)] for token in tokens])


def _filled_up(vocabulary: Vocabulary, n_vocab: int) -> Vocabulary:
    """The vocabulary with unused tokens at its end: llama.cpp wants one for each embedding."""
    n_missing = n_vocab - len(vocabulary.tokens)
    if n_missing < 0:
        raise LlmRuntimeError(
            f"{vocabulary.path}: the tokenizer has {len(vocabulary.tokens)} tokens, the model only "
            f"{n_vocab}; they do not belong together"
        )
    names = [f"[PAD{i}]" for i in range(len(vocabulary.tokens), n_vocab)]
    return replace(
        vocabulary,
        tokens=[*vocabulary.tokens, *names],
        types=[*vocabulary.types, *[TokenType.UNUSED] * n_missing],
    )
