"""A second run beside the first: where `refllm diff` finds them apart, and both draws there.

The comparison is `refllm.trace.compare`'s. A is the run that the page shows; B is another model,
the same one with other numerics or in another profile, or a trace.

V tokens in the vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from refllm.engine import LocalEngine
from refllm.errors import InvalidInput, LlmError
from refllm.inspect.drawing import Draw
from refllm.inspect.run import Run, run_of
from refllm.interface import InferencingParams
from refllm.models.load import LlamaModel
from refllm.sampling import PROFILES, sample, uniform
from refllm.trace import Metadata, Trace, record
from refllm.trace.compare import Comparison, compare
from refllm.trace.sides import RunOptions, Side, formulas_for, open_side, params_in, side_of

__all__ = ["Beside", "EngineOf", "is_trace", "run_beside"]


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """A second run, and how it differs from the first.

    Attributes:
        spec: The second run, as it was asked for.
        a: The metadata of the first run's trace.
        b: The metadata of the second one's.
        comparison: How B differs from A.
        step: The draw at which the texts part; if they do not, the first draw that differs
            otherwise; None without one.
        draw: That draw of B; None where B's logits are not enough to repeat it.
    """

    spec: str
    a: Metadata
    b: Metadata
    comparison: Comparison
    step: int | None
    draw: Draw | None


class EngineOf(Protocol):
    """Makes an engine with a seed and a profile; its other options are chosen by the caller."""

    def __call__(self, *, seed: int, profile: str) -> LocalEngine:
        """Return the engine."""


def is_trace(spec: str) -> bool:
    """Return whether a second run is a trace, whose text and parameters the first run then has.

    Raises:
        InvalidInput: As `refllm.trace.sides.side_of`.
    """
    return side_of(spec).trace is not None


def run_beside(
    engine_of: EngineOf,
    model: str | Path,
    texts: Sequence[str],
    params: InferencingParams,
    *,
    name: str,
    spec: str,
    seed: int = 0,
    profile: str | None = None,
    numerics: str = "exact",
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Run, Beside]:
    """Run a model, and a second one beside it.

    Args:
        engine_of: Makes the engine of the first run.
        model: A name or path, as `LocalEngine.load`.
        texts: As `run_of`; none beside a trace, which has them.
        params: Of a model that generates text; a trace has its own.
        name: The model's name for titles.
        spec: The second run, as `refllm diff` takes it: MODEL, MODEL@int8, MODEL@PROFILE, or a
            trace's file.
        seed: The seed of both; a trace has its own.
        profile: The profile of the first run; None for that of a trace, otherwise "contract".
        numerics: The numerics of the first run.
        threads: The threads of a second model.
        progress: As `refllm.trace.record`.

    Raises:
        InvalidInput: For texts beside a trace, and as `run_of`, `record` and `compare`.
        ModelNotSupported: As `LocalEngine.load`.
        LlmRuntimeError: As `run_of`, `record` and `compare`.
    """
    side = side_of(spec)
    options = RunOptions(threads=threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if side.trace is not None:
            if texts:
                raise InvalidInput(f"{spec} is a trace, whose text is run; leave out TEXT")
            b = open_side(side, like=None, options=options, folder=folder)
            first = Side(spec=name, model=model, numerics=numerics, profile=profile)
            a = open_side(first, like=b.metadata, options=options, folder=folder, progress=progress)
            engine = engine_of(seed=a.metadata.seed or 0, profile=a.metadata.profile or "contract")
            params = InferencingParams(**a.metadata.params)  # type: ignore[arg-type]
            given = [
                list(text.token_ids[: text.n_given]) if text.text is None else text.text
                for text in a.metadata.texts
            ]
            run = run_of(engine, model, given, params, name=name)
        else:
            engine = engine_of(seed=seed, profile=profile or "contract")
            run = run_of(engine, model, texts, params, name=name)
            to = folder / "a.safetensors"
            prompt = run.texts[0] if isinstance(run.model, LlamaModel) else run.texts
            a = record(model, prompt, to=to, params=params, engine=engine, progress=progress)
            b = open_side(side, like=a.metadata, options=options, folder=folder, progress=progress)
        is_other_model = a.metadata.model != b.metadata.model
        found = compare(
            a,
            b,
            formulas=formulas_for(a.metadata, run.model.path),
            b_formulas=formulas_for(b.metadata) if is_other_model else None,
            names=(name, spec),
        )
        step = _step(run, b.metadata, found)
        draw = None if step is None else _draw(b, run.draws[step], run)
    return run, Beside(spec, a.metadata, b.metadata, found, step, draw)


def _step(run: Run, b: Metadata, found: Comparison) -> int | None:
    """Return the draw at which the texts part, otherwise the first draw that differs."""
    if not run.draws or found.tokens is not None:
        return None
    text = b.texts[0]
    tokens = [draw.token_id for draw in b.draws] or text.token_ids[text.n_given :]
    pairs = zip((draw.step.token for draw in run.draws), tokens, strict=False)
    parted = next((i for i, (left, right) in enumerate(pairs) if left != right), None)
    if parted is None and found.draw is not None:
        parted = found.draw.draw
    return parted


def _draw(b: Trace, of_a: Draw, run: Run) -> Draw | None:
    """Return B's draw of the same step, sampled from B's own logits.

    None if the trace has no logits from which a token can be drawn, or has another token.
    """
    i, meta, text = of_a.step.step, b.metadata, b.metadata.texts[0]
    n_before = text.n_given + i
    spans = enumerate(meta.calls)
    call = next((at for at, each in spans if each.first + each.n_tokens == n_before), None)
    if call is None or "result_output" not in meta.calls[call].values:
        return None
    n_vocab = min(run.model.tokenizer.n_vocab, of_a.step.n_vocab)
    rows = b.value("result_output", call)
    if rows.ndim != 2 or not len(rows):
        return None
    logits = rows[-1, :n_vocab].astype(np.float32)  # [V]
    params = replace(of_a.params, **params_in(meta))  # type: ignore[arg-type]
    seed = of_a.seed if meta.seed is None else meta.seed
    profile = meta.profile if meta.profile in PROFILES else of_a.step.profile
    before = text.token_ids[:n_before]
    try:
        step = sample(logits, params, before, uniform(seed, i), step=i, profile=profile)
    except LlmError:  # a logit is NaN, or the token ids are not those of the logits
        return None
    drawn = meta.draws[i].token_id if i < len(meta.draws) else text.token_ids[n_before]
    return Draw(step, logits, tuple(before), params, seed) if step.token == drawn else None
