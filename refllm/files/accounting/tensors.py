"""Tensors that no network asks for: irrelevant by definition, or of a model of another kind.

llama.cpp refuses a file that has a tensor it does not use (`done_getting_tensors`), and
transformers logs a warning and ignores it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from refllm.errors import ModelNotSupported
from refllm.files.accounting.ledger import Ledger

__all__ = ["BERT_TENSORS", "IRRELEVANT_TENSORS", "OTHER_KINDS", "account_for_tensors"]

IRRELEVANT_TENSORS: Mapping[str, str] = {
    "*rotary_emb.inv_freq": "RoPE's frequencies, which config.json gives; saved by transformers "
    "before 4.32",
    "*attn_rot_embd*": "RoPE's frequencies, which the metadata give; llama.cpp skips it",
    "*attn.masked_bias": "the value of a hidden score; a buffer that old transformers saved",
    "*attn.bias": "the causal mask; a buffer that old transformers saved",
    "v_head.*": "the head of a reward during training (trl); no logit depends on it",
}
"""Patterns of names (GGUF's or the file's own): why no result depends on the tensor."""

QUANTIZED = (
    "weights with scales of their own (GPTQ, AWQ, FP8, bitsandbytes); take the unquantized model, "
    "or a GGUF file"
)

OTHER_KINDS: Mapping[str, str] = {
    "*lora_*": "a LoRA adapter; merge it into its base model first (merge_and_unload of peft, or "
    "llama-export-lora)",
    **dict.fromkeys(
        (
            *("*.qweight", "*.qzeros", "*.g_idx", "*.scales", "*.absmax", "*.quant_map"),
            *("*.quant_state.*", "*.SCB", "*weight_scale*", "*weight_packed", "*input_scale*"),
            "*.scale",
        ),
        QUANTIZED,
    ),
    **dict.fromkeys(
        ("*experts*", "*_exps*", "*_shexp*", "*block_sparse_moe*", "*ffn_gate_inp*"),
        "a mixture of experts; only dense models are computed",
    ),
    "*q_norm*": "norms of queries and keys, which a llama has not",
    "*k_norm*": "norms of queries and keys, which a llama has not",
    "*sinks*": "attention sinks, which a llama has not",
    "*rope_factors_*": "RoPE stretched by longrope; only linear, Llama 3's and YaRN are computed",
    "*post_attention_norm*": "norms behind attention and feed-forward, as Gemma 2 has them",
    "*post_ffw_norm*": "norms behind attention and feed-forward, as Gemma 2 has them",
    **dict.fromkeys(
        ("*vision*", "*visual*", "*audio*", "*multi_modal_projector*", "mm.*", "v.*", "a.*"),
        "a multimodal model; extract its language model first",
    ),
    **dict.fromkeys(
        ("score.*", "classifier.*", "cls.output.*"),
        "a classifier; only text generation and embeddings are computed",
    ),
    "*nextn*": "layers that predict further tokens",
    "mtp.*": "layers that predict further tokens",
}
"""Patterns of names that say what kind of model a file holds instead."""

BERT_POOLER = "the pooler: an embedding is pooled from the last layer's output itself"
NUMBERS = "the numbers 0, 1, 2, …, which older versions of transformers save as a buffer"
PREDICTS = "the head that predicts hidden tokens"
CLASSIFIES = "a head that classifies texts, tokens or spans"


def _encoder(prefix: str, *, pooler: bool) -> dict[str, str]:
    names = {"embeddings.position_ids": NUMBERS, "embeddings.token_type_ids": NUMBERS}
    if pooler:
        names |= {"pooler.dense.weight": BERT_POOLER, "pooler.dense.bias": BERT_POOLER}
    return names | {prefix + name: reason for name, reason in names.items()}


OF_EVERY_FAMILY = {"classifier.*": CLASSIFIES, "qa_outputs.*": CLASSIFIES}

BERT_TENSORS: Mapping[str, Mapping[str, str]] = {
    "bert": {
        **_encoder("bert.", pooler=True),
        "cls.predictions.*": PREDICTS,
        "cls.seq_relationship.*": "the head that predicts whether one sentence follows another",
        **OF_EVERY_FAMILY,
    },
    "roberta": {**_encoder("roberta.", pooler=True), "lm_head.*": PREDICTS, **OF_EVERY_FAMILY},
    "distilbert": {
        **_encoder("distilbert.", pooler=False),
        "vocab_transform.*": PREDICTS,
        "vocab_layer_norm.*": PREDICTS,
        "vocab_projector.*": PREDICTS,
        "pre_classifier.*": CLASSIFIES,
        **OF_EVERY_FAMILY,
    },
    "mpnet": {**_encoder("mpnet.", pooler=True), "lm_head.*": PREDICTS, **OF_EVERY_FAMILY},
    "gguf": dict.fromkeys(
        ("cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias", "cls.norm.weight"),
        CLASSIFIES,
    ),
}
"""What an embedding does not use: by family of `HUGGING_FACE_NAMES`, or "gguf"; and the reason.

Names are those in the file, as transformers 5.24 and earlier versions save them, with the prefix
of a model that has a head and without it.
"""

MAX_NAMED = 5


def account_for_tensors(
    path: Path,
    *,
    architecture: str,
    used: Iterable[str],
    left_over: Mapping[str, str],
    ledger: Ledger,
    irrelevant: Mapping[str, str] = IRRELEVANT_TENSORS,
) -> None:
    """Record the verdict on each tensor of a file.

    Args:
        path: The file or folder, for the error.
        architecture: "llama" or "bert".
        used: The names of the tensors that the network asked for.
        left_over: The name of each other tensor, and its type and shape: "F32 [64]".
        ledger: Where each tensor is recorded.
        irrelevant: Patterns of names, and why no result depends on such a tensor.

    Raises:
        ModelNotSupported: naming the first five tensors that no table lists, and their number.
    """
    for name in used:
        ledger.use("tensors", name, architecture)
    unlisted = []
    for name in left_over:
        reason = _matching(irrelevant, name)
        if reason is None:
            unlisted.append(name)
        else:
            ledger.dismiss("tensors", name, reason)
    if not unlisted:
        return
    kinds = {name: _matching(OTHER_KINDS, name) for name in unlisted}
    kind = next((kind for kind in kinds.values() if kind is not None), None)
    named = ", ".join(f"{name!s:.80} ({left_over[name]})" for name in unlisted[:MAX_NAMED])
    more = f" and {len(unlisted) - MAX_NAMED} more" if len(unlisted) > MAX_NAMED else ""
    what = f"this is {kind}" if kind else "without it another model would be computed"
    plural = "tensor" if len(unlisted) == 1 else "tensors"
    error = ModelNotSupported(
        f"{path}: {len(unlisted)} {plural} that a {architecture} does not use: {named}{more}; "
        f"{what}"
    )
    for name in unlisted[1:]:
        ledger.mark_refused("tensors", name, kinds[name] or "not used")
    ledger.refuse("tensors", unlisted[0], error)


def _matching(table: Mapping[str, str], name: str) -> str | None:
    return next((why for pattern, why in table.items() if fnmatchcase(name, pattern)), None)
