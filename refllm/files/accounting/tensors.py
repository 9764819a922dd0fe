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

__all__ = ["IRRELEVANT_TENSORS", "OTHER_KINDS", "account_for_tensors"]

IRRELEVANT_TENSORS: Mapping[str, str] = {
    "*rotary_emb.inv_freq": "RoPE's frequencies, which config.json gives; saved by transformers "
    "before 4.32",
    "*attn_rot_embd*": "RoPE's frequencies, which the metadata give; llama.cpp skips it",
    "*attn.masked_bias": "the value of a hidden score; a buffer that old transformers saved",
    "*attn.bias": "the causal mask; a buffer that old transformers saved",
    "v_head.*": "the head of a reward during training (trl); no logit depends on it",
}
"""Patterns of names (GGUF's or the file's own): why no result depends on the tensor."""

EXPERTS = "a mixture of experts; only dense models are computed"
MULTIMODAL = "a multimodal model; extract its language model first"
QUANTIZED = "weights with scales of their own (GPTQ, AWQ, FP8, bitsandbytes); take the "
QUANTIZED += "unquantized model, or a GGUF file"

OTHER_KINDS: Mapping[str, str] = {
    "*lora_*": "a LoRA adapter; merge it into its base model first (merge_and_unload of peft, or "
    "llama-export-lora)",
    "*.qweight": QUANTIZED,
    "*.qzeros": QUANTIZED,
    "*.g_idx": QUANTIZED,
    "*.scales": QUANTIZED,
    "*.absmax": QUANTIZED,
    "*.quant_map": QUANTIZED,
    "*.quant_state.*": QUANTIZED,
    "*.SCB": QUANTIZED,
    "*weight_scale*": QUANTIZED,
    "*weight_packed": QUANTIZED,
    "*input_scale*": QUANTIZED,
    "*.scale": QUANTIZED,
    "*experts*": EXPERTS,
    "*_exps*": EXPERTS,
    "*_shexp*": EXPERTS,
    "*block_sparse_moe*": EXPERTS,
    "*ffn_gate_inp*": EXPERTS,
    "*q_norm*": "norms of queries and keys, which a llama has not",
    "*k_norm*": "norms of queries and keys, which a llama has not",
    "*sinks*": "attention sinks, which a llama has not",
    "*rope_factors_*": "RoPE stretched by longrope; only linear, Llama 3's and YaRN are computed",
    "*post_attention_norm*": "norms behind attention and feed-forward, as Gemma 2 has them",
    "*post_ffw_norm*": "norms behind attention and feed-forward, as Gemma 2 has them",
    "*vision*": MULTIMODAL,
    "*visual*": MULTIMODAL,
    "*audio*": MULTIMODAL,
    "*multi_modal_projector*": MULTIMODAL,
    "mm.*": MULTIMODAL,
    "v.*": MULTIMODAL,
    "a.*": MULTIMODAL,
    "score.*": "a classifier; only text generation and embeddings are computed",
    "classifier.*": "a classifier; only text generation and embeddings are computed",
    "cls.output.*": "a classifier; only text generation and embeddings are computed",
    "*nextn*": "layers that predict further tokens",
    "mtp.*": "layers that predict further tokens",
}
"""Patterns of names that say what kind of model a file holds instead."""

MOST_NAMED = 5


def account_for_tensors(
    path: Path,
    *,
    architecture: str,
    used: Iterable[str],
    left_over: Mapping[str, str],
    ledger: Ledger,
    irrelevant: Mapping[str, str] = IRRELEVANT_TENSORS,
) -> None:
    """Record what becomes of each tensor of a file.

    Args:
        path: The file or folder, for the error.
        architecture: "llama" or "bert".
        used: The names of the tensors that the network asked for.
        left_over: The name of each other tensor, and what it is: "F32 [64]".
        ledger: Where each tensor is recorded.
        irrelevant: Patterns of names, and why no result depends on such a tensor.

    Raises:
        ModelNotSupported: naming the first five tensors that no table lists, and how many they
            are.
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
    named = ", ".join(f"{name!s:.80} ({left_over[name]})" for name in unlisted[:MOST_NAMED])
    more = f" and {len(unlisted) - MOST_NAMED} more" if len(unlisted) > MOST_NAMED else ""
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
    return next((said for pattern, said in table.items() if fnmatchcase(name, pattern)), None)
