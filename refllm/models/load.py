"""A path → a model with its tokenizer, ready to run.

T tokens, V vocabulary, N texts, D width of an embedding.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.bert import Activation, Bert, BertConfig
from refllm.checkpoints.chat_template import LLAMA_2, chat_prompt, chat_template_of
from refllm.checkpoints.config_bert import bert_config
from refllm.checkpoints.config_llama import llama_config
from refllm.checkpoints.mapped_file import release
from refllm.checkpoints.names import hugging_face_name
from refllm.checkpoints.open import Weights, open_weights
from refllm.checkpoints.sentence_config import SentenceConfig, lower_cases, sentence_config
from refllm.errors import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.bert_tensors import BERT_TENSORS
from refllm.files.accounting.ledger import Ledger
from refllm.files.accounting.tensors import IRRELEVANT_TENSORS, account_for_tensors
from refllm.jit.compile import use_threads
from refllm.kernels.elementwise import gelu
from refllm.kernels.packed.panels import Consumed
from refllm.llama import KVCache, Llama, LlamaConfig, Segment
from refllm.models.find import absent_path, default_roots, find_model
from refllm.parameters import Parameters, Survey
from refllm.pooling import SentenceHead
from refllm.tap import Tap, ignore
from refllm.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from refllm.tokenizer.base import NO_LIMIT, Tokenizer
from refllm.tokenizer.hf_json import JsonTokenizer
from refllm.tokenizer.native_messages import hold_native_messages

__all__ = [
    "NUMERICS",
    "BertModel",
    "LlamaModel",
    "Progress",
    "TokenizedTexts",
    "account",
    "build_model",
    "load",
    "load_path",
    "load_tokenizer",
]

Floats = NDArray[np.float32]
Progress = Callable[[int, int], object]

NUMERICS = ("exact", "int8")

logger = logging.getLogger("refllm")

# Texts go through the encoder in groups of about this many tokens, so that what comes of one layer
# is still in the CPU's cache when the next one reads it. No bit depends on the grouping.
GROUP_TOKENS = 512
MOST_NAMED = 5  # tensors in one message


@dataclass(frozen=True, slots=True, weakref_slot=True)
class LlamaModel:
    """A llama, the tokenizer that belongs to it, and the chat template where it brings one."""

    path: Path
    network: Llama
    tokenizer: Tokenizer
    chat_template: str | None = None

    @property
    def config(self) -> LlamaConfig:
        """The hyperparameters."""
        return self.network.config

    def new_cache(self) -> KVCache:
        """An empty cache: pass it to `forward` again and again to continue one sequence."""
        return self.network.new_cache()

    def forward(
        self, token_ids: Sequence[int], cache: KVCache | None = None, *, tap: Tap | None = None
    ) -> Floats:
        """The logits that follow each of the tokens, float32 [T, V].

        With a cache, the tokens continue what is in it. `tap` sees every intermediate value.
        Errors: `InvalidInput`, `LlmRuntimeError`; the cache is then as before.
        """
        segment = Segment(token_ids, self.new_cache() if cache is None else cache)
        return self.network.forward([segment], tap=tap or ignore)[0]

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that asks for a chat's next message, by the model's template or Llama 2's.

        Messages have `role` and `content`. The BOS that a template writes is left out where the
        tokenizer adds its own. Errors: as `refllm.checkpoints.chat_template.chat_prompt`.
        """
        tokenizer = self.tokenizer
        # As in llama.cpp, a template can join what a vocabulary lacks to a text.
        special_tokens = {"bos_token": "", "eos_token": "", **tokenizer.special_tokens}
        template = self.chat_template or LLAMA_2
        prompt = chat_prompt(template, messages, special_tokens=special_tokens)
        bos = "" if tokenizer.bos_id is None else tokenizer.piece(tokenizer.bos_id)
        adds_bos = bos and tokenizer.encode("")[:1] == [tokenizer.bos_id]
        return prompt.removeprefix(bos) if adds_bos else prompt

    def prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """The token ids of a prompt, BOS included; of one that is token ids, these ids as they are.

        Errors: `InvalidInput` where there is none, or more than the context holds, and for an id
        that is none of the tokenizer's.
        """
        n_ctx = self.config.n_ctx
        if not isinstance(prompt, str):
            if not prompt:
                raise InvalidInput("a prompt of token ids needs at least one id")
            if len(prompt) > n_ctx:
                raise _too_long(str(len(prompt)), n_ctx)
            for token_id in prompt:
                self.tokenizer.check_id(token_id)
            return self.tokenizer.check_rows(list(prompt))
        at_least = self.tokenizer.minimum_tokens(prompt)
        if at_least > n_ctx:
            raise _too_long(f"at least {at_least}", n_ctx)
        with hold_native_messages():
            token_ids = self.tokenizer.encode(prompt)
        if len(token_ids) == self.tokenizer.text_limit:
            n_tokens = len(self.tokenizer.encode(prompt, max_tokens=NO_LIMIT))
            if n_tokens > len(token_ids):
                logger.warning(
                    "refllm: a prompt of %d tokens was cut at %d, its tokenizer file's limit",
                    *(n_tokens, len(token_ids)),
                )
        if len(token_ids) > n_ctx:
            raise _too_long(str(len(token_ids)), n_ctx)
        if not token_ids:
            raise InvalidInput(
                "an empty prompt needs a model whose tokenizer begins with a BOS token; "
                "this one has none, so give some text"
            )
        return token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedTexts:
    """Texts as an encoder reads them.

    Attributes:
        token_ids: Of each text, the prompt and special tokens included, cut to the limit.
        n_prompt: How many tokens at the beginning of each text are the prompt's, a special token
            that begins the text included; 0 where there is no prompt.
        is_cut: Of each text, whether it was longer than the limit.
    """

    token_ids: list[list[int]]
    n_prompt: int
    is_cut: tuple[bool, ...]

    @property
    def n_cut(self) -> int:
        """How many of the texts were longer than the limit."""
        return sum(self.is_cut)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class BertModel:
    """A BERT encoder, the tokenizer that belongs to it, and what makes a vector of its tokens.

    Attributes:
        path: The file or folder.
        network: The encoder.
        tokenizer: Text to token ids.
        sentence: Pooling and what follows it, prompts, and the limit of sentence-transformers.
    """

    path: Path
    network: Bert
    tokenizer: Tokenizer
    sentence: SentenceConfig = field(default_factory=SentenceConfig)

    @property
    def config(self) -> BertConfig:
        """The hyperparameters of the encoder."""
        return self.network.config

    @property
    def width(self) -> int:
        """How many numbers a text's vector has."""
        return self.sentence.head.width(self.config.n_embd)

    @property
    def max_seq_length(self) -> int | None:
        """The limit that sentence-transformers would use, None where no file has one."""
        return self.sentence.max_seq_length

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        max_tokens: int | None = None,
    ) -> TokenizedTexts:
        """Return the token ids of texts, and log a warning where some were cut.

        Args:
            texts: The texts.
            prompt_name: A name in `sentence.prompts`, in place of the model's default prompt.
            prompt: What is put before each text, in place of any of the model's; "" for nothing.
            max_tokens: Where a text is cut, in place of the tokenizer file's own limit.

        Raises:
            InvalidInput: For a prompt name that the model does not have, for both a name and a
                prompt, or as `Tokenizer.encode`.
        """
        before = self._prompt(prompt_name, prompt)
        encode = self.tokenizer.encode
        limit = self.tokenizer.text_limit if max_tokens is None else max_tokens
        whole = [before + text for text in texts]
        if limit is not None:
            # One token more than fits shows that a text is cut.
            whole = [self.tokenizer.beginning(text, limit + 1) for text in whole]
        with hold_native_messages():
            token_ids = [encode(text, max_tokens=max_tokens) for text in whole]
        is_cut = tuple(
            limit is not None
            and len(ids) == limit
            and len(encode(text, max_tokens=limit + 1)) > limit
            for ids, text in zip(token_ids, whole, strict=True)
        )
        if any(is_cut):
            logger.warning(
                "refllm: %d of %d text%s cut at %d tokens; max_tokens sets another limit",
                *(sum(is_cut), len(texts), " was" if len(texts) == 1 else "s were", limit),
            )
        n_prompt = 0
        if before and not self.sentence.head.pooling.include_prompt:
            # As sentence-transformers counts: the prompt alone, without a special token at its end.
            alone = encode(before, max_tokens=max_tokens)
            ends_special = bool(alone) and not self.tokenizer.token_bytes(alone[-1])
            n_prompt = len(alone) - ends_special
        return TokenizedTexts(token_ids=token_ids, n_prompt=n_prompt, is_cut=is_cut)

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        max_tokens: int | None = None,
        tap: Tap | None = None,
    ) -> Floats:
        """Return one vector for each text, float32 [N, K].

        The model's default prompt is put before each text, as `SentenceTransformer.encode` does.

        Args:
            texts: The texts.
            prompt_name: The name of another of the model's prompts.
            prompt: What is put before each text instead; "" for nothing.
            max_tokens: Where a text is cut, in place of the tokenizer file's own limit.
            tap: Called with every intermediate value.

        Raises:
            InvalidInput: As `tokenize`, or for a text that the network cannot compute.
            LlmRuntimeError: If a value is not finite.

        Example:
            >>> model.embed(["How do I renew a passport?"], prompt_name="query").shape
            (1, 384)
        """
        tokenized = self.tokenize(
            texts, prompt_name=prompt_name, prompt=prompt, max_tokens=max_tokens
        )
        return self.embed_tokens(tokenized.token_ids, n_prompt=tokenized.n_prompt, tap=tap)

    def embed_tokens(
        self,
        texts: Sequence[Sequence[int]],
        *,
        head: SentenceHead | None = None,
        n_prompt: int = 0,
        activation: Activation = gelu,
        tap: Tap | None = None,
    ) -> Floats:
        """`embed` for texts that are token ids already, and with another activation if asked."""
        groups = self.embed_groups(
            texts, head=head, n_prompt=n_prompt, activation=activation, tap=tap or ignore
        )
        return np.concatenate(list(groups))

    def embed_groups(
        self,
        texts: Sequence[Sequence[int]],
        *,
        head: SentenceHead | None = None,
        n_prompt: int = 0,
        activation: Activation = gelu,
        tap: Tap | None = None,
    ) -> Iterator[Floats]:
        """`embed_tokens` in parts: vectors of no texts, of the first ones, …, each [., K].

        `head` takes the place of the model's own.
        """
        head = self.sentence.head if head is None else head
        yield np.empty((0, head.width(self.config.n_embd)), np.float32)
        for group in _groups(texts):
            yield self.network.embed(
                group, head=head, n_prompt=n_prompt, activation=activation, tap=tap or ignore
            )

    def _prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is not None and prompt_name is not None:
            raise InvalidInput("give either prompt or prompt_name, not both")
        if prompt is not None:
            return prompt
        if prompt_name is None:
            return self.sentence.default_prompt
        if prompt_name not in self.sentence.prompts:
            known = ", ".join(sorted(self.sentence.prompts))
            raise InvalidInput(
                f"the model has no prompt called {prompt_name!r:.80}, its prompts are {known}; "
                "or give the text itself as prompt"
            )
        return self.sentence.prompts[prompt_name]


