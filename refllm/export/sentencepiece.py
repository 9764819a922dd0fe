"""A SentencePiece vocabulary, read from three kinds of file and written to three.

    GGUF, tokenizer.ggml.model = llama  ─┐            ┌─>  the keys tokenizer.ggml.*
    tokenizer.model                      ├─> Pieces ──┼─>  tokenizer.model
    tokenizer.json, BPE, byte fallback  ─┘            └─>  tokenizer.json

SentencePiece merges the neighbours whose union is the token with the best score. A tokenizer.json
has no scores but a list of pairs, the first merged first. So a score becomes the rank of every pair
that makes the token, and back:

    ▁th  -3      ▁ + th, ▁t + h          "▁ th", "▁t h", …

A unigram vocabulary, as XLM-RoBERTa has it, is in a GGUF file of the kind t5 or a tokenizer.json.
Both cut a text into the tokens with the largest sum of scores. A GGUF file means
SentencePiece's steps before that: the map of characters, spaces that are merged, "▁" for a space
and before a text. In a tokenizer.json they are spelled out, in more than one way:

    Precompiled, WhitespaceSplit, Metaspace         XLM-RoBERTa
    Precompiled, Strip, Replace " {2,}", Metaspace  what transformers makes of a SentencePiece model
    Precompiled, Replace " {2,}", Metaspace         what older versions made; a last space stays
    Precompiled, Replace …, Prepend "▁", Replace    what is written here

Source of the merges: `SentencePieceExtractor` in transformers' convert_slow_tokenizer.py; of the
pipeline: the tokenizer.json of Llama 2.
"""

from __future__ import annotations

import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, normalizers

from refllm.errors import ModelNotSupported
from refllm.files.accounting.ledger import Ledger
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.document import pipeline_steps
from refllm.tokenizer.folder import read_folder_files
from refllm.tokenizer.gguf_keys import GgufKeys, read_vocabulary
from refllm.tokenizer.options import prepend_scheme
from refllm.tokenizer.sentencepiece import (
    SentencePieceTokenizer,
    llama_model,
    read_model,
    read_scores,
    vocabulary_of_model,
)
from refllm.tokenizer.vocabulary import SPECIAL_TYPES, SpecialIds, TokenType, Vocabulary

__all__ = [
    "Pieces",
    "UnigramSteps",
    "added_token",
    "merges_of",
    "pair_of",
    "pieces_of_gguf",
    "pieces_of_json",
    "pieces_of_model",
    "pieces_of_tokenizer",
    "template",
    "tokenizer_document",
    "tokenizer_json",
    "tokenizer_model",
    "tokens_by_id",
    "unigram_json",
    "unigram_steps",
]

SPACE = "▁"
UNKNOWN = "<unk>"
NO_PIECE = -1
MERGES_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
CUTS_SPACES = {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""}
PREPENDS = {"type": "Prepend", "prepend": SPACE}
MERGING = [CUTS_SPACES, MERGES_SPACES]
REPLACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
MERGEABLE = frozenset({TokenType.NORMAL, TokenType.USER_DEFINED})


@dataclass(frozen=True, slots=True)
class Pieces:
    """Tokens with a score each, and the rules by which they are found in a text.

    Attributes:
        vocabulary: The tokens and their types.
        scores: One for each token.
        adds_space: Whether "▁" is put before a text.
        scheme: Where it is put, as `refllm.tokenizer.options.prepend_scheme`; None for Llama's own
            way, before each stretch of text between special tokens, even before a space.
        flags: How added tokens are found that take spaces with them, or are none inside a word.
        mergeable: The types of tokens that merges can give.
    """

    vocabulary: Vocabulary
    scores: Sequence[float]
    adds_space: bool
    scheme: str | None = None
    flags: Mapping[str, AddedToken] = field(default_factory=dict)
    mergeable: frozenset[TokenType] = MERGEABLE

    @property
    def unknown(self) -> str | None:
        """The token for what no other token spells."""
        return next(iter(self.vocabulary.ids_of({TokenType.UNKNOWN})), None)


# --- From ----------------------------------------------------------------------------------------


def pieces_of_gguf(keys: GgufKeys) -> Pieces:
    """Return the pieces of a GGUF file of the kind `llama`.

    Raises:
        LlmRuntimeError: naming a damaged key.
    """
    vocabulary = read_vocabulary(keys)
    scores = read_scores(keys, len(vocabulary.tokens))
    adds_space = keys.flag("add_space_prefix", default=True)
    mergeable = MERGEABLE | {TokenType.UNUSED}
    return Pieces(vocabulary, scores, adds_space, mergeable=mergeable)


