"""Hyperparameters of a BERT and its family: GGUF metadata or config.json → `BertConfig`.

    family        models                              config.json differs from a BERT's by
    bert          BERT
    roberta       RoBERTa, XLM-RoBERTa, CamemBERT     positions behind `pad_token_id`
    distilbert    DistilBERT                          dim, hidden_dim, n_heads, n_layers, activation
    mpnet         MPNet                               positions behind 1, no token types

A GGUF file of architecture "bert" may hold any of the first three: llama.cpp's converter cuts the
rows off a RoBERTa's table of positions that no text uses, and leaves token types out where there
are none. Such a file does not name the padding token, so that all tokens of a text count.
"""

from __future__ import annotations

from collections.abc import Mapping

from refllm.bert import BertConfig
from refllm.checkpoints.open import Weights
from refllm.errors import LlmRuntimeError
from refllm.files.accounting.bert_keys import BERT_GGUF_KEYS, BERT_JSON_KEYS, LEFT_TO_POOLING
from refllm.files.accounting.gguf_keys import ANY_GGUF
from refllm.files.accounting.keys import Keys
from refllm.files.accounting.ledger import Ledger

__all__ = ["HIDDEN_ACT", "bert_config"]

# No model comes near these; a number beyond is a damaged file, and would cost memory to believe.
MOST_LAYERS = 1024  # BERT-large has 24; an account of so many missing ones takes a moment
MOST_HEADS = 65536
MOST_WIDTH = 1 << 20
MOST_CONTEXT = 1 << 20
MOST_TOKENS = 1 << 31

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

# MPNet's code has this padding token, whatever its config.json has.
MPNET_PADDING_ID = 1

KEYS = {
    "n_embd": ("hidden_size",),
    "n_layers": ("num_hidden_layers",),
    "n_heads": ("num_attention_heads",),
    "n_ff": ("intermediate_size",),
    "activation": ("hidden_act",),
}
# Where there are two names, transformers' `attribute_map` turns the second into the first.
DISTILBERT_KEYS = {
    "n_embd": ("dim", "hidden_size"),
    "n_layers": ("n_layers", "num_hidden_layers"),
    "n_heads": ("n_heads", "num_attention_heads"),
    "n_ff": ("hidden_dim",),
    "activation": ("activation",),
}


def bert_config(weights: Weights, *, ledger: Ledger | None = None) -> BertConfig:
    """Return the hyperparameters of a BERT encoder or of one of its family.

    Args:
        weights: The model's files.
        ledger: Where every key of config.json, or under "bert." of a GGUF file, is recorded.

    Raises:
        LlmRuntimeError: naming a key that is missing or has an impossible value.
        ModelNotSupported: naming a key that asks for what is not computed.
    """
    config = _from_gguf(weights, ledger) if weights.source == "gguf" else _from_hf(weights, ledger)
    if config.n_embd % config.n_heads:
        raise LlmRuntimeError(
            f"{weights.path}: a width of {config.n_embd} cannot be shared by {config.n_heads} heads"
        )
    return config


def _from_gguf(weights: Weights, ledger: Ledger | None) -> BertConfig:
    values = {key: value for key, value in weights.hparams.items() if key != LEFT_TO_POOLING}
    keys = Keys(weights.path, values, ledger=ledger, where="metadata", by="bert")
    # llama.cpp's converter counts one row where there is no table at all.
    n_token_types = _n_token_types(weights)
    if n_token_types:
        count = "tokenizer.ggml.token_type_count"
        n_token_types = keys.integer(count, most=MOST_WIDTH, default=n_token_types)
    config = BertConfig(
        n_ctx=keys.integer("bert.context_length", most=MOST_CONTEXT),
        n_embd=keys.integer("bert.embedding_length", most=MOST_WIDTH),
        n_layers=keys.integer("bert.block_count", most=MOST_LAYERS),
        n_heads=keys.integer("bert.attention.head_count", most=MOST_HEADS),
        n_ff=keys.integer("bert.feed_forward_length", most=MOST_WIDTH),
        layer_norm_eps=keys.number("bert.attention.layer_norm_epsilon"),
        n_token_types=n_token_types,
    )
    head_dim = config.n_embd // config.n_heads
    for key, computed, what in (
        ("bert.attention.head_count_kv", config.n_heads, "heads that share keys and values"),
        ("bert.attention.key_length", head_dim, "heads of another width than embedding / heads"),
        ("bert.attention.value_length", head_dim, "heads of another width than embedding / heads"),
    ):
        if key in keys and keys.integer(key, most=MOST_WIDTH) != computed:
            keys.refuse(key, f"{what}; only {computed} is computed")
    keys.account(BERT_GGUF_KEYS, unknown="refuse", among="bert.*")
    keys.account(ANY_GGUF, unknown="refuse", apart_from=("bert.*", "tokenizer.*"))
    return config


