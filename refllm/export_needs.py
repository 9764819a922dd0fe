"""What a model must have to be exported: every tensor that its network asks for when it is loaded.

    llama    token_embd.weight  output_norm.weight  blk.0.attn_q.weight  ...
    bert     the same, and a .bias for all but the tables that rows are only looked up in

Without one of them no program computes anything, so nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from refllm.api import LlmRuntimeError
from refllm.config import bert_config, llama_config
from refllm.export_hf import hugging_face_name
from refllm.weights import HUGGING_FACE_NAMES, Weights

__all__ = ["refuse_incomplete"]

# A llama without it multiplies with its embedding.
NOT_IN_ALL = frozenset({"output"})
TABLES = frozenset({"token_embd", "token_types", "position_embd", "attn_rel_b"})
MOST_NAMED = 8


def refuse_incomplete(weights: Weights) -> None:
    """Raise `LlmRuntimeError` naming the tensors that are missing, as the model's files call them.

    Errors: those of `refllm.config`, too, which knows how many layers there must be.
    """
    names = HUGGING_FACE_NAMES[weights.family]
    # The hyperparameters count the embedding's rows, so whether it is there comes first.
    _refuse_missing(weights, (name for name in names.modules.values() if name != "token_types"))
    if weights.architecture == "llama":
        n_layers = llama_config(weights).n_layers
    else:
        bert = bert_config(weights)
        n_layers = bert.n_layers
        if bert.n_token_types:
            _refuse_missing(weights, ["token_types"])
    in_a_layer = names.modules_of_a_layer.values()
    fused = {f"blk.{i}" for i in range(n_layers) if f"blk.{i}.attn_qkv.weight" in weights.tensors}
    _refuse_missing(
        weights,
        (
            f"blk.{i}.{module}"
            for i in range(n_layers)
            for module in in_a_layer
            if not (f"blk.{i}" in fused and module in ("attn_q", "attn_k", "attn_v"))
        ),
    )


def _refuse_missing(weights: Weights, modules: Iterable[str]) -> None:
    needed = _tensors_of(weights.architecture, modules)
    missing = [name for name in needed if name not in weights.tensors]
    if not missing:
        return
    named = [
        name if weights.source == "gguf" else hugging_face_name(weights.family, name)
        for name in missing[:MOST_NAMED]
    ]
    if len(missing) > MOST_NAMED:
        named.append(f"{len(missing) - MOST_NAMED} more")
    raise LlmRuntimeError(
        f"{weights.path}: lacks {', '.join(named)}, which a {weights.architecture} needs; "
        "download the whole model again, or convert it again"
    )


def _tensors_of(architecture: str, modules: Iterable[str]) -> Iterator[str]:
    """The names of what these modules cannot be without."""
    for module in modules:
        if module in NOT_IN_ALL:
            continue
        yield f"{module}.weight"
        if architecture == "bert" and module not in TABLES:
            yield f"{module}.bias"
