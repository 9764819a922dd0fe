"""Keys of tokenizers and chat templates: in GGUF metadata, and in a folder's JSON files.

What a key of GGUF metadata means is what llama.cpp does with it, as in llama-cpp-python 0.3.36
(src/llama-vocab.cpp, src/llama-arch.cpp; gguf-py/gguf/constants.py for keys that only a writer
knows). What a key of a JSON file means is what `AutoTokenizer` of transformers 5.24.0 does with it
(tokenization_utils_base.py, tokenization_utils_tokenizers.py, and the classes of models). Of
several chat templates a chat uses one: `GGUFWriter.add_chat_template` of gguf-py 0.19.0, and
`get_chat_template` of transformers.
"""

from __future__ import annotations

from refllm.files.accounting.keys import Known, MustBe

__all__ = [
    "CHAT_TEMPLATE_JSON",
    "GENERATION_CONFIG",
    "GGUF_BERT_TOKENIZER",
    "GGUF_CHAT_TEMPLATES",
    "GGUF_LLAMA_TOKENIZER",
    "GGUF_TOKENIZER",
    "NO_PADDING",
    "PLACEHOLDER",
    "SPECIAL_TOKENS_MAP",
    "TOKENIZER_CONFIG",
    "TOKENIZER_JSON",
    "UNUSED_TEMPLATE",
]

ONLY_UNIGRAM = "llama.cpp reads it, but uses it for a vocabulary of the kind t5 only"
ONLY_SENTENCEPIECE = "llama.cpp uses it for vocabularies of the kinds llama and t5 only"
ONLY_BERT = "llama.cpp uses it for a vocabulary of the kind bert only"

GGUF_TOKENIZER: Known = {
    "tokenizer.ggml.token_type_count": "the network compares it with the rows of its table",
    "tokenizer.ggml.suppress_tokens": MustBe(
        ([],),
        "tokens that must never be drawn, which is not computed; remove the key if the model may "
        "draw them",
    ),
    "tokenizer.huggingface.json": (
        "the tokenizer.json that the vocabulary was made of; llama.cpp does not read it"
    ),
    "tokenizer.rwkv.world": "the vocabulary of an RWKV model as text; llama.cpp does not read it",
    "tokenizer.ggml.unk_token_id": (
        "not a key of llama.cpp, which reads unknown_token_id and the token's type"
    ),
    "tokenizer.ggml.sep_token_id": "not a key of llama.cpp, which reads seperator_token_id",
    "tokenizer.ggml.pad_token_id": "not a key of llama.cpp, which reads padding_token_id",
    "tokenizer.ggml.added_tokens": (
        "tokens that are in tokenizer.ggml.tokens with their types, too; llama.cpp does not read it"
    ),
}
"""Keys of any vocabulary that change no ids."""

GGUF_LLAMA_TOKENIZER: Known = {
    "tokenizer.ggml.remove_extra_whitespaces": ONLY_UNIGRAM,
    "tokenizer.ggml.precompiled_charsmap": ONLY_UNIGRAM,
    "tokenizer.ggml.pre": "llama.cpp uses it for a vocabulary of the kind gpt2 only",
    "tokenizer.ggml.scores": "merges of a vocabulary of the kind gpt2 have an order of their own",
    "tokenizer.ggml.merges": "llama.cpp reads merges for a vocabulary of the kind gpt2 only",
    "tokenizer.ggml.add_space_prefix": ONLY_SENTENCEPIECE,
    "tokenizer.ggml.normalizer.*": ONLY_BERT,
    "tokenizer.ggml.add_sep_token": f"{ONLY_BERT}, and for two texts at once",
}
"""Keys of a vocabulary of the kinds llama, gpt2 and t5."""

