"""tiny-embed's word pieces, learned from its sentences: WordPiece, lower case, as BERT has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

__all__ = ["SPECIAL", "as_metadata", "learned", "tokenizer_of"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"
WORD_START = "▁"
NORMAL, CONTROL = 1, 3  # token types of a GGUF
KEY = "tokenizer.ggml"


def _empty(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def learned(sentences: Iterable[str], n_pieces: int) -> list[str]:
    """A vocabulary of at most that many pieces, specials first."""
    tokenizer = _empty(models.WordPiece(unk_token=SPECIAL[1]))
    trainer = trainers.WordPieceTrainer(
        vocab_size=n_pieces,
        special_tokens=list(SPECIAL),
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    pieces = tokenizer.get_vocab()
    return sorted(pieces, key=pieces.__getitem__)


def tokenizer_of(pieces: Sequence[str]) -> Tokenizer:
    """The tokenizer with that vocabulary: [CLS] … [SEP]."""
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = _empty(models.WordPiece(vocab=numbers, unk_token=SPECIAL[1]))
    tokenizer.post_processor = processors.BertProcessing(
        (SPECIAL[3], numbers[SPECIAL[3]]), (SPECIAL[2], numbers[SPECIAL[2]])
    )
    return tokenizer


def as_metadata(pieces: Sequence[str]) -> Mapping[str, object]:
    """The vocabulary as a GGUF file keeps it: a word's first piece marked, not the others."""
    return {
        f"{KEY}.model": "bert",
        f"{KEY}.pre": "bert-bge",
        f"{KEY}.token_type_count": 2,
        f"{KEY}.tokens": [_marked(piece) for piece in pieces],
        f"{KEY}.token_type": [CONTROL if piece in SPECIAL else NORMAL for piece in pieces],
        f"{KEY}.padding_token_id": 0,
        f"{KEY}.unknown_token_id": 1,
        f"{KEY}.bos_token_id": 2,  # the name under which llama.cpp reads [CLS]
        f"{KEY}.cls_token_id": 2,
        f"{KEY}.seperator_token_id": 3,  # the key's own spelling
        f"{KEY}.mask_token_id": 4,
    }


def _marked(piece: str) -> str:
    if piece in SPECIAL:
        return piece
    if piece.startswith(CONTINUES):
        return piece.removeprefix(CONTINUES)
    return WORD_START + piece
