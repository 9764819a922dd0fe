"""config.json from a model's hyperparameters, whichever file they come from.

No key of the source's config.json is copied: one that refllm did not read changes no result, and
may describe the source's files wrongly for the export.
"""

from __future__ import annotations

from collections.abc import Mapping

from refllm.bert import BertConfig
from refllm.checkpoints.hyperparameters import HYPERPARAMETERS
from refllm.checkpoints.names import CLASSES
from refllm.checkpoints.open import Weights
from refllm.errors import ModelNotSupported
from refllm.export.model import NOT_IN_SPIN, Description, refuse_any
from refllm.llama import LlamaConfig
from refllm.rope import Llama3Scaling

__all__ = [
    "DTYPES",
    "N_ZERO_TYPES",
    "config_json",
    "has_biases",
    "has_mlp_biases",
    "refuse_what_spin_cannot",
]

DTYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# transformers' oldest name for each of `refllm.bert.ACTIVATIONS`.
ACTIVATION_NAMES: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_clipped": "gelu_10",
    "gelu_tanh": "gelu_new",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
ATTENTION_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
MLP_BIASES = ("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias")
# What every model of the family has: Llama 3.1 and 3.3 with the first factor, 3.2 with the second.
LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_CONTEXT = 1.0, 4.0, 8192
LLAMA3_FACTORS = (8.0, 32.0)
N_ZERO_TYPES = 2  # rows of token types in a BERT that has none: as many as in any BERT


def config_json(model: Description, *, type_name: str) -> dict[str, object]:
    """Return the content of config.json for weights in a type of `DTYPES`.

    Raises:
        ModelNotSupported: if RoPE rotates a part of a head, or by divisors that are not Llama 3's:
            config.json has no key for it.
    """
    if isinstance(model.config, LlamaConfig):
        keys, suffix = _llama(model, model.config), "ForCausalLM"  # the class that computes logits
    else:
        keys, suffix = _encoder(model, model.config), "Model"
    start = next(start for start, kind in CLASSES.items() if kind == model.model_type)
    return {**keys, "architectures": [start + suffix], "torch_dtype": DTYPES[type_name]}


def has_biases(weights: Weights) -> bool:
    """Return whether the attention has any; Hugging Face then has all four of a layer."""
    return any(name.endswith((*ATTENTION_BIASES, "attn_qkv.bias")) for name in weights.tensors)


def has_mlp_biases(weights: Weights) -> bool:
    """Return whether the feed-forward network has any; Hugging Face then has three in a layer."""
    return any(name.endswith(MLP_BIASES) for name in weights.tensors)


def refuse_what_spin_cannot(model: Description) -> None:
    """Raise `ModelNotSupported` for a model of which Spin's engine would ignore a part.

    Source: `LlamaConfig`, `Llama::load` and `BertModel` in candle-transformers, which Spin uses.
    """
    weights, config = model.weights, model.config
    if isinstance(config, LlamaConfig):
        ignored = {
            "biases in its attention": has_biases(weights),
            "biases in its feed-forward network": has_mlp_biases(weights),
            f"heads of {config.head_dim}": config.head_dim * config.n_heads != config.n_embd,
            "linear scaling of RoPE": config.rope_linear_scale != 1.0,
            "YaRN": config.rope_yarn is not None or config.rope_attention_factor != 1.0,
        }
    else:
        ignored = {
            f"an encoder of the kind {model.model_type}": weights.family != "bert",
            f"the activation {config.activation}": config.activation != "gelu",
        }
    refuse_any(model, ignored, NOT_IN_SPIN)


