"""Vectors and answers for batches of rows: columns in, columns out.

`Embedder` and `Generator` are functions of a batch, for `map_batches` of Ray Data, `map_partitions`
of Dask, `mapInPandas` of Spark and `map(batched=True)` of datasets. They can be pickled: the model
is loaded in the process that computes, at its first batch. `refllm.batch.local` runs the same over
files.

    Embedder     windows of rows -- tokens -- groups of similar length -- vectors -- in order
                                    reading   threads, one group each

    Generator    windows of rows -- prompts -- sequences at different steps -- texts -- in order
                                    thread    one batch of them, refilled at each step

N rows, K width of a vector.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refllm.batch.columns import Columns, NotText, add_results, column_names, columns_of
from refllm.batch.template import RowTemplate
from refllm.engine import LocalEngine
from refllm.errors import InvalidInput, LlmError
from refllm.generate import Generation, step_together
from refllm.interface import InferencingParams
from refllm.jit.compile import use_threads
from refllm.jit.threads import default_threads
from refllm.kernels.elementwise import l2_normalize
from refllm.models.load import NUMERICS, BertModel, LlamaModel
from refllm.pooling import Normalize
from refllm.sampling import uniform
from refllm.tokenizer.base import NO_LIMIT

__all__ = ["ON_LONG", "PARAMETERS", "WINDOW_ROWS", "Embedder", "Generator", "OnLong", "RowFunction"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]

OnLong = Literal["error", "truncate", "chunk-mean"]
ON_LONG: tuple[OnLong, ...] = get_args(OnLong)

WINDOW_ROWS = 2048
"""The rows of a batch that are sorted by length together."""

AHEAD = 2  # windows that are begun before the first of them is done
GROUP_TOKENS = 512  # of one task of a thread, as in `refllm.models.load`
PIECE_CHARACTERS = 2**16  # of a long text that are tokenized at once
MAX_CACHE_BYTES = 2**30  # of the keys and values of all running sequences

PARAMETERS: Mapping[str, type[int] | type[float]] = MappingProxyType(
    {
        "max_tokens": int,
        "repeat_penalty": float,
        "repeat_penalty_last_n_token_count": int,
        "temperature": float,
        "top_k": int,
        "top_p": float,
        "seed": int,
    }
)
"""What a column can have for each row: the fields of `InferencingParams`, and the seed."""


class RowFunction(ABC):
    """What computes columns from columns: `Embedder` and `Generator`."""

    model: str | Path
    numerics: str
    roots: Sequence[Path] | None
    stand_ins: bool | None
    threads: int | None

    @abstractmethod
    def needed(self, there: Sequence[str]) -> tuple[str, ...]:
        """Return the columns that `run` needs, of a batch that has the columns `there`.

        Raises:
            InvalidInput: For a column that is not there.
        """

    @property
    @abstractmethod
    def text_columns(self) -> tuple[str, ...]:
        """The columns that must have texts."""

    @property
    @abstractmethod
    def loaded(self) -> LlamaModel | BertModel:
        """The model; loaded by the first use. Raises as `LocalEngine.infer`."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns of the results. Loads the model."""

    @abstractmethod
    def run(self, windows: Iterable[Columns]) -> Iterator[pa.RecordBatch]:
        """Yield the results of windows of rows, window by window, in order.

        The next windows are taken and begun while one is computed.

        Args:
            windows: The columns of `needed`; a window without a row is allowed.

        Raises:
            ModelNotSupported: As `LocalEngine.infer`.
            LlmRuntimeError: The same, for the model. An error in a row is its `error`.
        """

    @functools.cached_property
    def engine(self) -> LocalEngine:
        """The engine of this process; `use` replaces it."""
        return LocalEngine(
            roots=self.roots,
            numerics=self.numerics,
            stand_ins=self.stand_ins,
            threads=self.threads,
        )

    def use(self, engine: LocalEngine) -> None:
        """Compute with this engine, whose numerics must be the same."""
        vars(self)["engine"] = engine

    def __getstate__(self) -> dict[str, object]:
        """Return the options alone: the process that gets them loads the model."""
        return {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]

    def __setstate__(self, state: Mapping[str, object]) -> None:
        vars(self).update(state)

    def __call__(self, batch: Any) -> Any:
        """Return a batch with the columns of the results after its own.

        Args:
            batch: A pyarrow Table or RecordBatch, a pandas DataFrame, or a dict of NumPy arrays or
                of lists.

        Returns:
            A batch of the same class. The column `error` is null for a row that was computed; for
            any other row it has the reason, and the other new columns are null (in NumPy, a vector
            is NaN).

        Raises:
            InvalidInput: For a missing column, a column of texts that has another type, columns of
                different lengths, and a column whose name a result has.
            ModelNotSupported: As `LocalEngine.infer`, for the model.
            LlmRuntimeError: The same.
        """
        columns = columns_of(batch, self.needed(column_names(batch)), text=self.text_columns)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise InvalidInput(f"the batch has columns of different lengths: {lengths}")
        n_rows = max(lengths.values(), default=0)
        windows = (
            {name: column[start : start + WINDOW_ROWS] for name, column in columns.items()}
            for start in range(0, n_rows, WINDOW_ROWS)
        )
        results = pa.Table.from_batches(list(self.run(windows)), self.schema).combine_chunks()
        whole = results.to_batches() or [pa.RecordBatch.from_pylist([], self.schema)]
        return add_results(batch, whole[0])

    def _check_numerics(self) -> None:
        if self.numerics not in NUMERICS:
            known = ", ".join(NUMERICS)
            raise InvalidInput(f"numerics must be one of {known}; got {self.numerics!r:.80}")