def pieces_of_model(path: Path) -> Pieces:
    """Return the pieces of a tokenizer.model.

    Raises:
        LlmRuntimeError: for a damaged one.
        ModelNotSupported: for one that is not BPE or normalizes a text, which neither a GGUF file
            nor Llama's pipeline can describe.
    """
    model = read_model(path)
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise ModelNotSupported(f"{path}: only a BPE model can be exported, and this is another")
    normalizer = model.normalizer_spec
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise ModelNotSupported(
            f"{path}: normalizes texts ({normalizer.name or 'spaces'}), which cannot be exported"
        )
    vocabulary = vocabulary_of_model(model, path)
    scores = [piece.score for piece in model.pieces]
    return Pieces(vocabulary, scores, bool(normalizer.add_dummy_prefix))


def pieces_of_tokenizer(tokenizer: Tokenizer) -> Pieces:
    """Return the pieces of a tokenizer.model's tokenizer, and after them the added tokens.

    Text after an added token gets no second space, as by the scheme "always".

    Raises:
        LlmError: as `pieces_of_model`.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise TypeError(f"{type(tokenizer).__name__} has no pieces")
    vocabulary = tokenizer.vocabulary
    own = pieces_of_model(vocabulary.path)
    files = read_folder_files(vocabulary.path.parent, Ledger())
    added = {str(one.token.content): one.token for one in files.added}
    n_added = tokenizer.n_vocab - len(own.scores)
    scheme = prepend_scheme(files.config)
    if scheme is None and n_added and own.adds_space:
        scheme = "always"
    return Pieces(
        vocabulary,
        [*own.scores, *[0.0] * n_added],
        own.adds_space if scheme is None else scheme != "never",
        scheme,
        {token: one for token, one in added.items() if one.lstrip or one.rstrip or one.single_word},
    )


def pieces_of_json(document: Mapping[str, Any], path: Path) -> Pieces:
    """Return the pieces of a tokenizer.json with byte fallback; a token's score is minus its rank.

    Raises:
        ModelNotSupported: if SentencePiece could not do the same: other steps before the merges
            than Llama's, or not every pair that makes a token, one token after the other.
    """
    model = document["model"]
    tokens = tokens_by_id(document)
    is_special = {added["content"]: added["special"] for added in document["added_tokens"]}
    types = [_type_of(token, model, is_special) for token in tokens]
    vocabulary = Vocabulary(path, tokens, types)
    merges = [pair_of(merge) for merge in model["merges"]]
    made = [token for token, _ in groupby(left + right for left, right in merges)]
    rank = {token: i for i, token in enumerate(made)}
    scores = [-float(rank.get(token, len(made))) for token in tokens]
    pieces = Pieces(vocabulary, scores, _adds_space(document, path))
    ours = list(merges_of(pieces))
    made_by_ours = [token for token, _ in groupby(left + right for left, right in ours)]
    if made != made_by_ours or set(merges) != set(ours):
        raise ModelNotSupported(
            f"{path}: its merges are not those of a SentencePiece model (every pair that makes a "
            "token, best token first), which is all that a GGUF file of the kind llama can say"
        )
    return pieces


def tokens_by_id(document: Mapping[str, Any]) -> list[str]:
    """Return every token, added ones included, and a made-up name for an id without a token."""
    named = {token_id: token for token, token_id in document["model"]["vocab"].items()}
    named |= {added["id"]: added["content"] for added in document["added_tokens"]}
    return [named.get(token_id, f"[PAD{token_id}]") for token_id in range(max(named) + 1)]


def _type_of(token: str, model: Mapping[str, Any], is_special: Mapping[str, bool]) -> TokenType:
    """Return the type of a token of tokenizer.json; `is_special` has the added ones."""
    # A file may name none, since with every byte a token nothing is unknown; a GGUF must.
    if token == (model.get("unk_token") or UNKNOWN):
        return TokenType.UNKNOWN
    if token in is_special:
        return TokenType.CONTROL if is_special[token] else TokenType.USER_DEFINED
    if token not in model["vocab"]:
        return TokenType.UNUSED
    return TokenType.BYTE if token in BYTES else TokenType.NORMAL


def pair_of(merge: str | Sequence[str]) -> tuple[str, str]:
    """Return the two tokens of an entry of `merges`, one string in an older tokenizer.json."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _adds_space(document: Mapping[str, Any], path: Path) -> bool:
    """Return whether "▁" is put before a text, by a normalizer or by Metaspace."""
    before = [document.get("normalizer"), document.get("pre_tokenizer")]
    steps = [step for stage in before for step in pipeline_steps(stage)]
    match steps:
        case [{"type": "Prepend", "prepend": "▁"}, last] if last == REPLACES:
            return True
        case [only] if only == REPLACES:
            return False
        case [{"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": where}]:
            return bool(where != "never")
    raise ModelNotSupported(f"{path}: its normalizer or pre_tokenizer is not one of Llama's")


