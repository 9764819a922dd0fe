"""Keys of the files that describe a sentence-transformers model, beside its encoder.

Source: sentence-transformers 6.2.0, `Transformer`, `Pooling`, `Dense`, `Normalize`, `Dropout` and
`SentenceTransformer`; what older versions wrote is in their `config_key_renames` and
`_LEGACY_POOLING_MODE_KWARGS`.
"""

from __future__ import annotations

from refllm.files.accounting.keys import Known, MustBe

__all__ = [
    "DENSE_CONFIG",
    "DROPOUT_CONFIG",
    "MODULES",
    "NORMALIZE_CONFIG",
    "POOLING_CONFIG",
    "SENTENCE_TRANSFORMERS_CONFIG",
    "TRANSFORMER_CONFIG",
]

ONLY_THE_VECTOR = "another input or output than the text's vector; refllm computes only that"
LOADING = "arguments for loading with transformers; refllm takes none of them, so remove the key"

# modules.json, each of its objects.
MODULES: Known = {
    "idx": "the order of the modules is the order of the list",
    "kwargs": "names of arguments that encode() may pass on; refllm passes none",
}

# sentence_bert_config.json, and the same file under an older name.
TRANSFORMER_CONFIG: Known = {
    "max_seq_length": "the tokenizer's own limit cuts a text, as in Spin; a caller cuts as "
    "sentence-transformers does by max_tokens=model.max_seq_length",
    "transformer_task": MustBe(
        ("feature-extraction",), "the head of another task; refllm computes an encoder's tokens"
    ),
    "module_output_name": MustBe(
        ("token_embeddings",), "an encoder that makes something else than a vector for each token"
    ),
    "modality_config": MustBe(
        ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
        "other input than text, or another output than the encoder's last layer",
    ),
    "processing_kwargs": MustBe(({},), "arguments for the tokenizer; set them in its own files"),
    **dict.fromkeys(
        (
            *("model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args"),
            "processor_kwargs",
        ),
        MustBe(({}, {"trust_remote_code": True}, {"trust_remote_code": False}), LOADING),
    ),
    "tokenizer_name_or_path": MustBe(
        (), "a tokenizer from another place; copy its files beside the weights, remove the key"
    ),
    "unpad_inputs": "whether texts are padded changes the speed, not a text's vector",
    "query_length": "for encode_query() alone; refllm embeds as encode() does",
    "document_length": "for encode_document() alone; refllm embeds as encode() does",
    "query_expansion": "for encode_query() of models with many vectors for each text",
    "cache_dir": "where a download is kept",
}

# config_sentence_transformers.json
SENTENCE_TRANSFORMERS_CONFIG: Known = {
    "__version__": "the versions that saved the model",
    "similarity_fn_name": "how a caller compares vectors changes none of them",
    "requirements": "versions that sentence-transformers needs to load the model",
    "model_type": MustBe(
        ("SentenceTransformer",),
        "a model that makes no single vector for a text (a reranker, a sparse encoder, one with "
        "many vectors for a text); use a SentenceTransformer",
    ),
}

POOLING_CONFIG: Known = {
    **dict.fromkeys(
        (
            *("pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_tokens"),
            *("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"),
            "pooling_mode_lasttoken",
        ),
        "counts only in a file without pooling_mode",
    ),
    "pooling_mode_*": MustBe((False,), "a pooling that is not computed"),
}

NORMALIZE_CONFIG: Known = dict.fromkeys(
    ("module_input_name", "module_output_name"), MustBe(("sentence_embedding",), ONLY_THE_VECTOR)
)

DENSE_CONFIG: Known = {
    **NORMALIZE_CONFIG,
    "use_residual": MustBe((False,), "the layer's input added to its output"),
}

DROPOUT_CONFIG: Known = {"dropout": "nothing is dropped outside training"}
