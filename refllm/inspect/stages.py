"""One draw, stage by stage: what each stage left, what it removed, and where u fell.

The stages have the names and the order of the golden suite (golden/sampling):

    contract, spin-local   penalty, temperature, softmax, top_k, top_p
    llama.cpp              penalty, top_k, softmax, top_p, temperature, softmax
    temperature <= 0       penalty, argmax

Every number is one that `refllm.sampling` computed, or its function applied to one.
V tokens in the vocabulary, C candidates that a stage left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm.inspect.drawing import Draw
from refllm.sampling import apply_temperature, top_k
from refllm.tokenizer.base import Tokenizer

__all__ = ["Stage", "explained", "stages_of", "token_text"]

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """What a stage left: ids int64 [C] in their order, and values float64 [C].

    The values are logits (`is_logits`) or probabilities.
    """

    name: str
    ids: NDArray[np.int64]
    values: NDArray[np.float64]
    is_logits: bool


def stages_of(draw: Draw) -> tuple[Stage, ...]:
    """Return every stage of a draw, in the order in which they ran."""
    step, params = draw.step, draw.params
    every_id = np.arange(step.n_vocab)
    penalized = draw.logits.astype(np.float64)  # [V]
    penalized[step.penalties.ids] = step.penalties.after
    penalty = Stage("penalty", every_id, penalized, True)
    ran = {stage.name: stage.candidates for stage in step.stages}
    if "argmax" in ran:
        chosen = ran["argmax"]
        return penalty, Stage("argmax", chosen.ids, chosen.probabilities, False)
    if step.profile == "llama.cpp":
        likely, nucleus, last = ran["top_k"], ran["top_p"], ran["softmax"]
        warmed = apply_temperature(penalized[nucleus.ids], params.temperature)  # [C]
        return (
            penalty,
            Stage("top_k", likely.ids, penalized[likely.ids], True),
            Stage("softmax", likely.ids, likely.probabilities, False),
            Stage("top_p", nucleus.ids, nucleus.probabilities, False),
            Stage("temperature", nucleus.ids, warmed, True),
            Stage("softmax", last.ids, last.probabilities, False),
        )
    temperature = apply_temperature(penalized, params.temperature)  # [V]
    return (
        penalty,
        Stage("temperature", every_id, temperature, True),
        *(
            Stage(name, ran[name].ids, ran[name].probabilities, False)
            for name in ("softmax", "top_k", "top_p")
        ),
    )


def explained(draw: Draw, tokenizer: Tokenizer, *, n_candidates: int) -> JSON:
    """Return a draw as JSON: its stages, and its candidates with the reason why each lost.

    Args:
        draw: The draw.
        tokenizer: The model's, for the candidates' texts.
        n_candidates: How many candidates are listed, the most probable first; the token that was
            drawn is listed besides, and so are tokens that only the penalty moved out of the list.

    Returns:
        The object `step` of refllm/inspect/document.schema.json.
    """
    step, params = draw.step, draw.params
    stages = stages_of(draw)
    last = stages[-1]
    cumulative = np.add.accumulate(last.values)  # [C]
    # The order of every later stage: by probability, in llama.cpp's profile by logit.
    ordered = stages[0] if stages[1].name != "temperature" else stages[2]
    in_order = top_k(ordered.values, 0)  # [V]
    by_logit = top_k(draw.logits.astype(np.float64), 0)  # [V]
    rank = np.empty(step.n_vocab, np.int64)  # [V], by logit, the largest 1
    rank[by_logit] = np.arange(1, step.n_vocab + 1)
    listed = {*in_order[:n_candidates].tolist(), step.token}
    listed |= {*by_logit[:n_candidates].tolist()} & {*step.penalties.ids.tolist()}
    indices = np.full((len(stages), step.n_vocab), -1)  # of each token in each stage, or -1
    for row, stage in zip(indices, stages, strict=True):
        row[stage.ids] = np.arange(len(stage.ids))
    candidates = []
    for place in np.flatnonzero(np.isin(in_order, list(listed))).tolist():
        token_id = int(in_order[place])
        values = [
            float(stage.values[at]) if at >= 0 else None
            for stage, at in zip(stages, indices[:, token_id].tolist(), strict=True)
        ]
        at = int(indices[-1, token_id])
        interval = None
        if at >= 0:
            interval = (float(cumulative[at - 1]) if at else 0.0, float(cumulative[at]))
        removed_by = next(
            (s.name for s, value in zip(stages, values, strict=True) if value is None), None
        )
        candidates.append(
            {
                "token": token_id,
                "piece": tokenizer.piece(token_id),
                "text": token_text(tokenizer, token_id),
                "place": place + 1,
                "rank": int(rank[token_id]),
                "logit": float(draw.logits[token_id]),
                "values": values,
                "removed_by": removed_by or (None if token_id == step.token else "draw"),
                "interval": interval,
                "why": _why(draw, stages, token_id, place, removed_by, interval),
            }
        )
    return {
        "step": step.step,
        "token": step.token,
        "piece": tokenizer.piece(step.token),
        "text": token_text(tokenizer, step.token),
        "profile": step.profile,
        "seed": str(draw.seed),
        "params": {
            "repeat_penalty": params.repeat_penalty,
            "repeat_penalty_last_n_token_count": params.repeat_penalty_last_n_token_count,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
        },
        "u": step.u,
        "total": float(cumulative[-1]),
        "threshold": step.u * float(cumulative[-1]),
        "n_vocab": step.n_vocab,
        "n_penalized": len(step.penalties.ids),
        "stages": [
            {
                "name": stage.name,
                "is_logits": stage.is_logits,
                "n_left": len(stage.ids),
                "n_removed": (step.n_vocab if i == 0 else len(stages[i - 1].ids)) - len(stage.ids),
                "sum": None if stage.is_logits else float(np.add.accumulate(stage.values)[-1]),
            }
            for i, stage in enumerate(stages)
        ],
        "candidates": candidates,
    }


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return what the token writes inside a text; a byte that is no character is U+FFFD."""
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _why(
    draw: Draw,
    stages: Sequence[Stage],
    token_id: int,
    place: int,
    removed_by: str | None,
    interval: tuple[float, float] | None,
) -> str:
    """Return in words why a candidate, at its place from 0 in the order, was drawn or lost."""
    if removed_by == "argmax":
        return "not the largest logit"
    if removed_by == "top_k":
        return f"top-k: number {place + 1}, it keeps {draw.params.top_k}"
    if removed_by == "top_p":
        before = stages[[stage.name for stage in stages].index("top_p") - 1].values  # [C]
        total = float(np.add.accumulate(before[:place])[-1])
        before_it = "the one before it has" if place == 1 else f"the {place} before it have"
        return f"top-p: {before_it} {total:.4f}"
    if interval is None or stages[-1].name == "argmax":
        return "the largest logit"
    low, high = interval
    threshold = draw.step.u * float(np.add.accumulate(stages[-1].values)[-1])
    if token_id == draw.step.token:
        return f"u·Σ = {threshold:.4f} is in its part, {low:.4f} … {high:.4f}"
    return f"u·Σ = {threshold:.4f} is outside its part, {low:.4f} … {high:.4f}"
