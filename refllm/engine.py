"""The engine on this machine: finds, loads, keeps, and runs models."""

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

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.ledger import Ledger
from refllm.generate import Chunk, Generation, Wishes, generate_text, steps_of
from refllm.interface import (
    EmbeddingsResult,
    EmbeddingsUsage,
    InferencingParams,
    InferencingResult,
    InferencingUsage,
)
from refllm.jit.compile import use_threads
from refllm.kernels.elementwise import gelu, gelu_tanh
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
from refllm.pooling import MEAN_NORMALIZED
from refllm.sampling import PROFILES, uniform
from refllm.tokenizer.grammar import matcher_of

__all__ = ["LocalEngine", "OpenEmbeddings", "default_engine"]

Floats = NDArray[np.float32]
T = TypeVar("T")

# What Spin's host takes back from an engine at most.
RESULT_LIMIT_BYTES = 128 * 1024 * 1024
FLOAT32_BYTES = 4
PADDING = 0  # the tokenizers library's default padding id, and BERT's

logger = logging.getLogger(__name__)

SWITCHED_OFF = "Local LLM operations are not supported in this version of Spin."


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEmbeddings:
    """Texts whose vectors are computed when they are asked for.

    Attributes:
        n_tokens: The tokens of all texts, special ones included.
        is_cut: Of each text, whether it was longer than the limit.
        groups: The vectors, some texts' at a time, float32 [., K].
    """

    n_tokens: int
    is_cut: tuple[bool, ...]
    groups: Iterator[Floats]


