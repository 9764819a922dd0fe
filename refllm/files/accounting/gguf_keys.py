"""GGUF metadata: what is irrelevant, and what must have the one value that is computed.

Sources: ggml's docs/gguf.md, the constants of gguf-py 0.19, and the keys that llama.cpp reads
(src/llama-arch.cpp and src/llama-model.cpp as llama-cpp-python 0.3.36 has them).
"""

from __future__ import annotations

from refllm.files.accounting.keys import Known, MustBe

__all__ = ["ANY_GGUF", "BERT_GGUF", "LLAMA_GGUF"]

EXPERTS = "a mixture of experts; only dense models are computed"
WINDOW = "attention that sees a part of the context; only full attention is computed"
SCALED = "numbers that are scaled between layers, as Granite has them; a llama's are not"

ANY_GGUF: Known = {
    "general.architecture": MustBe(
        ("llama", "bert"), "another network; supported are llama and bert"
    ),
    "general.alignment": "where tensors begin; the reader checked it",
    "general.type": MustBe(
        ("model",),
        "no model by itself: merge an adapter into its base model first (llama-export-lora), and "
        "of a multimodal model name the file of the language model",
    ),
    "general.file_type": "describes the tensors, which have types of their own",
    "general.quantization_version": "describes the encoding, which has one version since 2023",
    "general.sampling.*": "defaults of a sampler; the interface's parameters decide",
    "general.tensor_extra.*": MustBe((), "numbers beside the weights that change a product"),
    "general.*": "describes the file",
    "split.*": "which part of a split model the file is; all parts are read",
    "quantize.*": "how the file was quantized",
    "adapter.*": MustBe(
        (), "a LoRA adapter; merge it into its base model first (llama-export-lora)"
    ),
    "clip.*": MustBe((), "the encoder of a multimodal model; name the file of the language model"),
    "training.*": "a checkpoint's own numbers",
    "*": "of a namespace of the tool that wrote it, which no network reads",
}
"""Keys of any file that are neither the architecture's nor the tokenizer's."""

LLAMA_GGUF: Known = {
    "llama.vocab_size": "the rows of token_embd.weight are counted",
    "llama.rope.scaling.finetuned": "says how the model was trained; llama.cpp only prints it",
    "llama.tensor_data_layout": MustBe(
        ("Meta AI original pth", "reference"),
        "query and key rows in an order that GGUF does not define for a llama",
    ),
    "llama.embedding_length_out": "the width of an embedding, which a llama has none of here",
    "llama.attention.causal": MustBe(
        (True,),
        "a llama whose tokens see the tokens after them, an encoder; only causal ones are computed",
    ),
    "llama.attention.sliding_window*": MustBe((0,), WINDOW),
    "llama.attention.chunk*": MustBe((0,), WINDOW),
    "llama.attention.clamp_kqv": MustBe((0,), "queries and keys that are clamped"),
    "llama.attention.max_alibi_bias": MustBe((0,), "ALiBi in place of RoPE"),
    "llama.attention.scale": MustBe((0,), "scores with another scale than 1/√E"),
    "llama.attention.output_scale": MustBe((0, 1), SCALED),
    "llama.attention.value_scale": MustBe((0, 1), SCALED),
    "llama.attention.temperature_*": MustBe((0,), "scores whose scale depends on the position"),
    "llama.attention.group_norm_*": MustBe((0,), "group norms"),
    "llama.attention.layer_norm_epsilon": "of LayerNorm, where a llama has RMSNorm",
    "llama.attn_logit_softcapping": MustBe((0,), "scores with a soft cap, as Gemma 2 has them"),
    "llama.final_logit_softcapping": MustBe((0,), "logits with a soft cap, as Gemma 2 has them"),
    "llama.router_logit_softcapping": MustBe((0,), EXPERTS),
    "llama.use_parallel_residual": MustBe((False,), "attention and feed-forward side by side"),
    "llama.hidden_activation": MustBe(("silu", "swish"), "another activation than SiLU"),
    **dict.fromkeys(
        ("llama.logit_scale", "llama.residual_scale", "llama.embedding_scale"),
        MustBe((0, 1), SCALED),
    ),
    **dict.fromkeys(
        (
            *("llama.expert*", "llama.interleave_moe_layer_step", "llama.moe_*"),
            "llama.leading_dense_block_count",
        ),
        MustBe((0,), EXPERTS),
    ),
    "llama.nextn_predict_layers": MustBe(
        (0,), "layers that predict further tokens; remove them when converting the model"
    ),
    "llama.pooling_type": MustBe(
        (0,), "an embedding model whose network is a llama; only BERT-like ones are computed"
    ),
    "llama.classifier.*": MustBe((), "a classifier; only text generation is computed"),
    "llama.rope.dimension_sections": MustBe((), "RoPE with several positions for a token"),
    "llama.rope.scaling.alpha": MustBe((0,), "RoPE whose base is scaled by alpha (XDRoPE)"),
    "llama.rope.scaling.yarn_ext_factor": MustBe(
        (1, -1), "YaRN with a part of its ramp; only the whole one is computed"
    ),
    "llama.rope.scaling.yarn_log_multiplier": MustBe(
        (0,), "YaRN with the magnitude of DeepSeek 2; write it as rope.scaling.attn_factor"
    ),
}

NO_RELATIVE = "llama.cpp's graph of this architecture has a table of positions and nothing else"
BERT_GGUF: Known = {
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
    "bert.classifier.output_labels": "it belongs to a head for another task",
}
"""Keys under "bert."; the reader of the pooling decides about `bert.pooling_type`."""
