"""Hyperparameters: GGUF metadata or config.json → `LlamaConfig`, `BertConfig`.

    family        models                              config.json differs from a BERT's by
    llama         Llama and models with its network
    bert          BERT
    roberta       RoBERTa, XLM-RoBERTa, CamemBERT     positions behind `pad_token_id`
    distilbert    DistilBERT                          dim, hidden_dim, n_heads, n_layers, activation
    mpnet         MPNet                               positions behind 1, no token types

A GGUF file of architecture "bert" may hold a BERT, a RoBERTa or a DistilBERT: llama.cpp's converter
cuts the rows off a RoBERTa's table of positions that no text uses, and leaves token types out where
there are none. Such a file does not name the padding token, so all tokens of a text count.

The numbers and their keys are in `refllm.checkpoints.hyperparameters`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refllm.bert import BertConfig
from refllm.checkpoints.hyperparameters import (
    HYPERPARAMETERS,
    MAX_CONTEXT,
    MAX_ENCODER_CONTEXT,
    MAX_HEAD_DIM,
    MAX_WIDTH,
)
from refllm.checkpoints.open import Weights
from refllm.errors import LlmRuntimeError
from refllm.files.accounting.gguf_keys import ANY_GGUF, BERT_GGUF, LLAMA_GGUF
from refllm.files.accounting.json_keys import (
    ANY_CONFIG,
    BERT_CONFIGS,
    LLAMA_CONFIG,
    ROPE_PARAMETERS,
)
from refllm.files.accounting.keys import Keys
from refllm.files.accounting.ledger import Ledger
from refllm.llama import LlamaConfig
from refllm.parameters import Parameters
from refllm.rope import Llama3Scaling, YarnScaling

__all__ = ["HIDDEN_ACT", "bert_config", "llama_config"]

MAX_COMPUTED_CONTEXT = 1 << 20  # beyond, `sin_cos` is not exact, so a longer context ends there
SHORT_WINDOW = (
    "attention that sees fewer than the context's {} tokens; only full attention is computed"
)
MPNET_PADDING_ID = 1  # of MPNet's code in transformers, whatever config.json has

HIDDEN_ACT: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_10": "gelu_clipped",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    # √(2/π) to ten digits instead of sixteen, which float32 cannot tell apart.
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""`hidden_act` as `ACT2FN` of transformers 5.24 reads it: the key of `refllm.bert.ACTIVATIONS`."""

# The tensors that a key of config.json announces, by the ends of their names.
BIASES = {
    "attention_bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"),
    "mlp_bias": ("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
}


def _numbers(keys: Keys, weights: Weights) -> dict[str, Any]:
    """Return the numbers of `HYPERPARAMETERS`, by field."""
    is_gguf = weights.source == "gguf"
    numbers: dict[str, Any] = {}
    for row in HYPERPARAMETERS[weights.architecture if is_gguf else weights.family]:
        key = f"{weights.architecture}.{row.gguf}" if is_gguf else _one_of(keys, row.json)
        default: Any = None if is_gguf else row.default
        if row.derived is not None:
            default = row.derived(numbers)
        if row.maximum is None:
            numbers[row.field] = keys.number(key, default=default)
        else:
            numbers[row.field] = keys.integer(key, maximum=row.maximum, default=default)
    return numbers


def _one_of(keys: Keys, names: tuple[str, ...]) -> str:
    """Return the name that the file uses for a key; raise where it has two with two values."""
    used = [name for name in names if name in keys]
    if any(keys.get(name) != keys.get(used[0]) for name in used[1:]):
        raise keys.error(used[0], f"and {used[1]} must be the same, and differ")
    return used[0] if used else names[0]


# --- Llama ---------------------------------------------------------------------------------------