GGUF_BERT_TOKENIZER: Known = {
    "tokenizer.ggml.remove_extra_whitespaces": ONLY_UNIGRAM,
    "tokenizer.ggml.precompiled_charsmap": ONLY_UNIGRAM,
    "tokenizer.ggml.pre": "llama.cpp uses it for a vocabulary of the kind gpt2 only",
    "tokenizer.ggml.scores": "WordPiece has no scores",
    "tokenizer.ggml.merges": "WordPiece has no merges",
    "tokenizer.ggml.add_space_prefix": ONLY_SENTENCEPIECE,
    "tokenizer.ggml.add_bos_token": "llama.cpp puts BOS before each text of this kind regardless",
    "tokenizer.ggml.add_eos_token": "llama.cpp puts the separator after each text instead",
    "tokenizer.ggml.add_sep_token": "llama.cpp puts the separator after each text regardless",
}
"""Keys of a vocabulary of the kind bert."""

NO_PADDING = "a text's ids never depend on other texts, so nothing is padded"
PLACEHOLDER = "names a token that the vocabulary lacks, so the network has no row for it"

SPECIAL_TOKENS_MAP: Known = {"extra_special_tokens": "no tokens besides the added ones"}

NO_IDS = "changes no ids"
OTHER_CLASS = (
    "not computed for this tokenizer_class, if transformers 5.24 uses it there: the tokenizer.json "
    "decides, as in Spin, which reads nothing else"
)
PYTHON = "about Python objects, not about ids"

TOKENIZER_CONFIG: Known = {
    "tokenizer_class": "the class whose options apply was found without it",
    "processor_class": PYTHON,
    "auto_map": "names Python code of the repository, which is not run; the files are read instead",
    "backend": "which library transformers used to write the files",
    "chat_template": "the chat template's reader uses it",
    "chat_template_*": "the chat template's reader uses it",
    "response_template": "how a caller of transformers cuts an answer into parts",
    "response_schema": "how a caller of transformers cuts an answer into parts",
    "chat_control_tokens": "which tokens transformers removes from a caller's messages",
    "use_default_system_prompt": "transformers 5.24 stores it and reads it nowhere",
    "default_system_prompt": "transformers 5.24 stores it and reads it nowhere",
    "clean_up_tokenization_spaces*": (
        "an option of transformers' decode; Spin decodes with the tokenizers library, without it"
    ),
    **dict.fromkeys(
        ("model_max_length", "max_len", "max_seq_length", "max_length"),
        "the tokenizer.json's own truncation holds, as in Spin",
    ),
    "truncation*": "an option of transformers' calls; the tokenizer.json's own truncation holds",
    "stride": "an option of transformers' calls, for texts that are cut into several",
    "pad*": NO_PADDING,
    **dict.fromkeys(
        (
            *("model_input_names", "return_token_type_ids", "return_attention_mask"),
            "return_tensors",
        ),
        "which arrays transformers returns beside the ids",
    ),
    **dict.fromkeys(("name_or_path", "_name_or_path"), "where the files came from"),
    **dict.fromkeys(
        ("special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file"),
        "a path on the machine where the files were written",
    ),
    "fast_tokenizer_files": MustBe(
        ([],), "other tokenizer files for other versions of transformers; keep one tokenizer.json"
    ),
    "vocab_size": "the vocabulary's own size counts; transformers 5.24 reads it nowhere",
    "unk_id": "beside a tokenizer.json transformers 5.24 does not use it; the model there rules",
    **dict.fromkeys(
        (
            *("is_local", "local_files_only", "files_loaded", "verbose", "use_fast", "revision"),
            *("cache_dir", "device_map"),
        ),
        PYTHON,
    ),
    "from_slow": "transformers 5.24 has one implementation only, and ignores it",
    "tokenizer_type": "transformers 5.24 reads it nowhere",
    "init_inputs": MustBe(([],), "arguments of a Python class without their names"),
    "do_basic_tokenize": MustBe(
        (True,), "text that is cut into words already, which transformers 5.24 ignores, too"
    ),
    "never_split": "transformers 5.24 ignores it; tokens that are never split are added tokens",
    "split_special_tokens": MustBe(
        (False,), "special tokens in a text that are cut like any text; remove the key"
    ),
    "fix_mistral_regex": MustBe(
        (False,), "another rule for words than the tokenizer.json has; write it to the file"
    ),
    "sp_model_kwargs": MustBe(
        ({}, {"enable_sampling": False}), "options of the sentencepiece library, such as sampling"
    ),
    "spaces_between_special_tokens": "an option of transformers' decode, where special tokens show",
    "errors": "how bytes that are not UTF-8 show; here each maximal part is U+FFFD",
    "trim_offsets": "moves offsets, and no ids",
    "add_bos_token": "beside a tokenizer.json transformers 5.24 drops it; the post-processor rules",
    "add_eos_token": "beside a tokenizer.json transformers 5.24 drops it; the post-processor rules",
    **dict.fromkeys(
        (
            *("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"),
            *("legacy", "keep_accents", "do_lowercase", "remove_space"),
        ),
        OTHER_CLASS,
    ),
    "image_token*": "a model of texts alone is given no images",
    "audio_token*": "a model of texts alone is given no sounds",
    "video_token*": "a model of texts alone is given no videos",
    "transformers_version": "which version of transformers wrote the file",
}
"""Keys of tokenizer_config.json that change no ids, each as far as it was not read."""

