"""The description of a model that an export is written from.

    GGUF file  ─┐                    ┌─>  a folder for transformers, or for Spin
                ├─>  Description  ───┤
    folder     ─┘                    └─>  a GGUF file

A model that cannot be loaded is refused here, before any file is written, so each key and tensor of
the source was read, or is irrelevant by a table. A target is written from the description: no file
or key of the source is copied without that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from refllm.bert import Bert, BertConfig
from refllm.checkpoints.chat_template import chat_template_of, chat_templates_of
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.names import CLASSES, FAMILIES, hugging_face_name
from refllm.checkpoints.open import Weights, open_weights
from refllm.checkpoints.sentence_config import SentenceConfig
from refllm.errors import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.ledger import Ledger
from refllm.llama import Llama, LlamaConfig
from refllm.models.find import absent_path
from refllm.models.load import BertModel, build_model
from refllm.parameters import Survey
from refllm.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.vocabulary import SpecialIds

__all__ = [
    "NOT_IN_SPIN",
    "Description",
    "TokenizerDescription",
    "check_complete",
    "describe",
    "describe_tokenizer",
    "refuse_any",
    "special_ids_of",
]

PROBE = "a"
MAX_NAMED = 8  # tensors in one message

NOT_IN_SPIN = (
    "which Spin's engine does not know; export it for another program with --format hf or gguf"
)


@dataclass(frozen=True, slots=True)
class TokenizerDescription:
    """A model's tokenizer with the changes of the files beside it, and its chat templates.

    Attributes:
        weights: The model's files.
        tokenizer: The tokenizer.
        ends: BOS, the ends of a generation, and the special tokens around a text.
        templates: The chat templates by name; a chat uses "default", which is the first one.
    """

    weights: Weights
    tokenizer: Tokenizer
    ends: SpecialIds
    templates: Mapping[str, str]

    @property
    def path(self) -> Path:
        """The GGUF file or the folder."""
        return self.weights.path

    def ids(self) -> dict[str, int]:
        """Return token to id."""
        return {self.tokenizer.piece(i): i for i in range(self.tokenizer.n_vocab)}


@dataclass(frozen=True)
class Description:
    """A model that can be loaded.

    Attributes:
        weights: The model's files, with its tensors under GGUF's names.
        config: The hyperparameters.
        words: The tokenizer and the chat templates.
        sentence: The steps from a text to its vector; None for a llama.
    """

    weights: Weights
    config: LlamaConfig | BertConfig
    words: TokenizerDescription
    sentence: SentenceConfig | None

    @property
    def path(self) -> Path:
        """The GGUF file or the folder."""
        return self.weights.path

    @property
    def n_vocab(self) -> int:
        """How many tokens the model has embeddings of."""
        return self.weights.tensors["token_embd.weight"].shape[0]

    @cached_property
    def model_type(self) -> str:
        """The model's kind in transformers, a key of `refllm.checkpoints.names.FAMILIES`."""
        weights = self.weights
        hparams: Mapping[str, Any] = weights.hparams if weights.source == "hf" else {}
        if hparams.get("model_type") in FAMILIES:
            return str(hparams["model_type"])
        [name, *_] = hparams.get("architectures") or [""]
        return next(
            (kind for start, kind in CLASSES.items() if name.startswith(start)), weights.family
        )


def describe(path: Path) -> Description:
    """Return the description of the model at `path`.

    Raises:
        InvalidInput: for a path that does not exist.
        ModelNotSupported: for a model that refllm does not compute.
        LlmRuntimeError: for damaged files, and naming missing tensors.
    """
    if not path.exists():
        raise InvalidInput(*absent_path(path))
    weights = open_weights(path)
    check_complete(weights)
    survey = Survey(weights.path, weights.tensors, others=weights.others)
    model = build_model(path, weights, survey, ledger=Ledger())
    return Description(
        weights,
        model.network.config,
        describe_tokenizer(weights),
        model.sentence if isinstance(model, BertModel) else None,
    )


def refuse_any(model: Description, problems: Mapping[str, bool], why: str) -> None:
    """Raise `ModelNotSupported` for the first problem that the model has: "PATH: has WHAT, WHY"."""
    for what, is_there in problems.items():
        if is_there:
            raise ModelNotSupported(f"{model.path}: has {what}, {why}")


def describe_tokenizer(weights: Weights) -> TokenizerDescription:
    """Return the description of a model's tokenizer.

    Raises:
        LlmRuntimeError: for a damaged file.
        ModelNotSupported: for a tokenizer that refllm does not compute.
    """
    tokenizer: Tokenizer
    if weights.source == "gguf":
        tokenizer = tokenizer_from_gguf(weights.hparams, path=weights.path)
    else:
        tokenizer = tokenizer_from_folder(weights.path)
    chosen = chat_template_of(weights)
    templates = {} if chosen is None else {"default": chosen}
    for name, template in chat_templates_of(weights).items():
        templates.setdefault(name, template)
    return TokenizerDescription(weights, tokenizer, special_ids_of(tokenizer), templates)


def special_ids_of(tokenizer: Tokenizer) -> SpecialIds:
    """Return BOS, EOS, and the special tokens around a text, found by encoding one."""
    inside = tokenizer.encode(PROBE, add_special=False)
    whole = tokenizer.encode(PROBE)
    n_added = len(whole) - len(inside)
    start = next(i for i in range(n_added + 1) if whole[i : i + len(inside)] == inside)
    suffix = whole[start + len(inside) :]
    return SpecialIds(tokenizer.bos_id, tokenizer.eos_ids, tuple(whole[:start]), tuple(suffix))


def check_complete(weights: Weights) -> None:
    """Raise unless the files have every tensor that the network asks for when it is loaded.

    Raises:
        LlmRuntimeError: naming the missing tensors as the model's files call them, and as
            `refllm.checkpoints.config`.
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
        for name in missing[:MAX_NAMED]
    ]
    if len(missing) > MAX_NAMED:
        named.append(f"{len(missing) - MAX_NAMED} more")
    raise LlmRuntimeError(
        f"{weights.path}: lacks {', '.join(named)}, which a {weights.architecture} needs; "
        "download the whole model again, or convert it again"
    )
