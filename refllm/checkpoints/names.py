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
    """Hugging Face's names of the modules of a family, each with GGUF's name.

    `prefix` is there in a model saved with a head, and absent from one saved without.
    """

    prefix: str
    layers: str
    modules: Mapping[str, str]
    modules_of_a_layer: Mapping[str, str]


# GGUF               BERT, RoBERTa                 DistilBERT            MPNet
ENCODER_LAYER = (
    ("attn_q", "attention.self.query", "attention.q_lin", "attention.attn.q"),
    ("attn_k", "attention.self.key", "attention.k_lin", "attention.attn.k"),
    ("attn_v", "attention.self.value", "attention.v_lin", "attention.attn.v"),
    ("attn_output", "attention.output.dense", "attention.out_lin", "attention.attn.o"),
    ("attn_output_norm", "attention.output.LayerNorm", "sa_layer_norm", "attention.LayerNorm"),
    ("ffn_up", "intermediate.dense", "ffn.lin1", "intermediate.dense"),
    ("ffn_down", "output.dense", "ffn.lin2", "output.dense"),
    ("layer_output_norm", "output.LayerNorm", "output_layer_norm", "output.LayerNorm"),
)
EMBEDDINGS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
}
_BERT, _DISTILBERT, _MPNET = (
    {row[column]: row[0] for row in ENCODER_LAYER} for column in (1, 2, 3)
)

HUGGING_FACE_NAMES = {
    "llama": HuggingFaceNames(
        prefix="model.",
        layers="layers",
        modules={"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"},
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
        "bert.",
        "encoder.layer",
        {**EMBEDDINGS, "embeddings.token_type_embeddings": "token_types"},
        _BERT,
    ),
    "distilbert": HuggingFaceNames("distilbert.", "transformer.layer", EMBEDDINGS, _DISTILBERT),
    "mpnet": HuggingFaceNames(
        "mpnet.",
        "encoder.layer",
        {**EMBEDDINGS, "encoder.relative_attention_bias": "attn_rel_b"},
        _MPNET,
    ),
}
HUGGING_FACE_NAMES["roberta"] = replace(HUGGING_FACE_NAMES["bert"], prefix="roberta.")

FAMILIES = {
    "llama": "llama",
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",  # a RoBERTa with another vocabulary, as CamemBERT
    "camembert": "roberta",
    "distilbert": "distilbert",
    "mpnet": "mpnet",
}
"""`model_type` of config.json to the family, a key of `HUGGING_FACE_NAMES`."""
CLASSES = {
    "Llama": "llama",
    "Bert": "bert",
    "Roberta": "roberta",
    "XLMRoberta": "xlm-roberta",
    "Camembert": "camembert",
    "DistilBert": "distilbert",
    "MPNet": "mpnet",
}
"""How the classes in `architectures` of config.json begin, and their `model_type`."""


def canonical_name(family: str, stored_name: str) -> str | None:
    """Return GGUF's name of a tensor in Hugging Face's files; None if the family has no such one.

    Example:
        >>> canonical_name("llama", "model.layers.7.self_attn.q_proj.weight")
        'blk.7.attn_q.weight'
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
    """Return Hugging Face's name of the tensor `name`, without a prefix in an encoder.

    Raises:
        ModelNotSupported: for a tensor that the family does not have.

    Example:
        >>> hugging_face_name("bert", "blk.7.attn_q.weight")
        'encoder.layer.7.attention.self.query.weight'
    """
    names = HUGGING_FACE_NAMES[family]
    prefix = names.prefix if family == "llama" else ""
    module, _, suffix = name.rpartition(".")
    theirs = {ours: theirs for theirs, ours in names.modules.items()}
    if module in theirs:
        # lm_head is beside the model, not in it.
        return f"{'' if module == 'output' else prefix}{theirs[module]}.{suffix}"
    block, _, rest = module.removeprefix("blk.").partition(".")
    in_layer = {ours: theirs for theirs, ours in names.modules_of_a_layer.items()}
    if not block.isdecimal() or rest not in in_layer:
        raise ModelNotSupported(
            f"tensor {name!r:.80} is none that Hugging Face's {family} has; only --format "
            "gguf keeps it"
        )
    return f"{prefix}{names.layers}.{block}.{in_layer[rest]}.{suffix}"