def load(
    name_or_path: str | Path, *, numerics: str = "exact", progress: Progress | None = None
) -> LlamaModel | BertModel:
    """The model of this name, or at this path.

    A `Path`, or a string with a path separator or naming something that exists, is a path; any
    other string is a name, looked up where `refllm.models.find.default_roots()` says. The calling
    thread's kernels use as many CPUs as this process may use and finds free. Everything else as
    `load_path`.
    """
    use_threads(None)
    is_path = isinstance(name_or_path, Path) or os.sep in name_or_path
    if is_path or _is_there(Path(name_or_path)):
        path = Path(name_or_path)
    else:
        path = find_model(str(name_or_path), default_roots())
    return load_path(path, numerics=numerics, progress=progress)


def load_path(
    path: Path,
    *,
    numerics: str = "exact",
    progress: Progress | None = None,
    ledger: Ledger | None = None,
) -> LlamaModel | BertModel:
    """The model in a .gguf file or in a folder.

    `numerics` is "exact", or "int8" to multiply quantized weights as llama.cpp does. `progress`
    is told again and again how many bytes are loaded, and how many there are. `ledger` records
    what becomes of each tensor and key; a strict one refuses keys that no table lists.

    Errors: `InvalidInput` where there is nothing, `ModelNotSupported`, `LlmRuntimeError` naming
    the file that is damaged.
    """
    if numerics not in NUMERICS:
        raise InvalidInput(f"numerics must be one of {', '.join(NUMERICS)}; got {numerics!r:.80}")
    _check_path(path)
    weights = open_weights(path)
    n_bytes = sum(tensor.data.nbytes for tensor in weights.tensors.values())
    consumed = _releasing(n_bytes, progress)
    parameters = Parameters(
        weights.path,
        weights.tensors,
        numerics,
        consumed,
        others=weights.others,
        spelling=partial(_file_s_name, weights),
    )
    model = build_model(path, weights, parameters, ledger=Ledger() if ledger is None else ledger)
    if progress is not None:
        progress(n_bytes, n_bytes)
    return model