def llama_config(weights: Weights, *, ledger: Ledger | None = None) -> LlamaConfig:
    """Return the hyperparameters of a llama, each key of its file accounted for in `ledger`.

    Raises:
        LlmRuntimeError: naming a missing or impossible key.
        ModelNotSupported: naming a key that asks for what is not computed (experts, sliding
            windows, other kinds of RoPE).
    """
    read = _llama_from_gguf if weights.source == "gguf" else _llama_from_json
    config = read(weights, Ledger() if ledger is None else ledger)
    if config.n_heads % config.n_kv_heads:
        raise LlmRuntimeError(
            f"{weights.path}: {config.n_heads} heads cannot share {config.n_kv_heads} "
            "key/value heads evenly"
        )
    factors, n_pairs = config.rope_factors, config.rope_dim // 2
    if factors is not None and (
        len(factors) != n_pairs or not all(0 < factor < math.inf for factor in factors)
    ):
        raise _wrong_factors(n_pairs, weights.path)
    if config.rope_yarn is not None:
        try:
            config.rope_yarn.divisors(base=config.rope_theta, rope_dim=config.rope_dim)
        except ArithmeticError as error:
            base = "llama.rope.freq_base" if weights.source == "gguf" else "rope_theta"
            raise LlmRuntimeError(
                f"{weights.path}: YaRN has no frequencies for {base} = {config.rope_theta:g}, "
                f"factor {config.rope_yarn.factor:g}, beta_fast {config.rope_yarn.beta_fast:g} and "
                f"beta_slow {config.rope_yarn.beta_slow:g}"
            ) from error
    if config.rope_dim % 2 or config.rope_dim > config.head_dim:
        raise LlmRuntimeError(
            f"{weights.path}: RoPE turns {config.rope_dim} of a head's {config.head_dim} elements; "
            "it must be an even number of them"
        )
    return config