def _llama(model: Description, c: LlamaConfig) -> dict[str, object]:
    weights, ends = model.weights, model.words.ends
    if c.rope_dim != c.head_dim:
        raise ModelNotSupported(
            f"{weights.path}: RoPE turns {c.rope_dim} of a head's {c.head_dim} elements, which "
            "config.json cannot say of a llama; only --format gguf can"
        )
    eos_ids = sorted(ends.eos_ids)
    optional = {
        "bos_token_id": ends.bos_id,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids or None,
        "rope_scaling": _rope_scaling(weights, c),
    }
    return {
        "model_type": "llama",
        "vocab_size": c.n_vocab,
        **_numbers("llama", c, hidden_act="silu"),
        "rope_theta": c.rope_theta,
        "attention_bias": has_biases(weights),
        "mlp_bias": has_mlp_biases(weights),
        "tie_word_embeddings": "output.weight" not in weights.tensors,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _rope_scaling(weights: Weights, config: LlamaConfig) -> dict[str, object] | None:
    """Return rope_scaling as a folder has it, under either name, or from a GGUF file's numbers."""
    if weights.source == "hf":
        return _named_scaling(weights, config)
    stretches = (
        config.rope_factors is not None,
        config.rope_linear_scale != 1.0,
        config.rope_yarn is not None,
    )
    if sum(stretches) > 1 or (config.rope_attention_factor != 1.0 and config.rope_yarn is None):
        raise ModelNotSupported(
            f"{weights.path}: RoPE is stretched in two ways, or longer without YaRN, and "
            "config.json can name one way; only --format gguf keeps it"
        )
    if config.rope_factors is not None:
        return _llama3(weights, config, config.rope_factors)
    if config.rope_yarn is not None:
        return {
            "rope_type": "yarn",
            "factor": config.rope_yarn.factor,
            "original_max_position_embeddings": config.rope_yarn.original_context,
            "beta_fast": config.rope_yarn.beta_fast,
            "beta_slow": config.rope_yarn.beta_slow,
            "truncate": config.rope_yarn.truncate,
            "attention_factor": config.rope_attention_factor,
        }
    if config.rope_linear_scale != 1.0:
        return {"rope_type": "linear", "factor": config.rope_linear_scale}
    return None


def _named_scaling(weights: Weights, config: LlamaConfig) -> dict[str, object] | None:
    """Return a folder's own parameters, all in one table and under their current names."""
    hparams = weights.hparams
    table = dict(hparams.get("rope_scaling") or hparams.get("rope_parameters") or {})
    table.pop("rope_theta", None)
    old_name = table.pop("type", "default")
    kind = table.setdefault("rope_type", old_name)
    if kind == "default":
        return None
    # It has a place beside the table, too, which comes first, and is the context by default.
    trained = hparams.get("original_max_position_embeddings")
    if trained is not None:
        table["original_max_position_embeddings"] = trained
    elif kind in ("llama3", "yarn"):
        table.setdefault("original_max_position_embeddings", config.n_ctx)
    return table


def _llama3(weights: Weights, config: LlamaConfig, factors: tuple[float, ...]) -> dict[str, object]:
    """Return the parameters of exactly these divisors; the longest waves are divided by factor."""
    for factor in (max(factors), *LLAMA3_FACTORS):
        scaling = Llama3Scaling(factor, LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_CONTEXT)
        if scaling.factors(base=config.rope_theta, rope_dim=config.rope_dim) == factors:
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            }
    raise ModelNotSupported(
        f"{weights.path}: rope_freqs.weight is not Llama 3's scaling, and config.json can name no "
        "other; only --format gguf keeps it"
    )


def _encoder(model: Description, c: BertConfig) -> dict[str, object]:
    """Return the keys of the model's own family, see `refllm.checkpoints.config`."""
    family = model.weights.family
    activation = "activation" if family == "distilbert" else "hidden_act"
    keys: dict[str, object] = {
        "model_type": model.model_type,
        "vocab_size": model.n_vocab,
        **_numbers(family, c, **{activation: ACTIVATION_NAMES[c.activation]}),
    }
    if c.padding_id is not None:
        keys["max_position_embeddings"] = c.padding_id + 1 + c.n_ctx
        keys["pad_token_id"] = c.padding_id
    if family == "distilbert":
        return {**keys, "sinusoidal_pos_embds": False}
    if family == "mpnet":
        return {**keys, "relative_attention_num_buckets": 32}
    # A BERT without token types is written with a table of zeros, see `refllm.export.huggingface`.
    return {
        **keys,
        "type_vocab_size": c.n_token_types or N_ZERO_TYPES,
        "position_embedding_type": "absolute",
    }


def _numbers(family: str, config: LlamaConfig | BertConfig, **activation: str) -> dict[str, object]:
    """Return the keys of `HYPERPARAMETERS`, the activation between integers and floats."""
    rows = HYPERPARAMETERS[family]
    numbers = [(row, getattr(config, row.field)) for row in rows]
    return {
        **{row.json[0]: number for row, number in numbers if row.maximum is not None},
        **activation,
        **{row.json[0]: number for row, number in numbers if row.maximum is None},
    }
