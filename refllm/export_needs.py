"""What a model must have to be exported: every tensor that its network asks for when it is loaded.

Without one of them no program computes anything, so nothing is written.
"""

from __future__ import annotations

from refllm.api import LlmRuntimeError
from refllm.bert import Bert
from refllm.config import bert_config, llama_config
from refllm.export_names import hugging_face_name
from refllm.llama import Llama
from refllm.parameters import Survey
from refllm.weights import Weights

__all__ = ["refuse_incomplete"]

MOST_NAMED = 8


def refuse_incomplete(weights: Weights) -> None:
    """Raise `LlmRuntimeError` naming the tensors that are missing, as the model's files call them.

    Errors: those of `refllm.config`, too, which knows how many layers there must be.
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