# --- To ------------------------------------------------------------------------------------------


def merges_of(pieces: Pieces) -> Iterator[tuple[str, str]]:
    """Yield every pair of tokens that together are one, in the order in which they are merged.

    Of equal scores the smaller id goes first. SentencePiece merges two places that would make the
    same token from the left, and a tokenizer.json by the shorter left half: only a text such as
    "aaaa", whose pieces overlap with themselves, differs.
    """
    ids = pieces.vocabulary.ids_of(pieces.mergeable)
    for token, _ in sorted(ids.items(), key=lambda item: (-pieces.scores[item[1]], item[1])):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        yield from (pair for pair in halves if pair[0] in ids and pair[1] in ids)


def tokenizer_json(pieces: Pieces, ends: SpecialIds) -> dict[str, Any]:
    """Return the content of a tokenizer.json: Llama 2's pipeline around the pieces.

    A user-defined token is found before everything else, and the text behind it begins like any
    text, as in llama.cpp; SentencePiece itself puts no "▁" there.

    Raises:
        ModelNotSupported: for a token with a letter that is no token: SentencePiece merges such a
            letter, a tokenizer.json cannot.
    """
    letters = set(pieces.vocabulary.ids_of(pieces.mergeable))
    for token in pieces.vocabulary.ids_of({TokenType.NORMAL}):
        missing = next((letter for letter in token if letter not in letters), None)
        if missing is not None:
            raise ModelNotSupported(
                f"{pieces.vocabulary.path}: token {token!r:.80} has the character {missing!r}, "
                "which is no token itself; a tokenizer.json has no way to merge it"
            )
    tokens, types = pieces.vocabulary.tokens, pieces.vocabulary.types
    prepend = [PREPENDS] if pieces.adds_space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if pieces.adds_space else []
    # The one puts "▁" before a space, too, the other does not.
    normalizer: object = {"type": "Sequence", "normalizers": [*prepend, REPLACES]}
    pre_tokenizer: object = None
    if pieces.scheme is not None:
        normalizer = None
        pre_tokenizer = {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": pieces.scheme,
            "split": False,
        }
    return tokenizer_document(
        [
            _added_token(pieces, token_id)
            for token_id, kind in enumerate(types)
            if kind in SPECIAL_TYPES
            # It is looked for in the text itself, which has no "▁" yet.
            or (kind == TokenType.USER_DEFINED and SPACE not in tokens[token_id])
        ],
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        post_processor=template(tokens, ends),
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces.unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": TokenType.BYTE in types,
            "vocab": pieces.vocabulary.ids,
            # A token with a space in it never comes about: spaces are "▁" by then.
            "merges": [f"{a} {b}" for a, b in merges_of(pieces) if " " not in a + b],
        },
    )


def tokenizer_document(
    added_tokens: Sequence[Mapping[str, object]], *, model: Mapping[str, object], **steps: object
) -> dict[str, Any]:
    """Return the content of a tokenizer.json that neither cuts nor pads a text.

    Args:
        added_tokens: The tokens that are found in a text before anything else.
        model: The vocabulary, and how words are cut into tokens.
        steps: normalizer, pre_tokenizer, post_processor and decoder.
    """
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens}
    return {**whole, **steps, "model": model}


def _added_token(pieces: Pieces, token_id: int) -> dict[str, Any]:
    token = pieces.vocabulary.tokens[token_id]
    entry = added_token(token_id, token, is_special=pieces.vocabulary.is_special(token_id))
    flags = pieces.flags.get(token)
    if flags is None:
        return entry
    return {
        **entry,
        "lstrip": flags.lstrip,
        "rstrip": flags.rstrip,
        "single_word": flags.single_word,
        "normalized": flags.normalized,
    }


def added_token(token_id: int, token: str, *, is_special: bool) -> dict[str, Any]:
    """Return an entry of `added_tokens`: a token that is found in a text before anything else."""
    return {
        "id": token_id,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": is_special,
    }


