"""The hyperparameters of a llama: GGUF metadata or config.json → `LlamaConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from refllm.checkpoints.open import Weights
from refllm.errors import LlmRuntimeError
from refllm.files.accounting.gguf_keys import ANY_GGUF, LLAMA_GGUF
from refllm.files.accounting.json_keys import ANY_CONFIG, LLAMA_CONFIG, ROPE_PARAMETERS
from refllm.files.accounting.keys import Keys
from refllm.files.accounting.ledger import Ledger
from refllm.llama import LlamaConfig
from refllm.parameters import Parameters
from refllm.rope import Llama3Scaling, YarnScaling

__all__ = ["llama_config"]

# No model comes near these; a number beyond is a damaged file, and would cost memory to believe.
MOST_LAYERS = 1024  # Llama 3.1 405B has 126; an account of so many missing ones takes a moment
MOST_HEADS = 65536
MOST_WIDTH = 1 << 20
MOST_HEAD_DIM = 4096  # 576 is the largest known; each pair of elements costs decimal arithmetic
MOST_CONTEXT = 1 << 31
# Beyond 2^20 positions `sin_cos` is not exact any more, so a longer context ends there.
LONGEST_COMPUTED = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """What a file says of RoPE, in the terms of `LlamaConfig`."""

    theta: float = 10000.0
    linear_scale: float = 1.0
    factors: tuple[float, ...] | None = None
    yarn: YarnScaling | None = None
    attention_factor: float = 1.0


def llama_config(weights: Weights, *, ledger: Ledger | None = None) -> LlamaConfig:
    """Return the hyperparameters of a llama, each key of its file accounted for in `ledger`.

    Raises:
        LlmRuntimeError: naming a missing or impossible key.
        ModelNotSupported: naming a key that asks for what is not computed (experts, sliding
            windows, other kinds of RoPE).
    """
    read = _from_gguf if weights.source == "gguf" else _from_config_json
    config = read(weights, Ledger() if ledger is None else ledger)
    if config.n_heads % config.n_kv_heads:
        raise LlmRuntimeError(
            f"{weights.path}: {config.n_heads} heads cannot share {config.n_kv_heads} "
            "key/value heads evenly"
        )
    _check_factors(config.rope_factors, config.rope_dim // 2, weights.path)
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


def _from_gguf(weights: Weights, ledger: Ledger) -> LlamaConfig:
    keys = Keys(weights.path, weights.hparams, ledger=ledger, by="llama")
    n_ctx = keys.integer("llama.context_length", most=MOST_CONTEXT)
    n_embd = keys.integer("llama.embedding_length", most=MOST_WIDTH)
    n_heads = keys.integer("llama.attention.head_count", most=MOST_HEADS)
    head_dim = keys.integer(
        "llama.attention.key_length", most=MOST_HEAD_DIM, default=n_embd // n_heads or 1
    )
    if keys.get("llama.attention.value_length", head_dim) != head_dim:
        keys.refuse("llama.attention.value_length", f"values as wide as keys, {head_dim}")
    window = keys.integer("llama.attention.sliding_window", most=MOST_CONTEXT, default=0, least=0)
    if 0 < window < n_ctx:
        keys.refuse(
            "llama.attention.sliding_window",
            f"attention that sees fewer than the context's {n_ctx} tokens; only full attention "
            "is computed",
        )
    rope_dim = keys.integer("llama.rope.dimension_count", most=MOST_HEAD_DIM, default=head_dim)
    rope = _rope_of_gguf(keys, weights, n_ctx, rope_dim // 2)
    config = LlamaConfig(
        n_vocab=Parameters(weights.path, weights.tensors).n_rows("token_embd.weight"),
        n_ctx=min(n_ctx, LONGEST_COMPUTED),
        n_embd=n_embd,
        n_layers=keys.integer("llama.block_count", most=MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=keys.integer("llama.attention.head_count_kv", most=MOST_HEADS, default=n_heads),
        head_dim=head_dim,
        n_ff=keys.integer("llama.feed_forward_length", most=MOST_WIDTH),
        rms_norm_eps=keys.number("llama.attention.layer_norm_rms_epsilon"),
        rope_dim=rope_dim,
        rope_theta=rope.theta,
        rope_linear_scale=rope.linear_scale,
        rope_factors=rope.factors,
        rope_yarn=rope.yarn,
        rope_attention_factor=rope.attention_factor,
    )
    keys.account(LLAMA_GGUF, unknown="refuse", among="llama.*")
    keys.account(ANY_GGUF, unknown="refuse", apart_from=("llama.*", "tokenizer.*"))
    return config


def _rope_of_gguf(keys: Keys, weights: Weights, n_ctx: int, n_pairs: int) -> Rope:
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
        "llama.rope.scaling.original_context_length", most=MOST_CONTEXT, default=n_ctx
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
    match kind:
        case "none":
            return Rope(theta=theta, factors=factors, attention_factor=attention_factor)
        case "linear":
            return Rope(
                theta=theta,
                linear_scale=factor,
                factors=factors,
                attention_factor=attention_factor,
            )
        case "yarn":
            yarn = YarnScaling(factor, original_context, beta_fast, beta_slow)
            own = (
                yarn.attention_factor()
                if stretch is None
                else keys.number("llama.rope.scaling.yarn_attn_factor")
            )
            return Rope(
                theta=theta,
                factors=factors,
                yarn=yarn,
                attention_factor=own * attention_factor,
            )
    keys.refuse(
        "llama.rope.scaling.type", "another stretch of RoPE than none, linear, yarn and Llama 3's"
    )
    return Rope(theta=theta)


def _from_config_json(weights: Weights, ledger: Ledger) -> LlamaConfig:
    path = weights.path / "config.json"
    keys = Keys(path, weights.hparams, ledger=ledger, where="config.json", by="llama")
    for key in ("model_type", "architectures", "tie_word_embeddings", "vocab_size"):
        keys.get(key)  # read when the tensors were named
    for key in ("bos_token_id", "eos_token_id", "tokenizer_class"):
        keys.get(key)  # read by the tokenizer
    n_embd = keys.integer("hidden_size", most=MOST_WIDTH)
    n_heads = keys.integer("num_attention_heads", most=MOST_HEADS)
    head_dim = keys.integer("head_dim", most=MOST_HEAD_DIM, default=n_embd // n_heads or 1)
    n_ctx = keys.integer("max_position_embeddings", most=MOST_CONTEXT, default=2048)
    window = keys.integer("sliding_window", most=MOST_CONTEXT, default=n_ctx)
    if window < n_ctx and keys.get("use_sliding_window", True):
        keys.refuse(
            "sliding_window",
            f"attention that sees fewer than the context's {n_ctx} tokens; only full attention "
            "is computed",
        )
    layer_types = keys.get("layer_types", [])
    if not isinstance(layer_types, list):
        raise keys.error("layer_types", f"must be an array, is {layer_types!r:.80}")
    if any(kind != "full_attention" for kind in layer_types):
        keys.refuse("layer_types", "layers without full attention")
    for key, suffixes in BIASES.items():
        _check_biases(keys, key, suffixes, weights)
    rope = _rope_of_config_json(keys, n_ctx, head_dim)
    config = LlamaConfig(
        n_vocab=Parameters(weights.path, weights.tensors).n_rows("token_embd.weight"),
        n_ctx=min(n_ctx, LONGEST_COMPUTED),
        n_embd=n_embd,
        n_layers=keys.integer("num_hidden_layers", most=MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=keys.integer("num_key_value_heads", most=MOST_HEADS, default=n_heads),
        head_dim=head_dim,
        n_ff=keys.integer("intermediate_size", most=MOST_WIDTH),
        rms_norm_eps=keys.number("rms_norm_eps", default=1e-6),
        rope_dim=head_dim,
        rope_theta=rope.theta,
        rope_linear_scale=rope.linear_scale,
        rope_factors=rope.factors,
        rope_yarn=rope.yarn,
        rope_attention_factor=rope.attention_factor,
    )
    keys.account(LLAMA_CONFIG, ANY_CONFIG, unknown="warn")
    return config


# The tensors that a key of config.json announces, by the ends of their names.
BIASES = {
    "attention_bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"),
    "mlp_bias": ("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
}


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


def _rope_of_config_json(keys: Keys, n_ctx: int, head_dim: int) -> Rope:
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
        most=MOST_CONTEXT,
        default=table.integer("original_max_position_embeddings", most=MOST_CONTEXT, default=n_ctx),
    )
    rope = Rope(theta=theta)
    match kind:
        case "default":
            pass
        case "linear":
            rope = Rope(theta=theta, linear_scale=table.number("factor"))
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
            rope = Rope(theta=theta, factors=scaling.factors(base=theta, rope_dim=head_dim))
        case "yarn":
            rope = _yarn(table, theta, n_ctx, trained)
        case _:
            table.refuse(
                "rope_type" if "rope_type" in table else "type",
                "another stretch of RoPE than default, linear, dynamic, llama3 and yarn",
            )
    table.account(ROPE_PARAMETERS, unknown="warn")
    return rope


def _yarn(table: Keys, theta: float, n_ctx: int, trained: int) -> Rope:
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
    return Rope(
        theta=theta,
        yarn=yarn,
        attention_factor=table.number("attention_factor", default=own),
    )


def _check_factors(factors: tuple[float, ...] | None, n_pairs: int, path: Path) -> None:
    """Refuse frequency factors that are not one positive number for each pair."""
    if factors is None:
        return
    if len(factors) != n_pairs or not all(0 < factor < math.inf for factor in factors):
        raise _wrong_factors(n_pairs, path)


def _wrong_factors(n_pairs: int, path: Path) -> LlmRuntimeError:
    return LlmRuntimeError(
        f"{path}: rope_freqs.weight must hold {n_pairs} positive numbers, one for each pair "
        "of a head's rotated elements"
    )
