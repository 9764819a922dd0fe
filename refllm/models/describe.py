"""What a model is, read from its files without loading the weights.

`describe` returns everything about one model, `overview` one line of a list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from refllm.checkpoints.chat_template import chat_template_of
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.open import open_weights
from refllm.checkpoints.sentence_config import sentence_config
from refllm.errors import LlmError, LlmRuntimeError
from refllm.files.accounting.ledger import Ledger
from refllm.models.bundled import is_bundled, is_unchanged
from refllm.models.find import FoundModel
from refllm.models.load import load_path, load_tokenizer
from refllm.models.pull import PUBLISHED, require_published
from refllm.pooling import Normalize
from refllm.quant import Tensor

__all__ = ["Description", "Overview", "Stored", "describe", "overview", "verify"]

KIND: Mapping[str, Literal["inferencing", "embedding"]] = {
    "llama": "inferencing",
    "bert": "embedding",
}
FLOAT_BYTES = 4
ROWS_AT_A_TIME = 1024


@dataclass(frozen=True, slots=True)
class Stored:
    """The sums over the tensors of one type."""

    n_tensors: int
    n_parameters: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A model, as `refllm models show` prints it.

    Attributes:
        path: The file or folder.
        kind: "inferencing" or "embedding".
        architecture: "llama" or "bert".
        types: The tensors by GGML's name of their type, the most bytes first.
        hyperparameters: Those of `LlamaConfig` or `BertConfig`, and of sentence-transformers.
        n_tokens: The tokenizer's vocabulary.
        bos_id: The token that begins a text, None if there is none.
        eos_ids: The tokens that end a text.
        chat_template: The template, None if there is none.
        cache_bytes: The size of the KV cache for one token.
    """

    path: Path
    kind: Literal["inferencing", "embedding"]
    architecture: str
    types: Mapping[str, Stored]
    hyperparameters: Mapping[str, object]
    n_tokens: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    chat_template: str | None
    cache_bytes: int

    @property
    def n_parameters(self) -> int:
        """The number of parameters in all tensors."""
        return sum(stored.n_parameters for stored in self.types.values())

    @property
    def n_bytes(self) -> int:
        """The size of all tensors, in the file and in memory."""
        return sum(stored.n_bytes for stored in self.types.values())

    def memory(self, n_tokens: int) -> int:
        """Return the bytes of the weights and of a context of so many tokens."""
        return self.n_bytes + self.cache_bytes * n_tokens


def describe(path: Path) -> Description:
    """Return the description of the model at `path`, a GGUF file or a folder.

    Raises:
        ModelNotSupported: For a model that refllm does not compute.
        LlmRuntimeError: With the file that is damaged or missing.
    """
    weights = open_weights(path)
    tokenizer = load_tokenizer(path, weights)
    cache_bytes = 0
    if weights.architecture == "llama":
        llama = llama_config(weights)
        cache_bytes = 2 * llama.n_layers * llama.n_kv_heads * llama.head_dim * FLOAT_BYTES
        hyperparameters = asdict(llama)
    else:
        bert = bert_config(weights)
        sentence = sentence_config(weights, n_embd=bert.n_embd)
        head = sentence.head
        hyperparameters = asdict(bert) | {
            "pooling": ", ".join(head.pooling.modes),
            "vector_width": head.width(bert.n_embd),
            "normalized": any(isinstance(step, Normalize) for step in head.steps),
            "default_prompt": sentence.default_prompt or "none",
        }
    return Description(
        path=path,
        kind=KIND[weights.architecture],
        architecture=weights.architecture,
        types=_types(weights.tensors.values()),
        hyperparameters=hyperparameters,
        n_tokens=tokenizer.n_vocab,
        bos_id=tokenizer.bos_id,
        eos_ids=tuple(sorted(tokenizer.eos_ids)),
        chat_template=chat_template_of(weights),
        cache_bytes=cache_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A model's line of `refllm models list`.

    `file_type` is the type of most of its bytes. `verified` is whether its files are the published
    ones; None if no hashes are known. A damaged model only has a `problem`.
    """

    name: str
    path: Path
    kind: str | None = None
    architecture: str | None = None
    n_parameters: int | None = None
    file_type: str | None = None
    n_bytes: int | None = None
    verified: bool | None = None
    problem: str | None = None


def overview(model: FoundModel) -> Overview:
    """Return a model's line, from its files' headers, and their hashes if known ones exist."""
    try:
        weights = open_weights(model.path)
    except LlmError as error:
        return Overview(name=model.name, path=model.path, problem=str(error))
    types = _types(weights.tensors.values())
    return Overview(
        name=model.name,
        path=model.path,
        kind=KIND[weights.architecture],
        architecture=weights.architecture,
        n_parameters=sum(stored.n_parameters for stored in types.values()),
        file_type=next(iter(types), None),
        n_bytes=sum(stored.n_bytes for stored in types.values()),
        verified=_is_published(model),
    )


def _is_published(model: FoundModel) -> bool | None:
    if is_bundled(model.path):
        return is_unchanged(model.path)
    if model.name not in PUBLISHED or not model.path.is_dir():
        return None
    try:
        require_published(model.path, PUBLISHED[model.name])
    except (LlmRuntimeError, OSError):  # a file that cannot be read is not verified
        return False
    return True


def verify(path: Path) -> int:
    """Return the number of tensors of the model at `path`, after checking it.

    Every tensor and key must be used, or irrelevant by a table of `refllm.files.accounting`. Each
    tensor must have the network's shape and finite values.

    Raises:
        ModelNotSupported: For a model that refllm does not compute.
        LlmRuntimeError: With the file, and the tensor that is wrong.
    """
    load_path(path, ledger=Ledger(strict=True))
    weights = open_weights(path)
    for tensor in weights.tensors.values():
        n_rows = len(tensor.data)
        for start in range(0, n_rows, ROWS_AT_A_TIME):
            if not np.isfinite(tensor.rows(start, min(start + ROWS_AT_A_TIME, n_rows))).all():
                raise LlmRuntimeError(
                    f"{weights.path}: tensor {tensor.name} has values that are not finite; "
                    "fetch the file again"
                )
    return len(weights.tensors)


def _types(tensors: Iterable[Tensor]) -> dict[str, Stored]:
    """Return the sums of the tensors by type."""
    types: dict[str, Stored] = {}
    for tensor in tensors:
        name = tensor.format.name
        sums = types.get(name, Stored(0, 0, 0))
        types[name] = Stored(
            sums.n_tensors + 1,
            sums.n_parameters + math.prod(tensor.shape),
            sums.n_bytes + tensor.data.nbytes,
        )
    return dict(sorted(types.items(), key=lambda item: -item[1].n_bytes))
