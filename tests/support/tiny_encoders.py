"""Complete random models of BERT's family: RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, MPNet.

They are folders as transformers saves them, without a tokenizer. The numbers are a function of the
seed and the shape alone, and a kind's tensors are known by GGUF's names, as
`tests.support.tiny_bert` has them; MPNet's bias is "attn_rel_b.weight".

Letters: D model width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.model_formats import (
    random_matrix,
    safetensors_tensor,
    write_config,
    write_safetensors,
)
from tests.support.tiny_bert import HF_BERT, tiny_bert_tensors

__all__ = ["ENCODERS", "Encoder", "encoder_tensors", "tiny_encoder_folder"]

Array = NDArray[np.float32]
N_VOCAB = 60
N_POSITIONS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A kind of model: how its config.json and its tensors are called.

    Attributes:
        model_type: The one of config.json.
        prefix: What stands before a tensor's name in a model that was saved with a head.
        layers: Where the layers are.
        names: Hugging Face's name of a module, by GGUF's name.
        config: What config.json has besides.
    """

    model_type: str
    prefix: str
    layers: str
    names: Mapping[str, str]
    config: Mapping[str, object]


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": N_VOCAB,
    "max_position_embeddings": N_POSITIONS,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
WITHOUT_TYPES = {name: theirs for name, theirs in HF_BERT.items() if name != "token_types"}
ENCODERS = {
    "bert": Encoder(
        model_type="bert",
        prefix="bert.",
        layers="encoder.layer",
        names=HF_BERT,
        config={**SHAPE, "type_vocab_size": 2, "pad_token_id": 0},
    ),
    "roberta": Encoder(
        model_type="roberta",
        prefix="roberta.",
        layers="encoder.layer",
        names=HF_BERT,
        config={**SHAPE, "type_vocab_size": 1, "pad_token_id": 1},
    ),
    "xlm-roberta": Encoder(
        model_type="xlm-roberta",
        prefix="roberta.",
        layers="encoder.layer",
        names=HF_BERT,
        config={**SHAPE, "type_vocab_size": 2, "pad_token_id": 1},
    ),
    "camembert": Encoder(
        model_type="camembert",
        prefix="roberta.",
        layers="encoder.layer",
        names=HF_BERT,
        config={**SHAPE, "type_vocab_size": 1, "pad_token_id": 3},
    ),
    "distilbert": Encoder(
        model_type="distilbert",
        prefix="distilbert.",
        layers="transformer.layer",
        names={
            "token_embd": "embeddings.word_embeddings",
            "position_embd": "embeddings.position_embeddings",
            "token_embd_norm": "embeddings.LayerNorm",
            "attn_q": "attention.q_lin",
            "attn_k": "attention.k_lin",
            "attn_v": "attention.v_lin",
            "attn_output": "attention.out_lin",
            "attn_output_norm": "sa_layer_norm",
            "ffn_up": "ffn.lin1",
            "ffn_down": "ffn.lin2",
            "layer_output_norm": "output_layer_norm",
        },
        config={
            "dim": 32,
            "hidden_dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "vocab_size": N_VOCAB,
            "max_position_embeddings": N_POSITIONS,
            "activation": "gelu",
            "sinusoidal_pos_embds": False,
            "pad_token_id": 0,
        },
    ),
    "mpnet": Encoder(
        model_type="mpnet",
        prefix="mpnet.",
        layers="encoder.layer",
        names={
            **WITHOUT_TYPES,
            "attn_rel_b": "encoder.relative_attention_bias",
            "attn_q": "attention.attn.q",
            "attn_k": "attention.attn.k",
            "attn_v": "attention.attn.v",
            "attn_output": "attention.attn.o",
            "attn_output_norm": "attention.LayerNorm",
        },
        config={**SHAPE, "relative_attention_num_buckets": 32, "pad_token_id": 1},
    ),
}


def encoder_tensors(kind: str, *, n_token_types: int | None = None) -> dict[str, Array]:
    """A model's float32 tensors under GGUF's names."""
    encoder = ENCODERS[kind]
    tensors = tiny_bert_tensors(n_ctx=N_POSITIONS, n_vocab=N_VOCAB, seed=len(kind))
    if n_token_types is None:
        n_token_types = int(str(encoder.config.get("type_vocab_size", 0)))
    tensors["token_types.weight"] = tensors["token_types.weight"][:n_token_types]
    if "attn_rel_b" in encoder.names:
        random = np.random.default_rng(5)
        tensors["attn_rel_b.weight"] = 10 * random_matrix(random, 32, 4)  # [buckets, H]
    return {
        name: array
        for name, array in tensors.items()
        if name.startswith("blk.")
        or name.removesuffix(".weight").removesuffix(".bias") in encoder.names
    }


def tiny_encoder_folder(
    folder: Path,
    kind: str,
    *,
    prefix: str = "",
    suffixes: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
    tensors: Mapping[str, Array | None] | None = None,
) -> Path:
    """Write config.json and model.safetensors of a kind of `ENCODERS`, return `folder`.

    `suffixes` renames "LayerNorm.weight" and the like; `tensors` replaces some by GGUF's names or
    leaves them out, or adds others under their stored names.
    """
    encoder = ENCODERS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Array] = {}
    for name, array in ({**encoder_tensors(kind), **dict(tensors or {})}).items():
        if array is None:
            continue
        module, _, suffix = name.rpartition(".")
        _, _, in_layer = module.removeprefix("blk.").partition(".")
        ours = in_layer if module.startswith("blk.") else module
        if ours not in encoder.names:
            stored[name] = array
            continue
        where = f"{encoder.layers}.{module.split('.')[1]}." if in_layer else ""
        theirs = f"{where}{encoder.names[ours]}.{suffix}"
        for old, new in (suffixes or {}).items():
            theirs = theirs.replace(old, new)
        stored[prefix + theirs] = array
    write_safetensors(
        folder / "model.safetensors",
        {name: safetensors_tensor(array, "F32") for name, array in stored.items()},
        {"format": "pt"},
    )
    message = {"model_type": encoder.model_type, **encoder.config, **dict(config or {})}
    write_config(folder, message)
    return folder
