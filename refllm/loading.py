"""A path → a model with its tokenizer, ready to run.

T tokens, V vocabulary, N texts, D width of an embedding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.bert import Activation, Bert, BertConfig
from refllm.chat_template import LLAMA_2, chat_prompt, chat_template_of
from refllm.config import bert_config, llama_config
from refllm.kernels.elementwise import gelu
from refllm.kernels.jit import use_threads
from refllm.kernels.panels import Consumed
from refllm.llama import KVCache, Llama, LlamaConfig, Segment
from refllm.models import default_roots, find_model
from refllm.parameters import Parameters
from refllm.tap import Tap
from refllm.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_gguf
from refllm.weights import Weights, open_weights
from refllm.weights_file import read_json_object, release

__all__ = [
    "NUMERICS",
    "BertModel",
    "LlamaModel",
    "Progress",
    "load",
    "load_path",
    "load_tokenizer",
]

Floats = NDArray[np.float32]
Progress = Callable[[int, int], object]

NUMERICS = ("exact", "int8")

# Texts go through the encoder in groups of about this many tokens, so that what comes of one layer
# is still in the CPU's cache when the next one reads it. No bit depends on the grouping.
GROUP_TOKENS = 512


@dataclass(frozen=True, slots=True)
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
        return self.network.forward([segment], tap=tap)[0]

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for a chat's next message, by the model's template or Llama 2's.

        Messages have `role` and `content`. The BOS that a template writes is left out where the
        tokenizer adds its own. Errors: as `refllm.chat_template.chat_prompt`.
        """
        tokenizer = self.tokenizer
        bos = "" if tokenizer.bos_id is None else tokenizer.piece(tokenizer.bos_id)
        eos = tokenizer.piece(min(tokenizer.eos_ids)) if tokenizer.eos_ids else ""
        prompt = chat_prompt(self.chat_template or LLAMA_2, messages, bos=bos, eos=eos)
        adds_bos = bos and tokenizer.encode("")[:1] == [tokenizer.bos_id]
        return prompt.removeprefix(bos) if adds_bos else prompt

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The token ids of a prompt, BOS included.

        Errors: `InvalidInput` where there is none, or more than the context holds.
        """
        n_ctx = self.config.n_ctx
        at_least = self.tokenizer.minimum_tokens(prompt)
        if at_least > n_ctx:
            raise _too_long(f"at least {at_least}", n_ctx)
        token_ids = self.tokenizer.encode(prompt)
        if len(token_ids) > n_ctx:
            raise _too_long(str(len(token_ids)), n_ctx)
        if not token_ids:
            raise InvalidInput(
                "an empty prompt needs a model whose tokenizer begins with a BOS token; "
                "this one has none, so give some text"
            )
        return token_ids


@dataclass(frozen=True, slots=True)
class BertModel:
    """A BERT encoder and the tokenizer that belongs to it.

    `max_seq_length` is the limit that sentence-transformers would use (its own configuration
    file's), None where there is no such file.
    """

    path: Path
    network: Bert
    tokenizer: Tokenizer
    max_seq_length: int | None = None

    @property
    def config(self) -> BertConfig:
        """The hyperparameters."""
        return self.network.config

    def text_tokens(self, text: str, *, max_tokens: int | None = None) -> list[int]:
        """The token ids of a text, special tokens included, cut to the limit that applies."""
        return self.tokenizer.encode(text, max_tokens=max_tokens)

    def embed(
        self, texts: Sequence[str], *, max_tokens: int | None = None, tap: Tap | None = None
    ) -> Floats:
        """One L2-normalized vector for each text, float32 [N, D].

        A text longer than the tokenizer file's own limit is cut there, or at `max_tokens` where
        given. `tap` sees every intermediate value. Errors: `InvalidInput`, `LlmRuntimeError`.
        """
        return self.embed_tokens(
            [self.text_tokens(text, max_tokens=max_tokens) for text in texts], tap=tap
        )

    def embed_tokens(
        self,
        texts: Sequence[Sequence[int]],
        *,
        activation: Activation = gelu,
        tap: Tap | None = None,
    ) -> Floats:
        """`embed` for texts that are token ids already, and with another activation if asked."""
        return np.concatenate(list(self.embed_groups(texts, activation=activation, tap=tap)))

    def embed_groups(
        self,
        texts: Sequence[Sequence[int]],
        *,
        activation: Activation = gelu,
        tap: Tap | None = None,
    ) -> Iterator[Floats]:
        """`embed_tokens` in parts: vectors of no texts, of the first ones, …, each [., D]."""
        yield np.empty((0, self.config.n_embd), np.float32)
        for group in _groups(texts):
            yield self.network.embed(group, activation=activation, tap=tap)


def load(
    name_or_path: str | Path, *, numerics: str = "exact", progress: Progress | None = None
) -> LlamaModel | BertModel:
    """The model of this name, or at this path.

    A `Path`, or a string with a path separator or naming something that exists, is a path;
    any other string is a name, looked up where `refllm.models.default_roots()` says. The calling
    thread's kernels use every CPU that this process may use. Everything else as `load_path`.
    """
    use_threads(None)
    is_path = isinstance(name_or_path, Path) or os.sep in name_or_path
    if is_path or _is_there(Path(name_or_path)):
        path = Path(name_or_path)
    else:
        path = find_model(str(name_or_path), default_roots())
    return load_path(path, numerics=numerics, progress=progress)


def load_path(
    path: Path, *, numerics: str = "exact", progress: Progress | None = None
) -> LlamaModel | BertModel:
    """The model in a .gguf file or in a folder.

    `numerics` is "exact", or "int8" to multiply quantized weights as llama.cpp does. `progress`
    is told again and again how many bytes are loaded, and how many there are.

    Errors: `InvalidInput` where there is nothing, `ModelNotSupported`, `LlmRuntimeError` naming
    the file that is damaged.
    """
    if numerics not in NUMERICS:
        raise InvalidInput(f"numerics must be one of {', '.join(NUMERICS)}; got {numerics!r:.80}")
    _check_path(path)
    weights = open_weights(path)
    n_bytes = sum(tensor.data.nbytes for tensor in weights.tensors.values())
    consumed = _releasing(n_bytes, progress)
    parameters = Parameters(weights.path, weights.tensors, numerics, consumed)
    tokenizer = _tokenizer(weights, path)
    model = _model(path, weights, parameters, tokenizer)
    if progress is not None:
        progress(n_bytes, n_bytes)
    return model


def _model(
    path: Path, weights: Weights, parameters: Parameters, tokenizer: Tokenizer
) -> LlamaModel | BertModel:
    if weights.architecture == "llama":
        llama = Llama(llama_config(weights), parameters)
        _check_fit(tokenizer, llama.config.n_vocab, path)
        return LlamaModel(path, llama, tokenizer, chat_template_of(weights))
    bert = Bert(bert_config(weights), parameters)
    _check_fit(tokenizer, bert.n_vocab, path)
    return BertModel(path, bert, tokenizer, _max_seq_length(path / "sentence_bert_config.json"))


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


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the model at `path`; a GGUF may hold a vocabulary and no weights.

    Errors: as `load_path`.
    """
    _check_path(path)
    return _tokenizer(open_weights(path), path)


def _check_path(path: Path) -> None:
    if not _is_there(path):
        raise InvalidInput(f"there is no model at {str(path)[:500]}")


def _is_there(path: Path) -> bool:
    """Whether the path exists; one that the file system cannot even ask for does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _tokenizer(weights: Weights, path: Path) -> Tokenizer:
    if weights.source == "gguf":
        return tokenizer_from_gguf(weights.hparams, path=weights.path)
    return tokenizer_from_folder(path)


def _max_seq_length(path: Path) -> int | None:
    if not path.is_file():
        return None
    limit = read_json_object(path).get("max_seq_length")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise LlmRuntimeError(f"{path}: max_seq_length must be a whole number, is {limit!r:.80}")
    return limit


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
        f"the prompt has {length} tokens, the model's context holds {n_ctx}; shorten the prompt"
    )
