"""From a path to a model with its tokenizer, ready to run.

T tokens, V vocabulary, N texts, D width of an embedding.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.bert import Activation, Bert, BertConfig
from refllm.checkpoints.chat_template import LLAMA_2, chat_prompt, chat_template_of
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.mapped_file import release
from refllm.checkpoints.names import hugging_face_name
from refllm.checkpoints.open import Weights, open_weights
from refllm.checkpoints.sentence_config import SentenceConfig, lower_cases, sentence_config
from refllm.errors import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.ledger import Ledger
from refllm.files.accounting.tensors import BERT_TENSORS, IRRELEVANT_TENSORS, account_for_tensors
from refllm.jit.compile import n_threads, use_threads
from refllm.kernels.elementwise import gelu
from refllm.llama import KVCache, Llama, LlamaConfig, Segment
from refllm.models.find import absent_path, default_roots, find_model
from refllm.models.kept_panels import ModelFiles, bytes_to_keep, find_kept_panels, model_files
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
LlamaMaker = Callable[[LlamaConfig, Parameters], Llama]
BertMaker = Callable[[BertConfig, Parameters], Bert]

NUMERICS = ("exact", "int8")

logger = logging.getLogger("refllm")

# The encoder computes groups of about this many tokens for each thread, so that a layer's output is
# still in the CPU's cache when the next layer reads it. No bit depends on the grouping.
GROUP_TOKENS = 512
# With fewer tokens for each thread, reading the weights takes longer than the arithmetic.
MIN_THREAD_TOKENS = 64
MAX_LISTED = 5  # tensors in one message


@dataclass(frozen=True, slots=True, weakref_slot=True)
class LlamaModel:
    """A llama, its tokenizer, and its chat template if it has one."""

    path: Path
    network: Llama
    tokenizer: Tokenizer
    chat_template: str | None = None

    @property
    def config(self) -> LlamaConfig:
        """The hyperparameters."""
        return self.network.config

    def new_cache(self) -> KVCache:
        """Return an empty cache. Passing it to `forward` repeatedly continues one sequence."""
        return self.network.new_cache()

    def forward(
        self, token_ids: Sequence[int], cache: KVCache | None = None, *, tap: Tap | None = None
    ) -> Floats:
        """Return the logits after each of the tokens, float32 [T, V].

        Args:
            token_ids: The tokens.
            cache: The tokens before these; None for none. After an error it is unchanged.
            tap: Called with every intermediate value.

        Raises:
            InvalidInput: For an id outside the vocabulary, or more tokens than the context holds.
            LlmRuntimeError: If a value is not finite.
        """
        segment = Segment(token_ids, self.new_cache() if cache is None else cache)
        return self.network.forward([segment], tap=tap or ignore)[0]

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt for a chat's next message, by the model's template or Llama 2's.

        Messages have `role` and `content`. A template's BOS is removed if the tokenizer adds its
        own. Raises as `refllm.checkpoints.chat_template.chat_prompt`.
        """
        tokenizer = self.tokenizer
        # As in llama.cpp, tokens that a vocabulary lacks are empty texts.
        special_tokens = {"bos_token": "", "eos_token": "", **tokenizer.special_tokens}
        template = self.chat_template or LLAMA_2
        prompt = chat_prompt(template, messages, special_tokens=special_tokens)
        bos = "" if tokenizer.bos_id is None else tokenizer.piece(tokenizer.bos_id)
        adds_bos = bos and tokenizer.encode("")[:1] == [tokenizer.bos_id]
        return prompt.removeprefix(bos) if adds_bos else prompt

    def prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the token ids of a text, BOS included, or the given token ids unchanged.

        Raises:
            InvalidInput: For no token, more tokens than the context holds, or an unknown id.
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
    """The token ids of texts, for an encoder.

    Attributes:
        token_ids: Of each text, prompt and special tokens included, cut to the limit.
        n_prompt: The number of tokens of the prompt at the beginning of each text, with the special
            token that begins the text; 0 without a prompt.
        is_cut: Of each text, whether it was longer than the limit.
    """

    token_ids: list[list[int]]
    n_prompt: int
    is_cut: tuple[bool, ...]

    @property
    def n_cut(self) -> int:
        """The number of texts that were cut."""
        return sum(self.is_cut)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class BertModel:
    """A BERT encoder, its tokenizer, and the steps from its tokens to a text's vector.

    Attributes:
        path: The file or folder.
        network: The encoder.
        tokenizer: Text to token ids.
        sentence: Pooling and the steps after it, prompts, and sentence-transformers' limit.
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
        """The width of a text's vector."""
        return self.sentence.head.width(self.config.n_embd)

    @property
    def max_seq_length(self) -> int | None:
        """The limit of sentence-transformers in tokens, None if no file has one."""
        return self.sentence.max_seq_length

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        max_tokens: int | None = None,
        warns: bool = True,
    ) -> TokenizedTexts:
        """Return the token ids of texts, and log a warning where some were cut.

        Args:
            texts: The texts.
            prompt_name: A name in `sentence.prompts`, in place of the model's default prompt.
            prompt: The text before each text, instead of the model's; "" for none.
            max_tokens: Where a text is cut, instead of the tokenizer file's own limit.
            warns: Whether to log the warning.

        Raises:
            InvalidInput: For an unknown prompt name, for both a name and a prompt, or as
                `Tokenizer.encode`.
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
        if warns and any(is_cut):
            logger.warning(
                "refllm: %d of %d text%s cut at %d tokens; max_tokens sets another limit",
                *(sum(is_cut), len(texts), " was" if len(texts) == 1 else "s were", limit),
            )
        n_prompt = 0
        if before and not self.sentence.head.pooling.include_prompt:
            # As in sentence-transformers: the prompt alone, without a special token at its end.
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
        """Return one vector for each text, float32 [N, D].

        The model's default prompt precedes each text, as in `SentenceTransformer.encode`.

        Args:
            texts: The texts.
            prompt_name: The name of another of the model's prompts.
            prompt: The text before each text instead; "" for none.
            max_tokens: Where a text is cut, instead of the tokenizer file's own limit.
            tap: Called with every intermediate value.

        Raises:
            InvalidInput: As `tokenize`, or for a text that the network cannot compute.
            LlmRuntimeError: If a value is not finite.

        Example:
            >>> from refllm.models.bundled import ROOT
            >>> model = load(ROOT / "bert" / "tiny-embed.gguf")
            >>> model.embed(["A cat sleeps.", "The cat naps."]).shape
            (2, 384)
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
        """Return one vector for each list of token ids, float32 [N, D]; see `embed_groups`."""
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
        """Yield the vectors of `embed_tokens` in groups, float32 [., D]; the first is empty.

        Args:
            texts: The token ids of each text.
            head: Pooling and the steps after it, instead of the model's own.
            n_prompt: The number of tokens of the prompt in each text.
            activation: The activation of the feed-forward layers.
            tap: Called with every intermediate value.
        """
        head = self.sentence.head if head is None else head
        yield np.empty((0, head.width(self.config.n_embd)), np.float32)
        embed = partial(
            self.network.embed,
            head=head,
            n_prompt=n_prompt,
            activation=activation,
            tap=tap or ignore,
        )
        most = GROUP_TOKENS * (n_threads() if tap is None else 1)
        start = n_tokens = 0
        for stop in range(1, len(texts) + 1):
            n_tokens += len(texts[stop - 1])
            if stop == len(texts) or n_tokens + len(texts[stop]) > most:
                group, start, n_tokens = texts[start:stop], stop, 0
                yield _embed_by_threads(embed, group) if tap is None else embed(group)

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


