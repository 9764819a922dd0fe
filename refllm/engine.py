"""The local engine: finds, loads, keeps and runs models of this machine."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import os
import shlex
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from refllm.bert import Bert
from refllm.errors import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.ledger import Ledger
from refllm.generate import Chunk, Generation, GenerationOptions, generate_text, steps_of
from refllm.interface import (
    EmbeddingsResult,
    EmbeddingsUsage,
    InferencingParams,
    InferencingResult,
    InferencingUsage,
)
from refllm.jit.compile import use_threads
from refllm.kernels.elementwise import gelu, gelu_tanh
from refllm.llama import Llama
from refllm.models.bundled import ROOT, STAND_INS, wants_stand_ins
from refllm.models.find import (
    MODEL_NOT_FOUND,
    check_name,
    default_roots,
    find_embedding_model,
    find_inferencing_model,
    find_model,
    has_model,
)
from refllm.models.kept_panels import bytes_to_keep
from refllm.models.load import (
    NUMERICS,
    BertModel,
    LlamaModel,
    Progress,
    TokenizedTexts,
    load_path,
)
from refllm.models.loaded import LoadedModels
from refllm.models.prompt_cache import DEFAULT_BYTES, PromptCache
from refllm.models.starting_bert import StartingBert
from refllm.models.starting_llama import StartingLlama
from refllm.pooling import MEAN_NORMALIZED
from refllm.sampling import PROFILES, uniform
from refllm.tokenizer.grammar import matcher_of

__all__ = ["LocalEngine", "OpenEmbeddings", "default_engine"]

Floats = NDArray[np.float32]
T = TypeVar("T")

# The largest result that Spin's host accepts from an engine.
RESULT_LIMIT_BYTES = 128 * 1024 * 1024
FLOAT32_BYTES = 4
PADDING = 0  # the tokenizers library's default padding id, and BERT's

logger = logging.getLogger(__name__)

SWITCHED_OFF = "Local LLM operations are not supported in this version of Spin."


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEmbeddings:
    """Texts whose vectors are computed while the caller iterates.

    Attributes:
        n_tokens: The tokens of all texts, special ones included.
        is_cut: Of each text, whether it was longer than the limit.
        groups: The vectors in groups of some texts, float32 [texts of the group, K].
    """

    n_tokens: int
    is_cut: tuple[bool, ...]
    groups: Iterator[Floats]


class LocalEngine:
    """Answers the interface's requests with models from this machine's disk.

    A result depends on model files, prompt, parameters, seed, profile and numerics only: not on the
    number of threads, nor on earlier or simultaneous requests. Several threads can use one engine;
    one of them computes at a time.

    Attributes:
        prompt_cache: Keys and values of recent prompts, reused by a prompt with the same beginning.
    """

    def __init__(
        self,
        *,
        roots: Sequence[Path] | None = None,
        seed: int = 0,
        profile: str = "contract",
        numerics: str = "exact",
        threads: int | None = None,
        allowed_models: Collection[str] | None = None,
        stand_ins: bool | None = None,
        enabled: bool = True,
        strict: bool = False,
        progress: Progress | None = None,
        prompt_cache_bytes: int = DEFAULT_BYTES,
        max_models_bytes: int | None = None,
        keep_packed_bytes: int | None = None,
        compiles_apart: bool = False,
    ) -> None:
        """Configure the engine; nothing is loaded yet.

        Args:
            roots: The folders with models; by default `refllm.models.find.default_roots()`.
            seed: Selects the random numbers, a u64.
            profile: One of `refllm.sampling.PROFILES`.
            numerics: "exact", or "int8" to multiply quantized weights as llama.cpp does.
            threads: The number of threads; None for the CPUs that are free and allowed.
            allowed_models: A component's `ai_models`; None allows every name.
            stand_ins: Whether a bundled model answers for a model of
                `refllm.models.bundled.STAND_INS` that is not found, with a warning in the log; None
                for the environment's REFLLM_STAND_INS, by default no.
            enabled: Whether the engine answers at all.
            strict: Whether to refuse a model whose JSON files have a key that no table of
                `refllm.files.accounting` lists; otherwise a warning is logged.
            progress: Called while a model loads, with its bytes.
            prompt_cache_bytes: The limit of the prompt cache; 0 switches it off. No bit of a result
                depends on it.
            max_models_bytes: The limit of all loaded weights. Beyond it the least recently used
                models are unloaded; a model in use stays until its requests end, and a model that
                is larger alone is loaded nevertheless.
            keep_packed_bytes: The limit of the packed weights that are kept on disk, for all
                processes together, and mapped the next time (`refllm.models.kept_panels`); 0 keeps
                none; None for the environment's REFLLM_KEEP_PACKED_MIB, by default none. No bit of
                a result depends on it.
            compiles_apart: Whether other processes compile kernels on the first run on this
                machine, side by side, and a small llama computes in NumPy meanwhile
                (`refllm.models.starting_llama`). No bit of a result depends on it.

        Raises:
            InvalidInput: For an unusable option; the message names it.
        """
        uniform(seed, 0)  # refuses a seed that is not a u64
        _check_option("profile", profile, PROFILES)
        _check_option("numerics", numerics, NUMERICS)
        if threads is not None and threads < 1:
            raise InvalidInput(f"threads must be at least 1, got {threads}")
        self.seed = seed
        self.profile = profile
        self.numerics = numerics
        self.threads = threads
        self.stand_ins = wants_stand_ins(os.environ) if stand_ins is None else stand_ins
        self._stood_in: set[str] = set()
        if isinstance(roots, str | os.PathLike):
            raise InvalidInput(f"roots must be a list of folders; put {str(roots)!r} into one")
        self._roots = None if roots is None else tuple(map(Path, roots))
        self._allowed_models = None if allowed_models is None else frozenset(allowed_models)
        self._enabled = enabled
        self._strict = strict
        self._progress = progress
        self._llama = StartingLlama if compiles_apart else Llama
        self._bert = StartingBert if compiles_apart else Bert
        self.prompt_cache = PromptCache(prompt_cache_bytes)
        self._models = LoadedModels(max_models_bytes)
        if keep_packed_bytes is None:
            keep_packed_bytes = bytes_to_keep(os.environ)
        if keep_packed_bytes < 0:
            raise InvalidInput(f"keep_packed_bytes must be at least 0, got {keep_packed_bytes}")
        self._keep_packed_bytes = keep_packed_bytes
        self._lock = threading.RLock()

    def restricted_to(self, allowed_models: Collection[str]) -> Self:
        """Return this engine with other allowed models, for another component of an application.

        Both share the loaded models, and one of them computes at a time.
        """
        other = copy.copy(self)
        other._allowed_models = frozenset(allowed_models)
        return other

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders with models."""
        return default_roots() if self._roots is None else self._roots

    def infer(
        self,
        model: str | Path,
        prompt: str,
        params: InferencingParams | None = None,
        *,
        generation_options: GenerationOptions | None = None,
    ) -> InferencingResult:
        """Return the continuation of `prompt`.

        Args:
            model: A name, or a `Path` from a trusted caller.
            prompt: The text to continue.
            params: The interface's parameters.
            generation_options: Options beyond the interface, such as a grammar.

        Raises:
            InvalidInput: If the caller must change the request.
            ModelNotSupported: If the model is not supported.
            LlmRuntimeError: If the request fails, such as for a damaged file.
        """
        token_ids, answer = self._start(model, prompt, params, generation_options)
        chunks = list(answer)
        text = "".join(chunk.text for chunk in chunks)
        _check_size(len(text.encode()))
        n_generated = sum(chunk.step is not None for chunk in chunks)
        n_prompt = len(token_ids) + (n_generated if self.profile == "spin-local" else 0)
        return InferencingResult(text, InferencingUsage(n_prompt, n_generated))

    def stream(
        self,
        model: str | Path,
        prompt: str,
        params: InferencingParams | None = None,
        *,
        generation_options: GenerationOptions | None = None,
    ) -> Iterator[Chunk]:
        """Return the continuation of `prompt` chunk by chunk, as it is computed.

        Arguments and errors are those of `infer`; the request is checked before this returns. In
        the profile `spin-local` the first chunk is the prompt.
        """
        _, chunks = self._start(model, prompt, params, generation_options)
        return chunks

    def generate_embeddings(
        self, model: str | Path, texts: Sequence[str], *, max_tokens: int | None = None
    ) -> EmbeddingsResult:
        """Return one vector for each text, with the pooling that the model's files name.

        The model's default prompt is put before each text. A model without pooling files gives the
        mean of the text's tokens, normalized to length 1. The field `truncated` of the result has
        for each text whether it was cut, and a warning is logged.

        Args:
            model: A name, or a `Path` from a trusted caller.
            texts: The texts.
            max_tokens: Where texts are cut, in place of the tokenizer file's own limit.

        Raises:
            InvalidInput: If the caller must change the request.
            ModelNotSupported: If the model is not supported.
            LlmRuntimeError: If the request fails, such as for a damaged file.
        """
        _check_texts(texts)
        opened = self.open_embeddings(model, texts, max_tokens=max_tokens)
        vectors = np.concatenate(list(opened.groups))  # [N, D]
        usage = EmbeddingsUsage(opened.n_tokens)
        return EmbeddingsResult(vectors.tolist(), usage, opened.is_cut)

    def open_embeddings(
        self,
        model: str | Path | BertModel,
        texts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int | None = None,
    ) -> OpenEmbeddings:
        """Return the vectors of texts, to be computed while the caller iterates.

        Args:
            model: A name, a `Path` from a trusted caller, or one from `embedding_model`.
            texts: Texts, or the token ids of each. Ids are those of the model's own
                tokenizer with its special tokens; they are computed as they are, without the
                model's prompt, and nothing is cut.
            max_tokens: Where a text is cut, in place of the tokenizer file's own limit.

        Raises:
            InvalidInput: As `generate_embeddings`, and for ids without the special tokens, or
                outside the vocabulary.
            ModelNotSupported: As `generate_embeddings`.
            LlmRuntimeError: As `generate_embeddings`.
        """
        bert = model if isinstance(model, BertModel) else self.embedding_model(model)
        is_spin_local = self.profile == "spin-local"
        width = MEAN_NORMALIZED.width(bert.config.n_embd) if is_spin_local else bert.width
        _check_size(len(texts) * width * FLOAT32_BYTES)
        written = [text for text in texts if isinstance(text, str)]
        if written or isinstance(texts, str):
            _check_texts(texts)
            prompt = "" if is_spin_local else None
            tokenized = bert.tokenize(written, prompt=prompt, max_tokens=max_tokens)
        else:
            token_ids = [list(text) for text in texts if not isinstance(text, str)]
            _check_token_ids(bert, token_ids)
            n_texts = len(token_ids)
            tokenized = TokenizedTexts(token_ids=token_ids, n_prompt=0, is_cut=(False,) * n_texts)
        if is_spin_local:
            if not texts:
                raise LlmRuntimeError(
                    "Spin's local engine fails on an empty list; give at least one text"
                )
            # Spin's engine pads every text to the longest, without a mask.
            n_tokens = max(len(text) for text in tokenized.token_ids)
            padded = [[*text, *[PADDING] * (n_tokens - len(text))] for text in tokenized.token_ids]
            groups = bert.embed_groups(padded, head=MEAN_NORMALIZED, activation=gelu_tanh)
        else:
            n_tokens = sum(len(text) for text in tokenized.token_ids)
            groups = bert.embed_groups(
                tokenized.token_ids, n_prompt=tokenized.n_prompt, activation=gelu
            )
        groups = self._each(bert, groups)
        return OpenEmbeddings(n_tokens=n_tokens, is_cut=tokenized.is_cut, groups=groups)

    def load(self, model: str | Path) -> LlamaModel | BertModel:
        """Return the model of this name or path, of either kind; it is loaded once and kept."""
        return self._load(self._path(model, find_model))

    def has_room(self, model: str | Path, *, is_for_embeddings: bool = False) -> bool:
        """Return whether a request for the model can begin within `max_models_bytes`.

        It can if the model is loaded, if it fits beside the models in use, or if no model is in
        use. Models that are not in use are unloaded for it. A name without a model needs no room.
        """
        find = find_embedding_model if is_for_embeddings else find_inferencing_model
        try:
            path = self._path(model, find)
        except LlmError:
            return True
        with self._lock:
            return self._models.has_room(path.absolute())

    @property
    def models_bytes(self) -> int:
        """The bytes of the weights of all loaded models."""
        return self._models.n_bytes

    def allows(self, model: str) -> bool:
        """Return whether the engine allows a model of this name."""
        return self._allowed_models is None or model in self._allowed_models

    def answering_model(self, model: str) -> str:
        """Return the name of the model that answers for `model`: itself, or its stand-in.

        Raises:
            InvalidInput: If `model` is not a name.
            LlmRuntimeError: If the model's folder cannot be read.
        """
        has_stand_in = self.stand_ins and model in STAND_INS
        return STAND_INS[model] if has_stand_in and not has_model(model, self.roots) else model

    def open(
        self,
        model: str | Path | LlamaModel,
        prompt: str | Sequence[int],
        params: InferencingParams | None = None,
        *,
        seed: int | None = None,
        generation_options: GenerationOptions | None = None,
    ) -> tuple[LlamaModel, Generation]:
        """Return the model and a generation, to be computed step by step.

        Args:
            model: A name, a `Path` from a trusted caller, or one from `inferencing_model`.
            prompt: The text to continue, or its token ids.
            params: The interface's parameters.
            seed: Another seed than the engine's.
            generation_options: Options beyond the interface's parameters.

        Raises:
            InvalidInput: As `infer`, for a token id outside the vocabulary, and for a grammar that
                cannot be used.
            ModelNotSupported: As `infer`.
            LlmRuntimeError: As `infer`, except errors of the computation.
        """
        llama = model if isinstance(model, LlamaModel) else self.inferencing_model(model)
        if params is not None and not isinstance(params, InferencingParams):
            raise InvalidInput(f"params must be InferencingParams, got {type(params).__name__}")
        generation_options = (
            GenerationOptions() if generation_options is None else generation_options
        )
        n_vocab = llama.tokenizer.n_vocab
        named = {
            "logit_bias": generation_options.adjustments.bias,
            "stop_token_ids": generation_options.stop_token_ids,
        }
        for name, token_ids in named.items():
            for token_id in token_ids:
                if not 0 <= token_id < n_vocab:
                    raise InvalidInput(
                        f"{name} names the token {token_id}, which is outside the model's "
                        f"vocabulary of {n_vocab}"
                    )
        grammar = generation_options.grammar
        generation = Generation(
            llama.network,
            llama.prompt_tokens(prompt),
            params or InferencingParams(),
            end_tokens=llama.tokenizer.eos_ids,
            n_tokens=llama.tokenizer.n_vocab,
            seed=self.seed if seed is None else seed,
            profile=self.profile,
            generation_options=generation_options,
            matcher=None if grammar is None else matcher_of(llama.tokenizer, grammar),
            prompt_cache=self.prompt_cache,
        )
        return llama, generation

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Hold the engine's lock, with its number of threads."""
        with self._lock:
            use_threads(self.threads)
            yield

    def _start(
        self,
        model: str | Path,
        prompt: str,
        params: InferencingParams | None,
        generation_options: GenerationOptions | None,
    ) -> tuple[list[int], Iterator[Chunk]]:
        """Check the request; return the prompt's tokens and the chunks, to be computed later."""
        if not isinstance(prompt, str):
            raise InvalidInput(f"the prompt must be text, got {type(prompt).__name__}")
        llama, generation = self.open(model, prompt, params, generation_options=generation_options)
        token_ids = list(generation.tokens)
        steps = steps_of(llama.network, generation)
        chunks = self._each(llama, generate_text(steps, llama.tokenizer, token_ids))
        if self.profile == "spin-local":
            chunks = itertools.chain([Chunk(prompt, None)], chunks)
        return token_ids, chunks

    def _each(self, model: LlamaModel | BertModel, parts: Iterator[T]) -> Iterator[T]:
        """Yield the parts of a result, each computed under the engine's lock.

        The generator holds a reference to the model, so the model stays in memory until it ends.
        """
        while True:
            with self.computing():
                part = next(parts, None)
            if part is None:
                return
            yield part

    def inferencing_model(self, model: str | Path) -> LlamaModel:
        """Return the llama of this name or path, loaded once and kept; errors as `infer`."""
        found = self._load(self._path(model, find_inferencing_model))
        if not isinstance(found, LlamaModel):
            raise ModelNotSupported(
                f"{model} is an embedding model; it cannot generate text",
                f"to make vectors with it: refllm embed {shlex.quote(str(model))} TEXT",
            )
        return found

    def embedding_model(self, model: str | Path) -> BertModel:
        """Return the encoder of this name or path, loaded once and kept; errors as `infer`."""
        found = self._load(self._path(model, find_embedding_model))
        if not isinstance(found, BertModel):
            raise ModelNotSupported(
                f"{model} generates text; it cannot make embeddings",
                f"to continue a text with it: refllm infer {shlex.quote(str(model))} PROMPT",
            )
        return found

    def _path(self, model: str | Path, find: Callable[[str, Sequence[Path]], Path]) -> Path:
        """Return the model's path, if this engine allows it."""
        if not self._enabled:
            raise LlmRuntimeError(SWITCHED_OFF)
        if isinstance(model, Path):
            return model
        check_name(model)
        if not self.allows(model):
            raise InvalidInput(
                f"The component does not have access to use '{model}'. To give the component "
                f"access, add '{model}' to the 'ai_models' key for the component in your "
                "spin.toml manifest",
                code=MODEL_NOT_FOUND,
            )
        answering = self.answering_model(model)
        if answering == model:
            return find(model, self.roots)
        if model not in self._stood_in:
            self._stood_in.add(model)
            logger.warning("refllm: %s stands in for %s", answering, model)
        return find(answering, [ROOT])

    def _load(self, path: Path) -> LlamaModel | BertModel:
        def load(path: Path) -> LlamaModel | BertModel:
            use_threads(self.threads)
            ledger = Ledger(strict=self._strict)
            return load_path(
                path,
                numerics=self.numerics,
                progress=self._progress,
                ledger=ledger,
                keep_packed_bytes=self._keep_packed_bytes,
                llama=self._llama,
                bert=self._bert,
            )

        with self._lock:
            return self._models.get(path.absolute(), load)