def account(path: Path) -> Ledger:
    """Return what becomes of each tensor and key of the model at `path`; no matrix is packed.

    What is refused is in the ledger, too, and so are tensors that are missing. Errors: as
    `load_path`, for what leaves nothing to account for, such as a damaged file.
    """
    _check_path(path)
    weights = open_weights(path)
    ledger = Ledger(collecting=True)
    survey = Survey(weights.path, weights.tensors, others=weights.others)
    build_model(path, weights, survey, ledger=ledger)
    missing = [_file_s_name(weights, name) for name in survey.missing]
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    named = ", ".join(missing[:MOST_NAMED])
    for name in missing:
        reason = f"{weights.path}: lacks {named}{more}, which the network needs"
        ledger.mark_refused("tensors", name, reason)
    return ledger


def _file_s_name(weights: Weights, name: str) -> str:
    """What a file of its kind calls the tensor `name`, whether it has it or not."""
    return name if weights.source == "gguf" else hugging_face_name(weights.family, name)


def build_model(
    path: Path, weights: Weights, parameters: Parameters, *, ledger: Ledger
) -> LlamaModel | BertModel:
    """Return the model of files that are open; of a `Survey`, one that computes nothing.

    Args:
        path: Where the model is, for error messages.
        weights: The files.
        parameters: Their tensors.
        ledger: Where each tensor and key is recorded.

    Raises:
        ModelNotSupported: For what is not computed.
        LlmRuntimeError: For what is damaged or missing.
    """
    tokenizer = _tokenizer(weights, path, ledger)
    if weights.architecture == "llama":
        llama = Llama(llama_config(weights, ledger=ledger), parameters)
        # Its numbers are hyperparameters: config.json gives them as a formula.
        parameters.asked.add("rope_freqs.weight")
        _account_for_tensors(weights, parameters, ledger)
        _check_fit(tokenizer, llama.config.n_vocab, path)
        template = chat_template_of(weights, ledger=ledger)
        return LlamaModel(path, llama, tokenizer, template)
    config = bert_config(weights, ledger=ledger)
    sentence = sentence_config(weights, n_embd=config.n_embd, ledger=ledger)
    bert = Bert(config, parameters)
    _account_for_tensors(weights, parameters, ledger)
    _check_fit(tokenizer, bert.n_vocab, path)
    return BertModel(path, bert, tokenizer, sentence)