class LocalEngine:
    """Answers the interface's requests with models from this machine's disk.

    A result is a function of model files, prompt, parameters, seed, profile and numerics, and of
    nothing else: not of threads, earlier requests or requests at the same time. Safe to use from
    several threads; one computes at a time.

    Attributes:
        prompt_cache: Keys and values of recent prompts, from which a prompt that begins like one of
            them is continued.
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
    ) -> None:
        """An engine that finds models in `roots` (default: `refllm.models.find.default_roots()`).

        `allowed_models` is a component's `ai_models`; None allows every name. `threads` None means
        as many CPUs as this process may use and finds free. `numerics` is "exact", or "int8" to
        multiply quantized weights as llama.cpp does. With `stand_ins` an embedded model answers for
        one of `refllm.models.bundled.STAND_INS` that is not there, and a warning is logged; None
        means as the environment's REFLLM_STAND_INS says, which is not to. A `strict` engine refuses
        a model whose JSON files have a key that no table of `refllm.files.accounting` lists,
        instead of logging a warning. `progress` is told how far the loading of a model has come. At
        most `prompt_cache_bytes` of keys and values of recent prompts are kept; 0 switches that
        off, and no bit of any result depends on it. Models whose weights take more than
        `max_models_bytes` together are unloaded, the least recently used first; a model in use
        stays until its requests end, and one that is larger alone is loaded nevertheless. Errors:
        `InvalidInput` naming the option.
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
        self.prompt_cache = PromptCache(prompt_cache_bytes)
        self._models = LoadedModels(max_models_bytes)
        self._lock = threading.RLock()

    def restricted_to(self, allowed_models: Collection[str]) -> Self:
        """This engine for whoever may use only these models: another component of an application.

        Both have the same loaded models, and one of them computes at a time.
        """
        other = copy.copy(self)
        other._allowed_models = frozenset(allowed_models)
        return other

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that models are looked for in."""
        return default_roots() if self._roots is None else self._roots

    def infer(
        self,
        model: str | Path,
        prompt: str,
        params: InferencingParams | None = None,
        *,
        wishes: Wishes | None = None,
    ) -> InferencingResult:
        """The continuation of `prompt`.

        `model` is a name, or a `Path` from a trusted caller. `wishes` are beyond the interface,
        such as a grammar. Errors: `InvalidInput`, `ModelNotSupported`, `LlmRuntimeError`.
        """
        token_ids, answer = self._start(model, prompt, params, wishes)
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
        wishes: Wishes | None = None,
    ) -> Iterator[Chunk]:
        """`infer`, as the text comes; the request is checked before the first chunk is asked for.

        In profile `spin-local` the prompt comes first. Errors: those of `infer`.
        """
        _, chunks = self._start(model, prompt, params, wishes)
        return chunks

    def generate_embeddings(
        self, model: str | Path, texts: Sequence[str], *, max_tokens: int | None = None
    ) -> EmbeddingsResult:
        """Return one vector for each text, made as the model's files name it.

        The model's default prompt is put before each text; where no file names pooling or
        normalization, the vector is the mean of the text's tokens with the length 1.
        `max_tokens` cuts texts there, as sentence-transformers does, instead of at the tokenizer
        file's own limit; `truncated` of the result, and a warning that is logged, say which texts
        were cut. Errors: `InvalidInput`, `ModelNotSupported`, `LlmRuntimeError`.
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
        """Return the vectors of texts, of which nothing is computed yet.

        Args:
            model: A name, a `Path` from a trusted caller, or a model that `embedding_model` gave.
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
            padded = _padded(tokenized.token_ids)
            n_tokens = len(padded[0])
            groups = bert.embed_groups(padded, head=MEAN_NORMALIZED, activation=gelu_tanh)
        else:
            n_tokens = sum(len(text) for text in tokenized.token_ids)
            groups = bert.embed_groups(
                tokenized.token_ids, n_prompt=tokenized.n_prompt, activation=gelu
            )
        groups = self._each(bert, groups)
        return OpenEmbeddings(n_tokens=n_tokens, is_cut=tokenized.is_cut, groups=groups)

    def load(self, model: str | Path) -> LlamaModel | BertModel:
        """The model of this name or at this path, of either kind; loaded once and kept."""
        return self._load(self._path(model, find_model))

    def has_room(self, model: str | Path, *, is_for_embeddings: bool = False) -> bool:
        """Return whether a request for the model can begin within `max_models_bytes`.

        It can where the model is loaded, where it fits beside those in use, and where no model is
        in use. Models that are not in use are unloaded for it. A name of no model needs no room.
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
        """What the weights of all loaded models take, those that requests still use included."""
        return self._models.n_bytes

    def allows(self, model: str) -> bool:
        """Whether a model of this name may be asked for at all."""
        return self._allowed_models is None or model in self._allowed_models

    def answering_model(self, model: str) -> str:
        """The name of the model that answers where `model` is asked for: itself, or its stand-in.

        Errors: `InvalidInput` if `model` is not a name; `LlmRuntimeError` if it cannot be read.
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
        wishes: Wishes | None = None,
    ) -> tuple[LlamaModel, Generation]:
        """Return the model and a generation of which nothing is computed yet.

        Args:
            model: A name, a `Path` from a trusted caller, or a model that `inferencing_model` gave.
            prompt: The text to be continued, or its token ids as they are.
            params: The interface's parameters.
            seed: Another seed than the engine's.
            wishes: What is asked for beyond the interface's parameters.

        Raises:
            InvalidInput: As `infer`, for a token id outside the vocabulary, and for a grammar that
                cannot be used.
            ModelNotSupported: As `infer`.
            LlmRuntimeError: As `infer`, but for what computing finds.
        """
        llama = model if isinstance(model, LlamaModel) else self.inferencing_model(model)
        if params is not None and not isinstance(params, InferencingParams):
            raise InvalidInput(f"params must be InferencingParams, got {type(params).__name__}")
        wishes = Wishes() if wishes is None else wishes
        n_vocab = llama.tokenizer.n_vocab
        named = {"logit_bias": wishes.adjustments.bias, "stop_token_ids": wishes.stop_token_ids}
        for name, token_ids in named.items():
            for token_id in token_ids:
                if not 0 <= token_id < n_vocab:
                    raise InvalidInput(
                        f"{name} names the token {token_id}, which is outside the model's "
                        f"vocabulary of {n_vocab}"
                    )
        grammar = wishes.grammar
        generation = Generation(
            llama.network,
            llama.prompt_tokens(prompt),
            params or InferencingParams(),
            end_tokens=llama.tokenizer.eos_ids,
            n_tokens=llama.tokenizer.n_vocab,
            seed=self.seed if seed is None else seed,
            profile=self.profile,
            wishes=wishes,
            matcher=None if grammar is None else matcher_of(llama.tokenizer, grammar),
            prompt_cache=self.prompt_cache,
        )
        return llama, generation

    @contextmanager
    def computing(self) -> Iterator[None]:
        """While nobody else computes with this engine, on as many CPUs as it may use."""
        with self._lock:
            use_threads(self.threads)
            yield

    def _start(
        self,
        model: str | Path,
        prompt: str,
        params: InferencingParams | None,
        wishes: Wishes | None,
    ) -> tuple[list[int], Iterator[Chunk]]:
        """Check the request; return the prompt's tokens and the answer, none of it computed yet."""
        if not isinstance(prompt, str):
            raise InvalidInput(f"the prompt must be text, got {type(prompt).__name__}")
        llama, generation = self.open(model, prompt, params, wishes=wishes)
        token_ids = list(generation.tokens)
        steps = steps_of(llama.network, generation)
        chunks = self._each(llama, generate_text(steps, llama.tokenizer, token_ids))
        if self.profile == "spin-local":
            chunks = itertools.chain([Chunk(prompt, None)], chunks)
        return token_ids, chunks

    def _each(self, model: LlamaModel | BertModel, parts: Iterator[T]) -> Iterator[T]:
        """The parts of a result, each computed while no other request computes.

        The generator refers to the model until it ends: the model stays in memory as long.
        """
        while True:
            with self.computing():
                part = next(parts, None)
            if part is None:
                return
            yield part

    def inferencing_model(self, model: str | Path) -> LlamaModel:
        """The llama of this name or at this path; loaded once and kept. Errors: as `infer`."""
        found = self._load(self._path(model, find_inferencing_model))
        if not isinstance(found, LlamaModel):
            raise ModelNotSupported(
                f"{model} is an embedding model; it cannot generate text",
                f"to make vectors with it: refllm embed {shlex.quote(str(model))} TEXT",
            )
        return found

    def embedding_model(self, model: str | Path) -> BertModel:
        """The encoder of this name or at this path; loaded once and kept.

        Errors: as `generate_embeddings`.
        """
        found = self._load(self._path(model, find_embedding_model))
        if not isinstance(found, BertModel):
            raise ModelNotSupported(
                f"{model} generates text; it cannot make embeddings",
                f"to continue a text with it: refllm infer {shlex.quote(str(model))} PROMPT",
            )
        return found

    def _path(self, model: str | Path, find: Callable[[str, Sequence[Path]], Path]) -> Path:
        """Where the model is, if this engine may use it."""
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
            return load_path(path, numerics=self.numerics, progress=self._progress, ledger=ledger)

        with self._lock:
            return self._models.get(path.absolute(), load)


@functools.cache
def default_engine() -> LocalEngine:
    """The engine behind `refllm.infer` and its sisters: default folders, seed 0, contract."""
    return LocalEngine()


def _check_option(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise InvalidInput(f"{name} must be one of {', '.join(sorted(known))}; got {value!r:.80}")


def _check_token_ids(bert: BertModel, texts: Sequence[Sequence[int]]) -> None:
    """Raise `InvalidInput` for ids that the model's own tokenizer does not make of a text.

    Ids of another tokenizer are mostly in the vocabulary, too, and would give vectors of other
    texts; what they lack are the special tokens around a text.
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


def _padded(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Every text as long as the longest, as Spin's engine computes them: without a mask."""
    if not texts:
        raise LlmRuntimeError("Spin's local engine fails on an empty list; give at least one text")
    longest = max(len(text) for text in texts)
    return [[*text, *[PADDING] * (longest - len(text))] for text in texts]


def _check_size(n_bytes: int) -> None:
    if n_bytes > RESULT_LIMIT_BYTES:
        raise LlmRuntimeError(f"query result exceeds limit of {RESULT_LIMIT_BYTES} bytes")
