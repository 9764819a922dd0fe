"""The names of tensors: Hugging Face's for each family, and GGUF's, which refllm uses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from refllm.errors import ModelNotSupported

__all__ = ["CLASSES", "FAMILIES", "HUGGING_FACE_NAMES", "canonical_name", "hugging_face_name"]

# Old BERT files were converted from TensorFlow and kept its words.
SUFFIXES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


@dataclass(frozen=True, slots=True)
class HuggingFaceNames:
    """How Hugging Face calls the modules of an architecture, and GGUF's name for each.

    `prefix` is there in a model saved with a head, and absent from one saved without.
    """

    prefix: str
    layers: str
    modules: Mapping[str, str]
    modules_of_a_layer: Mapping[str, str]


HUGGING_FACE_NAMES = {
    "llama": HuggingFaceNames(
        prefix="model.",
        layers="layers",
        modules={
            "embed_tokens": "token_embd",
            "norm": "output_norm",
            "lm_head": "output",
        },
        modules_of_a_layer={
            "input_layernorm": "attn_norm",
            "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_proj": "ffn_gate",
            "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        },
    ),
    "bert": HuggingFaceNames(
        prefix="bert.",
        layers="encoder.layer",
        modules={
            "embeddings.word_embeddings": "token_embd",
            "embeddings.token_type_embeddings": "token_types",
            "embeddings.position_embeddings": "position_embd",
            "embeddings.LayerNorm": "token_embd_norm",
        },
        modules_of_a_layer={
            "attention.self.query": "attn_q",
            "attention.self.key": "attn_k",
            "attention.self.value": "attn_v",
            "attention.output.dense": "attn_output",
            "attention.output.LayerNorm": "attn_output_norm",
            "intermediate.dense": "ffn_up",
            "output.dense": "ffn_down",
            "output.LayerNorm": "layer_output_norm",
        },
    ),
    "distilbert": HuggingFaceNames(
        prefix="distilbert.",
        layers="transformer.layer",
        modules={
            "embeddings.word_embeddings": "token_embd",
            "embeddings.position_embeddings": "position_embd",
            "embeddings.LayerNorm": "token_embd_norm",
        },
        modules_of_a_layer={
            "attention.q_lin": "attn_q",
            "attention.k_lin": "attn_k",
            "attention.v_lin": "attn_v",
            "attention.out_lin": "attn_output",
            "sa_layer_norm": "attn_output_norm",
            "ffn.lin1": "ffn_up",
            "ffn.lin2": "ffn_down",
            "output_layer_norm": "layer_output_norm",
        },
    ),
    "mpnet": HuggingFaceNames(
        prefix="mpnet.",
        layers="encoder.layer",
        modules={
            "embeddings.word_embeddings": "token_embd",
            "embeddings.position_embeddings": "position_embd",
            "embeddings.LayerNorm": "token_embd_norm",
            "encoder.relative_attention_bias": "attn_rel_b",
        },
        modules_of_a_layer={
            "attention.attn.q": "attn_q",
            "attention.attn.k": "attn_k",
            "attention.attn.v": "attn_v",
            "attention.attn.o": "attn_output",
            "attention.LayerNorm": "attn_output_norm",
            "intermediate.dense": "ffn_up",
            "output.dense": "ffn_down",
            "output.LayerNorm": "layer_output_norm",
        },
    ),
}
HUGGING_FACE_NAMES["roberta"] = replace(HUGGING_FACE_NAMES["bert"], prefix="roberta.")

# `model_type` of config.json, and how the names of its classes in `architectures` begin: the
# family of `HUGGING_FACE_NAMES`. XLM-RoBERTa and CamemBERT are RoBERTa with other vocabularies.
FAMILIES = {
    "llama": "llama",
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "distilbert": "distilbert",
    "mpnet": "mpnet",
}
CLASSES = {
    "Llama": "llama",
    "Bert": "bert",
    "Roberta": "roberta",
    "XLMRoberta": "roberta",
    "Camembert": "roberta",
    "DistilBert": "distilbert",
    "MPNet": "mpnet",
}


def canonical_name(family: str, stored_name: str) -> str | None:
    """GGUF's name for what Hugging Face calls `stored_name` in a `family`; None if unused.

    "model.layers.7.self_attn.q_proj.weight" → "blk.7.attn_q.weight"
    """
    module, _, suffix = stored_name.rpartition(".")
    if suffix not in SUFFIXES:
        return None
    names = HUGGING_FACE_NAMES[family]
    module = module.removeprefix(names.prefix)
    if module in names.modules:
        return f"{names.modules[module]}.{SUFFIXES[suffix]}"
    layer = re.fullmatch(rf"{re.escape(names.layers)}\.([0-9]+)\.(.+)", module)
    if layer is None or layer[2] not in names.modules_of_a_layer:
        return None
    return f"blk.{layer[1]}.{names.modules_of_a_layer[layer[2]]}.{SUFFIXES[suffix]}"


def hugging_face_name(family: str, name: str) -> str:
    """What Hugging Face calls the tensor `name`; undoes `canonical_name`.

    "blk.7.attn_q.weight" → "model.layers.7.self_attn.q_proj.weight"; an encoder's have no prefix.
    Errors: `ModelNotSupported` for a tensor that the family does not have there.
    """
    names = HUGGING_FACE_NAMES[family]
    prefix = names.prefix if family == "llama" else ""
    module, _, suffix = name.rpartition(".")
    theirs = {ours: theirs for theirs, ours in names.modules.items()}
    if module in theirs:
        # lm_head lies beside the model, not in it.
        return f"{'' if module == 'output' else prefix}{theirs[module]}.{suffix}"
    block, _, rest = module.removeprefix("blk.").partition(".")
    in_layer = {ours: theirs for theirs, ours in names.modules_of_a_layer.items()}
    if not block.isdecimal() or rest not in in_layer:
        raise ModelNotSupported(
            f"tensor {name!r:.80} is none that Hugging Face's {family} has; only --format "
            "gguf keeps it"
        )
    return f"{prefix}{names.layers}.{block}.{in_layer[rest]}.{suffix}"