def _account_for_tensors(weights: Weights, parameters: Parameters, ledger: Ledger) -> None:
    """Rule on every tensor of the files, those that the network did not ask for included."""
    family = weights.family
    if (weights.architecture, weights.source) == ("bert", "gguf"):
        family = "gguf"
    left_over = {
        weights.stored_name(name): f"{tensor.format.name} {list(tensor.shape)}"
        for name, tensor in weights.tensors.items()
        if name not in parameters.asked
    }
    account_for_tensors(
        weights.path,
        architecture=weights.architecture,
        used=[weights.stored_name(name) for name in weights.tensors if name in parameters.asked],
        left_over=left_over | dict(weights.others),
        ledger=ledger,
        irrelevant={**IRRELEVANT_TENSORS, **BERT_TENSORS.get(family, {})},
    )


def _releasing(n_bytes: int, progress: Progress | None) -> Consumed:
    """What to do with the file's rows that are packed: forget them, and say how many they are."""
    n_done = 0

    def consumed(rows: NDArray[np.uint8]) -> None:
        nonlocal n_done
        release(rows)
        n_done += rows.nbytes
        if progress is not None:
            progress(n_done, n_bytes)

    return consumed


def load_tokenizer(path: Path, weights: Weights | None = None) -> Tokenizer:
    """The tokenizer of the model at `path`; a GGUF may hold a vocabulary and no weights.

    `weights` are the model's files where the caller opened them. Errors: as `load_path`.
    """
    _check_path(path)
    return _tokenizer(weights or open_weights(path), path, Ledger())