def _llama_from_gguf(weights: Weights, ledger: Ledger) -> LlamaConfig:
    keys = Keys(weights.path, weights.hparams, ledger=ledger, by="llama")
    numbers = _numbers(keys, weights)
    n_ctx, head_dim = numbers["n_ctx"], numbers["head_dim"]
    if keys.get("llama.attention.value_length", head_dim) != head_dim:
        keys.refuse("llama.attention.value_length", f"values as wide as keys, {head_dim}")
    key = "llama.attention.sliding_window"
    if 0 < keys.integer(key, maximum=MAX_CONTEXT, default=0, minimum=0) < n_ctx:
        keys.refuse(key, SHORT_WINDOW.format(n_ctx))
    rope_dim = keys.integer("llama.rope.dimension_count", maximum=MAX_HEAD_DIM, default=head_dim)
    config = LlamaConfig(
        **numbers | {"n_ctx": min(n_ctx, MAX_COMPUTED_CONTEXT)},
        n_vocab=Parameters(weights.path, weights.tensors).n_rows("token_embd.weight"),
        rope_dim=rope_dim,
        **_rope_of_gguf(keys, weights, n_ctx, rope_dim // 2),
    )
    keys.account(LLAMA_GGUF, unknown="refuse", among="llama.*")
    keys.account(ANY_GGUF, unknown="refuse", apart_from=("llama.*", "tokenizer.*"))
    return config


def _rope_of_gguf(keys: Keys, weights: Weights, n_ctx: int, n_pairs: int) -> dict[str, Any]:
    """Return RoPE as llama.cpp reads it, and YaRN's ramp and magnitude as the file has them.

    Without a type, a factor means linear scaling; `rope.scale_linear` is the factor's old name;
    a factor of 0 means none. Source: `load_hparams` in llama.cpp's src/llama-model.cpp. Its
    converter writes yarn_beta_fast, yarn_beta_slow and yarn_attn_factor, and llama.cpp 0.3.36
    reads none of the three for a llama; here they count.
    """
    theta = keys.number("llama.rope.freq_base", default=10000.0)
    kind = keys.text("llama.rope.scaling.type", default="linear")
    old = keys.number("llama.rope.scale_linear", default=0.0, zero=True)
    factor = keys.number("llama.rope.scaling.factor", default=old, zero=True) or 1.0
    attention_factor = keys.number("llama.rope.scaling.attn_factor", default=1.0)
    original_context = keys.integer(
        "llama.rope.scaling.original_context_length", maximum=MAX_CONTEXT, default=n_ctx
    )
    beta_fast = keys.number("llama.rope.scaling.yarn_beta_fast", default=32.0)
    beta_slow = keys.number("llama.rope.scaling.yarn_beta_slow", default=1.0)
    stretch = keys.get("llama.rope.scaling.yarn_attn_factor")
    stored = weights.tensors.get("rope_freqs.weight")
    factors = None
    if stored is not None:
        # Before it is decoded: some formats take a fifth of a byte for a number.
        if math.prod(stored.shape) != n_pairs:
            raise _wrong_factors(n_pairs, weights.path)
        factors = tuple(stored.array().ravel().tolist())
    rope: dict[str, Any] = {
        "rope_theta": theta,
        "rope_factors": factors,
        "rope_attention_factor": attention_factor,
    }
    match kind:
        case "none":
            pass
        case "linear":
            rope["rope_linear_scale"] = factor
        case "yarn":
            yarn = YarnScaling(factor, original_context, beta_fast, beta_slow)
            own = yarn.attention_factor()
            if stretch is not None:
                own = keys.number("llama.rope.scaling.yarn_attn_factor")
            rope |= {"rope_yarn": yarn, "rope_attention_factor": own * attention_factor}
        case _:
            keys.refuse(
                "llama.rope.scaling.type",
                "another stretch of RoPE than none, linear, yarn and Llama 3's",
            )
    return rope


def _llama_from_json(weights: Weights, ledger: Ledger) -> LlamaConfig:
    path = weights.path / "config.json"
    keys = Keys(path, weights.hparams, ledger=ledger, where="config.json", by="llama")
    for key in ("model_type", "architectures", "tie_word_embeddings", "vocab_size"):
        keys.get(key)  # read when the tensors were named
    for key in ("bos_token_id", "eos_token_id", "tokenizer_class"):
        keys.get(key)  # read by the tokenizer
    numbers = _numbers(keys, weights)
    n_ctx, head_dim = numbers["n_ctx"], numbers["head_dim"]
    window = keys.integer("sliding_window", maximum=MAX_CONTEXT, default=n_ctx)
    if window < n_ctx and keys.get("use_sliding_window", True):
        keys.refuse("sliding_window", SHORT_WINDOW.format(n_ctx))
    layer_types = keys.get("layer_types", [])
    if not isinstance(layer_types, list):
        raise keys.error("layer_types", f"must be an array, is {layer_types!r:.80}")
    if any(kind != "full_attention" for kind in layer_types):
        keys.refuse("layer_types", "layers without full attention")
    for key, suffixes in BIASES.items():
        _check_biases(keys, key, suffixes, weights)
    config = LlamaConfig(
        **numbers | {"n_ctx": min(n_ctx, MAX_COMPUTED_CONTEXT)},
        n_vocab=Parameters(weights.path, weights.tensors).n_rows("token_embd.weight"),
        rope_dim=head_dim,
        **_rope_of_json(keys, n_ctx, head_dim),
    )
    keys.account(LLAMA_CONFIG, ANY_CONFIG, unknown="warn")
    return config


def _check_biases(keys: Keys, key: str, suffixes: tuple[str, ...], weights: Weights) -> None:
    """Refuse a file whose biases and config.json contradict each other.

    transformers ignores a bias that config.json does not announce, and llama.cpp adds it.
    """
    announced = keys.flag(key, default=False)
    found = [name for name in weights.tensors if name.endswith(suffixes)]
    if announced and not found:
        raise keys.error(key, f"is true, and there is none of {', '.join(suffixes)}")
    if found and not announced:
        raise keys.error(
            key,
            f"is not true, and the file has {weights.stored_name(found[0])}; set it to true if "
            "the model was trained with biases, or remove the tensors",
        )


def _rope_of_json(keys: Keys, n_ctx: int, head_dim: int) -> dict[str, Any]:
    """Return RoPE as transformers 5.24 reads it, from `rope_scaling` or `rope_parameters`.

    `rope_parameters` is where version 5 gathers theta and the scaling.
    """
    old, new = keys.table("rope_scaling"), keys.table("rope_parameters")
    outer = keys.number("rope_theta", default=10000.0)
    table = old if old.values else new
    theta = table.number("rope_theta", default=outer)
    if old.values and new.values:
        # Written for two versions of transformers; both must mean the same.
        merged = [{"rope_theta": outer, **each.values} for each in (old, new)]
        if merged[0] != merged[1]:
            raise keys.error("rope_scaling", "and rope_parameters contradict each other; keep one")
    kind = table.get("rope_type", table.get("type", "default"))
    table.get("type")
    trained = keys.integer(
        "original_max_position_embeddings",
        maximum=MAX_CONTEXT,
        default=table.integer(
            "original_max_position_embeddings", maximum=MAX_CONTEXT, default=n_ctx
        ),
    )
    rope: dict[str, Any] = {"rope_theta": theta}
    match kind:
        case "default":
            pass
        case "linear":
            rope["rope_linear_scale"] = table.number("factor")
        case "dynamic":
            # The base grows with the text's length beyond max_position_embeddings, which is where
            # a context ends here: up to there this is RoPE as it is.
            table.number("factor")
        case "llama3":
            scaling = Llama3Scaling(
                factor=table.number("factor"),
                low_freq_factor=table.number("low_freq_factor"),
                high_freq_factor=table.number("high_freq_factor"),
                original_context=trained,
            )
            if scaling.low_freq_factor >= scaling.high_freq_factor:
                raise table.error("high_freq_factor", "must be greater than low_freq_factor")
            rope["rope_factors"] = scaling.factors(base=theta, rope_dim=head_dim)
        case "yarn":
            rope |= _yarn(table, n_ctx, trained)
        case _:
            table.refuse(
                "rope_type" if "rope_type" in table else "type",
                "another stretch of RoPE than default, linear, dynamic, llama3 and yarn",
            )
    table.account(ROPE_PARAMETERS, unknown="warn")
    return rope


def _yarn(table: Keys, n_ctx: int, trained: int) -> dict[str, Any]:
    """Return YaRN with transformers' defaults (`_compute_yarn_parameters`)."""
    yarn = YarnScaling(
        factor=table.number("factor", default=n_ctx / trained),
        original_context=trained,
        # 0 counts as absent, too.
        beta_fast=table.number("beta_fast", default=32.0, zero=True) or 32.0,
        beta_slow=table.number("beta_slow", default=1.0, zero=True) or 1.0,
        truncate=table.flag("truncate", default=True),
    )
    mscale = table.number("mscale", default=0.0, zero=True)
    mscale_all_dim = table.number("mscale_all_dim", default=0.0, zero=True)
    own = yarn.attention_factor()
    if mscale and mscale_all_dim:
        own = yarn.attention_factor(multiplier=mscale) / yarn.attention_factor(
            multiplier=mscale_all_dim
        )
    return {
        "rope_yarn": yarn,
        "rope_attention_factor": table.number("attention_factor", default=own),
    }


def _wrong_factors(n_pairs: int, path: Path) -> LlmRuntimeError:
    return LlmRuntimeError(
        f"{path}: rope_freqs.weight must hold {n_pairs} positive numbers, one for each pair "
        "of a head's rotated elements"
    )


# --- BERT and its family -------------------------------------------------------------------------


def bert_config(weights: Weights, *, ledger: Ledger | None = None) -> BertConfig:
    """Return the hyperparameters of a BERT encoder or of one of its family.

    Args:
        weights: The model's files.
        ledger: Where every key of config.json, or under "bert." of a GGUF file, is recorded.

    Raises:
        LlmRuntimeError: naming a key that is missing or has an impossible value.
        ModelNotSupported: naming a key that asks for what is not computed.
    """
    read = _bert_from_gguf if weights.source == "gguf" else _bert_from_json
    config = read(weights, ledger)
    if config.n_embd % config.n_heads:
        raise LlmRuntimeError(
            f"{weights.path}: a width of {config.n_embd} cannot be shared by {config.n_heads} heads"
        )
    return config


def _bert_from_gguf(weights: Weights, ledger: Ledger | None) -> BertConfig:
    values = {key: value for key, value in weights.hparams.items() if key != "bert.pooling_type"}
    keys = Keys(weights.path, values, ledger=ledger, where="metadata", by="bert")
    # llama.cpp's converter counts one row where there is no table at all.
    n_token_types = _n_token_types(weights)
    if n_token_types:
        count = "tokenizer.ggml.token_type_count"
        n_token_types = keys.integer(count, maximum=MAX_WIDTH, default=n_token_types)
    config = BertConfig(**_numbers(keys, weights), n_token_types=n_token_types)
    head_dim = config.n_embd // config.n_heads
    for key, computed, what in (
        ("bert.attention.head_count_kv", config.n_heads, "heads that share keys and values"),
        ("bert.attention.key_length", head_dim, "heads of another width than embedding / heads"),
        ("bert.attention.value_length", head_dim, "heads of another width than embedding / heads"),
    ):
        if key in keys and keys.integer(key, maximum=MAX_WIDTH) != computed:
            keys.refuse(key, f"{what}; only {computed} is computed")
    keys.account(BERT_GGUF, unknown="refuse", among="bert.*")
    keys.account(ANY_GGUF, unknown="refuse", apart_from=("bert.*", "tokenizer.*"))
    return config


def _bert_from_json(weights: Weights, ledger: Ledger | None) -> BertConfig:
    """Read config.json; without one, return the shape of all-MiniLM-L6-v2 as Spin assumes it."""
    if not weights.hparams:
        return BertConfig(
            n_ctx=512, n_embd=384, n_layers=6, n_heads=12, n_ff=1536, layer_norm_eps=1e-12
        )
    family, path = weights.family, weights.path / "config.json"
    keys = Keys(path, weights.hparams, ledger=ledger, where="config.json", by=family)
    # `refllm.checkpoints.open` chose the family by the first of these that the file has.
    keys.get("model_type" if "model_type" in keys else "architectures")
    keys.get("tokenizer_class")  # read by the tokenizer
    numbers = _numbers(keys, weights)
    padding_id = None
    if family == "roberta":
        if keys.values.get("pad_token_id", 1) is None:
            raise keys.error("pad_token_id", "must be a number, because positions begin behind it")
        padding_id = keys.integer("pad_token_id", maximum=MAX_ENCODER_CONTEXT, default=1, minimum=0)
    elif family == "mpnet":
        padding_id = MPNET_PADDING_ID
    first_position = 0 if padding_id is None else padding_id + 1
    n_positions = numbers["n_ctx"]
    if n_positions <= first_position:
        raise keys.error(
            "max_position_embeddings",
            f"must be greater than {first_position}, the position of a text's first token, "
            f"is {n_positions}",
        )
    n_token_types = 0
    if family in ("bert", "roberta"):
        n_rows = _n_token_types(weights) or 1
        n_token_types = keys.integer(
            "type_vocab_size", maximum=MAX_WIDTH, default=n_rows, minimum=0
        )
    activation = "activation" if family == "distilbert" else "hidden_act"
    hidden_act = keys.get(activation, "gelu")
    if not isinstance(hidden_act, str) or hidden_act not in HIDDEN_ACT:
        keys.refuse(activation, f"only {', '.join(HIDDEN_ACT)} are computed")
        hidden_act = "gelu"
    config = BertConfig(
        **{"layer_norm_eps": 1e-12, **numbers, "n_ctx": n_positions - first_position},
        activation=HIDDEN_ACT[hidden_act],
        n_token_types=n_token_types,
        padding_id=padding_id,
        relative_attention=family == "mpnet",
    )
    keys.account(BERT_CONFIGS[family], unknown="warn")
    return config


def _n_token_types(weights: Weights) -> int:
    """Return the number of rows of the table of token types, 0 without a table."""
    tensor = weights.tensors.get("token_types.weight")
    return tensor.shape[0] if tensor is not None and tensor.shape else 0