GENERATION_CONFIG: Known = {
    "_from_model_config": "where transformers took the file's values from",
    "transformers_version": "which version of transformers wrote the file",
    "pad_token_id": NO_PADDING,
    "decoder_start_token_id": "begins the text of a decoder beside an encoder",
    "forced_bos_token_id": MustBe((), "a token that is forced; the interface has no such option"),
    "forced_eos_token_id": MustBe((), "a token that is forced; the interface has no such option"),
    **dict.fromkeys(
        (
            *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "top_h"),
            *("epsilon_cutoff", "eta_cutoff", "repetition_penalty", "max_length", "min_length"),
            *("max_new_tokens", "min_new_tokens", "max_time", "stop_strings", "early_stopping"),
            *("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty"),
            "penalty_alpha",
            *("no_repeat_ngram_size", "encoder_*", "bad_words_ids", "sequence_bias"),
            *("suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty"),
            *("renormalize_logits", "remove_invalid_values", "constraints", "force_words_ids"),
            *("guidance_scale", "low_memory", "watermarking_config", "trust_remote_code"),
        ),
        "a default of generate() in transformers; here the interface's parameters decide",
    ),
    **dict.fromkeys(
        (
            *("use_cache", "cache_*", "return_legacy_cache", "num_return_sequences", "output_*"),
            *("return_dict_in_generate", "compile_config", "disable_compile", "dola_layers"),
            *("prompt_lookup_num_tokens", "max_matching_ngram_size", "num_assistant_*"),
            *("assistant_*", "is_assistant", "target_lookbehind", "prefill_chunk_size"),
            *("token_healing", "continuous_batching_config", "chat_format", "max_window_size"),
        ),
        "how generate() of transformers computes or returns, not what",
    ),
}
"""Keys of generation_config.json."""

TOKENIZER_JSON: Known = {
    "version": "which version of the format the file has; the library refuses others",
    "*str_rep": "an old name of replacement, which the library reads",
    "*add_prefix_space": "an old name of prepend_scheme, which the library reads",
    "*prefix_space": "an old name of prepend_scheme, which the library reads",
}
"""Keys of a tokenizer.json that are not in the library's own rendering of the file."""

UNUSED_TEMPLATE = "a chat uses another of the model's templates"

GGUF_CHAT_TEMPLATES: Known = {
    "tokenizer.chat_templates": "names of templates, which are in the keys of the templates, too",
    "tokenizer.chat_template": UNUSED_TEMPLATE,
    "tokenizer.chat_template.*": UNUSED_TEMPLATE,
}
"""Keys of a GGUF file's metadata, for what is not read."""

CHAT_TEMPLATE_JSON: Known = {"chat_template": UNUSED_TEMPLATE}
"""Keys of chat_template.json, where another file has a template."""