def _check_path(path: Path) -> None:
    if not _is_there(path):
        raise InvalidInput(*absent_path(path))


def _is_there(path: Path) -> bool:
    """Whether the path exists; one that the file system cannot even ask for does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _tokenizer(weights: Weights, path: Path, ledger: Ledger) -> Tokenizer:
    if weights.source == "gguf":
        return tokenizer_from_gguf(weights.hparams, path=weights.path, ledger=ledger)
    tokenizer = tokenizer_from_folder(path, ledger=ledger)
    if weights.architecture != "llama" and lower_cases(path):
        if not isinstance(tokenizer, JsonTokenizer):
            raise ModelNotSupported(
                f"{path}: do_lower_case = True of sentence-transformers is not supported without "
                "a tokenizer.json; save the tokenizer as one"
            )
        tokenizer.lowercase_first()
    return tokenizer


def _check_fit(tokenizer: Tokenizer, n_vocab: int, path: Path) -> None:
    """Tell the tokenizer how many tokens the model has embeddings of.

    A smaller vocabulary is usual (embeddings are padded to a round number). Of a larger one, as of
    tokens that were added to a tokenizer and never to its model, the rest cannot be asked for.

    Raises:
        LlmRuntimeError: where even an empty text has a token that the model has no embedding of.
    """
    if tokenizer.n_vocab <= n_vocab:
        return
    missing = [token_id for token_id in tokenizer.encode("") if token_id >= n_vocab]
    if missing:
        raise LlmRuntimeError(
            f"{path}: the tokenizer adds the token {tokenizer.piece(missing[0])!r:.80} with id "
            f"{missing[0]} to each text, the model has only {n_vocab} tokens; "
            "they do not belong together"
        )
    tokenizer.n_rows = n_vocab


def _groups(texts: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """The texts in their order, as many at a time as fit GROUP_TOKENS, at least one."""
    start = n_tokens = 0
    for stop, text in enumerate(texts):
        if stop > start and n_tokens + len(text) > GROUP_TOKENS:
            yield texts[start:stop]
            start, n_tokens = stop, 0
        n_tokens += len(text)
    if start < len(texts):
        yield texts[start:]


def _too_long(length: str, n_ctx: int) -> InvalidInput:
    return InvalidInput(
        f"the prompt has {length} tokens, the model's context holds {n_ctx}; shorten the prompt",
        code="context_length_exceeded",
    )