def template(tokens: Sequence[str], ends: SpecialIds) -> dict[str, Any] | None:
    """Return the post-processor that puts `ends.prefix` and `ends.suffix` around texts, or None.

    A second text has its own prefix in a model like Llama, whose prefix is BOS, and none in BERT,
    which has a suffix after each.
    """
    if not ends.prefix and not ends.suffix:
        return None

    def special(ids: Sequence[int], type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": tokens[i], "type_id": type_id}} for i in ids]

    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    single = [*special(ends.prefix, 0), first, *special(ends.suffix, 0)]
    again = () if ends.suffix else ends.prefix
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *special(again, 1), second, *special(ends.suffix, 1)],
        "special_tokens": {
            tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]}
            for i in (*ends.prefix, *ends.suffix)
        },
    }


def tokenizer_model(pieces: Pieces, ends: SpecialIds) -> bytes:
    """Return the content of a tokenizer.model: Llama's settings around the pieces."""
    tokens = pieces.vocabulary.tokens
    model = llama_model(pieces.vocabulary, pieces.scores)
    model.normalizer_spec.add_dummy_prefix = pieces.adds_space
    trainer = model.trainer_spec
    trainer.pad_id = NO_PIECE
    trainer.bos_id = NO_PIECE if ends.bos_id is None else ends.bos_id
    trainer.eos_id = min(ends.eos_ids, default=NO_PIECE)
    if trainer.bos_id != NO_PIECE:
        trainer.bos_piece = tokens[trainer.bos_id]
    if trainer.eos_id != NO_PIECE:
        trainer.eos_piece = tokens[trainer.eos_id]
    if pieces.unknown is not None:
        trainer.unk_piece = pieces.unknown
        trainer.unk_id = tokens.index(pieces.unknown)
    return bytes(model.SerializeToString())


# --- Unigram --------------------------------------------------------------------------------------


def unigram_json(keys: GgufKeys, ends: SpecialIds) -> dict[str, Any]:
    """Return the content of a tokenizer.json for a GGUF vocabulary of the kind t5.

    Raises:
        LlmRuntimeError: for a damaged key, naming it.
    """
    vocabulary = read_vocabulary(keys)
    tokens, types = vocabulary.tokens, vocabulary.types
    scores = read_scores(keys, len(tokens))
    unknown = keys.token_id("unknown_token_id", len(tokens), default=2)
    normal = [score for score, kind in zip(scores, types, strict=True) if kind == TokenType.NORMAL]
    charsmap = keys.octets("precompiled_charsmap")
    adds_space = keys.flag("add_space_prefix", default=False)
    steps: list[Mapping[str, object]] = []
    if charsmap:
        table = b64encode(charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if keys.flag("remove_extra_whitespaces", default=False):
        steps += MERGING
    steps += [PREPENDS, REPLACES] if adds_space else [REPLACES]
    return tokenizer_document(
        [
            added_token(i, token, is_special=kind in SPECIAL_TYPES)
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in SPECIAL_TYPES or kind == TokenType.USER_DEFINED
        ],
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        post_processor=template(tokens, ends),
        decoder={
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": "always" if adds_space else "never",
            "split": True,
        },
        model={
            "type": "Unigram",
            "unk_id": unknown,
            # An unknown character costs 10 more than the worst token, so none may be worse.
            "vocab": [
                [token, score if kind == TokenType.NORMAL else min(normal, default=0.0)]
                for token, score, kind in zip(tokens, scores, types, strict=True)
            ],
            "byte_fallback": False,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnigramSteps:
    """The steps before a text is cut.

    Attributes:
        charsmap: SentencePiece's map of characters; empty where there is none.
        adds_space: Whether "▁" begins a text.
        merges_spaces: Whether several spaces are one, and spaces around a text none.
        keeps_last_space: Whether one at the end of a text stays, for which there is no key.
    """

    charsmap: bytes
    adds_space: bool
    merges_spaces: bool
    keeps_last_space: bool = False


def unigram_steps(document: Mapping[str, Any], path: Path) -> UnigramSteps:
    """Return the steps of a tokenizer.json.

    Raises:
        ModelNotSupported: for steps that are not those of SentencePiece.
    """
    steps = [*pipeline_steps(document["normalizer"]), *pipeline_steps(document["pre_tokenizer"])]
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
    """Return whether every white space becomes spaces: a text is cut at any, by llama.cpp not."""
    if not charsmap:
        return False
    library = normalizers.Precompiled(charsmap)
    white = (chr(c) for c in range(sys.maxunicode) if chr(c).isspace())
    # SentencePiece's own maps leave U+0085 as it is, an old line feed that texts do not have.
    return all(not library.normalize_str(f"a{c}a").strip("a \x85") for c in white)