def _embed_by_threads(
    embed: Callable[[Sequence[Sequence[int]]], Floats], texts: Sequence[Sequence[int]]
) -> Floats:
    """Return embed(texts), [N, D]; each thread computes some of the texts, alone.

    Threads that share each kernel wait for each other sixty times in a group, these once.
    """
    n_tokens = sum(len(text) for text in texts)
    n_parts = min(n_threads(), len(texts), n_tokens // MIN_THREAD_TOKENS)
    if n_parts < 2:
        return embed(texts)
    parts: list[list[int]] = [[] for _ in range(n_parts)]  # of indices
    sizes = [0] * n_parts  # in tokens
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True):
        smallest = sizes.index(min(sizes))
        parts[smallest].append(i)
        sizes[smallest] += len(texts[i])
    from concurrent.futures import ThreadPoolExecutor  # loaded for several texts only

    with ThreadPoolExecutor(n_parts, initializer=use_threads, initargs=(1,)) as pool:
        vectors = pool.map(lambda part: embed([texts[i] for i in part]), parts)
        in_order = np.argsort(np.concatenate(parts))  # [N]
        return np.concatenate(list(vectors))[in_order]


def load(
    name_or_path: str | Path,
    *,
    numerics: str = "exact",
    progress: Progress | None = None,
    keep_packed_bytes: int | None = None,
) -> LlamaModel | BertModel:
    """Return the model of this name, or at this path.

    The calling thread's kernels use all CPUs that this process may use and that are free.

    Args:
        name_or_path: A `Path`, or a string that contains a path separator or exists, is a path; any
            other string is a name in `refllm.models.find.default_roots()`.
        numerics: As `load_path`.
        progress: As `load_path`.
        keep_packed_bytes: As `load_path`.

    Raises:
        InvalidInput: As `find_model` and `load_path`; they raise its other errors, too.
    """
    use_threads(None)
    is_path = isinstance(name_or_path, Path) or os.sep in name_or_path
    if is_path or _is_there(Path(name_or_path)):
        path = Path(name_or_path)
    else:
        path = find_model(str(name_or_path), default_roots())
    return load_path(
        path, numerics=numerics, progress=progress, keep_packed_bytes=keep_packed_bytes
    )