def _from_hf(weights: Weights, ledger: Ledger | None) -> BertConfig:
    """BERT from config.json; without one, the shape of all-MiniLM-L6-v2 as Spin assumes it."""
    if not weights.hparams:
        return BertConfig(
            n_ctx=512, n_embd=384, n_layers=6, n_heads=12, n_ff=1536, layer_norm_eps=1e-12
        )
    family = weights.family
    path = weights.path / "config.json"
    keys = Keys(path, weights.hparams, ledger=ledger, where="config.json", by=family)
    # `refllm.checkpoints.open` chose the family by the first of these that the file has.
    keys.get("model_type" if "model_type" in keys else "architectures")
    keys.get("tokenizer_class")  # read by the tokenizer
    names = {
        field: _the_name(keys, *names)
        for field, names in (DISTILBERT_KEYS if family == "distilbert" else KEYS).items()
    }
    n_positions = keys.integer("max_position_embeddings", most=MOST_CONTEXT)
    padding_id = None
    if family == "roberta":
        if keys.values.get("pad_token_id", 1) is None:
            raise keys.error("pad_token_id", "must be a number, because positions begin behind it")
        padding_id = keys.integer("pad_token_id", most=MOST_CONTEXT, default=1, least=0)
    elif family == "mpnet":
        padding_id = MPNET_PADDING_ID
    first_position = 0 if padding_id is None else padding_id + 1
    if n_positions <= first_position:
        raise keys.error(
            "max_position_embeddings",
            f"must be greater than {first_position}, the position of a text's first token, "
            f"is {n_positions}",
        )
    n_token_types = 0
    if family in ("bert", "roberta"):
        n_rows = _n_token_types(weights) or 1
        n_token_types = keys.integer("type_vocab_size", most=MOST_WIDTH, default=n_rows, least=0)
    eps = 1e-12
    if family != "distilbert":
        eps = keys.number("layer_norm_eps", default=eps)
    hidden_act = keys.get(names["activation"], "gelu")
    if not isinstance(hidden_act, str) or hidden_act not in HIDDEN_ACT:
        keys.refuse(names["activation"], f"only {', '.join(HIDDEN_ACT)} are computed")
        hidden_act = "gelu"
    config = BertConfig(
        n_ctx=n_positions - first_position,
        n_embd=keys.integer(names["n_embd"], most=MOST_WIDTH),
        n_layers=keys.integer(names["n_layers"], most=MOST_LAYERS),
        n_heads=keys.integer(names["n_heads"], most=MOST_HEADS),
        n_ff=keys.integer(names["n_ff"], most=MOST_WIDTH),
        layer_norm_eps=eps,
        activation=HIDDEN_ACT[hidden_act],
        n_token_types=n_token_types,
        padding_id=padding_id,
        relative_attention=family == "mpnet",
    )
    keys.account(BERT_JSON_KEYS[family], unknown="warn")
    return config


def _the_name(keys: Keys, name: str, *others: str) -> str:
    """Return the name that the file uses for a key; raise where it has two with two values."""
    used = [each for each in (name, *others) if each in keys]
    if any(keys.get(each) != keys.get(used[0]) for each in used[1:]):
        raise keys.error(used[0], f"and {used[1]} must be the same, and differ")
    return used[0] if used else name


def _n_token_types(weights: Weights) -> int:
    """Return how many rows the table of token types has, 0 where there is none."""
    tensor = weights.tensors.get("token_types.weight")
    return tensor.shape[0] if tensor is not None and tensor.shape else 0
