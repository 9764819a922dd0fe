"""What an export is made of: one description of the model, as refllm understood its files.

    GGUF file  ─┐                    ┌─>  a folder for transformers, or for Spin
                ├─>  Description  ───┤
    folder     ─┘                    └─>  a GGUF file

Whatever would be refused when the model is loaded is refused here, before anything is written, so
each key and tensor of the source was read, or is irrelevant by a table. A target is written from
the description: no file and no key of the source is copied because it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from refllm.bert import BertConfig
from refllm.checkpoints.chat_template import chat_template_of, chat_templates_of
from refllm.checkpoints.names import CLASSES, FAMILIES
from refllm.checkpoints.open import Weights, open_weights
from refllm.checkpoints.sentence_config import SentenceConfig
from refllm.errors import InvalidInput
from refllm.export.completeness import refuse_incomplete
from refllm.files.accounting.ledger import Ledger
from refllm.llama import LlamaConfig
from refllm.models.find import absent_path
from refllm.models.load import BertModel, build_model
from refllm.parameters import Survey
from refllm.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.vocabulary import SpecialIds

__all__ = [
    "Description",
    "TokenizerDescription",
    "describe",
    "describe_tokenizer",
    "special_ids_of",
]

PROBE = "a"


@dataclass(frozen=True, slots=True)
class TokenizerDescription:
    """A model's tokenizer, with what the files beside it change, and its chat templates.

    Attributes:
        weights: The model's files.
        tokenizer: The tokenizer.
        ends: BOS, the ends of a generation, and what is put around a text.
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
        sentence: What makes a vector of a text; None for a llama.
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
        said: Mapping[str, Any] = weights.hparams if weights.source == "hf" else {}
        if said.get("model_type") in FAMILIES:
            return str(said["model_type"])
        classes = said.get("architectures") or [""]
        for name, family in CLASSES.items():
            # XLMRobertaModel is no Roberta, which its name holds, too.
            if family == weights.family and classes[0].startswith(name):
                return {"XLMRoberta": "xlm-roberta", "Camembert": "camembert"}.get(name, family)
        return weights.family


def describe(path: Path) -> Description:
    """Return the description of the model at `path`.

    Raises:
        InvalidInput: For a path where there is nothing.
        ModelNotSupported: For what refllm does not compute.
        LlmRuntimeError: For damaged files, and naming the tensors that are missing.
    """
    if not path.exists():
        raise InvalidInput(*absent_path(path))
    weights = open_weights(path)
    refuse_incomplete(weights)
    survey = Survey(weights.path, weights.tensors, others=weights.others)
    model = build_model(path, weights, survey, ledger=Ledger())
    return Description(
        weights,
        model.network.config,
        describe_tokenizer(weights),
        model.sentence if isinstance(model, BertModel) else None,
    )


def describe_tokenizer(weights: Weights) -> TokenizerDescription:
    """Return the description of a model's tokenizer.

    Raises:
        LlmRuntimeError: For a damaged file.
        ModelNotSupported: For a tokenizer that refllm does not compute.
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
    """Return BOS, EOS, and what the tokenizer puts around a text, found out with one."""
    inside = tokenizer.encode(PROBE, add_special=False)
    whole = tokenizer.encode(PROBE)
    n_added = len(whole) - len(inside)
    start = next(i for i in range(n_added + 1) if whole[i : i + len(inside)] == inside)
    suffix = whole[start + len(inside) :]
    return SpecialIds(tokenizer.bos_id, tokenizer.eos_ids, tuple(whole[:start]), tuple(suffix))
