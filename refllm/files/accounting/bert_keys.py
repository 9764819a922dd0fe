"""The hyperparameters of a BERT and its family: which keys are irrelevant, which have one value.

What a table leaves out is read by `refllm.checkpoints.config_bert`. Keys and their meaning are
those of transformers 5.24 (`configuration_utils.py` and each model's `configuration_*.py`) and, for
GGUF, of gguf-py 0.19 (`constants.py`) and llama.cpp as in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping

from refllm.files.accounting.json_keys import ANY_CONFIG
from refllm.files.accounting.keys import Known, MustBe

__all__ = ["BERT_GGUF_KEYS", "BERT_JSON_KEYS", "LEFT_TO_POOLING"]

LEFT_TO_POOLING = "bert.pooling_type"
"""The key of an architecture "bert" that the reader of the pooling rules on."""

HEAD = "it belongs to a head for another task"
TOKEN = "the tokenizer's own files name the special tokens"  # noqa: S105 - no password
POOLER = "it shapes BERT's pooler, which an embedding does not use"

ANY_FAMILY: Known = {
    # What transformers computes otherwise, or what asks for something else than an encoder.
    "is_decoder": MustBe((False,), "a decoder attends to earlier tokens only"),
    "position_embedding_type": MustBe(
        ("absolute",),
        "relative positions and ALiBi are not computed, and transformers 5 no longer does either",
    ),
    "per_layer_config": MustBe(({},), "layers that differ from each other"),
    "directionality": MustBe(("bidi",), "only attention in both directions is computed"),
    # What is irrelevant.
    "architectures": "the family is known by model_type",
    "vocab_size": "the embedding's rows are counted",
    "tie_word_embeddings": "it ties the head that predicts tokens, which an embedding does not use",
    "use_cache": "an encoder has no cache",
    "bos_token_id": TOKEN,
    "eos_token_id": TOKEN,
    "pad_token_id": "a text has no padding here, and positions count every token",
    "pooler_*": POOLER,
    **ANY_CONFIG,
}

BERT_JSON_KEYS: Mapping[str, Known] = {
    "bert": ANY_FAMILY,
    "roberta": ANY_FAMILY,
    "distilbert": {
        "layer_norm_eps": "transformers computes a DistilBERT with 1e-12, whatever the file has",
        "sinusoidal_pos_embds": "it says how the table of positions was made; the file holds it",
        "tie_weights_": "it ties the head that predicts tokens, which an embedding does not use",
        "type_vocab_size": "a DistilBERT has no token types",
        **ANY_FAMILY,
    },
    "mpnet": {
        "relative_attention_num_buckets": MustBe(
            (32,), "transformers always divides distances into 32 buckets, whatever the file has"
        ),
        "type_vocab_size": "an MPNet has no token types",
        **ANY_FAMILY,
        "pad_token_id": "transformers takes 1 for an MPNet's positions, whatever the file has",
    },
}
"""Of each family of `refllm.checkpoints.names.HUGGING_FACE_NAMES`: the keys of config.json."""

NO_RELATIVE = "llama.cpp's graph of this architecture has a table of positions and nothing else"
BERT_GGUF_KEYS: Known = {
    "bert.attention.causal": MustBe((False,), "an encoder attends in both directions"),
    "bert.attention.sliding_window": MustBe((0,), "attention within a window"),
    "bert.attention.max_alibi_bias": MustBe((0.0,), "ALiBi is not computed"),
    "bert.attention.clamp_kqv": MustBe((0.0,), "clamped queries, keys and values"),
    "bert.attention.scale": MustBe((0.0,), "a scale of attention other than 1/√(head's width)"),
    "bert.expert_count": MustBe((0,), "experts are not computed"),
    "bert.expert_used_count": MustBe((0,), "experts are not computed"),
    "bert.use_parallel_residual": MustBe((False,), "attention beside the feed-forward part"),
    "bert.vocab_size": "the embedding's rows are counted",
    "bert.attention.layer_norm_rms_epsilon": "its norms have another epsilon, layer_norm_epsilon",
    "bert.rope.*": NO_RELATIVE,
    "bert.classifier.output_labels": HEAD,
}
"""The keys of a GGUF file of architecture "bert"."""
