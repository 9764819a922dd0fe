"""config.json: what is irrelevant, and what must have the one value that is computed.

Source of the keys: `PreTrainedConfig` and `LlamaConfig` of transformers 5.24, and what older
versions of it wrote into the same files.
"""

from __future__ import annotations

from refllm.files.accounting.keys import Known, MustBe

__all__ = ["ANY_CONFIG", "LLAMA_CONFIG", "ROPE_PARAMETERS"]

GENERATION = "a default of generate(); the interface's parameters decide"
TRAINING = "only training reads it"
ABOUT = "describes the file"
HEAD = "of a classification head, which neither text generation nor an embedding has"
PYTHON = "how transformers returns results"

ANY_CONFIG: Known = {
    "_name_or_path": ABOUT,
    "_commit_hash": ABOUT,
    "_attn_implementation*": "which kernel transformers runs",
    "attn_implementation": "which kernel transformers runs",
    "name_or_path": ABOUT,
    "transformers_version": ABOUT,
    "transformers.js_config": "how another library loads the files",
    "torch_dtype": "the type that transformers converts to; weights are used as they are stored",
    "dtype": "the type that transformers converts to; weights are used as they are stored",
    "use_bfloat16": "the type that transformers converts to; weights are used as they are stored",
    "unsloth_*": ABOUT,
    "model_name": ABOUT,
    "use_cache": "whether transformers keeps keys and values; the numbers are the same",
    "torchscript": PYTHON,
    "return_dict": PYTHON,
    "use_return_dict": PYTHON,
    "output_past": PYTHON,
    "tie_last_hidden_states": PYTHON,
    "xla_device": "where training ran",
    "adapters": "describes adapters, whose weights are tensors of their own",
    "return_dict_in_generate": PYTHON,
    "output_attentions": PYTHON,
    "output_hidden_states": PYTHON,
    "output_scores": PYTHON,
    "gradient_checkpointing": TRAINING,
    "initializer_*": TRAINING,
    "*dropout*": TRAINING,
    "*_pdrop": TRAINING,
    "aux_loss_alpha": TRAINING,
    "neftune_noise_alpha": TRAINING,
    "tp_degree": "how training was spread over machines",
    "ep_size": "how training was spread over machines",
    "use_flash_attention*": "which kernel transformers runs",
    "_flash_attn_*": "which kernel transformers runs",
    "tokenizer_model_max_length": "the tokenizer's own files name a limit",
    "tokenizer_padding_side": "texts are not padded",
    "tf_legacy_loss": TRAINING,
    "chunk_size_feed_forward": "computes the same in parts",
    "pretraining_tp": "computes the same in parts",
    "id2label": HEAD,
    "label2id": HEAD,
    "num_labels": HEAD,
    "_num_labels": HEAD,
    "sentence_transformers": HEAD,  # of a CrossEncoder: its activation and version
    "problem_type": HEAD,
    "finetuning_task": HEAD,
    "task_specific_params": GENERATION,
    "prefix": GENERATION,
    "pad_token_id": "texts are not padded",
    "sep_token_id": "the tokenizer's own files say what it adds",
    "cls_token_id": "the tokenizer's own files say what it adds",
    "mask_token_id": "nothing is masked",
    "unk_token_id": "the tokenizer's own files name it",
    "eos_token_ids": "the tokenizer's own files name them",
    "decoder_start_token_id": "of a decoder beside an encoder, which there is not",
    "tie_encoder_decoder": "of a decoder beside an encoder, which there is not",
    "cross_attention_hidden_size": "of a decoder beside an encoder, which there is not",
    "max_length": GENERATION,
    "min_length": GENERATION,
    "max_new_tokens": GENERATION,
    "do_sample": GENERATION,
    "early_stopping": GENERATION,
    "num_beams": GENERATION,
    "num_beam_groups": GENERATION,
    "diversity_penalty": GENERATION,
    "temperature": GENERATION,
    "top_k": GENERATION,
    "top_p": GENERATION,
    "typical_p": GENERATION,
    "repetition_penalty": GENERATION,
    "length_penalty": GENERATION,
    "no_repeat_ngram_size": GENERATION,
    "encoder_no_repeat_ngram_size": GENERATION,
    "bad_words_ids": GENERATION,
    "num_return_sequences": GENERATION,
    "forced_bos_token_id": GENERATION,
    "forced_eos_token_id": GENERATION,
    "remove_invalid_values": GENERATION,
    "exponential_decay_length_penalty": GENERATION,
    "suppress_tokens": GENERATION,
    "begin_suppress_tokens": GENERATION,
    "is_encoder_decoder": MustBe((False,), "an encoder and a decoder; only one of them"),
    "add_cross_attention": MustBe((False,), "a decoder that reads an encoder's output"),
    "pruned_heads": MustBe(({}, []), "heads that are cut out when loading; save the pruned model"),
    "auto_map": MustBe(
        ({},),
        "the model's own code, which refllm does not run; delete the key where transformers "
        "computes the same without trust_remote_code",
    ),
    "quantization_config": MustBe(
        ({},), "weights in a quantized form; take the unquantized model, or a GGUF file"
    ),
    "compression_config": MustBe(
        ({},), "weights in a quantized form; take the unquantized model, or a GGUF file"
    ),
    "*vision*": MustBe((), "a multimodal model; extract its language model first"),
    "*audio*": MustBe((), "a multimodal model; extract its language model first"),
    "text_config": MustBe((), "a multimodal model; extract its language model first"),
    "peft_config": MustBe((), "a LoRA adapter; merge it into its base model first"),
    "base_model_name_or_path": MustBe((), "a LoRA adapter; merge it into its base model first"),
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
    "embedding_multiplier": MustBe((1,), SCALED),
    "logits_scaling": MustBe((1,), SCALED),
    "logit_scale": MustBe((1,), SCALED),
    "residual_multiplier": MustBe((1,), SCALED),
    "attention_multiplier": MustBe((), "scores with another scale than 1/√E"),
    "scale_emb": MustBe((1,), SCALED),
    "scale_depth": MustBe((), SCALED),
    "dim_model_base": MustBe((), SCALED),
    "parallel_attn": MustBe((False,), "attention and feed-forward side by side"),
    "no_rope_layers": MustBe(([],), "layers without RoPE"),
    "rope_interleaved": MustBe((False,), "query and key rows in another order"),
    "num_local_experts": MustBe((0, 1), EXPERTS),
    "num_experts": MustBe((0, 1), EXPERTS),
    "num_experts_per_tok": MustBe((0, 1), EXPERTS),
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