# --- Vectors -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedder(RowFunction):
    """Adds to a batch one vector for each row.

    The columns of the result:

        embedding      fixed_size_list<float32>[K], as `refllm.generate_embeddings` computes it
        token_count    int32, special tokens included
        error          string, null for a row with a vector

    Attributes:
        model: A model's name, or its `Path`.
        column: The column of texts.
        on_long: What to do with a text of more tokens than `max_tokens`. "error" makes it the row's
            error. "truncate" embeds the text's beginning, as `generate_embeddings` does.
            "chunk-mean" embeds consecutive pieces of the text and takes their mean, weighted by
            their number of tokens, with the length 1 if the model's vectors have it.
            Source: "Embedding texts that are longer than the model's maximum context length", in
            OpenAI's cookbook.
        max_tokens: The limit of a text, special tokens included; None for the tokenizer file's own
            limit, or the model's context.
        numerics: "exact" or "int8".
        roots: The folders with models, by default `refllm.models.find.default_roots()`.
        stand_ins: As `LocalEngine`.
        threads: The number of threads; None for the CPUs that this process may use. No bit depends
            on it.

    Example:
        >>> embedder = Embedder("tiny-embed")
        >>> batch = embedder({"text": ["A cat sat on the mat.", None]})
        >>> len(batch["embedding"][0]), batch["token_count"], batch["error"]
        (384, [9, None], [None, 'the text is null'])
    """

    model: str | Path
    column: str = field(default="text", kw_only=True)
    on_long: OnLong = field(default="error", kw_only=True)
    max_tokens: int | None = field(default=None, kw_only=True)
    numerics: str = field(default="exact", kw_only=True)
    roots: Sequence[Path] | None = field(default=None, kw_only=True)
    stand_ins: bool | None = field(default=None, kw_only=True)
    threads: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Raise `InvalidInput` for an unusable option."""
        self._check_numerics()
        if self.on_long not in ON_LONG:
            raise InvalidInput(
                f"on_long must be one of {', '.join(ON_LONG)}; got {self.on_long!r:.80}"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidInput(f"max_tokens must be at least 1, got {self.max_tokens}")

    def needed(self, there: Sequence[str]) -> tuple[str, ...]:
        """Return the column of texts."""
        return (self.column,)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The column of texts."""
        return (self.column,)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the results; loads the model."""
        return _vector_schema(self.loaded.width)

    @property
    def loaded(self) -> BertModel:
        """The model; loaded by the first use."""
        return self.engine.embedding_model(self.model)

    def run(self, windows: Iterable[Columns]) -> Iterator[pa.RecordBatch]:
        """Yield the results of windows of rows; see `RowFunction.run`.

        The calling thread reads and tokenizes; other threads compute meanwhile.
        """
        bert = self.loaded
        pending: deque[_Vectors] = deque()
        with _workers(self.engine.threads) as pool:
            for window in windows:
                vectors = _Vectors(bert, len(window[self.column]))
                vectors.begin(self._tokenized(bert, window[self.column], vectors), pool)
                pending.append(vectors)
                if len(pending) > AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _tokenized(
        self, bert: BertModel, texts: Sequence[object], vectors: _Vectors
    ) -> list[_Piece]:
        """Return the texts' tokens, and store the errors of rows that have none."""
        limit = _limit_of(bert, self.max_tokens)
        found: dict[int, str] = {}
        for row, text in enumerate(texts):
            if isinstance(text, str):
                found[row] = text
            else:
                vectors.errors[row] = _why_no_text("the text", text)
        try:
            pieces = _tokens(bert, found, limit)
        except LlmError:  # of one text at least
            pieces = []
            for row, text in found.items():
                try:
                    pieces += _tokens(bert, {row: text}, limit)
                except LlmError as error:
                    vectors.errors[row] = str(error)
        long = {piece.row for piece in pieces if piece.is_cut}
        if not long or self.on_long == "truncate":
            return pieces
        kept = [piece for piece in pieces if piece.row not in long]
        for row in sorted(long):
            try:
                if self.on_long == "error":
                    raise InvalidInput(
                        f"the text has more than {limit} tokens; truncate or chunk-mean as on_long "
                        "embed it"
                    )
                kept += _chunks(bert, row, found[row], limit)
            except LlmError as error:
                vectors.errors[row] = str(error)
        return kept


