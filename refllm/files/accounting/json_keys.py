"""config.json: what is irrelevant, and what must have the one value that is computed.

Source of the keys: `PreTrainedConfig` and the `configuration_*.py` of each model in transformers
5.24, and what older versions of it wrote into the same files. What a table leaves out is read by
`refllm.checkpoints.config`.
"""

from __future__ import annotations

from collections.abc import Mapping

from refllm.files.accounting.keys import Known, MustBe

__all__ = ["ANY_CONFIG", "BERT_CONFIGS", "LLAMA_CONFIG", "ROPE_PARAMETERS"]

GENERATION = "a default of generate(); the interface's parameters decide"
TRAINING = "only training reads it"
ABOUT = "describes the file"
HEAD = "of a classification head, which neither text generation nor an embedding has"
PYTHON = "how transformers returns results"
KERNEL = "which kernel transformers runs"
DTYPE = "the type that transformers converts to; weights are used as they are stored"
DECODER = "of a decoder beside an encoder, which there is not"
QUANTIZED = "weights in a quantized form; take the unquantized model, or a GGUF file"
MULTIMODAL = "a multimodal model; extract its language model first"
ADAPTER = "a LoRA adapter; merge it into its base model first"

ANY_CONFIG: Known = {
    **dict.fromkeys(
        ("_name_or_path", "_commit_hash", "name_or_path", "transformers_version", "unsloth_*"),
        ABOUT,
    ),
    "model_name": ABOUT,
    "transformers.js_config": "how another library loads the files",
    **dict.fromkeys(
        (
            *("_attn_implementation*", "attn_implementation"),
            *("use_flash_attention*", "_flash_attn_*"),
        ),
        KERNEL,
    ),
    **dict.fromkeys(("torch_dtype", "dtype", "use_bfloat16"), DTYPE),
    "use_cache": "whether transformers keeps keys and values; the numbers are the same",
    **dict.fromkeys(
        (
            *("torchscript", "return_dict", "use_return_dict", "output_past"),
            *("tie_last_hidden_states", "return_dict_in_generate", "output_attentions"),
            *("output_hidden_states", "output_scores"),
        ),
        PYTHON,
    ),
    "xla_device": "where training ran",
    "adapters": "describes adapters, whose weights are tensors of their own",
    **dict.fromkeys(
        (
            *("gradient_checkpointing", "initializer_*", "*dropout*", "*_pdrop"),
            *("aux_loss_alpha", "neftune_noise_alpha", "tf_legacy_loss"),
        ),
        TRAINING,
    ),
    **dict.fromkeys(("tp_degree", "ep_size"), "how training was spread over machines"),
    "tokenizer_model_max_length": "the tokenizer's own files name a limit",
    "tokenizer_padding_side": "texts are not padded",
    **dict.fromkeys(("chunk_size_feed_forward", "pretraining_tp"), "computes the same in parts"),
    **dict.fromkeys(
        (
            *("id2label", "label2id", "num_labels", "_num_labels", "problem_type"),
            *("finetuning_task", "sentence_transformers"),  # of a CrossEncoder
        ),
        HEAD,
    ),
    "pad_token_id": "texts are not padded",
    **dict.fromkeys(
        ("sep_token_id", "cls_token_id"), "the tokenizer's own files name what is added to a text"
    ),
    "mask_token_id": "nothing is masked",
    "unk_token_id": "the tokenizer's own files name it",
    "eos_token_ids": "the tokenizer's own files name them",
    **dict.fromkeys(
        ("decoder_start_token_id", "tie_encoder_decoder", "cross_attention_hidden_size"), DECODER
    ),
    **dict.fromkeys(
        (
            *("task_specific_params", "prefix", "max_length", "min_length", "max_new_tokens"),
            *("do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty"),
            *("temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
            *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
            *("bad_words_ids", "num_return_sequences", "forced_bos_token_id"),
            *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
            *("suppress_tokens", "begin_suppress_tokens"),
        ),
        GENERATION,
    ),
    "is_encoder_decoder": MustBe((False,), "an encoder and a decoder; only one of them"),
    "add_cross_attention": MustBe((False,), "a decoder that reads an encoder's output"),
    "pruned_heads": MustBe(({}, []), "heads that are cut out when loading; save the pruned model"),
    "auto_map": MustBe(
        ({},),
        "the model's own code, which refllm does not run; delete the key where transformers "
        "computes the same without trust_remote_code",
    ),
    **dict.fromkeys(("quantization_config", "compression_config"), MustBe(({},), QUANTIZED)),
    **dict.fromkeys(("*vision*", "*audio*", "text_config"), MustBe((), MULTIMODAL)),
    **dict.fromkeys(("peft_config", "base_model_name_or_path"), MustBe((), ADAPTER)),
}
"""Keys that transformers may write into the config.json of any model."""

EXPERTS = "a mixture of experts; only dense models are computed"
WINDOW = "attention that sees a part of the context; only full attention is computed"
SCALED = "numbers that are scaled between layers, as Granite has them; a llama's are not"

LLAMA_CONFIG: Known = {
    "hidden_act": MustBe(("silu", "swish"), "another activation than SiLU"),
    "hidden_activation": MustBe(("silu", "swish"), "another activation than SiLU"),
    "is_causal": MustBe(
        (True,),
        "a llama whose tokens see the tokens after them, an encoder; only causal ones are computed",
    ),
    "is_decoder": "a llama always is one",
    "is_llama_config": "a llama always is one",
    "max_sequence_length": "transformers reads max_position_embeddings alone",
    "partial_rotary_factor": MustBe((1,), "RoPE that turns a part of a head"),
    "use_sliding_window": MustBe((False,), WINDOW),
    "max_window_layers": "of a sliding window, which is off",
    "attention_chunk_size": MustBe((), WINDOW),
    "attention_sink*": MustBe((), "attention sinks"),
    "*qk_norm*": MustBe((False,), "norms of queries and keys"),
    "qk_layernorm": MustBe((False,), "norms of queries and keys"),
    "*logit_softcapping": MustBe((), "a soft cap, as Gemma 2 has one"),
    "clip_qkv": MustBe((), "queries and keys that are clamped"),
    **dict.fromkeys(
        ("embedding_multiplier", "logits_scaling", "logit_scale", "residual_multiplier"),
        MustBe((1,), SCALED),
    ),
    "attention_multiplier": MustBe((), "scores with another scale than 1/√E"),
    "scale_emb": MustBe((1,), SCALED),
    "scale_depth": MustBe((), SCALED),
    "dim_model_base": MustBe((), SCALED),
    "parallel_attn": MustBe((False,), "attention and feed-forward side by side"),
    "no_rope_layers": MustBe(([],), "layers without RoPE"),
    "rope_interleaved": MustBe((False,), "query and key rows in another order"),
    **dict.fromkeys(
        ("num_local_experts", "num_experts", "num_experts_per_tok"), MustBe((0, 1), EXPERTS)
    ),
    "n_routed_experts": MustBe((0,), EXPERTS),
    "*moe*": MustBe((0, False), EXPERTS),
    "num_nextn_predict_layers": MustBe((0,), "layers that predict further tokens"),
    "draft_vocab_size": MustBe((), "a draft model that reads another model's output"),
}

ROPE_PARAMETERS: Known = {
    "partial_rotary_factor": MustBe((1,), "RoPE that turns a part of a head"),
    "mrope_section": MustBe((), "RoPE with several positions for a token"),
    "finetuned": "says how the model was trained",
}
"""Keys of `rope_scaling` and `rope_parameters` that the kind of scaling does not read."""

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

BERT_CONFIGS: Mapping[str, Known] = {
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
"""The keys of config.json for each family of `refllm.checkpoints.names.HUGGING_FACE_NAMES`."""
