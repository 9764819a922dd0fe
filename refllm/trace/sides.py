"""The two sides of a comparison: a trace's file, or a model that is run now.

run.safetensors        a trace
tiny-chat              a model's name, or the path of a .gguf file or a folder
tiny-chat@int8         the model with other numerics
tiny-chat@spin-local   the model in another profile
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from refllm.engine import LocalEngine
from refllm.errors import InvalidInput, LlmError
from refllm.interface import InferencingParams
from refllm.models.find import default_roots, find_model
from refllm.models.load import NUMERICS, BertModel
from refllm.sampling import PROFILES
from refllm.trace.expected import Formulas, formulas_of
from refllm.trace.metadata import Metadata
from refllm.trace.reader import Trace, open_trace
from refllm.trace.recorder import record

__all__ = [
    "DEFAULT_PROMPT",
    "RunOptions",
    "Side",
    "formulas_for",
    "open_side",
    "params_in",
    "side_of",
]

DEFAULT_PROMPT = "Once upon a time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison, as it was asked for.

    Attributes:
        spec: The argument.
        trace: The trace's file; None for a model to run.
        model: The model to run; None for a trace.
        numerics: The numerics of the run.
        profile: The profile of the run; None for that of the other side, if it is a trace.
    """

    spec: str
    trace: Path | None = None
    model: str | Path | None = None
    numerics: str = "exact"
    profile: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a model that is run now computes; beside a trace, the threads alone are of use."""

    prompt: str = DEFAULT_PROMPT
    steps: int = 1
    threads: int | None = None


def side_of(spec: str) -> Side:
    """Return the side that an argument names.

    Raises:
        InvalidInput: For an unknown name behind the last "@".
    """
    path = Path(spec)
    if path.is_file() and path.suffix != ".gguf":
        return Side(spec=spec, trace=path)
    if path.suffix == ".safetensors":
        raise InvalidInput(
            f"{spec}: no such file; to make it: refllm trace MODEL PROMPT --to {spec}"
        )
    model, at, how = spec.rpartition("@")
    if not at or path.exists():
        return Side(spec=spec, model=_model(spec))
    if how in NUMERICS:
        return Side(spec=spec, model=_model(model), numerics=how)
    if how in PROFILES:
        return Side(spec=spec, model=_model(model), profile=how)
    known = ", ".join([*NUMERICS, *sorted(PROFILES)])
    raise InvalidInput(f"{spec}: behind @ is one of {known}; got {how!r:.80}")


def open_side(
    side: Side,
    *,
    like: Metadata | None,
    options: RunOptions,
    folder: Path,
    progress: Callable[[int, int], object] | None = None,
) -> Trace:
    """Return the trace of a side, which is made in `folder` if the side is a model.

    Args:
        side: The side.
        like: The metadata of the other side, if that is a trace: the run has its texts, its
            parameters, seed and profile, its number of drawn tokens, and its calls for the prompt.
        options: What to compute otherwise.
        folder: Where to make the trace.
        progress: As `record`.

    Raises:
        InvalidInput: As `record` and `open_trace`, which raise the other errors, too.
    """
    if side.trace is not None:
        return open_trace(side.trace)
    assert side.model is not None
    seed = (like.seed if like is not None else None) or 0
    inherited = like.profile if like is not None and like.profile in PROFILES else None
    profile = side.profile or inherited or "contract"
    engine = LocalEngine(
        seed=seed,
        profile=profile,
        numerics=side.numerics,
        threads=options.threads,
        compiles_apart=True,
    )
    params = InferencingParams(max_tokens=options.steps)
    prompt: str | list[str] | list[int] = options.prompt
    prompt_calls: list[int] = []
    if like is not None:
        text = like.texts[0]
        prompt = list(text.token_ids[: text.n_given]) if text.text is None else text.text
        for call in like.calls:  # as far as they compute the prompt in order
            first, end = sum(prompt_calls), call.first + call.n_tokens
            if (call.text, call.first) != (0, first) or end > text.n_given:
                break
            prompt_calls.append(call.n_tokens)
        asked = params_in(like)
        greedy = InferencingParams(
            max_tokens=max(1, len(text.token_ids) - text.n_given), temperature=0, repeat_penalty=1
        )
        params = InferencingParams(**asked) if asked else greedy  # type: ignore[arg-type]
        try:
            params.check()
        except InvalidInput as error:
            raise InvalidInput(f"the params of the trace beside {side.spec}: {error}") from error
        if isinstance(engine.load(side.model), BertModel):
            texts = [each.text for each in like.texts]
            prompt = [each for each in texts if each is not None]
            if len(prompt) < len(texts):
                raise InvalidInput(
                    f"the trace has token ids without a text, and {side.spec} reads text"
                )
    to = folder / f"{len(list(folder.iterdir()))}.safetensors"
    return record(
        side.model,
        prompt,
        to=to,
        params=params,
        engine=engine,
        prompt_calls=prompt_calls,
        progress=progress,
    )


def params_in(metadata: Metadata) -> dict[str, float]:
    """Return the parameters of a trace that the interface has; another program can have more."""
    known = {each.name for each in fields(InferencingParams)}
    return {name: value for name, value in metadata.params.items() if name in known}


def formulas_for(metadata: Metadata, model: str | Path | None = None) -> Formulas | None:
    """Return the formulas of a trace's model; None if it is not here, or is another model.

    Args:
        metadata: The trace's.
        model: Another name or path of the model; its errors are raised.

    Raises:
        InvalidInput: If `model` is given, and has not the trace's hyperparameters.
    """
    if model is None:
        try:
            found = formulas_of(_path(_model(metadata.model)))
        except LlmError:
            return None
        return None if _other_shape(found, metadata) else found
    found = formulas_of(_path(model))
    other = _other_shape(found, metadata)
    if other:
        raise InvalidInput(f"{model} is not the model of the trace: {other}")
    return found


def _other_shape(formulas: Formulas, metadata: Metadata) -> str:
    """Return in what a model differs from that of a trace, "" where nothing is known to differ."""
    if formulas.architecture != metadata.architecture:
        return f"it is a {formulas.architecture}, and the trace is of a {metadata.architecture}"
    for name in ("n_embd", "n_layers", "n_heads", "n_ff"):
        ours, theirs = getattr(formulas.config, name), metadata.hyperparameters.get(name)
        if theirs is not None and ours != theirs:
            return f"its {name} is {ours}, and that of the trace is {theirs!r:.80}"
    return ""


def _path(model: str | Path) -> Path:
    return model if isinstance(model, Path) else find_model(model, default_roots())


def _model(text: str) -> str | Path:
    """Return a model's name, or its path."""
    is_path = text.endswith(".gguf") or "/" in text or os.sep in text or Path(text).exists()
    return Path(text) if text and is_path else text  # Path("") is the current folder
