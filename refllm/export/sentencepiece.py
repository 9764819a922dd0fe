"""A SentencePiece vocabulary, whatever file it is in: three to read it from, three to write it to.

    GGUF, tokenizer.ggml.model = llama  ─┐            ┌─>  the keys tokenizer.ggml.*
    tokenizer.model                      ├─> Pieces ──┼─>  tokenizer.model
    tokenizer.json, BPE, byte fallback  ─┘            └─>  tokenizer.json

SentencePiece merges the neighbours whose union is the token with the best score. A tokenizer.json
has no scores but a list of pairs, the first merged first. So a score becomes the rank of every pair
that makes the token, and back:

    ▁th  -3      ▁ + th, ▁t + h          "▁ th", "▁t h", …

Source of the merges: `SentencePieceExtractor` in transformers' convert_slow_tokenizer.py; of the
pipeline: the tokenizer.json of Llama 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from refllm.errors import ModelNotSupported
from refllm.files.accounting.ledger import Ledger
from refllm.tokenizer.base import Tokenizer
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
    "added_token",
    "merges_of",
    "pair_of",
    "pieces_of_gguf",
    "pieces_of_json",
    "pieces_of_model",
    "pieces_of_tokenizer",
    "steps_of",
    "template",
    "tokenizer_json",
    "tokenizer_model",
    "tokens_by_id",
]

SPACE = "▁"
UNKNOWN = "<unk>"
NO_PIECE = -1
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
MERGEABLE = frozenset({TokenType.NORMAL, TokenType.USER_DEFINED})


@dataclass(frozen=True, slots=True)
class Pieces:
    """Tokens with a score each, and how they are found in a text.

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
    """The pieces of a GGUF file of the kind `llama`. Errors: `LlmRuntimeError` naming the key."""
    vocabulary = read_vocabulary(keys)
    scores = read_scores(keys, len(vocabulary.tokens))
    adds_space = keys.flag("add_space_prefix", default=True)
    mergeable = MERGEABLE | {TokenType.UNUSED}
    return Pieces(vocabulary, scores, adds_space, mergeable=mergeable)


def pieces_of_model(path: Path) -> Pieces:
    """The pieces of a tokenizer.model.

    Errors: `LlmRuntimeError` for one that is damaged, `ModelNotSupported` for one that is not BPE
    or changes a text before it cuts it, which neither a GGUF file nor Llama's pipeline says.
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
    """The pieces of a tokenizer.model's tokenizer, and after them the tokens added beside it.

    Text after an added token gets no second space, which is what the scheme "always" says.
    Errors: as `pieces_of_model`.
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
    """The pieces of a tokenizer.json with byte fallback; the score of a token is minus its rank.

    Errors: `ModelNotSupported` where SentencePiece could not do the same: other steps before the
    merges than Llama's, or not every pair that makes a token, one token after the other.
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
    """Every token, added ones included; an id without a token gets a name for one."""
    named = {token_id: token for token, token_id in document["model"]["vocab"].items()}
    named |= {added["id"]: added["content"] for added in document["added_tokens"]}
    return [named.get(token_id, f"[PAD{token_id}]") for token_id in range(max(named) + 1)]


def _type_of(token: str, model: Mapping[str, Any], is_special: Mapping[str, bool]) -> TokenType:
    """The type of a token of tokenizer.json; `is_special` has those that are added."""
    # A file may name none, since with every byte a token nothing is unknown; a GGUF must.
    if token == (model.get("unk_token") or UNKNOWN):
        return TokenType.UNKNOWN
    if token in is_special:
        return TokenType.CONTROL if is_special[token] else TokenType.USER_DEFINED
    if token not in model["vocab"]:
        return TokenType.UNUSED
    return TokenType.BYTE if token in BYTES else TokenType.NORMAL


def pair_of(merge: str | Sequence[str]) -> tuple[str, str]:
    """The two tokens of an entry of `merges`, which are one string in an older tokenizer.json."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _adds_space(document: Mapping[str, Any], path: Path) -> bool:
    """Whether "▁" is put before a text, by a normalizer or by Metaspace."""
    before = [document.get("normalizer"), document.get("pre_tokenizer")]
    steps = [step for stage in before for step in steps_of(stage)]
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    match steps:
        case [{"type": "Prepend", "prepend": "▁"}, last] if last == replaces:
            return True
        case [only] if only == replaces:
            return False
        case [{"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": where}]:
            return bool(where != "never")
    raise ModelNotSupported(f"{path}: its normalizer or pre_tokenizer is not one of Llama's")