@dataclass(frozen=True, slots=True)
class _Piece:
    """The tokens of a text, or of a part of it.

    Attributes:
        row: The row's place in its window.
        token_ids: Special tokens included.
        n_prompt: As `TokenizedTexts.n_prompt`.
        weight: The number of tokens that are the text's own; 0 where a text has one piece.
        is_cut: Whether tokens of the text are missing.
    """

    row: int
    token_ids: Sequence[int] | Ids
    n_prompt: int
    weight: int = 0
    is_cut: bool = False


def _limit_of(bert: BertModel, max_tokens: int | None) -> int:
    limit = bert.tokenizer.text_limit if max_tokens is None else max_tokens
    return bert.config.n_ctx if limit is None else min(limit, bert.config.n_ctx)


def _tokens(bert: BertModel, texts: Mapping[int, str], limit: int) -> list[_Piece]:
    """Return the tokens of texts by row, cut to the limit; raises as `BertModel.tokenize`."""
    tokenized = bert.tokenize(list(texts.values()), max_tokens=limit, warns=False)
    return [
        _Piece(row, token_ids, tokenized.n_prompt, is_cut=is_cut)
        for row, token_ids, is_cut in zip(texts, tokenized.token_ids, tokenized.is_cut, strict=True)
    ]


def _chunks(bert: BertModel, row: int, text: str, limit: int) -> list[_Piece]:
    """Return the tokens of consecutive pieces of a text, each with prompt and special tokens.

    Raises:
        InvalidInput: If the limit has no room for a token of the text.
    """
    tokenizer, prompt = bert.tokenizer, bert.sentence.default_prompt
    encode = partial(tokenizer.encode, add_special=False, max_tokens=NO_LIMIT)
    around, with_text = tokenizer.encode(""), tokenizer.encode("a")
    same = (pair[0] == pair[1] for pair in zip(around, with_text, strict=False))
    n_before = next((i for i, is_same in enumerate(same) if not is_same), len(around))
    before = [*around[:n_before], *encode(prompt)]
    after = around[n_before:]
    room = limit - len(before) - len(after)
    if room < 1:
        raise InvalidInput(
            f"max_tokens is {limit}, and the prompt and the special tokens alone are {limit - room}"
        )
    parts = [np.asarray(encode(part), np.int32) for part in _parts(text, tokenizer.separators)]
    token_ids = np.concatenate(parts)  # [T]
    n_prompt = bert.tokenize([""], max_tokens=limit, warns=False).n_prompt
    return [
        _Piece(row, np.concatenate([before, own, after]).astype(np.int32), n_prompt, len(own))
        for own in (token_ids[i : i + room] for i in range(0, len(token_ids), room))
    ]


