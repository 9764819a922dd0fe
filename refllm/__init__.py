"""refllm: the reference implementation of Spin's Serverless AI interface.

    import refllm
    model = refllm.load("tiny-chat")                 a model with its tokenizer
    refllm.infer("tiny-chat", "Once upon a time")    what a Spin application calls

The files beside this one are the textbook: `api`, `generate`, `sampling`, `llama`, `bert`, `rope`,
`quant` and `oracle`, which every kernel must equal in every bit. Folders have everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refllm.api import (
    EmbeddingsResult,
    EmbeddingsUsage,
    Engine,
    InferencingParams,
    InferencingResult,
    InferencingUsage,
    InvalidInput,
    LlmError,
    LlmRuntimeError,
    ModelNotSupported,
    generate_embeddings,
    infer,
    infer_with_options,
)
from refllm.interface import NUMERICS_REVISION

if TYPE_CHECKING:
    from refllm.engine import LocalEngine
    from refllm.models.load import BertModel, LlamaModel, load

__all__ = [
    "NUMERICS_REVISION",
    "BertModel",
    "EmbeddingsResult",
    "EmbeddingsUsage",
    "Engine",
    "InferencingParams",
    "InferencingResult",
    "InferencingUsage",
    "InvalidInput",
    "LlamaModel",
    "LlmError",
    "LlmRuntimeError",
    "LocalEngine",
    "ModelNotSupported",
    "__version__",
    "generate_embeddings",
    "infer",
    "infer_with_options",
    "load",
]

__version__ = "0.1.0"

# Imported lazily: numba and tokenizers take about a second to import.
_LAZY = {
    "BertModel": "refllm.models.load",
    "LlamaModel": "refllm.models.load",
    "LocalEngine": "refllm.engine",
    "load": "refllm.models.load",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'refllm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