def steps_of(stage: Mapping[str, Any] | None) -> list[Any]:
    """The steps of a normalizer or a pre_tokenizer, one after the other."""
    if stage is None:
        return []
    return list(stage.get("normalizers", stage.get("pretokenizers", [stage])))


# --- To ------------------------------------------------------------------------------------------


def merges_of(pieces: Pieces) -> Iterator[tuple[str, str]]:
    """Every pair of tokens that together are one, in the order in which they are merged.

    Of equal scores the smaller id goes first. Two places that would make the same token are merged
    from the left by SentencePiece, and here by the shorter left half: only a text such as "aaaa",
    whose pieces overlap with themselves, can tell.
    """
    ids = pieces.vocabulary.ids_of(pieces.mergeable)
    for token, _ in sorted(ids.items(), key=lambda item: (-pieces.scores[item[1]], item[1])):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        yield from (pair for pair in halves if pair[0] in ids and pair[1] in ids)


def _check_letters(pieces: Pieces) -> None:
    """SentencePiece merges a letter that is no token itself, a tokenizer.json cannot."""
    normal = pieces.vocabulary.ids_of({TokenType.NORMAL})
    letters = set(pieces.vocabulary.ids_of(pieces.mergeable))
    for token in normal:
        missing = next((letter for letter in token if letter not in letters), None)
        if missing is not None:
            raise ModelNotSupported(
                f"{pieces.vocabulary.path}: token {token!r:.80} has the character {missing!r}, "
                "which is no token itself; a tokenizer.json has no way to merge it"
            )


def tokenizer_json(pieces: Pieces, ends: SpecialIds) -> dict[str, Any]:
    """The content of a tokenizer.json: Llama 2's pipeline around the pieces.

    A user-defined token is found before everything else, and the text behind it begins like any
    text, as in llama.cpp; SentencePiece itself puts no "▁" there.
    Errors: `ModelNotSupported` for a token of letters that are no tokens.
    """
    _check_letters(pieces)
    tokens, types = pieces.vocabulary.tokens, pieces.vocabulary.types
    prepend = [{"type": "Prepend", "prepend": SPACE}] if pieces.adds_space else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if pieces.adds_space else []
    # The one puts "▁" before a space, too, the other does not.
    normalizer: object = {"type": "Sequence", "normalizers": [*prepend, replace]}
    pre_tokenizer: object = None
    if pieces.scheme is not None:
        normalizer, pre_tokenizer = (
            None,
            {
                "type": "Metaspace",
                "replacement": SPACE,
                "prepend_scheme": pieces.scheme,
                "split": False,
            },
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(pieces, token_id)
            for token_id, kind in enumerate(types)
            if kind in SPECIAL_TYPES or _is_found_first(pieces, token_id)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": template(tokens, ends),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces.unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": TokenType.BYTE in types,
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            # A token with a space in it never comes about: spaces are "▁" by then.
            "merges": [f"{a} {b}" for a, b in merges_of(pieces) if " " not in a + b],
        },
    }


def _is_found_first(pieces: Pieces, token_id: int) -> bool:
    """Whether a token is looked for in the text itself, where there is no "▁" yet."""
    is_defined = pieces.vocabulary.types[token_id] == TokenType.USER_DEFINED
    return is_defined and SPACE not in pieces.vocabulary.tokens[token_id]


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
    """An entry of `added_tokens`: a token that is found in a text before anything else."""
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
    """The post-processor that puts `ends.prefix` and `ends.suffix` around a text, or two; or none.

    A second text has its own prefix in a model of the kind of Llama, whose prefix is BOS, and none
    in BERT, which has a suffix after each.
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
    """The content of a tokenizer.model: Llama's settings around the pieces."""
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