def load_path(
    path: Path,
    *,
    numerics: str = "exact",
    progress: Progress | None = None,
    ledger: Ledger | None = None,
    keep_packed_bytes: int | None = None,
    llama: LlamaMaker = Llama,
    bert: BertMaker = Bert,
) -> LlamaModel | BertModel:
    """Return the model in a .gguf file or in a folder.

    Args:
        path: The file or folder.
        numerics: "exact", or "int8" to multiply quantized weights as llama.cpp does.
        progress: `progress(loaded_bytes, total_bytes)` is called repeatedly.
        ledger: Records the use of each tensor and key; a strict one refuses keys that no table
            lists.
        keep_packed_bytes: The limit of the packed weights that are kept on disk and mapped the next
            time (`refllm.models.kept_panels`), 0 for none; None for the environment's
            REFLLM_KEEP_PACKED_MIB, by default 0.
        llama: The class of a llama, or what makes one.
        bert: The same of an encoder.

    Raises:
        InvalidInput: If there is no such path.
        ModelNotSupported: For a model that refllm does not compute.
        LlmRuntimeError: With the file that is damaged.
    """
    if numerics not in NUMERICS:
        raise InvalidInput(f"numerics must be one of {', '.join(NUMERICS)}; got {numerics!r:.80}")
    _check_path(path)
    allowed = bytes_to_keep(os.environ) if keep_packed_bytes is None else keep_packed_bytes
    files: ModelFiles = []
    if allowed > 0:
        with contextlib.suppress(OSError):  # `open_weights` has a message for it
            files = model_files(path)
    weights = open_weights(path)
    n_bytes = sum(tensor.data.nbytes for tensor in weights.tensors.values())
    n_done = 0

    def done(n_more: int) -> None:
        """Report the progress."""
        nonlocal n_done
        n_done = min(n_done + n_more, n_bytes)
        if progress is not None:
            progress(n_done, n_bytes)

    def consumed(rows: NDArray[np.uint8]) -> None:
        """Drop the pages of a file's rows that have been packed, and report the progress."""
        release(rows)
        done(rows.nbytes)

    kept = None
    if files:
        kept = find_kept_panels(
            path, files, weights.tensors, numerics=numerics, max_bytes=allowed, read=done
        )
    parameters = Parameters(
        weights.path,
        weights.tensors,
        numerics,
        consumed,
        others=weights.others,
        spelling=partial(_name_in_file, weights),
        kept=kept,
    )
    ledger = Ledger() if ledger is None else ledger
    model = build_model(path, weights, parameters, ledger=ledger, llama=llama, bert=bert)
    if kept is not None:
        kept.write()
    is_quantized = any(tensor.format.block_size > 1 for tensor in weights.tensors.values())
    if numerics == "int8" and not is_quantized:
        logger.warning(
            "refllm: %s has no quantized matrices, so int8 is as exact on it; to make a quantized "
            "model: refllm models quantize %s --type Q8_0",
            *(path, shlex.quote(str(path))),
        )
    if progress is not None:
        progress(n_bytes, n_bytes)
    return model


