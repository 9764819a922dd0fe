"""The pieces of text that tiny-chat reads and writes: a SentencePiece vocabulary, as Llama's is.

BPE with byte fallback, so that any text comes back as it went in; single digits; no normalization;
a space before the first word. Source: Kudo and Richardson 2018, arXiv:1808.06226, and the options
that Llama 2's own tokenizer.model records.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

__all__ = ["BOS", "EOS", "as_metadata", "learned", "processor_of"]

UNKNOWN, BOS, EOS = 0, 1, 2
KEY = "tokenizer.ggml"


def learned(texts: Iterable[str], n_pieces: int) -> bytes:
    """A vocabulary of that size, learned from the texts: a `tokenizer.model`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=n_pieces,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        unk_id=UNKNOWN,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def processor_of(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """The library's tokenizer for that vocabulary."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def as_metadata(model: bytes) -> Mapping[str, object]:
    """The vocabulary as a GGUF file keeps it."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    return {
        f"{KEY}.model": "llama",
        f"{KEY}.tokens": [piece.piece for piece in proto.pieces],
        f"{KEY}.scores": [float(piece.score) for piece in proto.pieces],
        f"{KEY}.token_type": [int(piece.type) for piece in proto.pieces],
        f"{KEY}.bos_token_id": BOS,
        f"{KEY}.eos_token_id": EOS,
        f"{KEY}.unknown_token_id": UNKNOWN,
        f"{KEY}.add_bos_token": True,
        f"{KEY}.add_eos_token": False,
    }
