"""What Hugging Face calls a tensor, from GGUF's name for it."""

from __future__ import annotations

from refllm.api import ModelNotSupported
from refllm.weights import HUGGING_FACE_NAMES

__all__ = ["hugging_face_name"]

OUTPUT = "output"


def hugging_face_name(family: str, name: str) -> str:
    """What Hugging Face calls the tensor `name`; undoes `refllm.weights.canonical_name`.

    "blk.7.attn_q.weight" → "model.layers.7.self_attn.q_proj.weight"; an encoder's have no prefix.
    Errors: `ModelNotSupported` for a tensor that the family does not have there.
    """
    names = HUGGING_FACE_NAMES[family]
    prefix = names.prefix if family == "llama" else ""
    module, _, suffix = name.rpartition(".")
    theirs = {ours: theirs for theirs, ours in names.modules.items()}
    if module in theirs:
        # lm_head lies beside the model, not in it.
        return f"{'' if module == OUTPUT else prefix}{theirs[module]}.{suffix}"
    block, _, rest = module.removeprefix("blk.").partition(".")
    in_layer = {ours: theirs for theirs, ours in names.modules_of_a_layer.items()}
    if not block.isdecimal() or rest not in in_layer:
        raise ModelNotSupported(
            f"tensor {name!r:.80} is none that Hugging Face's {family} has; only --format "
            "gguf keeps it"
        )
    return f"{prefix}{names.layers}.{block}.{in_layer[rest]}.{suffix}"