def account(path: Path) -> Ledger:
    """Return the use of each tensor and key of the model at `path`, without loading matrices.

    Refused tensors and keys are in the ledger, too, and so are missing tensors. Raises as
    `load_path` for a file that cannot be accounted for, such as a damaged one.
    """
    _check_path(path)
    weights = open_weights(path)
    ledger = Ledger(collecting=True)
    survey = Survey(weights.path, weights.tensors, others=weights.others)
    build_model(path, weights, survey, ledger=ledger)
    missing = [_name_in_file(weights, name) for name in survey.missing]
    more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
    listed = ", ".join(missing[:MAX_LISTED])
    for name in missing:
        reason = f"{weights.path}: lacks {listed}{more}, which the network needs"
        ledger.mark_refused("tensors", name, reason)
    return ledger


def _name_in_file(weights: Weights, name: str) -> str:
    """Return the name of the tensor `name` in files of this kind, whether they have it or not."""
    return name if weights.source == "gguf" else hugging_face_name(weights.family, name)


def build_model(
    path: Path,
    weights: Weights,
    parameters: Parameters,
    *,
    ledger: Ledger,
    llama: LlamaMaker = Llama,
    bert: BertMaker = Bert,
) -> LlamaModel | BertModel:
    """Return the model of open files; with a `Survey`, one that computes nothing.

    Args:
        path: The model's path, for error messages.
        weights: The files.
        parameters: Their tensors.
        ledger: Records the use of each tensor and key.
        llama: The class of a llama, or what makes one.
        bert: The same of an encoder.

    Raises:
        ModelNotSupported: For a model that refllm does not compute.
        LlmRuntimeError: For a tensor or file that is damaged or missing.
    """
    tokenizer = _tokenizer(weights, path, ledger)
    if weights.architecture == "llama":
        network = llama(llama_config(weights, ledger=ledger), parameters)
        # Its values are hyperparameters, which config.json has as a formula.
        parameters.asked.add("rope_freqs.weight")
        _account_for_tensors(weights, parameters, ledger)
        _check_fit(tokenizer, network.config.n_vocab, path)
        template = chat_template_of(weights, ledger=ledger)
        return LlamaModel(path, network, tokenizer, template)
    config = bert_config(weights, ledger=ledger)
    sentence = sentence_config(weights, n_embd=config.n_embd, ledger=ledger)
    encoder = bert(config, parameters)
    _account_for_tensors(weights, parameters, ledger)
    _check_fit(tokenizer, encoder.n_vocab, path)
    return BertModel(path, encoder, tokenizer, sentence)


def _account_for_tensors(weights: Weights, parameters: Parameters, ledger: Ledger) -> None:
    """Record every tensor of the files, also those that the network did not use."""
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


def load_tokenizer(path: Path, weights: Weights | None = None) -> Tokenizer:
    """Return the tokenizer of the model at `path`; a GGUF may have a vocabulary and no weights.

    `weights` are the model's files if the caller has opened them. Raises as `load_path`.
    """
    _check_path(path)
    return _tokenizer(weights or open_weights(path), path, Ledger())


def _check_path(path: Path) -> None:
    if not _is_there(path):
        raise InvalidInput(*absent_path(path))


def _is_there(path: Path) -> bool:
    """Return whether the path exists; False for a path that the file system does not accept."""
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
    """Limit the tokenizer to the tokens that the model has embeddings of.

    A smaller vocabulary is usual, because embeddings are padded to a round number. A larger one has
    tokens that were added to the tokenizer only, and that cannot be used.

    Raises:
        LlmRuntimeError: If even an empty text has a token without an embedding.
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


def _too_long(length: str, n_ctx: int) -> InvalidInput:
    return InvalidInput(
        f"the prompt has {length} tokens, the model's context holds {n_ctx}; shorten the prompt",
        code="context_length_exceeded",
    )
