"""A unigram vocabulary, as XLM-RoBERTa has it: a GGUF file's of the kind `t5`, or tokenizer.json's.

    GGUF  tokens, scores, token_type, precompiled_charsmap, add_space_prefix,
          remove_extra_whitespaces
    JSON  normalizer, pre_tokenizer, and [token, score] in the order of the ids

Both cut a text into the tokens with the largest sum of scores. A GGUF file stands for
SentencePiece's steps before that: the map of characters, spaces that are merged, "▁" for a space
and before a text. In a tokenizer.json they are spelled out, in more than one way:

    Precompiled, WhitespaceSplit, Metaspace         XLM-RoBERTa
    Precompiled, Strip, Replace " {2,}", Metaspace  what transformers makes of a SentencePiece model
    Precompiled, Replace " {2,}", Metaspace         what older versions made; a last space stays
    Precompiled, Replace …, Prepend "▁", Replace    what is written here
"""

from __future__ import annotations

import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import normalizers

from refllm.errors import ModelNotSupported
from refllm.export.sentencepiece import SPACE, added_token, steps_of, template
from refllm.tokenizer.gguf_keys import GgufKeys, read_vocabulary
from refllm.tokenizer.sentencepiece import read_scores
from refllm.tokenizer.vocabulary import SPECIAL_TYPES, SpecialIds, TokenType

__all__ = ["UnigramSteps", "unigram_json", "unigram_steps"]

MERGES_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
CUTS_SPACES = {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""}
PREPENDS = {"type": "Prepend", "prepend": SPACE}
MERGING = [CUTS_SPACES, MERGES_SPACES]
REPLACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def unigram_json(keys: GgufKeys, ends: SpecialIds) -> dict[str, Any]:
    """Return the content of a tokenizer.json for a GGUF vocabulary of the kind t5.

    Raises:
        LlmRuntimeError: For a damaged key, naming it.
    """
    vocabulary = read_vocabulary(keys)
    tokens, types = vocabulary.tokens, vocabulary.types
    scores = read_scores(keys, len(tokens))
    unknown = keys.token_id("unknown_token_id", len(tokens), default=2)
    normal = [score for score, kind in zip(scores, types, strict=True) if kind == TokenType.NORMAL]
    charsmap = keys.octets("precompiled_charsmap")
    adds_space = keys.flag("add_space_prefix", default=False)
    normalizer = [
        *(
            [{"type": "Precompiled", "precompiled_charsmap": b64encode(charsmap).decode()}]
            if charsmap
            else []
        ),
        *(
            [CUTS_SPACES, MERGES_SPACES]
            if keys.flag("remove_extra_whitespaces", default=False)
            else []
        ),
        *([PREPENDS] if adds_space else []),
        REPLACES,
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(i, token, is_special=kind in SPECIAL_TYPES)
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in SPECIAL_TYPES or kind == TokenType.USER_DEFINED
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizer},
        "pre_tokenizer": None,
        "post_processor": template(tokens, ends),
        "decoder": {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": "always" if adds_space else "never",
            "split": True,
        },
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            # An unknown character costs 10 more than the worst token, so none may be worse.
            "vocab": [
                [token, score if kind == TokenType.NORMAL else min(normal, default=0.0)]
                for token, score, kind in zip(tokens, scores, types, strict=True)
            ],
            "byte_fallback": False,
        },
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class UnigramSteps:
    """What happens to a text before it is cut.

    Attributes:
        charsmap: SentencePiece's map of characters; empty where there is none.
        adds_space: Whether "▁" begins a text.
        merges_spaces: Whether several spaces are one, and those around a text none.
        keeps_last_space: Whether one at the end of a text stays, which no key can say.
    """

    charsmap: bytes
    adds_space: bool
    merges_spaces: bool
    keeps_last_space: bool = False


def unigram_steps(document: Mapping[str, Any], path: Path) -> UnigramSteps:
    """Return the steps of a tokenizer.json.

    Raises:
        ModelNotSupported: For steps that are not those of SentencePiece.
    """
    steps = [*steps_of(document["normalizer"]), *steps_of(document["pre_tokenizer"])]
    charsmap = b""
    if steps and steps[0]["type"] == "Precompiled":
        charsmap = b64decode(steps[0]["precompiled_charsmap"])
        steps = steps[1:]
    if steps[-1:] == [REPLACES]:
        before = steps[:-1]
        adds_space = before[-1:] == [PREPENDS]
        before = before[:-1] if adds_space else before
        if before in ([], MERGING):
            return UnigramSteps(
                charsmap=charsmap, adds_space=adds_space, merges_spaces=bool(before)
            )
    match steps:
        case [*before, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}] if (
            scheme in ("always", "first") and _maps_white_space(charsmap)
        ):
            merges = {**MERGES_SPACES, "content": SPACE}
            match before:
                case [{"type": "WhitespaceSplit"}] if scheme == "always":
                    return UnigramSteps(charsmap=charsmap, adds_space=True, merges_spaces=True)
                case [*strips, last] if last in (merges, MERGES_SPACES) and (
                    not strips or (len(strips) == 1 and strips[0]["type"] == "Strip")
                ):
                    return UnigramSteps(
                        charsmap=charsmap,
                        adds_space=True,
                        merges_spaces=True,
                        keeps_last_space=not strips or not strips[0]["strip_right"],
                    )
    raise ModelNotSupported(
        f"{path}: its normalizer and pre_tokenizer are not the steps of a SentencePiece unigram "
        "model, which is all that a GGUF file of the kind t5 can say; use --format hf"
    )


def _maps_white_space(charsmap: bytes) -> bool:
    """Whether every white space becomes spaces: others would be cut at, and not in llama.cpp."""
    if not charsmap:
        return False
    library = normalizers.Precompiled(charsmap)
    white = (chr(c) for c in range(sys.maxunicode) if chr(c).isspace())
    # SentencePiece's own maps leave U+0085 as it is, an old line feed that texts do not have.
    return all(not library.normalize_str(f"a{c}a").strip("a \x85") for c in white)
