"""What a model must have to be exported: every tensor that its network asks for when it is loaded.

Without one of them no program computes anything, so nothing is written.
"""

from __future__ import annotations

from refllm.bert import Bert
from refllm.checkpoints.config_bert import bert_config
from refllm.checkpoints.config_llama import llama_config
from refllm.checkpoints.names import hugging_face_name
from refllm.checkpoints.open import Weights
from refllm.errors import LlmRuntimeError
from refllm.llama import Llama
from refllm.parameters import Survey

__all__ = ["refuse_incomplete"]

MOST_NAMED = 8


def refuse_incomplete(weights: Weights) -> None:
    """Raise `LlmRuntimeError` naming the tensors that are missing, as the model's files call them.

    Errors: those of `refllm.checkpoints.config`, too, which knows how many layers there must be.
    """
    survey = Survey(weights.path, weights.tensors, others=weights.others)
    # The hyperparameters count the embedding's rows, so whether it is there comes first.
    missing = [name for name in ("token_embd.weight",) if name not in weights.tensors]
    if not missing and weights.architecture == "llama":
        Llama(llama_config(weights), survey)
    elif not missing:
        Bert(bert_config(weights), survey)
    missing += survey.missing
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