@functools.cache
def default_engine() -> LocalEngine:
    """Return the default engine of the module-level functions: default folders, seed 0."""
    return LocalEngine()


def _check_option(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise InvalidInput(f"{name} must be one of {', '.join(sorted(known))}; got {value!r:.80}")


def _check_token_ids(bert: BertModel, texts: Sequence[Sequence[int]]) -> None:
    """Raise `InvalidInput` for ids that are not of the model's own tokenizer.

    Ids of another tokenizer are mostly in the vocabulary, too, and would give vectors of other
    texts; but they lack this model's special tokens around a text.
    """
    added, with_text = bert.tokenizer.encode(""), bert.tokenizer.encode("a")
    differing = (
        i for i, pair in enumerate(zip(added, with_text, strict=False)) if len({*pair}) > 1
    )
    n_before = next(differing, len(added))
    before, after = added[:n_before], added[n_before:]
    n_vocab = bert.network.n_vocab
    instead = "give text, or the ids of the model's own tokenizer"
    for ids in texts:
        unknown = next((token_id for token_id in ids if not 0 <= token_id < n_vocab), None)
        if unknown is not None:
            raise InvalidInput(
                f"token id {unknown} is outside the model's vocabulary of {n_vocab}; {instead}"
            )
        if ids[:n_before] != before or ids[len(ids) - len(after) :] != after:
            raise InvalidInput(
                f"token ids of a text begin with {before} and end with {after} for this model, "
                f"its special tokens, got {ids!r:.80}; {instead}"
            )


def _check_texts(texts: Sequence[object]) -> None:
    is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not is_list or not all(isinstance(text, str) for text in texts):
        raise InvalidInput("texts must be a list of texts; put a single one in a list")


def _check_size(n_bytes: int) -> None:
    if n_bytes > RESULT_LIMIT_BYTES:
        raise LlmRuntimeError(f"query result exceeds limit of {RESULT_LIMIT_BYTES} bytes")