def _parts(text: str, separators: str) -> Iterator[str]:
    """Yield the parts of a text, cut before separators: the tokens of all are those of the text.

    A tokenizer allocates some 200 bytes for each byte that it gets at once.
    """
    start = 0
    while separators and len(text) - start > PIECE_CHARACTERS:
        places = (text.find(each, start + PIECE_CHARACTERS) for each in separators)
        stop = min((place for place in places if place >= 0), default=len(text))
        yield text[start:stop]
        start = stop
    yield text[start:]


class _Vectors:
    """The vectors of a window, computed by threads.

    Attributes:
        errors: Of each row, None where it has none so far.
    """

    def __init__(self, bert: BertModel, n_rows: int) -> None:
        self.errors: list[str | None] = [None] * n_rows
        self._bert = bert
        self._n_tokens: list[int | None] = [None] * n_rows
        self._weights: dict[int, int] = {}  # of rows of several pieces
        self._tasks: list[tuple[list[_Piece], Future[list[Floats | LlmError]]]] = []

    def begin(self, pieces: list[_Piece], pool: ThreadPoolExecutor) -> None:
        """Give groups of pieces of similar length to the threads, the longest first."""
        by_length = sorted(pieces, key=lambda piece: (piece.n_prompt, -len(piece.token_ids)))
        group: list[_Piece] = []
        n_tokens = 0
        for i, piece in enumerate(by_length, 1):
            group.append(piece)
            n_tokens += len(piece.token_ids)
            self._n_tokens[piece.row] = (self._n_tokens[piece.row] or 0) + len(piece.token_ids)
            self._weights[piece.row] = self._weights.get(piece.row, 0) + piece.weight
            following = by_length[i] if i < len(by_length) else None
            if (
                following is None
                or following.n_prompt != piece.n_prompt
                or n_tokens + len(following.token_ids) > GROUP_TOKENS
            ):
                self._tasks.append((group, pool.submit(_embedded, self._bert, group)))
                group, n_tokens = [], 0

    def result(self) -> pa.RecordBatch:
        """Return the columns of the window; blocks until they are computed."""
        width = self._bert.width
        vectors = np.zeros((len(self.errors), width), np.float32)  # [N, K]
        sums: dict[int, list[tuple[_Piece, Floats]]] = {}
        for group, task in self._tasks:
            for piece, vector in zip(group, task.result(), strict=True):
                if isinstance(vector, LlmError):
                    self.errors[piece.row] = str(vector)
                elif piece.weight:
                    sums.setdefault(piece.row, []).append((piece, vector))
                else:
                    vectors[piece.row] = vector
        for row, parts in sums.items():
            vectors[row] = self._mean(parts)
        has_none = np.array([error is not None for error in self.errors], np.bool_)  # [N]
        n_tokens = [
            None if error is not None else n
            for n, error in zip(self._n_tokens, self.errors, strict=True)
        ]
        schema = _vector_schema(width)
        columns = [
            pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)), type=schema.field(0).type, mask=pa.array(has_none)
            ),
            pa.array(n_tokens, pa.int32()),
            pa.array(self.errors, pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _mean(self, parts: list[tuple[_Piece, Floats]]) -> Floats:
        """Return the weighted mean of the vectors of a text's pieces, [K].

        The sum runs over the pieces from the longest to the last one, in float64; its order does
        not depend on the groups, because sorting keeps the order of pieces of one length.
        """
        total = np.zeros(self._bert.width, np.float64)  # [K]
        for piece, vector in parts:
            total += piece.weight * vector.astype(np.float64)
        mean = (total / self._weights[parts[0][0].row]).astype(np.float32)  # [K]
        head = self._bert.sentence.head
        is_normalized = head.steps and isinstance(head.steps[-1], Normalize)
        return l2_normalize(mean) if is_normalized and head.truncate_dim is None else mean


def _embedded(bert: BertModel, pieces: Sequence[_Piece]) -> list[Floats | LlmError]:
    """Return the vector of each piece, or its error; pieces have one `n_prompt`."""
    texts = [piece.token_ids for piece in pieces]
    try:
        return list(bert.embed_tokens(texts, n_prompt=pieces[0].n_prompt))  # type: ignore[arg-type]
    except LlmError as error:
        if len(pieces) == 1:
            return [error]
    return [outcome for piece in pieces for outcome in _embedded(bert, [piece])]


def _vector_schema(width: int) -> pa.Schema:
    return pa.schema(
        [
            ("embedding", pa.list_(pa.float32(), width)),
            ("token_count", pa.int32()),
            ("error", pa.string()),
        ]
    )


# --- Texts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generator(RowFunction):
    """Adds to a batch the continuation of each row's prompt.

    The columns of the result:

        generated_text           string, as `refllm.infer_with_options` returns it
        generated_token_ids      list<int32>, an end token included
        prompt_token_count       int32, BOS included
        generated_token_count    int32
        finish_reason            string: "stop" after an end token, else "length"
        error                    string, null for a row with a text

    Attributes:
        model: A model's name, or its `Path`.
        column: The column of prompts, "text" by default; not with `template`.
        template: A Jinja template whose variables are the row's columns (`row` has all of them):
            "Translate to French: {{ english }}".
        params: The interface's parameters.
        seed: The seed of every row.
        row_parameters: Columns that have a parameter of each row, by the parameter's name: a field
            of `InferencingParams`, or "seed". For a null the value above is used.
        at_once: The number of sequences that are computed together; fewer where their keys and
            values would take more than 1 GiB. No bit depends on it.
        numerics: "exact" or "int8".
        roots: As `Embedder`.
        stand_ins: As `Embedder`.
        threads: As `Embedder`.

    Example:
        >>> generator = Generator("tiny-chat", template="{{ begin }} upon a", row_parameters={
        ...     "max_tokens": "n"})
        >>> batch = generator({"begin": ["Once", "Once"], "n": [1, 2]})
        >>> batch["generated_text"], batch["finish_reason"]
        ([' time', ' time,'], ['length', 'length'])
    """

    model: str | Path
    column: str | None = field(default=None, kw_only=True)
    template: str | None = field(default=None, kw_only=True)
    params: InferencingParams = field(default=InferencingParams(), kw_only=True)
    seed: int = field(default=0, kw_only=True)
    row_parameters: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    at_once: int = field(default=32, kw_only=True)
    numerics: str = field(default="exact", kw_only=True)
    roots: Sequence[Path] | None = field(default=None, kw_only=True)
    stand_ins: bool | None = field(default=None, kw_only=True)
    threads: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Raise `InvalidInput` for an unusable option."""
        self._check_numerics()
        if self.column is not None and self.template is not None:
            raise InvalidInput("give either column or template, not both")
        if self.at_once < 1:
            raise InvalidInput(f"at_once must be at least 1, got {self.at_once}")
        for name in self.row_parameters:
            if name not in PARAMETERS:
                known = ", ".join(PARAMETERS)
                raise InvalidInput(f"{name!r:.80} is no parameter of a row; they are {known}")
        self.params.check()
        uniform(self.seed, 0)  # refuses a seed that is not a u64
        parsed = self._parsed  # refuses a template that cannot be parsed
        if parsed is not None and not parsed.names and not self.row_parameters:
            raise InvalidInput("the template names no column, so all rows would have one prompt")

    @functools.cached_property
    def _parsed(self) -> RowTemplate | None:
        return None if self.template is None else RowTemplate.parsed(self.template)

    @property
    def _prompt_column(self) -> str:
        return "text" if self.column is None else self.column

    def needed(self, there: Sequence[str]) -> tuple[str, ...]:
        """Return the columns of the prompt and of the parameters."""
        prompt = (self._prompt_column,) if self._parsed is None else self._parsed.columns(there)
        return tuple(dict.fromkeys([*prompt, *self.row_parameters.values()]))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The column of prompts; none with a template."""
        return (self._prompt_column,) if self._parsed is None else ()

    @property
    def schema(self) -> pa.Schema:
        """The columns of the results."""
        return _ANSWER_SCHEMA

    @property
    def loaded(self) -> LlamaModel:
        """The model; loaded by the first use."""
        return self.engine.inferencing_model(self.model)

    def run(self, windows: Iterable[Columns]) -> Iterator[pa.RecordBatch]:
        """Yield the results of windows of rows; see `RowFunction.run`.

        One thread prepares prompts. The calling thread computes all running sequences step by step,
        and puts the next prompt in the place of a finished one, also from the next window.
        """
        llama, source, is_ended = self.loaded, iter(windows), False
        opened: deque[_Answers] = deque()
        waiting: deque[_Row] = deque()
        preparing: deque[_Row] = deque()
        running: deque[_Row] = deque()
        pool = ThreadPoolExecutor(1)
        try:
            while True:
                while not is_ended and len(opened) <= AHEAD and len(waiting) < self.at_once:
                    window = next(source, None)
                    if window is None:
                        is_ended = True
                    else:
                        opened.append(_Answers(max(map(len, window.values()), default=0)))
                        waiting += (_Row(opened[-1], i, window) for i in opened[-1].places)
                while waiting and len(preparing) < self.at_once:
                    row = waiting.popleft()
                    row.prepared = pool.submit(self._prepared, llama, row)
                    preparing.append(row)
                self._admit(llama, preparing, running)
                while opened and opened[0].is_done:
                    yield opened.popleft().result()
                if running:
                    self._step(llama, running)
                elif is_ended and not opened:
                    return
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepared(self, llama: LlamaModel, row: _Row) -> Generation | LlmError:
        values = {name: column[row.place] for name, column in row.window.items()}
        try:
            if self._parsed is None:
                prompt = values[self._prompt_column]
                if not isinstance(prompt, str):
                    raise InvalidInput(_why_no_text("the prompt", prompt))
            else:
                prompt = self._parsed.render(values)
            given = {
                name: _number(name, PARAMETERS[name], values[column])
                for name, column in self.row_parameters.items()
                if values[column] is not None
            }
            seed = given.pop("seed", self.seed)
            params = replace(self.params, **given)  # type: ignore[arg-type]
            _, generation = self.engine.open(llama, prompt, params, seed=int(seed))
        except LlmError as error:
            return error
        row.n_cached = min(len(generation.tokens) + params.max_tokens, llama.config.n_ctx)
        return generation

    def _admit(self, llama: LlamaModel, preparing: deque[_Row], running: deque[_Row]) -> None:
        """Start the sequences that are prepared, in order, as far as there is room for them."""
        while preparing and len(running) < self.at_once:
            row = preparing[0]
            if running and not row.prepared.done():
                return
            outcome = row.prepared.result()
            if isinstance(outcome, LlmError) or outcome.is_finished:
                row.finish(llama, outcome)
            else:
                n_tokens = row.n_cached + sum(each.n_cached for each in running)
                n_bytes = n_tokens * outcome.cache.n_bytes_per_token
                if running and n_bytes > MAX_CACHE_BYTES:
                    return
                row.generation = outcome
                running.append(row)
            preparing.popleft()

    def _step(self, llama: LlamaModel, running: deque[_Row]) -> None:
        """Compute one token of the running sequences, and remove those that are finished."""
        by_generation = {id(row.generation): row for row in running}
        with self.engine.computing():
            outcomes = list(step_together(llama.network, [row.generation for row in running]))
        for generation, outcome in outcomes:
            if isinstance(outcome, LlmError) or generation.is_finished:
                row = by_generation[id(generation)]
                row.finish(llama, outcome if isinstance(outcome, LlmError) else generation)
                running.remove(row)
        running.rotate(-1)  # so that long prompts do not delay the rows behind them


class _Row:
    """A row on its way: waiting, prepared by a thread, running."""

    __slots__ = ("answers", "generation", "n_cached", "place", "prepared", "window")

    def __init__(self, answers: _Answers, place: int, window: Columns) -> None:
        self.answers = answers
        self.place = place
        self.window = window
        self.n_cached = 0  # tokens, at most
        self.prepared: Future[Generation | LlmError]
        self.generation: Generation

    def finish(self, llama: LlamaModel, outcome: Generation | LlmError) -> None:
        """Store the row's result."""
        answer: dict[str, object] = dict.fromkeys(_ANSWER_SCHEMA.names)
        if isinstance(outcome, LlmError):
            answer["error"] = str(outcome)
        else:
            n_prompt = len(outcome.tokens) - outcome.n_drawn
            prompt, drawn = outcome.tokens[:n_prompt], outcome.tokens[n_prompt:]
            is_end = bool(drawn) and drawn[-1] in llama.tokenizer.eos_ids
            answer |= {
                "generated_text": llama.tokenizer.decode_continuation(prompt, drawn),
                "generated_token_ids": drawn,
                "prompt_token_count": n_prompt,
                "generated_token_count": len(drawn),
                "finish_reason": "stop" if is_end else "length",
            }
        self.answers.store(self.place, answer)


class _Answers:
    """The results of a window's rows."""

    def __init__(self, n_rows: int) -> None:
        self._rows: list[dict[str, object]] = [{}] * n_rows
        self._n_open = n_rows

    @property
    def places(self) -> range:
        """The places of the rows."""
        return range(len(self._rows))

    @property
    def is_done(self) -> bool:
        """Whether every row has a result."""
        return self._n_open == 0

    def store(self, place: int, answer: dict[str, object]) -> None:
        """Store the result of the row at this place, once."""
        self._rows[place] = answer
        self._n_open -= 1

    def result(self) -> pa.RecordBatch:
        """Return the columns of the window."""
        return pa.RecordBatch.from_pylist(self._rows, _ANSWER_SCHEMA)


_ANSWER_SCHEMA = pa.schema(
    [
        ("generated_text", pa.string()),
        ("generated_token_ids", pa.list_(pa.int32())),
        ("prompt_token_count", pa.int32()),
        ("generated_token_count", pa.int32()),
        ("finish_reason", pa.string()),
        ("error", pa.string()),
    ]
)


def _number(name: str, kind: type[int] | type[float], value: object) -> int | float:
    """Return a parameter's value from a column: a number, or the text of one, as CSV has it.

    Raises:
        InvalidInput: For anything else, and for a fraction where the parameter is a whole number.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError  # noqa: TRY301, TRY004 - one message for both
        if kind is float or isinstance(value, int):
            return kind(value)
        number = int(value) if isinstance(value, str) else value
        if not float(number).is_integer():
            raise ValueError  # noqa: TRY301
        return int(number)
    except (ValueError, OverflowError):
        wanted = "whole number" if kind is int else "number"
        raise InvalidInput(f"{name} must be a {wanted}, got {value!r:.80}") from None


# --- Both ----------------------------------------------------------------------------------------


def _why_no_text(what: str, value: object) -> str:
    if value is None:
        return f"{what} is null"
    if isinstance(value, NotText):
        return f"{what} is {value.reason}"
    return f"{what} is not a text but {type(value).__name__}: {value!r:.80}"


@contextmanager
def _workers(threads: int | None) -> Iterator[ThreadPoolExecutor]:
    """Yield threads that compute alone, one for each CPU; at the end, drop what is not begun.

    Threads that share each kernel would wait for each other at its end.
    """
    n_threads = default_threads(os.environ) if threads is None else threads
    pool = ThreadPoolExecutor(n_threads, initializer=use_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
