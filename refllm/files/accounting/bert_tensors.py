"""Stored tensors of a BERT and its family that an embedding does not use, each with the reason.

Names are those in the file, as transformers 5.24 and earlier versions save them, with the prefix
of a model that has a head and without it. A pattern is one of `fnmatch`.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["BERT_TENSORS"]

POOLER = "the pooler: an embedding is pooled from the last layer's output itself"
NUMBERS = "the numbers 0, 1, 2, …, which older versions of transformers save as a buffer"
PREDICTS = "the head that predicts hidden tokens"
CLASSIFIES = "a head that classifies texts, tokens or spans"


def _encoder(prefix: str, *, pooler: bool) -> dict[str, str]:
    names = {"embeddings.position_ids": NUMBERS, "embeddings.token_type_ids": NUMBERS}
    if pooler:
        names |= {"pooler.dense.weight": POOLER, "pooler.dense.bias": POOLER}
    return names | {prefix + name: reason for name, reason in names.items()}


OF_EVERY_FAMILY = {
    "classifier.*": CLASSIFIES,
    "qa_outputs.*": CLASSIFIES,
}

BERT_TENSORS: Mapping[str, Mapping[str, str]] = {
    "bert": {
        **_encoder("bert.", pooler=True),
        "cls.predictions.*": PREDICTS,
        "cls.seq_relationship.*": "the head that predicts whether one sentence follows another",
        **OF_EVERY_FAMILY,
    },
    "roberta": {
        **_encoder("roberta.", pooler=True),
        "lm_head.*": PREDICTS,
        **OF_EVERY_FAMILY,
    },
    "distilbert": {
        **_encoder("distilbert.", pooler=False),
        "vocab_transform.*": PREDICTS,
        "vocab_layer_norm.*": PREDICTS,
        "vocab_projector.*": PREDICTS,
        "pre_classifier.*": CLASSIFIES,
        **OF_EVERY_FAMILY,
    },
    "mpnet": {
        **_encoder("mpnet.", pooler=True),
        "lm_head.*": PREDICTS,
        **OF_EVERY_FAMILY,
    },
    "gguf": {
        "cls.weight": CLASSIFIES,
        "cls.bias": CLASSIFIES,
        "cls.output.weight": CLASSIFIES,
        "cls.output.bias": CLASSIFIES,
        "cls.norm.weight": CLASSIFIES,
    },
}
"""By family of `refllm.checkpoints.names.HUGGING_FACE_NAMES`; "gguf": a file of BERT's."""
