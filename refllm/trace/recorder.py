"""Record a run: compute it with a tap that writes every value into a file.

T tokens of a call.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import refllm
from refllm.engine import LocalEngine, default_engine
from refllm.errors import InvalidInput
from refllm.generate import PROMPT_PIECE
from refllm.interface import NUMERICS_REVISION, InferencingParams
from refllm.kernels.elementwise import gelu, gelu_tanh
from refllm.llama import Segment
from refllm.models.load import BertModel, LlamaModel
from refllm.pooling import MEAN_NORMALIZED
from refllm.sampling import Step
from refllm.trace.metadata import METADATA_KEY, Call, Metadata, Program, RecordedDraw, Text
from refllm.trace.reader import Trace, open_trace
from refllm.trace.writer import ArrayWriter, array_file

__all__ = ["record"]

LIBRARIES = ("numpy", "numba", "llvmlite", "safetensors", "tokenizers", "sentencepiece")
MAX_WEIGHTS = 2**28  # of attention in a layer of one call, [H, T, T]: 1 GiB
PADDING = 0  # as `refllm.engine` pads the texts of Spin's engine


def record(
    model: str | Path,
    prompt: str | Sequence[str] | Sequence[int],
    *,
    to: Path,
    params: InferencingParams | None = None,
    engine: LocalEngine | None = None,
    only: Sequence[str] = (),
    max_tokens: int | None = None,
    prompt_calls: Sequence[int] = (),
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Trace:
    """Compute a run, write its values into a file while they are computed, and open the file.

    A llama draws `params.max_tokens` tokens, fewer where an end token is drawn. The last one is
    drawn and not computed, so of n drawn tokens n − 1 have values. The same run writes the same
    bytes on each machine with the same versions of the libraries.

    The prompt is one call; in calls of 512 tokens, if the attention weights of one call would take
    more than 1 GiB in a layer. No bit of a value depends on the calls.

    Args:
        model: A name, or a path.
        prompt: The text to continue, or its token ids; of an embedding model a text, or several.
        to: The .safetensors file to write.
        params: The interface's parameters; by default one token is drawn.
        engine: Its models, seed, profile, numerics and threads are used; by default the engine of
            `refllm.infer`.
        only: Patterns of names as in a shell, such as "Qcur-*"; only values whose name matches one
            are written. All by default.
        max_tokens: Where an embedding model's text is cut, instead of the tokenizer file's limit.
        prompt_calls: The numbers of tokens of a llama's first calls, for a prompt that is computed
            in several; the rest of the prompt follows as by default.
        overwrite: Whether to replace an existing file.
        progress: `progress(computed_layers, all_layers)` is called repeatedly.

    Raises:
        InvalidInput: As `LocalEngine.infer` and `LocalEngine.generate_embeddings`, if the file
            exists, if a call has no token, and if no value has a name of `only`.
        ModelNotSupported: As `LocalEngine.infer`.
        LlmRuntimeError: As `LocalEngine.infer`, and if the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     trace = record("tiny-chat", "Once upon", to=Path(folder, "run.safetensors"))
        ...     [call.n_tokens for call in trace.metadata.calls], trace.metadata.draws[0].piece
        ([3], '▁a')
    """
    engine = default_engine() if engine is None else engine
    if isinstance(only, str):
        raise InvalidInput(f"only must be a list of patterns; put {only!r:.80} into one")
    if any(n_tokens < 1 for n_tokens in prompt_calls):
        raise InvalidInput(f"each of prompt_calls must be at least 1; got {[*prompt_calls]!r:.80}")
    with array_file(to, overwrite=overwrite) as writer:
        loaded = engine.load(model)
        recorder = _Recorder(writer, only, progress)
        if isinstance(loaded, LlamaModel):
            if not isinstance(prompt, str) and any(isinstance(each, str) for each in prompt):
                raise InvalidInput(f"{model} continues one text; give one prompt, not a list")
            params = InferencingParams(max_tokens=1) if params is None else params
            given = cast("str | Sequence[int]", prompt)
            fields = recorder.infer(engine, loaded, given, params, prompt_calls)
        else:
            texts = [prompt] if isinstance(prompt, str) else list(cast("Sequence[str]", prompt))
            fields = recorder.embed(engine, loaded, texts, max_tokens)
        if only and not any(call.values for call in recorder.calls):
            first = [name for name in recorder.names if name.endswith("-0") or "-" not in name]
            raise InvalidInput(
                f"no value has a name like {' or '.join(only)}; the names are "
                f"{', '.join(first)}, with -1, -2, … in the layers after the first"
            )
        metadata = Metadata(
            program=Program(
                name="refllm",
                version=refllm.__version__,
                libraries={
                    "python": platform.python_version(),
                    **{library: version(library) for library in LIBRARIES},
                },
            ),
            model=str(model),
            numerics=engine.numerics,
            numerics_revision=NUMERICS_REVISION,
            hyperparameters=asdict(loaded.config),
            only=tuple(only),
            calls=tuple(recorder.calls),
            **fields,
        )
        writer.metadata = {METADATA_KEY: metadata.to_json()}
    return open_trace(to)


class _Recorder:
    """Writes the values of one run, call by call.

    Attributes:
        calls: The finished calls.
        names: The names of all values of the last call, written or not.
    """

    def __init__(
        self,
        writer: ArrayWriter,
        only: Sequence[str],
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self.calls: list[Call] = []
        self.names: list[str] = []
        self._seen: Counter[str] = Counter()  # how often each name came in this call
        self._writer = writer
        self._only = only
        self._progress = progress
        self._values: list[str] = []
        self._n_layers = (0, 0)  # computed, all

    def infer(
        self,
        engine: LocalEngine,
        llama: LlamaModel,
        prompt: str | Sequence[int],
        params: InferencingParams,
        prompt_calls: Sequence[int],
    ) -> dict[str, Any]:
        """Compute a prompt and the tokens after it; return the metadata of it."""
        _, generation = engine.open(llama, prompt, params)
        tokenizer, network = llama.tokenizer, llama.network
        n_given = len(generation.tokens)
        # Where each call of the prompt ends.
        ends = [end for end in accumulate(prompt_calls) if end < n_given]
        fits = llama.config.n_heads * n_given**2 <= MAX_WEIGHTS
        rest = range(ends[-1] if ends else 0, n_given, n_given if fits else PROMPT_PIECE)
        ends += [*rest[1:], n_given]
        prompt_ends = iter(ends)
        n_calls = len(ends) + max(0, params.max_tokens - 1)
        self._n_layers = (0, n_calls * llama.config.n_layers)
        draws: list[RecordedDraw] = []
        while True:
            first = generation.cache.length
            end = next(prompt_ends, len(generation.tokens))
            segment = Segment(generation.tokens[first:end], generation.cache)
            with engine.computing():
                hidden = network.hidden([segment], tap=self._tap)  # [T, D]
                logits = network.logits(hidden, tap=self._tap)  # [T, V]
            self._end_call(text=0, first=first, n_tokens=end - first)
            if not generation.is_read:
                continue
            if generation.is_finished:  # no token is to be drawn
                break
            step = generation.draw(logits[-1])
            piece = tokenizer.piece(step.token)
            draws.append(self._add_draw(step, piece))
            if generation.is_finished:
                break
        ids = tuple(generation.tokens)
        pieces = tuple(map(tokenizer.piece, ids))
        return {
            "architecture": "llama",
            "texts": (
                Text(
                    text=prompt if isinstance(prompt, str) else None,
                    token_ids=ids,
                    pieces=pieces,
                    n_given=n_given,
                ),
            ),
            "profile": engine.profile,
            "seed": engine.seed,
            "params": asdict(params),
            "draws": tuple(draws),
        }

    def embed(
        self, engine: LocalEngine, bert: BertModel, texts: Sequence[str], max_tokens: int | None
    ) -> dict[str, Any]:
        """Compute texts one by one, which gives the bits of all together; return the metadata."""
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InvalidInput("an embedding model needs a text, or a list of at least one")
        is_spin_local = engine.profile == "spin-local"
        tokenized = bert.tokenize(
            texts, prompt="" if is_spin_local else None, max_tokens=max_tokens
        )
        token_ids, n_prompt = tokenized.token_ids, tokenized.n_prompt
        head, activation = bert.sentence.head, gelu
        if is_spin_local:  # it pads every text to the longest, without a mask
            longest = max(map(len, token_ids))
            token_ids = [[*text, *[PADDING] * (longest - len(text))] for text in token_ids]
            head, activation, n_prompt = MEAN_NORMALIZED, gelu_tanh, 0
        self._n_layers = (0, len(texts) * bert.config.n_layers)
        for i, ids in enumerate(token_ids):
            with engine.computing():
                bert.network.embed(
                    [ids], head=head, n_prompt=n_prompt, activation=activation, tap=self._tap
                )
            self._end_call(text=i, first=0, n_tokens=len(ids))
        return {
            "architecture": "bert",
            "profile": engine.profile,
            "texts": tuple(
                Text(
                    text=text,
                    token_ids=tuple(ids),
                    pieces=tuple(map(bert.tokenizer.piece, ids)),
                    n_given=len(ids),
                    n_prompt=n_prompt,
                )
                for text, ids in zip(texts, token_ids, strict=True)
            ),
        }

    def _tap(self, name: str, array: NDArray[np.float32], /) -> None:
        self._seen[name] += 1
        if not self._only or any(fnmatchcase(name, pattern) for pattern in self._only):
            value = name if self._seen[name] == 1 else f"{name}#{self._seen[name]}"
            self._values.append(value)
            self._writer.add(f"calls/{len(self.calls)}/{value}", array)
        if name.startswith("l_out-"):
            n_done, n_all = self._n_layers
            self._n_layers = (n_done + 1, n_all)
            if self._progress is not None:
                self._progress(*self._n_layers)

    def _end_call(self, *, text: int, first: int, n_tokens: int) -> None:
        values = tuple(self._values)
        self.calls.append(Call(text=text, first=first, n_tokens=n_tokens, values=values))
        self._values = []
        self.names = sorted(self._seen)
        self._seen = Counter()

    def _add_draw(self, step: Step, piece: str) -> RecordedDraw:
        prefix = f"draws/{step.step}"
        for name in ("ids", "before", "after"):
            self._writer.add(f"{prefix}/penalties/{name}", getattr(step.penalties, name))
        for stage in step.stages:
            self._writer.add(f"{prefix}/{stage.name}/ids", stage.candidates.ids)
            probabilities = stage.candidates.probabilities
            self._writer.add(f"{prefix}/{stage.name}/probabilities", probabilities)
        return RecordedDraw(
            call=len(self.calls) - 1,
            token_id=step.token,
            piece=piece,
            u=step.u,
            n_vocab=step.n_vocab,
            stages=tuple(stage.name for stage in step.stages),
        )
